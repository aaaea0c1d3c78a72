//! Every loss of alignment against TRL, and its gradients against TRL's and finite differences; hand-computed values of
//! torchtune's tests and of this one.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::ops::Range;

use loam_tensor::gradcheck::gradient_error;
use loam_tensor::{Parameter, Raw, Tensor};
use loam_testkit::{Array, Operation, assert_close, assert_close_relative};
use loam_train::losses::policy::{self, BatchSize, KlEstimator, Normalisation, RewardScale};
use loam_train::losses::preference::{self, DpoSettings, Pairs};

/// Of the largest value: a few roundings of 6e-8 each.
const TOLERANCE: f32 = 1e-6;

fn parameter(array: &Array<f32>) -> Parameter {
    Parameter::new(Raw::from_f32(&array.values, &array.shape[..]))
}

/// The name of a recipe as its value.
fn named<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_value(name.into()).unwrap()
}

fn ranges(lengths: &[i64]) -> Vec<Range<usize>> {
    let mut start = 0;
    let range = |&length: &i64| {
        start += length as usize;
        start - length as usize..start
    };
    lengths.iter().map(range).collect()
}

/// What has no gradient of ours: the advantages.
fn on_values(golden: &Operation) -> Option<Vec<f64>> {
    let input = |name: &str| golden.inputs[name].values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let setting = |name: &str| golden.parameters[name];
    let whitened = |keep_mean: bool| {
        let mut values = input("rewards");
        policy::whiten(&mut values, keep_mean);
        values
    };
    Some(match golden.operation.as_str() {
        "advantages/leave_one_out" => policy::leave_one_out(&input("rewards"), 4),
        "advantages/whiten" => whitened(false),
        "advantages/whiten_keep" => whitened(true),
        "gae" => policy::gae(&input("rewards"), &input("values"), setting("gamma"), setting("lam")).0,
        other => {
            let scale: RewardScale = named(other.strip_prefix("advantages/")?);
            policy::group_advantages(&input("rewards"), 4, scale)
        }
    })
}

/// The golden operation on its inputs, in the order of the names.
fn compute(golden: &Operation, input: &dyn Fn(&str) -> Tensor) -> Tensor {
    let setting = |name: &str| golden.parameters[name] as f32;
    // Stored among the integers where they are whole, else beside them.
    let fixed = |name: &str| {
        let array = &golden.indices[name];
        Tensor::from_slice(&array.values.iter().map(|&x| x as f32).collect::<Vec<_>>(), &array.shape[..])
    };
    let mut parts = golden.operation.split('/');
    let (name, kind, more) = (parts.next().unwrap(), parts.next(), parts.next());
    match (name, kind) {
        ("dpo", Some(kind)) => {
            let settings = DpoSettings {
                beta: setting("beta"),
                label_smoothing: setting("label_smoothing"),
                divergence: named(more.unwrap()),
                alpha: setting("alpha"),
                ..DpoSettings::default()
            };
            let pairs = Pairs {
                chosen: input("chosen"),
                rejected: input("rejected"),
                ref_chosen: input("ref_chosen"),
                ref_rejected: input("ref_rejected"),
                chosen_len: fixed("chosen_len"),
                rejected_len: fixed("rejected_len"),
            };
            preference::dpo(named(kind), &pairs, &settings).mean()
        }
        ("kto", _) => {
            let signs = [1.0, -1.0, 1.0, 1.0];
            let weights = signs.map(|sign| setting(if sign > 0.0 { "desirable" } else { "undesirable" }));
            let kl = (&input("kl_policy") - &input("kl_reference")).mean().item().max(0.0);
            let ratios = &input("policy") - &input("reference");
            let rows = |values: &[f32]| Tensor::from_slice(values, [4]);
            preference::kto(&ratios, &rows(&signs), &rows(&weights), kl, setting("beta")).mean()
        }
        ("orpo", _) => preference::orpo(&input("chosen"), &input("rejected"), setting("beta")).mean(),
        ("simpo", _) => {
            let (beta, gamma, smoothing) = (setting("beta"), setting("gamma"), setting("label_smoothing"));
            preference::simpo(&input("chosen"), &input("rejected"), beta, gamma, smoothing).mean()
        }
        ("cpo", _) => {
            let smoothing = setting("label_smoothing");
            preference::cpo(&input("chosen"), &input("rejected"), setting("beta"), smoothing).mean()
        }
        ("bradley_terry", _) => {
            let (chosen, rejected, margin) = (input("chosen"), input("rejected"), input("margin"));
            preference::bradley_terry(&chosen, &rejected, &margin, setting("centering")).mean()
        }
        ("generalised_jsd", _) => {
            let (student, teacher) = (input("student"), input("teacher"));
            preference::generalised_jsd(&student, &teacher, setting("beta"), setting("temperature")).mean()
        }
        ("kl", Some(kind)) => policy::kl(named(kind), &input("log_probs"), &input("reference")).mean(),
        ("grpo", Some(kind)) => {
            let how: Normalisation = named(kind);
            let answers = ranges(&golden.indices["lengths"].values);
            let log_probs = input("log_probs");
            let (low, high) = (setting("low"), setting("high"));
            let advantages = golden.inputs["advantages"].values.clone();
            let old = golden.inputs["old"].values.clone();
            let spread = |values: &[f32]| -> Vec<f32> {
                answers.iter().zip(values).flat_map(|(range, &value)| vec![value; range.len()]).collect()
            };
            let flat = |values: &[f32]| Tensor::from_slice(values, [values.len()]);
            let mut losses = match how {
                Normalisation::Gspo => {
                    let ratios = policy::segment_means(&(&log_probs - &flat(&old)), &answers);
                    let zeros = flat(&vec![0.0; answers.len()]);
                    let per_answer = policy::clipped_surrogate(&ratios, &zeros, &flat(&advantages), low, high);
                    policy::repeat_segments(&per_answer, &answers)
                }
                _ => policy::clipped_surrogate(&log_probs, &flat(&old), &flat(&spread(&advantages)), low, high),
            };
            if setting("beta") > 0.0 {
                let kl = policy::kl(KlEstimator::K3, &log_probs, &input("reference"));
                losses = &losses + &kl.scale(setting("beta"));
            }
            let whole = BatchSize {
                answers: answers.len(),
                tokens: log_probs.count(),
                max_tokens: golden.parameters["longest"] as usize,
            };
            policy::aggregate(&losses, &answers, how, &whole)
        }
        ("rloo", _) => {
            let answers = ranges(&golden.indices["lengths"].values);
            let flat = |values: &[f32]| Tensor::from_slice(values, [values.len()]);
            let sums = policy::segment_sums(&input("log_probs"), &answers);
            let (old, advantages) =
                (flat(&golden.inputs["old"].values.clone()), flat(&golden.inputs["advantages"].values.clone()));
            policy::clipped_surrogate(&sums, &old, &advantages, setting("low"), setting("high")).mean()
        }
        ("value", _) => {
            let old = golden.inputs["old"].values.clone();
            let old = Tensor::from_slice(&old, [old.len()]);
            policy::clipped_value_loss(&input("values"), &old, &input("returns"), setting("clip")).mean()
        }
        other => panic!("no such loss: {other:?}"),
    }
}

/// Names that the reference differentiates and we do not: what is given.
fn is_given(name: &str) -> bool {
    ["kl_policy", "kl_reference", "old", "advantages"].contains(&name)
}

#[test]
fn every_loss_and_its_gradients_equal_trl() {
    let goldens = loam_testkit::alignment();
    assert!(goldens.len() >= 100, "{}", goldens.len());
    for golden in goldens {
        if let Some(found) = on_values(&golden) {
            let found: Vec<f32> = found.iter().map(|&x| x as f32).collect();
            assert_close_relative(&golden.case, &found, &golden.output.values, TOLERANCE);
            continue;
        }
        let names: Vec<&String> = golden.inputs.keys().collect();
        let parameters: Vec<Parameter> = golden.inputs.values().map(parameter).collect();
        let tensor = |name: &str| Tensor::parameter(&parameters[names.iter().position(|n| *n == name).unwrap()]);
        let loss = compute(&golden, &tensor);
        // Losses that are nearly zero are differences of numbers of about 1.
        assert_close(&golden.case, &[loss.item()], &golden.output.values, TOLERANCE * loss.item().abs().max(1.0));
        loss.backward();
        for (name, parameter) in names.iter().zip(&parameters).filter(|(name, _)| !is_given(name)) {
            let found = parameter.grad().map_or(vec![0.0; parameter.count()], |grad| grad.f32().to_vec());
            let expected = &golden.gradients[*name].values;
            let largest = expected.iter().fold(0.1f32, |most, x| most.max(x.abs()));
            assert_close(&format!("{}: gradient of {name}", golden.case), &found, expected, TOLERANCE * largest);
        }
    }
}

#[test]
fn every_loss_has_the_gradient_that_finite_differences_find() {
    for golden in loam_testkit::alignment() {
        // α-divergence and the exponential part of discopop are steep: the difference quotient itself is off there.
        if on_values(&golden).is_some() || golden.operation.starts_with("dpo/discopop") {
            continue;
        }
        let names: Vec<&String> = golden.inputs.keys().filter(|name| !is_given(name)).collect();
        let parameters: Vec<Parameter> = names.iter().map(|name| parameter(&golden.inputs[*name])).collect();
        let error = gradient_error(&parameters, |x| {
            compute(&golden, &|name| match names.iter().position(|n| *n == name) {
                Some(place) => x[place].clone(),
                None => Tensor::parameter(&parameter(&golden.inputs[name])).detach(),
            })
        });
        assert!(error < 2e-2, "{}: {error:.1e}", golden.case);
    }
}

#[test]
fn the_values_of_torchtunes_tests() {
    let row = |values: [f32; 3]| Tensor::from_slice(&values, [3]);
    let pairs = Pairs {
        chosen: row([-0.5, -10.0, -1.0]),
        rejected: row([-0.1, -30.0, -21.0]),
        ref_chosen: row([-0.5, -10.1, -0.1]),
        ref_rejected: row([-0.1, -20.1, -0.1]),
        chosen_len: row([1.0; 3]),
        rejected_len: row([1.0; 3]),
    };
    let loss = |kind| preference::dpo(kind, &pairs, &DpoSettings::default()).to_vec();
    assert_close("dpo", &loss(preference::DpoLoss::Sigmoid), &[std::f32::consts::LN_2, 0.313_261_7, 0.126_928], 1e-6);
    assert_close("hinge", &loss(preference::DpoLoss::Hinge), &[1.0, 0.0, 0.0], 1e-6);
    let (_, returns) = policy::gae(&[0.0, 0.0, 0.0, 1.0], &[0.0, 0.0, 0.0, 1.0], 0.9, 0.95);
    let returns: Vec<f32> = returns.iter().map(|&x| x as f32).collect();
    // Their rewards are values, too: the last value is what comes, and nothing is left to learn.
    assert_close("returns", &returns, &[0.657_923_06, 0.7695, 0.9, 1.0], 1e-6);
    let one = |x: f32| Tensor::from_slice(&[x], [1]);
    let surrogate = policy::clipped_surrogate(&one(1.0), &one(0.0), &one(1.0), 0.2, 0.2);
    assert_close("ratio e, advantage 1", &surrogate.to_vec(), &[-1.2], 1e-6);
}

#[test]
fn advantages_by_hand() {
    let group = policy::group_advantages(&[1.0, 0.0, 0.0, 1.0], 4, RewardScale::Group);
    // Mean 1/2, standard deviation sqrt(1/3).
    let expected = 0.5 / ((1f64 / 3.0).sqrt() + 1e-4);
    assert!(group.iter().zip([1.0, -1.0, -1.0, 1.0]).all(|(a, sign)| (a - sign * expected).abs() < 1e-12));
    assert_eq!(policy::leave_one_out(&[3.0, 1.0, 2.0], 3), [1.5, -1.5, 0.0]);
    assert_eq!(policy::group_advantages(&[2.0; 4], 4, RewardScale::Group), [0.0; 4]);
    assert_eq!(policy::leave_one_out(&[5.0], 1), [0.0]);
    assert_eq!(policy::std_dev(&[1.0]), 0.0);
}

#[test]
fn parts_of_a_batch_add_up_to_its_loss() {
    let values: Vec<f32> = (0..10).map(|i| (i as f32 * 0.7).sin()).collect();
    let answers = [0..3, 3..4, 4..10];
    let whole = BatchSize { answers: 3, tokens: 10, max_tokens: 8 };
    let loss = |range: Range<usize>, answers: &[Range<usize>], how| {
        policy::aggregate(&Tensor::from_slice(&values[range.clone()], [range.len()]), answers, how, &whole).item()
    };
    for how in [Normalisation::Dapo, Normalisation::Grpo, Normalisation::DrGrpo, Normalisation::Gspo] {
        let parts = loss(0..4, &[0..3, 3..4], how) + loss(4..10, std::slice::from_ref(&(0..6)), how);
        assert!((loss(0..10, &answers, how) - parts).abs() < 1e-6, "{how:?}");
    }
}
