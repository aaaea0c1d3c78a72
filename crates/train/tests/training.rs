//! The loop: it learns, it repeats itself to the bit, and it survives interruptions.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use common::{HeldOut, Witness, batch, bits, hooks, settings, source, tiny_model};
use loam_tensor::CrossEntropyTerms;
use loam_train::objective::Tokens;
use loam_train::recipe::{EarlyStop, OptimizerKind};
use loam_train::{Ending, Error, OptimizerSettings, Row, RunDir, Settings, Trainer, read_rows};

fn held_out() -> HeldOut {
    HeldOut((0..3).map(|i| batch(2, 16, 500 + i)).collect())
}

#[test]
fn one_batch_is_learnt_by_heart() {
    let model = tiny_model(1);
    let mut witness = Witness::default();
    let fixed = |_step: u64| Ok(vec![batch(4, 16, 9)]);
    let settings = Settings { lr: 1e-2, ..settings(80) };
    Trainer::new(&model, &mut Tokens, &fixed, None, settings).run(&mut hooks(&mut witness)).unwrap();
    let losses = witness.losses();
    assert!(losses[0] > 2.9 && losses[79] < 0.05, "{} -> {}", losses[0], losses[79]);
}

/// Every optimizer with a learning rate that suits the tiny model.
const OPTIMIZERS: [(OptimizerKind, f64); 11] = [
    (OptimizerKind::Adamw, 1e-2),
    (OptimizerKind::Adam, 1e-2),
    (OptimizerKind::Sgd, 1.0),
    (OptimizerKind::Momentum, 0.1),
    (OptimizerKind::Nesterov, 0.1),
    (OptimizerKind::Adagrad, 5e-2),
    (OptimizerKind::Rmsprop, 5e-3),
    (OptimizerKind::Adafactor, 0.1),
    (OptimizerKind::Lion, 3e-3),
    (OptimizerKind::Muon, 1e-2),
    (OptimizerKind::Adamw8bit, 1e-2),
];

fn with_optimizer(kind: OptimizerKind, lr: f64, settings: Settings) -> Settings {
    Settings { lr, optimizer: OptimizerSettings { kind, weight_decay: 0.01, ..settings.optimizer }, ..settings }
}

#[test]
fn one_batch_is_learnt_with_every_optimizer() {
    for (kind, lr) in OPTIMIZERS {
        let model = tiny_model(1);
        let mut witness = Witness::default();
        let fixed = |_step: u64| Ok(vec![batch(4, 16, 9)]);
        let settings = with_optimizer(kind, lr, settings(60));
        Trainer::new(&model, &mut Tokens, &fixed, None, settings).run(&mut hooks(&mut witness)).unwrap();
        let losses = witness.losses();
        assert!(losses[59] < 0.5 * losses[0], "{kind:?}: {} -> {}", losses[0], losses[59]);
    }
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes_with_every_optimizer() {
    for (kind, lr) in OPTIMIZERS {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        let settings = || with_optimizer(kind, lr, settings(8));
        run_in(&whole, false, None, settings());
        assert_eq!(run_in(&parts, false, Some(5), settings()).0, Ending::Interrupted);
        run_in(&parts, true, None, settings());
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = |run: &Path| fs::read(run.join("checkpoints/step-000008").join(file)).unwrap();
            assert!(read(&whole) == read(&parts), "{kind:?}: {file} differs");
        }
    }
}

#[test]
fn the_losses_are_the_same_for_one_and_two_threads() {
    let losses = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let model = tiny_model(1);
            let mut witness = Witness::default();
            let settings = Settings { dropout: 0.1, ..settings(12) };
            Trainer::new(&model, &mut Tokens, &source, None, settings).run(&mut hooks(&mut witness)).unwrap();
            (witness.losses().iter().map(|loss| loss.to_bits()).collect::<Vec<_>>(), bits(&model))
        })
    };
    assert_eq!(losses(1), losses(2));
}

#[test]
fn recomputing_activations_changes_no_bit_of_the_run() {
    let run = |recompute: bool| {
        let model = tiny_model(1);
        let mut witness = Witness::default();
        let settings = Settings { dropout: 0.1, recompute, ..settings(8) };
        Trainer::new(&model, &mut Tokens, &source, None, settings).run(&mut hooks(&mut witness)).unwrap();
        (witness.losses().iter().map(|loss| loss.to_bits()).collect::<Vec<_>>(), bits(&model))
    };
    assert_eq!(run(true), run(false));
}

/// Trains in a run directory; stops after `stop_at` and returns how it ended.
fn run_in(dir: &Path, resume: bool, stop_at: Option<u64>, settings: Settings) -> (Ending, Vec<u32>, Witness) {
    let model = tiny_model(1);
    let validation = held_out();
    let run_dir = RunDir::open(dir, resume).unwrap();
    let mut witness = Witness { stop_at, ..Witness::default() };
    let mut objective = Tokens;
    let trainer = Trainer::new(&model, &mut objective, &source, Some(&validation), settings)
        .in_run_dir(&run_dir, resume, &mut witness)
        .unwrap();
    let summary = trainer.run(&mut hooks(&mut witness)).unwrap();
    (summary.ending, bits(&model), witness)
}

fn resumable() -> Settings {
    Settings { eval_every: 5, checkpoint_every: 4, dropout: 0.1, ..settings(20) }
}

/// The columns that do not depend on the clock.
fn timeless(dir: &Path) -> Vec<(u64, u64, u64)> {
    let row = |row: &Row| match row {
        Row::Step(row) => (0, row.step, row.loss.to_bits()),
        Row::Eval(row) => (1, row.step, row.eval_loss.to_bits()),
    };
    read_rows(&dir.join("metrics.jsonl")).unwrap().iter().map(row).collect()
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes_as_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let (ending, weights, _) = run_in(&whole, false, None, resumable());
    assert_eq!(ending, Ending::Finished);
    // Step 10 is a step with an evaluation due, step 13 is between everything.
    assert_eq!(run_in(&parts, false, Some(10), resumable()).0, Ending::Interrupted);
    assert_eq!(run_in(&parts, true, Some(13), resumable()).0, Ending::Interrupted);
    let (ending, resumed, witness) = run_in(&parts, true, None, resumable());
    assert_eq!(ending, Ending::Finished);
    assert_eq!(witness.rows.first().map(|row| row.step), Some(14), "nothing is done twice");
    assert!(weights == resumed, "the weights differ");
    assert_eq!(timeless(&whole), timeless(&parts));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run: &Path| fs::read(run.join("checkpoints/step-000020").join(file)).unwrap();
        assert!(read(&whole) == read(&parts), "{file} differs");
    }
    assert_eq!(fs::read_to_string(parts.join("checkpoints/latest")).unwrap(), "step-000020\n");
    let kept = fs::read_dir(parts.join("checkpoints")).unwrap().count();
    assert_eq!(kept, 3, "two checkpoints and `latest`");
}

#[test]
fn a_killed_run_is_resumed_from_its_checkpoint_and_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let (_, weights, _) = run_in(&whole, false, None, resumable());
    run_in(&killed, false, Some(8), resumable());
    // What a kill leaves: rows after the checkpoint, half a row, half-written files.
    let metrics = killed.join("metrics.jsonl");
    let mut text = fs::read_to_string(&metrics).unwrap();
    text.push_str(&text.lines().last().unwrap().replace("\"step\":8", "\"step\":9"));
    text.push_str("\n{\"step\":10,\"tok");
    fs::write(&metrics, text).unwrap();
    let half = killed.join("checkpoints/step-000012.tmp-999999-0");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("model.safetensors"), b"half").unwrap();
    let (_, resumed, _) = run_in(&killed, true, None, resumable());
    assert!(weights == resumed, "the weights differ");
    assert!(!half.exists());
    assert_eq!(timeless(&whole), timeless(&killed));
}

#[test]
fn a_checkpoint_torn_at_any_file_is_passed_over_for_the_one_before() {
    for file in ["model.safetensors", "optimizer.safetensors", "trainer.json"] {
        for damage in ["cut", "flip", "gone"] {
            let dir = tempfile::tempdir().unwrap();
            run_in(dir.path(), false, Some(8), resumable());
            let path = dir.path().join("checkpoints/step-000008").join(file);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            match damage {
                "cut" => fs::write(&path, &bytes[..middle]).unwrap(),
                "gone" => fs::remove_file(&path).unwrap(),
                _ => {
                    bytes[middle] ^= 0x40;
                    // A flipped bit in the manifest may leave it valid JSON; cut a brace instead.
                    let keep = if file == "trainer.json" { bytes.len() - 3 } else { bytes.len() };
                    fs::write(&path, &bytes[..keep]).unwrap();
                }
            }
            let (_, _, witness) = run_in(dir.path(), true, Some(5), resumable());
            assert_eq!(witness.rows.first().map(|row| row.step), Some(5), "{file} {damage}");
            let told = witness.messages.iter().any(|m| m.starts_with("passing over") && m.contains("step-000008"));
            assert!(told, "{file} {damage}: {:?}", witness.messages);
        }
    }
}

#[test]
fn when_every_checkpoint_is_damaged_the_error_names_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    run_in(dir.path(), false, Some(4), resumable());
    fs::write(dir.path().join("checkpoints/step-000004/trainer.json"), "{}").unwrap();
    let model = tiny_model(1);
    let run_dir = RunDir::open(dir.path(), true).unwrap();
    let mut witness = Witness::default();
    let mut objective = Tokens;
    let result =
        Trainer::new(&model, &mut objective, &source, None, resumable()).in_run_dir(&run_dir, true, &mut witness);
    let error = result.err().expect("there is no whole checkpoint");
    assert!(error.to_string().contains("step-000004/trainer.json"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_directory_that_holds_a_run_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    run_in(dir.path(), false, Some(1), resumable());
    let error = RunDir::open(dir.path(), false).unwrap_err();
    assert!(error.to_string().ends_with("already holds a run"), "{error}");
    assert!(error.hint().unwrap().contains("--resume"));
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_with_its_step_and_a_hint() {
    let model = tiny_model(1);
    let poisoned = |step: u64| {
        if step == 3 {
            let weight = &model.parameters()[0].1;
            weight.set(&vec![f32::NAN; weight.count()]);
        }
        source(step)
    };
    let mut witness = Witness::default();
    let result = Trainer::new(&model, &mut Tokens, &poisoned, None, settings(9)).run(&mut hooks(&mut witness));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 4, what: "loss", .. }), "{error}");
    assert!(error.hint().unwrap().contains("train.lr"));
    assert_eq!(witness.rows.len(), 3);
}

#[test]
fn evaluation_reports_perplexity_and_bits_per_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (_, _, witness) = run_in(dir.path(), false, None, resumable());
    assert_eq!(witness.evaluations.iter().map(|row| row.step).collect::<Vec<_>>(), [5, 10, 15, 20]);
    let row = &witness.evaluations[0];
    assert!((row.eval_perplexity - row.eval_loss.exp()).abs() < 1e-12);
    assert!((row.eval_bits_per_byte.unwrap() - row.eval_loss / 2f64.ln() / 2.0).abs() < 1e-12);
    assert_eq!(row.eval_tokens, 64, "two batches of 2 x 16");
    assert_eq!(witness.evaluations[3].eval_tokens, 96, "the last one takes all");
}

#[test]
fn early_stopping_ends_the_run_and_takes_the_best_weights() {
    let dir = tempfile::tempdir().unwrap();
    // A learning rate that only makes it worse after a while.
    let settings = Settings {
        lr: 0.3,
        early_stop: Some(EarlyStop { patience: 2, min_delta: 0.0 }),
        eval_every: 2,
        checkpoint_every: 0,
        ..settings(60)
    };
    let (ending, weights, witness) = run_in(dir.path(), false, None, settings.clone());
    assert_eq!(ending, Ending::StoppedEarly);
    let periodic = &witness.evaluations[..witness.evaluations.len() - 1];
    let best = periodic.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss)).unwrap().step;
    assert_eq!(periodic.last().unwrap().step, best + 4, "two evaluations without a gain");
    let model = tiny_model(1);
    let run_dir = RunDir::open(dir.path(), true).unwrap();
    run_dir.checkpoints().load(best, &model.parameters(), None).unwrap();
    assert!(bits(&model) == weights);
}

#[test]
fn small_gains_do_not_reset_the_patience_but_the_best_of_them_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    // Every evaluation is better than the one before, none by as much as a nat.
    let early_stop = Some(EarlyStop { patience: 3, min_delta: 1.0 });
    let settings = Settings { lr: 1e-4, early_stop, eval_every: 2, ..settings(60) };
    let (ending, weights, witness) = run_in(dir.path(), false, None, settings.clone());
    assert_eq!(ending, Ending::StoppedEarly);
    let steps: Vec<u64> = witness.evaluations.iter().map(|row| row.step).collect();
    assert_eq!(steps, [2, 4, 6, 8, 8], "the first one has nothing to gain on, three follow, and the one of the end");
    let message = "stopping early at step 8: no gain of more than 1 in 3 evaluations; the best was at step 8";
    assert!(witness.messages.iter().any(|found| found == message), "{:?}", witness.messages);
    // The count goes on where it was.
    let parts = tempfile::tempdir().unwrap();
    assert_eq!(run_in(parts.path(), false, Some(5), settings.clone()).0, Ending::Interrupted);
    let (ending, resumed, witness) = run_in(parts.path(), true, None, settings);
    assert_eq!((ending, witness.rows.last().map(|row| row.step)), (Ending::StoppedEarly, Some(8)));
    assert!(weights == resumed);
}

#[test]
fn a_run_with_a_running_mean_of_the_weights_evaluates_and_leaves_that_mean() {
    let decay = 0.9;
    let with_mean = || Settings { ema_decay: Some(decay), ..resumable() };
    let dir = tempfile::tempdir().unwrap();
    let (plain, whole, parts) = (dir.path().join("plain"), dir.path().join("whole"), dir.path().join("parts"));
    let (_, last, plain_run) = run_in(&plain, false, None, resumable());
    let (_, mean, mean_run) = run_in(&whole, false, None, with_mean());
    assert_eq!(plain_run.losses(), mean_run.losses(), "training itself is the same");
    assert!(last != mean);
    let evaluations = |run: &Witness| run.evaluations.iter().map(|row| row.eval_loss).collect::<Vec<_>>();
    assert!(evaluations(&plain_run).iter().zip(evaluations(&mean_run)).all(|(a, b)| *a != b));

    // The mean of every step's weights, by the definition in f64.
    let mut expected: Vec<f64> = Vec::new();
    for step in 1..=20 {
        let dir = tempfile::tempdir().unwrap();
        run_in(dir.path(), false, Some(step), resumable());
        let model = tiny_model(1);
        RunDir::open(dir.path(), true).unwrap().checkpoints().load(step, &model.parameters(), None).unwrap();
        let values: Vec<f64> = bits(&model).into_iter().map(|bits| f64::from(f32::from_bits(bits))).collect();
        match step {
            1 => expected = values,
            _ => expected.iter_mut().zip(values).for_each(|(mean, x)| *mean += (1.0 - decay) * (x - *mean)),
        }
    }
    for (found, expected) in mean.iter().zip(expected) {
        let found = f64::from(f32::from_bits(*found));
        assert!((found - expected).abs() <= 1e-6 * expected.abs().max(0.1), "{found} {expected}");
    }

    assert_eq!(run_in(&parts, false, Some(10), with_mean()).0, Ending::Interrupted);
    let (_, resumed, _) = run_in(&parts, true, None, with_mean());
    assert!(mean == resumed, "the means differ");
    assert_eq!(timeless(&whole), timeless(&parts));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run: &Path| fs::read(run.join("checkpoints/step-000020").join(file)).unwrap();
        assert!(read(&whole) == read(&parts), "{file} differs");
    }
    let weights = |run: &Path| fs::read(run.join("checkpoints/step-000020/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&plain), "a checkpoint has the weights, the mean besides");
}

#[test]
fn a_stop_takes_the_running_mean_of_the_best_step() {
    let dir = tempfile::tempdir().unwrap();
    let early_stop = Some(EarlyStop { patience: 2, min_delta: 0.0 });
    let settings = Settings { lr: 0.3, early_stop, eval_every: 2, ema_decay: Some(0.5), ..settings(60) };
    let (ending, _, witness) = run_in(dir.path(), false, None, settings);
    assert_eq!(ending, Ending::StoppedEarly);
    let (end, periodic) = witness.evaluations.split_last().unwrap();
    let best = periodic.iter().min_by(|a, b| a.eval_loss.total_cmp(&b.eval_loss)).unwrap();
    // The evaluation of the end takes one batch more, so that only a whole one of the best step's weights compares.
    assert!((end.eval_loss - best.eval_loss).abs() < 0.3, "{} {}", end.eval_loss, best.eval_loss);
    assert!(witness.messages.iter().any(|m| m.starts_with(&format!("taking the weights of step {}", best.step))));
}

#[test]
fn label_smoothing_and_z_loss_change_the_training_and_not_what_an_evaluation_means() {
    let first = |label_smoothing: f32, z_loss: f32| {
        let dir = tempfile::tempdir().unwrap();
        // So small a rate that the first steps leave the model as it is.
        let terms = CrossEntropyTerms { label_smoothing, z_loss };
        let settings = Settings { lr: 1e-12, terms, eval_every: 1, ..settings(1) };
        let (_, _, witness) = run_in(dir.path(), false, None, settings);
        (witness.rows[0].loss, witness.evaluations[0].eval_loss, witness.rows[0].grad_norm)
    };
    let (plain, smoothed, with_z) = (first(0.0, 0.0), first(0.1, 0.0), first(0.0, 0.01));
    assert!((smoothed.1 - plain.1).abs() < 1e-6 && (with_z.1 - plain.1).abs() < 1e-6);
    assert!(smoothed.2 != plain.2 && with_z.2 != plain.2);
    // About the square of ln 23, which logits of zero give.
    assert!((with_z.0 - plain.0 - 0.01 * 23f64.ln().powi(2)).abs() < 5e-3, "{} {}", with_z.0, plain.0);
}
