//! Every loss against PyTorch and against finite differences.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use loam_tensor::gradcheck::gradient_error;
use loam_tensor::{CrossEntropyTerms, HeadSettings, Parameter, Raw, Tensor};
use loam_testkit::{Array, Operation, assert_close_relative};
use loam_train::losses::{self, Reduction};

/// Of the largest value: a few roundings of 6e-8 each.
const TOLERANCE: f32 = 1e-6;

fn parameter(array: &Array<f32>) -> Parameter {
    Parameter::new(Raw::from_f32(&array.values, &array.shape[..]))
}

/// The golden operation on its inputs, in the order of the names.
fn compute(golden: &Operation, inputs: &dyn Fn(&str) -> Tensor) -> Tensor {
    let setting = |name: &str| golden.parameters[name] as f32;
    let targets = || golden.indices["targets"].values.iter().map(|&id| id as i32).collect::<Vec<_>>();
    let terms = || CrossEntropyTerms { label_smoothing: setting("label_smoothing"), z_loss: setting("z_loss") };
    let reduction = || if setting("mean") == 1.0 { Reduction::BatchMean } else { Reduction::Sum };
    match golden.operation.as_str() {
        "mse" => losses::mse(&inputs("x"), &inputs("target")),
        "mae" => losses::mae(&inputs("x"), &inputs("target")),
        "huber" => losses::huber(&inputs("x"), &inputs("target"), setting("delta")),
        "bce_with_logits" => losses::bce_with_logits(&inputs("logits"), &inputs("target")),
        "kl_div" if setting("log") == 1.0 => losses::kl_div_log_target(&inputs("x"), &inputs("target"), reduction()),
        "kl_div" => losses::kl_div(&inputs("x"), &inputs("target"), reduction()),
        "hinge" => losses::hinge(&inputs("x"), &inputs("target")),
        "info_nce" if setting("symmetric") == 1.0 => {
            losses::info_nce_symmetric(&inputs("a"), &inputs("b"), setting("temperature"))
        }
        "info_nce" => losses::info_nce(&inputs("a"), &inputs("b"), setting("temperature")),
        "contrastive" => losses::contrastive(&inputs("a"), &inputs("b"), &inputs("similar"), setting("margin")),
        "cross_entropy" => losses::cross_entropy(&inputs("logits"), &targets(), terms()),
        "linear_cross_entropy" => {
            let targets = targets();
            let scale = 1.0 / targets.iter().filter(|&&target| target != -100).count() as f32;
            let settings = HeadSettings { softcap: None, terms: terms() };
            inputs("hidden").linear_cross_entropy(&inputs("matrix"), Some(&inputs("bias")), &targets, scale, settings)
        }
        other => panic!("no such loss: {other}"),
    }
}

/// Largest difference relative to the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    found.iter().zip(expected).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs() / largest))
}

#[test]
fn every_loss_and_its_gradients_equal_pytorch() {
    let goldens = loam_testkit::losses();
    assert!(goldens.len() >= 20);
    for golden in goldens {
        let names: Vec<&String> = golden.inputs.keys().collect();
        let parameters: Vec<Parameter> = golden.inputs.values().map(parameter).collect();
        let tensor = |name: &str| Tensor::parameter(&parameters[names.iter().position(|n| *n == name).unwrap()]);
        let loss = compute(&golden, &tensor);
        assert_close_relative(&golden.case, &[loss.item()], &golden.output.values, TOLERANCE);
        let mut worst = difference(&[loss.item()], &golden.output.values);
        loss.backward();
        for (name, parameter) in names.iter().zip(&parameters) {
            let found = parameter.grad().unwrap().f32().to_vec();
            let expected = &golden.gradients[*name].values;
            assert_close_relative(&format!("{} gradient of {name}", golden.case), &found, expected, TOLERANCE);
            worst = worst.max(difference(&found, expected));
        }
        // Shown by `--nocapture`.
        eprintln!("{:24} {worst:.1e}", golden.case);
    }
}

#[test]
fn every_loss_has_the_gradient_that_finite_differences_find() {
    for golden in loam_testkit::losses() {
        let names: Vec<&String> = golden.inputs.keys().collect();
        let parameters: Vec<Parameter> = golden.inputs.values().map(parameter).collect();
        let error = gradient_error(&parameters, |x| {
            compute(&golden, &|name| x[names.iter().position(|n| *n == name).unwrap()].clone())
        });
        // Kinks (a margin, an absolute value) within a step of an input and roundings of sums leave this much.
        assert!(error < 2e-2, "{}: {error:.1e}", golden.case);
    }
}

#[test]
fn classes_of_probability_zero_add_nothing_to_a_divergence() {
    let log_probs = Tensor::from_slice(&[0.5_f32.ln(), 0.25_f32.ln(), 0.25_f32.ln()], [1, 3]);
    let target = parameter(&Array { shape: vec![1, 3], values: vec![1.0, 0.0, 0.0] });
    let loss = losses::kl_div(&log_probs, &Tensor::parameter(&target), Reduction::Sum);
    assert!((loss.item() - 2f32.ln()).abs() < 1e-6);
    loss.backward();
    assert!(target.grad().unwrap().f32().iter().all(|slope| slope.is_finite()));
}

#[test]
fn large_logits_of_a_binary_class_neither_overflow_nor_cancel() {
    let loss = |logit: f32, target: f32| {
        losses::bce_with_logits(&Tensor::from_slice(&[logit], [1]), &Tensor::from_slice(&[target], [1])).item()
    };
    assert_eq!(loss(1e4, 0.0), 1e4);
    assert_eq!(loss(1e4, 1.0), 0.0);
    assert!((loss(10.0, 1.0) / (-10f32).exp().ln_1p() - 1.0).abs() < 1e-5);
}

#[test]
fn equal_pairs_and_rows_of_zeros_have_finite_gradients() {
    let rows = || parameter(&Array { shape: vec![2, 3], values: vec![0.0, 0.0, 0.0, 1.0, 2.0, 3.0] });
    for similar in [0.0, 1.0] {
        let (a, b) = (rows(), rows());
        let similar = Tensor::full([2], similar);
        let loss = losses::contrastive(&Tensor::parameter(&a), &Tensor::parameter(&b), &similar, 1.0);
        loss.with_auxiliary(&losses::info_nce_symmetric(&Tensor::parameter(&a), &Tensor::parameter(&b), 0.1))
            .backward();
        assert!([a, b].iter().all(|p| p.grad().unwrap().f32().iter().all(|slope| slope.is_finite())));
    }
}

#[test]
fn rows_without_a_class_leave_a_loss_of_zero() {
    let logits = parameter(&Array { shape: vec![2, 3], values: vec![1.0; 6] });
    let terms = CrossEntropyTerms { label_smoothing: 0.1, z_loss: 0.1 };
    let loss = losses::cross_entropy(&Tensor::parameter(&logits), &[-100, -100], terms);
    assert_eq!(loss.item(), 0.0);
    loss.backward();
    assert!(logits.grad().unwrap().f32().iter().all(|&slope| slope == 0.0));
}

#[test]
#[should_panic(expected = "mse: both sides have one shape")]
fn sides_of_different_shapes_panic() {
    losses::mse(&Tensor::full([2, 3], 0.0), &Tensor::full([3], 0.0));
}
