//! Weights in NF4 in the files of a Hugging Face directory, as bitsandbytes lays them out.
//!
//! A tensor `NAME` `[out, in]` is U8 `[out * in / 2, 1]`, two codes in a byte. Beside it are `NAME.absmax`, the size of each
//! block of 64: f32, or U8 codes of double quantisation, whose scales (one per 256), f32, are `NAME.nested_absmax` and whose
//! 256 numbers are `NAME.nested_quant_map`. `NAME.quant_map` is the sixteen numbers of NF4, and
//! `NAME.quant_state.bitsandbytes__nf4` is JSON in bytes.

use std::sync::Arc;

use loam_formats::{Dtype, TensorOut, Weights};
use loam_kernels::quant::{NF4_BLOCK, NF4_NESTED_BLOCK, NF4_VALUES};
use loam_tensor::{Nf4, Nf4Scales};
use serde_json::{Value, json};

use crate::error::Error;

/// `.quant_state` of the types that bitsandbytes has.
const STATE: &str = ".quant_state.bitsandbytes__nf4";
const OTHER_STATE: &str = ".quant_state.bitsandbytes__fp4";
/// What lies beside a tensor.
const SUFFIXES: [&str; 5] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE];

/// The key of `config.json` that says how weights were quantised.
pub(crate) const CONFIG: &str = "quantization_config";

/// The tensor that a name with one of the suffixes lies beside.
pub(crate) fn beside(name: &str) -> Option<&str> {
    SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix))
}

/// Bytes of the codes and scales of a tensor in NF4.
pub(crate) fn bytes(weights: &Weights, name: &str) -> usize {
    let scales = [".absmax", ".nested_absmax", ".nested_quant_map"].map(|end| format!("{name}{end}"));
    let all = std::iter::once(name).chain(scales.iter().map(String::as_str));
    let stored: usize = all.filter_map(|name| weights.get(name).ok()).map(|view| view.bytes.len()).sum();
    // The mean of scales that are quantised themselves is in the tensor's state.
    stored + if weights.contains(&scales[1]) { size_of::<f32>() } else { 0 }
}

fn refused(weights: &Weights, name: &str, problem: impl std::fmt::Display) -> Error {
    let path = weights.file_of(name).unwrap_or("weights".as_ref()).to_path_buf();
    loam_formats::Error::Inconsistent { path, reason: format!("tensor '{name}' in NF4: {problem}") }.into()
}

/// The JSON beside a tensor; `None` where it is no tensor in NF4.
fn state(weights: &Weights, name: &str) -> Result<Option<Value>, Error> {
    if weights.contains(&format!("{name}{OTHER_STATE}")) {
        return Err(refused(weights, name, "this is FP4, which is not supported"));
    }
    let place = format!("{name}{STATE}");
    if !weights.contains(&place) {
        return Ok(None);
    }
    let state: Value = serde_json::from_slice(&weights.get(&place)?.bytes)
        .map_err(|e| refused(weights, name, format!("its quant_state is no JSON: {e}")))?;
    let nested = &state["nested_blocksize"];
    let is_usual = state["quant_type"] == "nf4"
        && state["blocksize"] == NF4_BLOCK
        && (nested.is_null() || *nested == NF4_NESTED_BLOCK);
    match is_usual {
        true => Ok(Some(state)),
        false => Err(refused(weights, name, format!("blocks other than {NF4_BLOCK} are not supported: {state}"))),
    }
}

/// The shape of a tensor in NF4, if it is one.
pub(crate) fn shape(weights: &Weights, name: &str) -> Result<Option<Vec<usize>>, Error> {
    let Some(state) = state(weights, name)? else { return Ok(None) };
    let shape: Option<Vec<usize>> =
        state["shape"].as_array().and_then(|sizes| sizes.iter().map(|size| size.as_u64()?.try_into().ok()).collect());
    let shape = shape.ok_or_else(|| refused(weights, name, "its quant_state has no shape"))?;
    let count = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
    let bytes = weights.get(name)?.bytes.len();
    match count.map(|count| count.div_ceil(2)) == Some(bytes) {
        true => Ok(Some(shape)),
        false => Err(refused(weights, name, format!("{bytes} bytes are not those of shape {shape:?}"))),
    }
}

/// A tensor in NF4, if it is one.
pub(crate) fn read(weights: &Weights, name: &str) -> Result<Option<Nf4>, Error> {
    let (Some(state), Some(shape)) = (state(weights, name)?, shape(weights, name)?) else { return Ok(None) };
    let count = shape.iter().product();
    let part = |suffix: &str| weights.get(&format!("{name}{suffix}"));
    if part(".quant_map")?.to_f32()? != NF4_VALUES {
        return Err(refused(weights, name, "its quant_map is not that of NF4"));
    }
    let absmax = part(".absmax")?;
    let scales = if absmax.dtype == Dtype::U8 {
        let values = part(".nested_quant_map")?.to_f32()?.try_into();
        let values: Box<[f32; 256]> =
            values.map_err(|_| refused(weights, name, "nested_quant_map has not 256 numbers"))?;
        let offset = state["nested_offset"].as_f64();
        let offset = offset.ok_or_else(|| refused(weights, name, "its quant_state has no nested_offset"))? as f32;
        Nf4Scales::Nested { codes: absmax.bytes.to_vec(), values, absmax: part(".nested_absmax")?.to_f32()?, offset }
    } else {
        Nf4Scales::Plain(absmax.to_f32()?)
    };
    let codes = weights.get(name)?.bytes.to_vec();
    let problem = || refused(weights, name, format!("codes or absmax are not those of shape {shape:?}"));
    Nf4::new(count, codes, scales).map(Some).ok_or_else(problem)
}

/// The tensors of a weight `[out, in]` in NF4 whose numbers are `dtype` once they are decoded.
pub(crate) fn tensors<'a>(name: &str, weights: &Nf4, shape: &[usize], dtype: Dtype) -> Vec<TensorOut<'a>> {
    let tensor = |suffix: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>| {
        let bytes = Arc::new(bytes);
        TensorOut::lazy(format!("{name}{suffix}"), dtype, shape, move || bytes.as_ref().clone().into())
    };
    let floats = |suffix: &str, values: &[f32]| {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor(suffix, Dtype::F32, &[values.len()], bytes)
    };
    let mut state = json!({
        "quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": torch_name(dtype), "shape": shape,
    });
    let mut out = vec![tensor("", Dtype::U8, &[weights.codes().len(), 1], weights.codes().to_vec())];
    match weights.scales() {
        Nf4Scales::Plain(sizes) => out.push(floats(".absmax", sizes)),
        Nf4Scales::Nested { codes, values, absmax, offset } => {
            out.push(tensor(".absmax", Dtype::U8, &[codes.len()], codes.clone()));
            out.push(floats(".nested_absmax", absmax));
            out.push(floats(".nested_quant_map", values.as_slice()));
            state["nested_blocksize"] = json!(NF4_NESTED_BLOCK);
            state["nested_dtype"] = json!("float32");
            state["nested_offset"] = json!(f64::from(*offset));
        }
    }
    out.push(floats(".quant_map", &NF4_VALUES));
    let state = state.to_string().into_bytes();
    out.push(tensor(STATE, Dtype::U8, &[state.len()], state));
    out
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
        _ => "float32",
    }
}

/// `quantization_config` of `config.json` for such weights.
pub(crate) fn config(is_nested: bool, dtype: Dtype) -> Value {
    json!({
        "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "_load_in_4bit": true,
        "_load_in_8bit": false, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": is_nested,
        "bnb_4bit_compute_dtype": torch_name(dtype), "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": false, "llm_int8_has_fp16_weight": false, "llm_int8_skip_modules": null,
        "llm_int8_threshold": 6.0,
    })
}
