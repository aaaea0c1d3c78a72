//! Weights that stay where they lie in a file, and what those of a file take.

use loam_formats::{Dtype, HfDir, Weights};
use loam_kernels::quant::can_feed_forward;
use loam_tensor::{DType, GgmlType, Parameter, Precision, SharedBytes, precision};

use crate::bitsandbytes;
use crate::error::Error;
use crate::inference::WeightMemory;
use crate::model::LanguageModel;
use crate::quantise::{Plan, can_be_typed, kept_type};
use crate::spec::Spec;
use crate::weight_map::Entry;

/// Whether products read an entry where it lies in the file.
pub(crate) fn is_in_place(spec: &Spec, entry: &Entry, ty: GgmlType) -> bool {
    ty != GgmlType::F32 && entry.feeds.iter().all(|name| can_be_typed(spec, name))
}

/// Whether products read a parameter: a token table that is no head is only looked up.
fn is_multiplied(spec: &Spec, name: &str) -> bool {
    can_be_typed(spec, name) && (spec.tie_word_embeddings || !name.ends_with("embed_tokens.weight"))
}

/// What an entry of this type takes, in the file's map and beside it.
pub(crate) fn entry_memory(spec: &Spec, entry: &Entry, ty: GgmlType) -> WeightMemory {
    let count: usize = entry.file_shape().iter().product();
    let mapped = DType::Ggml(ty).bytes(count);
    let is_inside = |name: &String| {
        ["gate_proj.weight", "up_proj.weight", "down_proj.weight"].iter().any(|end| name.ends_with(end))
    };
    let is_one = can_feed_forward([kept_type(ty); 3]) && precision() == Precision::F32;
    let is_wide = entry.feeds.iter().any(is_inside) && !is_one;
    if is_in_place(spec, entry, ty) && (kept_type(ty) != ty || entry.is_all_moved()) {
        // The file's pages are given back, one tensor after the other.
        return WeightMemory { mapped: 0, copied: mapped, opening: mapped, is_wide };
    }
    let copied = match (is_in_place(spec, entry, ty), entry.is_in_order()) {
        (true, true) => 0,
        (true, false) => mapped,
        (false, _) => 4 * count,
    };
    // Products of bf16 keep a rounded copy of f32.
    let is_rounded = ty == GgmlType::F32 && precision() == Precision::Bf16;
    let is_product = entry.feeds.iter().all(|name| is_multiplied(spec, name));
    let copied = copied + if is_rounded && is_product { 2 * count } else { 0 };
    WeightMemory { mapped, copied, opening: 0, is_wide }
}

/// Whether some gate and up are of different types: these do not meet while they are computed.
pub(crate) fn is_mixed(types: &Plan) -> bool {
    types.iter().any(|(name, ty)| {
        name.strip_suffix("gate_proj.weight").is_some_and(|of| types.get(&format!("{of}up_proj.weight")) != Some(ty))
    })
}

/// Numbers of two bytes in a safetensors file.
pub(crate) struct Halves {
    pub(crate) ty: GgmlType,
    pub(crate) bytes: SharedBytes,
    /// Where they begin.
    pub(crate) start: usize,
}

impl Halves {
    /// Those of a tensor that products can read where it lies.
    pub(crate) fn of(spec: &Spec, weights: &Weights, entry: &Entry, name: &str) -> Option<Self> {
        let (bytes, start) = weights.shared_bytes(name)?;
        let ty = half_type(spec, entry, weights.get(name).ok()?.dtype)?;
        let is_aligned = bytes.as_ref().as_ref()[start..].as_ptr().addr().is_multiple_of(size_of::<u16>());
        is_aligned.then_some(Self { ty, bytes, start })
    }
}

/// The type of a tensor of halves that products can read where it lies.
fn half_type(spec: &Spec, entry: &Entry, dtype: Dtype) -> Option<GgmlType> {
    let ty = match dtype {
        Dtype::BF16 => GgmlType::Bf16,
        Dtype::F16 => GgmlType::F16,
        _ => return None,
    };
    (entry.has_whole_rows() && is_in_place(spec, entry, ty)).then_some(ty)
}

impl LanguageModel {
    /// What the weights take as they are while none is trained: those in f32 that products of bf16 read have a rounded copy.
    pub fn frozen_bytes(&self, precision: Precision) -> usize {
        let is_rounded = |name: &str, parameter: &Parameter| {
            precision == Precision::Bf16 && parameter.dtype() == DType::F32 && is_multiplied(self.spec(), name)
        };
        let copies = self.parameters().into_iter().filter(|(name, parameter)| is_rounded(name, parameter));
        self.weight_bytes() + copies.map(|(_, parameter)| 2 * parameter.count()).sum::<usize>()
    }

    /// What a directory takes in the process that opens it by [`LanguageModel::open_to_run`], and the element type of every
    /// weight that is not f32. Refuses a directory that does not hold this model, as opening it would. Reads headers alone.
    pub fn stored_in_dir(&self, dir: &HfDir) -> Result<(WeightMemory, Plan), Error> {
        let (weights, entries) = (dir.weights()?, self.entries());
        let names = self.names_in(&weights, &entries, dir.path())?;
        let is_torch = names.iter().any(|name| weights.shared_bytes(name).is_none());
        let kind = |entry: &Entry, name: &String| -> Result<_, Error> {
            if bitsandbytes::shape(&weights, name)?.is_some() {
                return Ok((entry.is_one_matrix().then_some(DType::Nf4), bitsandbytes::bytes(&weights, name)));
            }
            let halves = Halves::of(self.spec(), &weights, entry, name).map(|halves| DType::Ggml(halves.ty));
            Ok((halves, if is_torch { 0 } else { weights.get(name)?.bytes.len() }))
        };
        let kinds: Vec<_> =
            entries.iter().zip(&names).map(|(entry, name)| kind(entry, name)).collect::<Result<_, Error>>()?;
        let (mut memory, types) = self.held_as(&entries, &kinds);
        if is_torch {
            // Its pages stay until all of it is read.
            memory.opening += weights.total_bytes() as usize;
        }
        Ok((memory, types))
    }

    /// The same of a directory that has no weights yet, in the type that `config.json` states.
    pub fn stored_by_config(&self) -> Result<(WeightMemory, Plan), Error> {
        let (dtype, entries) = (self.file_dtype()?, self.entries());
        let kind = |entry: &Entry| {
            let bytes = entry.file_shape().iter().product::<usize>() * dtype.size();
            (half_type(self.spec(), entry, dtype).map(DType::Ggml), bytes)
        };
        let kinds: Vec<_> = entries.iter().map(kind).collect();
        Ok(self.held_as(&entries, &kinds))
    }

    /// What entries take, of each the type that it keeps, if it does not become f32, and its bytes in the file.
    fn held_as(&self, entries: &[Entry], kinds: &[(Option<DType>, usize)]) -> (WeightMemory, Plan) {
        let (mut parts, mut types) = (Vec::new(), Plan::new());
        for (entry, &(ty, bytes)) in entries.iter().zip(kinds) {
            let count: usize = entry.file_shape().iter().product();
            let plain = WeightMemory { mapped: 0, ..entry_memory(self.spec(), entry, GgmlType::F32) };
            parts.push(match ty {
                Some(DType::Ggml(ty)) => entry_memory(self.spec(), entry, ty),
                Some(_) => WeightMemory { copied: bytes, opening: bytes, ..plain },
                // While it is converted there are the file's pages and the numbers as the file has them, and again as they
                // are laid out here where that is another way.
                None => {
                    let layouts = if entry.is_in_order() && entry.parameters.len() == 1 { 1 } else { 2 };
                    WeightMemory { opening: bytes + 4 * layouts * count, ..plain }
                }
            });
            let kept = ty.map(|ty| if let DType::Ggml(ty) = ty { DType::Ggml(kept_type(ty)) } else { ty });
            types.extend(kept.into_iter().flat_map(|ty| entry.feeds.iter().map(move |name| (name.clone(), ty))));
        }
        let mut memory = WeightMemory::sum(parts);
        memory.is_wide |= is_mixed(&types);
        (memory, types)
    }
}
