//! Twenty AdamW steps from the same weights on the same batches as PyTorch.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Witness, hooks};
use loam_data::CausalBatch;
use loam_models::LanguageModel;
use loam_tensor::Precision;
use loam_testkit::{Golden, golden_dir};
use loam_train::objective::Tokens;
use loam_train::recipe::ScheduleKind;
use loam_train::{DecayShape, OptimizerSettings, Schedule, Settings, Trainer};

/// Losses and gradient norms of our twenty steps.
fn run(case: &str, golden: &Golden, precision: Precision) -> Vec<(f64, f64)> {
    let model = LanguageModel::open(golden_dir(case)).unwrap();
    let (tokens, targets) = (golden.integers("tokens"), golden.integers("targets"));
    let [steps, rows, time] = tokens.shape[..] else { panic!("tokens of shape {:?}", tokens.shape) };
    let adamw = golden.adamw();
    let settings = Settings {
        lr: adamw.lr,
        schedule: Schedule {
            kind: ScheduleKind::Constant,
            steps: steps as u64,
            warmup_steps: 0,
            decay_steps: 0,
            decay_shape: DecayShape::Linear,
            cycles: 0,
            power: 0.0,
            minimum: 0.0,
        },
        optimizer: OptimizerSettings {
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: adamw.weight_decay,
            ..OptimizerSettings::default()
        },
        clip: adamw.max_grad_norm,
        precision,
        ..common::settings(steps as u64)
    };
    let source = |step: u64| {
        let range = step as usize * rows * time..(step as usize + 1) * rows * time;
        Ok(vec![CausalBatch {
            rows,
            seq_len: time,
            tokens: tokens.values[range.clone()].iter().map(|&t| t as u32).collect(),
            targets: targets.values[range].iter().map(|&t| t as i32).collect(),
            segments: None,
            positions: vec![0; rows * time],
            lengths: vec![time; rows],
        }])
    };
    let mut witness = Witness::default();
    Trainer::new(&model, &mut Tokens, &source, None, settings).run(&mut hooks(&mut witness)).unwrap();
    witness.rows.iter().map(|row| (row.loss, row.grad_norm)).collect()
}

fn assert_follows(case: &str, precision: Precision, losses: &str, tolerance: f64) {
    let golden = Golden::trajectory(case);
    let ours = run(case, &golden, precision);
    let expected = &golden.floats(losses).values;
    assert_eq!(ours.len(), expected.len());
    assert!(ours[19].0 < ours[0].0 - 0.1, "the trajectory goes somewhere");
    for (step, ((loss, _), &theirs)) in ours.iter().zip(expected).enumerate() {
        let difference = (loss - f64::from(theirs)).abs();
        assert!(
            difference < tolerance,
            "{case} {precision} step {step}: {loss}, PyTorch {theirs}: off by {difference:e}"
        );
    }
    if precision == Precision::F32 {
        for ((_, norm), &theirs) in ours.iter().zip(&golden.floats("grad_norms").values) {
            assert!(
                (norm - f64::from(theirs)).abs() < 1e-3 * f64::from(theirs),
                "gradient norm {norm}, PyTorch {theirs}"
            );
        }
    }
}

#[test]
fn gpt2_in_f32_follows_pytorch() {
    assert_follows("gpt2-plain", Precision::F32, "losses", 1e-4);
}

#[test]
fn llama_in_f32_follows_pytorch() {
    assert_follows("llama-gqa", Precision::F32, "losses", 1e-4);
}

#[test]
fn gpt2_in_bf16_follows_pytorch() {
    assert_follows("gpt2-plain", Precision::Bf16, "losses_bf16", 2e-2);
}

#[test]
fn llama_in_bf16_follows_pytorch() {
    assert_follows("llama-gqa", Precision::Bf16, "losses_bf16", 2e-2);
}
