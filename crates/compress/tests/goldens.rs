//! GPTQ, SparseGPT and Wanda give what the papers' algorithms give in PyTorch (`scripts/goldens_compress.py`).

use loam_compress::{GptqSettings, Sparsity, Statistics, gptq, magnitude_mask, sparsegpt, wanda_mask};
use loam_kernels::quant::{dequantise_rows, quantise_rows};
use loam_tensor::GgmlType;
use loam_testkit::{Golden, assert_close, workspace_root};

const ROWS: usize = 24;
const WIDTH: usize = 96;
const PAIRS: Sparsity = Sparsity::Pattern { zeros: 2, of: 4 };
const HALF: Sparsity = Sparsity::Share(0.5);

fn golden() -> (Golden, Statistics) {
    let golden = Golden::read(&workspace_root().join("crates/compress/tests/goldens/compress.safetensors"));
    let mut inputs = Statistics::new(WIDTH, true);
    inputs.add(&golden.floats("x").values);
    (golden, inputs)
}

/// Squared difference of the outputs of two weights.
fn cost(inputs: &Statistics, a: &[f32], b: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.chunks_exact(WIDTH).zip(b.chunks_exact(WIDTH)) {
        let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect();
        sum += (0..WIDTH * WIDTH).map(|at| inputs.gram[at] * d[at / WIDTH] * d[at % WIDTH]).sum::<f64>();
    }
    sum
}

#[test]
fn gptq_is_that_of_the_paper_and_better_than_rounding_to_the_nearest() {
    let (golden, inputs) = golden();
    let w = &golden.floats("w").values;
    let bytes = gptq(w, ROWS, &inputs, GgmlType::Q4_0, GptqSettings::default()).expect("a positive Hessian");
    let mut own = vec![0.0; w.len()];
    dequantise_rows(GgmlType::Q4_0, &bytes, &mut own);
    assert_close("gptq", &own, &golden.floats("gptq_q4_0").values, 1e-6);
    for ty in [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q5_0, GgmlType::Iq4Nl, GgmlType::Q8_0] {
        let (mut rounded, mut fitted) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        let mut bytes = vec![0; ty.bytes(w.len()).expect("whole blocks")];
        quantise_rows(ty, w, WIDTH, None, &mut bytes);
        dequantise_rows(ty, &bytes, &mut rounded);
        let bytes = gptq(w, ROWS, &inputs, ty, GptqSettings::default()).expect("a positive Hessian");
        dequantise_rows(ty, &bytes, &mut fitted);
        let (before, after) = (cost(&inputs, w, &rounded), cost(&inputs, w, &fitted));
        assert!(after < 0.9 * before, "{}: {before} -> {after}", ty.name());
    }
}

#[test]
fn sparsegpt_is_that_of_the_paper_and_better_than_wanda_and_that_than_magnitude() {
    let (golden, inputs) = golden();
    let w = &golden.floats("w").values;
    let mut costs = Vec::new();
    for (name, sparsity) in [("sparsegpt_half", HALF), ("sparsegpt_2_4", PAIRS)] {
        let mut own = w.clone();
        assert!(sparsegpt(&mut own, &inputs, sparsity, 0.01).expect("whole groups"));
        assert_close(name, &own, &golden.floats(name).values, 2e-5);
        costs.push(cost(&inputs, w, &own));
    }
    let pruned =
        |mask: &[bool]| -> Vec<f32> { w.iter().zip(mask).map(|(&w, &gone)| if gone { 0.0 } else { w }).collect() };
    let wanda = cost(&inputs, w, &pruned(&wanda_mask(w, &inputs.importance(), HALF).expect("a share")));
    let magnitude = cost(&inputs, w, &pruned(&magnitude_mask(w, WIDTH, HALF).expect("a share")));
    assert!(costs[0] < wanda && wanda < magnitude, "{costs:?} {wanda} {magnitude}");
}

#[test]
fn masks_are_those_of_the_formulas() {
    let (golden, inputs) = golden();
    let w = &golden.floats("w").values;
    let importance = inputs.importance();
    for (name, mask) in [
        ("wanda_half", wanda_mask(w, &importance, HALF)),
        ("wanda_2_4", wanda_mask(w, &importance, PAIRS)),
        ("magnitude_half", magnitude_mask(w, WIDTH, HALF)),
    ] {
        let mask: Vec<f32> = mask.expect("whole groups").into_iter().map(|gone| f32::from(u8::from(gone))).collect();
        assert_eq!(mask, golden.floats(name).values, "{name}");
    }
}

#[test]
fn a_hessian_of_zeros_is_no_reason_to_fail() {
    let inputs = Statistics::new(WIDTH, true);
    let w = vec![0.5; WIDTH];
    let bytes = gptq(&w, 1, &inputs, GgmlType::Q4_0, GptqSettings::default()).expect("a damped Hessian");
    let mut own = vec![1.0; WIDTH];
    dequantise_rows(GgmlType::Q4_0, &bytes, &mut own);
    assert!(own.iter().all(|&x| x == 0.0), "what is never read holds zeros");
}
