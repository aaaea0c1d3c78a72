//! One optimizer step, and one evaluation.

use std::collections::BTreeMap;
use std::time::Instant;

use loam_models::{DropoutKey, EmbeddingNoise, LanguageModel};
use loam_tensor::{Parameter, no_grad, with_precision};

use super::guard::{Guard, check_gradients};
use super::settings::Settings;
use crate::adapter::AdapterRun;
use crate::batch::Validation;
use crate::clip::{clip_factor, global_norm, squared_norm};
use crate::error::{Error, Result};
use crate::metrics::EvalRow;
use crate::objective::{Loss, Objective, Pass};
use crate::optim::Optimizer;

/// Keeps the dropout keys of the micro-batches of different steps apart.
const MICRO_BATCHES_PER_STEP: u64 = 1 << 16;

/// What a step found.
pub(super) struct StepResult {
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub tokens: u64,
    pub metrics: BTreeMap<String, f64>,
}

/// One optimizer step on the micro-batches of `step`, the first being 0.
pub(super) fn optimizer_step<O: Objective>(
    model: &LanguageModel,
    parameters: &[(String, Parameter)],
    objective: &mut O,
    optimizer: &mut Optimizer,
    settings: &Settings,
    (step, micro_batches): (u64, &[O::Batch]),
    (adapter, guard): (Option<&AdapterRun>, &mut Guard),
) -> Result<StepResult> {
    let lr = settings.lr * settings.schedule.multiplier(step);
    optimizer.begin_step();
    // With nothing to wait for, a gradient lives from its last addend to its parameter's update only.
    let at_once = settings.clip == 0.0 && micro_batches.len() == 1 && *guard == Guard::Done;
    let at_once = at_once && adapter.is_none_or(|adapter| !adapter.needs_all_gradients());
    let mut squares = 0.0;
    let mut update = |parameter: &Parameter| {
        squares += squared_norm(parameter);
        optimizer.update(parameter, lr, 1.0);
    };
    let consume = at_once.then_some(&mut update as &mut dyn FnMut(&Parameter));
    let Accumulated { loss, tokens, metrics } =
        accumulate(model, objective, settings, step, micro_batches, (consume, adapter))
            .inspect_err(|_| clear(parameters))?;
    let teaches = micro_batches.iter().any(|batch| objective.teaches(batch));
    let checks = guard.checks(teaches, adapter.is_some());
    if checks {
        // Rows of tokens that the batch lacks have no gradient.
        let checked: Vec<_> = parameters.iter().filter(|(name, _)| !name.ends_with("tokens_delta")).cloned().collect();
        check_gradients(&checked, step + 1)?;
    }
    let grad_norm = if at_once { squares.sqrt() } else { global_norm(parameters) };
    if !grad_norm.is_finite() {
        clear(parameters);
        return Err(Error::Diverged { step: step + 1, what: "gradient norm", value: grad_norm });
    }
    let grad_scale = clip_factor(grad_norm, settings.clip);
    let after = adapter.map(AdapterRun::watch);
    parameters.iter().for_each(|(_, parameter)| optimizer.update(parameter, lr, grad_scale));
    if let Some(after) = after {
        after(step + 1);
    }
    clear(parameters);
    *guard = guard.after(checks, teaches && lr > 0.0);
    Ok(StepResult { loss, lr, grad_norm, tokens, metrics })
}

fn clear(parameters: &[(String, Parameter)]) {
    parameters.iter().for_each(|(_, parameter)| parameter.clear_grad());
}

/// What the micro-batches of a step came to.
#[derive(Debug)]
pub(crate) struct Accumulated {
    /// Their mean loss.
    pub(crate) loss: f64,
    /// Tokens read.
    pub(crate) tokens: u64,
    /// Means of what the objective reports.
    pub(crate) metrics: BTreeMap<String, f64>,
}
/// Receives a parameter once its gradient is complete.
pub(crate) type Consume<'a> = &'a mut dyn FnMut(&Parameter);

/// Adds up the gradients of the mean loss over all counted tokens of the micro-batches; `consume` gets each parameter
/// once its gradient is complete.
pub(crate) fn accumulate<O: Objective>(
    model: &LanguageModel,
    objective: &mut O,
    settings: &Settings,
    step: u64,
    micro_batches: &[O::Batch],
    (mut consume, adapter): (Option<Consume<'_>>, Option<&AdapterRun>),
) -> Result<Accumulated> {
    let counted: usize = micro_batches.iter().map(|batch| objective.counted(batch)).sum();
    if counted == 0 {
        return Err(Error::Examples {
            what: format!("step {}: no token of the batch is trained on", step + 1),
            hint: "look at the data with `loam data inspect`: the texts are empty or shorter than two tokens".into(),
        });
    }
    let mut loss = 0.0;
    let mut metrics = BTreeMap::new();
    for (index, batch) in micro_batches.iter().enumerate() {
        let (seed, key_step) = (settings.seed, step * MICRO_BATCHES_PER_STEP + index as u64);
        let key = || DropoutKey { p: settings.dropout as f32, seed, step: key_step };
        // An adapter has a dropout of its own, for which the key is there.
        let dropout = (settings.dropout > 0.0 || adapter.is_some()).then(key);
        let pass = Pass {
            scale: 1.0 / counted as f32,
            dropout,
            noise: settings.neftune_alpha.map(|alpha| EmbeddingNoise { alpha: alpha as f32, seed, step: key_step }),
            recompute: settings.recompute,
            terms: settings.terms,
            measures: false,
        };
        loss += with_precision(settings.precision, || -> Result<f64> {
            let Loss { tensor, metrics: sums } = objective.loss(model, batch, &pass)?;
            for (name, sum) in sums {
                *metrics.entry(name.to_owned()).or_default() += sum / counted as f64;
            }
            let value = f64::from(tensor.item());
            if !value.is_finite() {
                return Err(Error::Diverged { step: step + 1, what: "loss", value });
            }
            let extra = adapter.filter(|_| index == 0).and_then(AdapterRun::regularisation);
            let tensor = extra.map_or(tensor.clone(), |extra| tensor.with_auxiliary(&extra));
            match consume.as_mut() {
                Some(consume) => tensor.backward_consuming(consume),
                None => tensor.backward(),
            }
            Ok(value)
        })?;
    }
    let tokens: usize = micro_batches.iter().map(|batch| objective.tokens(batch)).sum();
    Ok(Accumulated { loss, tokens: tokens as u64, metrics })
}

/// Mean loss over the first `limit` held-out batches; `step` and `tokens` are copied into the row.
pub fn evaluate<O: Objective>(
    model: &LanguageModel,
    objective: &mut O,
    settings: &Settings,
    validation: &dyn Validation<O::Batch>,
    limit: u64,
) -> Result<EvalRow> {
    let start = Instant::now();
    let (mut nats, mut counted) = (0.0, 0);
    let mut sums: BTreeMap<&'static str, f64> = BTreeMap::new();
    for index in 0..validation.len().min(limit) {
        let batch = validation.batch(index)?;
        let pass = Pass::measuring();
        let run = || objective.loss(model, &batch, &pass);
        let loss = with_precision(settings.precision, || no_grad(run))?;
        nats += f64::from(loss.tensor.item());
        loss.metrics.iter().for_each(|(name, sum)| *sums.entry(name).or_default() += sum);
        counted += objective.counted(&batch);
    }
    let eval_loss = nats / counted.max(1) as f64;
    Ok(EvalRow {
        step: 0,
        tokens: 0,
        eval_loss,
        eval_perplexity: eval_loss.exp(),
        eval_bits_per_byte: validation.bytes_per_token().map(|bytes| eval_loss / std::f64::consts::LN_2 / bytes),
        eval_tokens: counted as u64,
        metrics: sums.iter().map(|(name, sum)| (format!("eval_{name}"), sum / counted.max(1) as f64)).collect(),
        ms: start.elapsed().as_secs_f64() * 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::Tokens;
    use crate::recipe::Recipe;
    use loam_data::CausalBatch;
    use loam_data::loader::IGNORED;
    use loam_testkit::assert_close_relative;

    /// Eight rows of different lengths of counted tokens.
    fn rows(range: std::ops::Range<u32>) -> CausalBatch {
        let time = 12;
        let (tokens, targets) = (Vec::new(), Vec::new());
        let positions = vec![0; range.len() * time];
        let mut batch = CausalBatch {
            rows: range.len(),
            seq_len: time,
            tokens,
            targets,
            segments: None,
            positions,
            lengths: vec![time; range.len()],
        };
        for row in range {
            let tokens: Vec<u32> = (0..time as u32).map(|i| (row * 5 + i * 3) % 11).collect();
            let counts = |i: usize| i >= row as usize;
            batch.targets.extend((0..time).map(|i| if counts(i) { (tokens[i] as i32 + 1) % 11 } else { IGNORED }));
            batch.tokens.extend(tokens);
        }
        batch
    }

    #[test]
    fn eight_micro_batches_of_one_give_the_gradient_of_one_of_eight() {
        let config = serde_json::json!({
            "model_type": "gpt2", "vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12,
        });
        let recipe = "stage = \"pretrain\"\n[train]\nprecision = \"f32\"\n";
        let settings = Settings::of(&Recipe::parse(recipe, std::path::Path::new("test")).unwrap());
        let run = |micro_batches: &[CausalBatch]| {
            let model = LanguageModel::new(&config, 3).unwrap();
            let Accumulated { loss, tokens, .. } =
                accumulate(&model, &mut Tokens, &settings, 0, micro_batches, (None, None)).unwrap();
            let grads = model
                .parameters()
                .iter()
                .map(|(name, p)| (name.clone(), p.grad().unwrap().f32().to_vec()))
                .collect::<Vec<_>>();
            (loss, tokens, grads)
        };
        let whole = run(&[rows(0..8)]);
        let parts = run(&(0..8).map(|row| rows(row..row + 1)).collect::<Vec<_>>());
        assert!((whole.0 - parts.0).abs() < 1e-6, "{} {}", whole.0, parts.0);
        assert_eq!(whole.1, parts.1);
        for ((name, a), (_, b)) in whole.2.iter().zip(&parts.2) {
            // Keys' biases have no effect on attention: their gradient is rounding noise, bounded absolutely.
            let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
            if largest > 1e-6 {
                assert_close_relative(name, b, a, 1e-5);
            }
            assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-6), "{name}");
        }
    }

    #[test]
    fn updating_each_parameter_as_its_gradient_completes_gives_the_same_weights_to_the_bit() {
        let config = serde_json::json!({
            "model_type": "gpt2", "vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12,
        });
        let run = |clip: f64, recompute: &str| {
            let text = format!("stage = \"pretrain\"\n[train]\nclip = {clip:?}\nrecompute = \"{recompute}\"\n");
            let settings = Settings::of(&Recipe::parse(&text, std::path::Path::new("test")).unwrap());
            let model = LanguageModel::new(&config, 3).unwrap();
            let parameters = model.parameters();
            let mut optimizer = Optimizer::new(&parameters, settings.optimizer);
            let (mut norms, mut guard) = (Vec::new(), Guard::default());
            for step in 0..3 {
                let (batch, watch) = ((step, &[rows(0..8)][..]), (None, &mut guard));
                let result = optimizer_step(&model, &parameters, &mut Tokens, &mut optimizer, &settings, batch, watch);
                norms.push(result.unwrap().grad_norm);
            }
            (parameters.iter().map(|(_, parameter)| parameter.to_vec()).collect::<Vec<_>>(), norms)
        };
        let (whole, norms) = run(1e9, "none");
        for recompute in ["none", "block"] {
            let (at_once, norms_at_once) = run(0.0, recompute);
            assert_eq!(at_once, whole);
            // The squares are added in another order, in f64.
            assert!(norms.iter().zip(norms_at_once).all(|(a, b)| (a - b).abs() < 1e-12 * a));
        }
    }

    #[test]
    fn a_batch_without_a_counted_token_is_an_error_with_a_hint() {
        let config = serde_json::json!({"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 12});
        let model = LanguageModel::new(&config, 3).unwrap();
        let recipe = Recipe::parse("stage = \"pretrain\"", std::path::Path::new("test")).unwrap();
        let mut batch = rows(0..1);
        batch.targets.fill(IGNORED);
        let error = accumulate(&model, &mut Tokens, &Settings::of(&recipe), 4, &[batch], (None, None)).unwrap_err();
        assert_eq!(error.to_string(), "step 5: no token of the batch is trained on");
        assert!(error.hint().is_some());
    }
}
