//! The golden tables: single operations, samplers and learning-rate schedules.

use crate::golden::{Array, Golden, root};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs;

/// One operation with its inputs, its output, and the gradients of `sum(output * weight)`.
#[derive(Debug)]
pub struct Operation {
    /// Name of the case, such as `attention-causal-gqa`.
    pub case: String,
    /// What is computed, such as `attention` or `layer_norm`.
    pub operation: String,
    /// Settings that are not arrays, such as `eps` (true is 1, false is 0).
    pub parameters: BTreeMap<String, f64>,
    /// Inputs that have gradients, by name.
    pub inputs: BTreeMap<String, Array<f32>>,
    /// Inputs that have none: ids, targets, positions.
    pub indices: BTreeMap<String, Array<i64>>,
    /// The result.
    pub output: Array<f32>,
    /// The upstream gradient, of the output's shape.
    pub weight: Array<f32>,
    /// The gradient of each entry of `inputs`.
    pub gradients: BTreeMap<String, Array<f32>>,
}

/// The sampler table: fixed logits, and what each setting makes of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerTable {
    /// Logit vectors by name.
    pub logits: BTreeMap<String, Vec<f32>>,
    /// Texts that mirostat writes.
    pub mirostat: Vec<MirostatRun>,
    /// The settings and their results.
    pub cases: Vec<Sampler>,
}

/// One sampler setting.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampler {
    /// What the case shows.
    pub name: String,
    /// Which vector of the table it filters.
    pub logits: String,
    /// Settings under the names of `loam_chat::Sampling`.
    pub settings: serde_json::Value,
    /// All tokens before this one.
    pub seen: Vec<u32>,
    /// How many of them, the last, were generated.
    pub written: usize,
    /// Rows of tokens that break a repetition, for DRY.
    pub breakers: Vec<Vec<u32>>,
    /// Probabilities after all of it; what was filtered out is exactly zero.
    pub probabilities: Vec<f32>,
}

/// The first steps of a text under mirostat.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirostatRun {
    /// Settings under the names of `loam_chat::Sampling`.
    pub settings: serde_json::Value,
    /// The steps.
    pub steps: Vec<MirostatStep>,
    /// The largest surprise after all of them, in bits.
    pub mu: f64,
}

/// One step of mirostat.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirostatStep {
    /// Which vector of the table it cuts.
    pub logits: String,
    /// The largest surprise before it, in bits.
    pub mu: f64,
    /// Probabilities after the cut.
    pub probabilities: Vec<f64>,
    /// The token taken.
    pub token: u32,
}

/// One learning-rate schedule.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// `constant`, `linear`, `cosine`, `wsd`, `cosine_restarts`, `polynomial`, `inverse_sqrt` or `one_cycle`.
    pub schedule: String,
    /// Steps of the run.
    pub steps: usize,
    /// Steps of the linear rise at the start, from 0 (or from `minimum` in `wsd`).
    pub warmup_steps: usize,
    /// Steps of the fall at the end; `wsd` only.
    pub decay_steps: Option<usize>,
    /// Multiplier at the very end.
    pub minimum: f64,
    /// Shape of the fall: `linear`, `cosine` or `1-sqrt`; `wsd` only.
    pub decay: Option<String>,
    /// Waves; `cosine_restarts` only.
    pub cycles: Option<usize>,
    /// Exponent; `polynomial` only.
    pub power: Option<f64>,
    /// Factor on the learning rate in step 0, 1, 2, ..., with one entry more than there are steps.
    pub multipliers: Vec<f64>,
}

#[derive(Deserialize)]
struct Cases<T> {
    cases: Vec<T>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperationEntry {
    case: String,
    operation: String,
    parameters: BTreeMap<String, serde_json::Value>,
    inputs: Vec<String>,
    gradients: Vec<String>,
    /// Names of arrays that several cases have.
    #[serde(default)]
    shared: BTreeMap<String, String>,
}

/// All golden operations.
pub fn operations() -> Vec<Operation> {
    table("ops")
}

/// All golden losses.
pub fn losses() -> Vec<Operation> {
    table("losses")
}

/// All golden losses of alignment.
pub fn alignment() -> Vec<Operation> {
    table("alignment")
}

/// All golden activations.
pub fn activations() -> Vec<Operation> {
    table("activations")
}

fn table(name: &str) -> Vec<Operation> {
    let arrays = Golden::read(&root().join(format!("{name}.safetensors")));
    let entries: Cases<OperationEntry> = read_json(&format!("{name}.json"));
    entries.cases.into_iter().map(|entry| operation(&arrays, entry)).collect()
}

fn operation(arrays: &Golden, entry: OperationEntry) -> Operation {
    let key = |name: &str| entry.shared.get(name).cloned().unwrap_or_else(|| format!("{}.{name}", entry.case));
    let floats = |name: &str| arrays.floats(&key(name)).clone();
    let number = |name: &String, value: &serde_json::Value| {
        let value = value.as_f64().or(value.as_bool().map(f64::from));
        value.unwrap_or_else(|| panic!("{} of {} is not a number", name, entry.case))
    };
    let (inputs, indices) = entry.inputs.iter().partition::<Vec<_>, _>(|name| entry.gradients.contains(name));
    Operation {
        parameters: entry.parameters.iter().map(|(name, value)| (name.clone(), number(name, value))).collect(),
        inputs: inputs.iter().map(|name| ((*name).clone(), floats(name))).collect(),
        indices: indices.iter().map(|name| ((*name).clone(), arrays.integers(&key(name)).clone())).collect(),
        output: floats("output"),
        weight: floats("weight"),
        gradients: inputs.iter().map(|name| ((*name).clone(), floats(&format!("gradient.{name}")))).collect(),
        operation: entry.operation,
        case: entry.case,
    }
}

/// Probabilities after the samplers of each engine.
pub fn samplers() -> SamplerTable {
    read_json("samplers.json")
}

/// Settings of a golden run of an optimizer, under the names of a recipe. What it does not have is `None`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSettings {
    /// The recipe's name of the optimizer.
    pub optimizer: String,
    /// Learning rate, the same in every step.
    pub lr: f64,
    /// Decay of tensors with at least two axes; the others have none.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean.
    pub beta1: Option<f64>,
    /// Decay of the squared gradient's running mean.
    pub beta2: Option<f64>,
    /// Added to the root of the second moment.
    pub eps: Option<f64>,
    /// Decay of the momentum.
    pub momentum: Option<f64>,
}

/// Twenty steps of every optimizer on the same gradients. The arrays, for each of the parameters `tall`, `wide` and
/// `vector`: `initial.<parameter>`, `gradient.<parameter>` (one per step) and `<case>.<parameter>` (one per kept step).
#[derive(Debug)]
pub struct OptimizerTable {
    /// All arrays.
    pub arrays: Golden,
    /// The steps, counted from 1, after which the parameters were kept.
    pub kept: Vec<usize>,
    /// The cases by name, in alphabetical order.
    pub cases: BTreeMap<String, OptimizerSettings>,
}

/// The golden optimizers.
pub fn optimizers() -> OptimizerTable {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        kept: Vec<usize>,
        cases: BTreeMap<String, OptimizerSettings>,
    }
    let arrays = Golden::read(&root().join("optimizers.safetensors"));
    let table = serde_json::from_str(arrays.metadata("table"));
    let Table { kept, cases } = table.unwrap_or_else(|error| panic!("optimizers.safetensors: {error}"));
    OptimizerTable { arrays, kept, cases }
}

/// A tensor over twelve steps, `values` `[12, 3, 5]`, and its running mean after each, `mean.<decay>`.
pub fn running_means() -> Golden {
    Golden::read(&root().join("ema.safetensors"))
}

/// One matrix of `[64, 68]` under AdamW with 8 bits, every eighth value after steps 1, 7 and 20: `kept` `[3, 544]`.
pub fn adamw8bit() -> Golden {
    Golden::read(&root().join("adamw8bit.safetensors"))
}

/// Learning-rate multipliers of transformers' schedules, and of PyTorch's for `one_cycle`.
pub fn schedules() -> Vec<Schedule> {
    read_json::<Cases<Schedule>>("schedules.json").cases
}

fn read_json<T: DeserializeOwned>(name: &str) -> T {
    let path = root().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_close;

    #[test]
    fn operations_have_a_gradient_for_every_input_and_a_weight_for_every_output() {
        let operations = operations();
        assert!(operations.len() >= 13);
        for operation in operations {
            assert_eq!(operation.output.shape, operation.weight.shape, "{}", operation.case);
            for (name, input) in &operation.inputs {
                assert_eq!(operation.gradients[name].shape, input.shape, "{} {name}", operation.case);
            }
        }
    }

    #[test]
    fn the_silu_case_is_silu() {
        let operations = operations();
        let silu = operations.iter().find(|operation| operation.case == "silu").expect("there");
        let expected: Vec<f32> = silu.inputs["x"].values.iter().map(|x| x / (1.0 + (-x).exp())).collect();
        assert_close("silu", &silu.output.values, &expected, 1e-6);
    }

    #[test]
    fn attention_and_cross_entropy_carry_their_settings_and_indices() {
        let operations = operations();
        let find = |case: &str| operations.iter().find(|operation| operation.case == case).expect("there");
        assert_eq!(find("attention-causal-gqa").parameters["causal"], 1.0);
        assert_eq!(find("attention-causal-gqa").inputs["k"].shape, [2, 7, 2, 5]);
        assert_eq!(find("cross-entropy").indices["targets"].values[1], -100);
        assert!(!find("cross-entropy").gradients.contains_key("targets"));
    }

    #[test]
    fn sampler_probabilities_sum_to_one_and_the_filters_leave_zeros() {
        let table = samplers();
        assert!(table.cases.len() >= 50 && table.mirostat.len() >= 4);
        for case in &table.cases {
            assert_eq!(case.probabilities.len(), table.logits[&case.logits].len(), "{}", case.name);
            assert!((case.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{}", case.name);
            // Only what equals the k-th may be kept beyond k.
            if let Some(k) = case.settings["top_k"].as_u64().filter(|_| case.logits != "ties") {
                let kept = case.probabilities.iter().filter(|p| **p > 0.0).count();
                assert!(kept as u64 <= k, "{}: {kept} kept", case.name);
            }
        }
    }

    #[test]
    fn schedules_have_one_multiplier_per_step_and_the_final_one() {
        let schedules = schedules();
        let kinds =
            ["constant", "linear", "cosine", "wsd", "cosine_restarts", "polynomial", "inverse_sqrt", "one_cycle"];
        for kind in kinds {
            assert!(schedules.iter().any(|schedule| schedule.schedule == kind), "no {kind}");
        }
        for schedule in schedules {
            assert_eq!(schedule.multipliers.len(), schedule.steps + 1, "{}", schedule.schedule);
            // One cycle has its peak in the last step of the rise, the others in the first one after it.
            let early = usize::from(schedule.schedule == "one_cycle" && schedule.warmup_steps > 0);
            let peak = schedule.multipliers[schedule.warmup_steps - early];
            assert!(peak == 1.0 || (schedule.schedule == "one_cycle" && peak > 0.99), "{}", schedule.schedule);
        }
    }
}
