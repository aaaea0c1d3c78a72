//! Filling in every default: from the recipe as written to one that says everything.

use loam_models::{Spec, StepMemory, StepShape, footprint, step_memory};
use loam_tensor::Precision;
use serde_json::{Value, json};

use super::depth::{TOKENS_PER_PARAMETER, batch_tokens, depth_rule, learning_rate};
use super::{
    DOC_STRIDE, DataMode, MASK_SHARE, Noise, PrecisionChoice, Recipe, Recompute, ScheduleKind, Stage, TextSplit,
    TokenizerKind, TrainSection,
};
use crate::optim::state_bytes;
use crate::schedule::{DecayShape, Schedule};
use crate::system::predicted_rss_mib;

/// Most tokens of a forward pass, unless the recipe says otherwise.
const MICRO_BATCH_TOKENS: usize = 8192;

impl TrainSection {
    /// Memory of a step, once batch and precision are settled. `frozen` as in [`Recipe::step_memory`].
    fn step_memory(&self, spec: &Spec, seq_len: usize, frozen: Option<usize>) -> StepMemory {
        let (batch, rows) = (self.batch.unwrap_or(1), self.micro_batch.unwrap_or(1));
        let precision = self.precision.settled();
        let recompute = self.recompute == Recompute::Block;
        let at_once = self.clip == 0.0 && rows >= batch;
        let memory = step_memory(spec, &StepShape { tokens: rows * seq_len, precision, recompute, at_once, frozen });
        if frozen.is_some() {
            return memory;
        }
        let mean = if self.ema_decay.is_some() { 4 * footprint(spec).parameters } else { 0 };
        let optimizer = state_bytes(self.optimizer, spec) + mean;
        StepMemory { optimizer, peak: memory.peak - memory.optimizer + optimizer, ..memory }
    }

    /// The defaults of the schedule and of the optimizer that are chosen.
    fn fill_in_optimization(&mut self) {
        match self.schedule {
            ScheduleKind::Wsd => drop(self.decay.get_or_insert(DECAY)),
            ScheduleKind::CosineRestarts => drop(self.cycles.get_or_insert(CYCLES)),
            ScheduleKind::Polynomial => drop(self.power.get_or_insert(POWER)),
            _ => {}
        }
        if self.optimizer.has_momentum() {
            self.momentum = Some(self.optimizer_settings().momentum);
        }
    }
}

/// What defaults depend on besides the recipe: known once tokenizer, model and data are there.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The model's architecture.
    pub spec: &'a Spec,
    /// Its complete `config.json`.
    pub config: &'a Value,
    /// Training sequences in one pass over the data, at a sequence length.
    pub sequences: u64,
    /// Bytes of the model's weights where an adapter alone is trained.
    pub frozen: Option<usize>,
    /// Memory that the system could give, in MiB.
    pub available_mib: Option<u64>,
}

impl Recipe {
    /// `config.json` of a new model: the depth rule's sizes, then what the recipe sets, then the vocabulary.
    pub(crate) fn new_config(&self, vocab_size: usize) -> Value {
        let mut config = self.model.depth.map(|depth| depth_rule(depth).config(self.family())).unwrap_or_default();
        config.extend(self.model.config.clone());
        config.insert("model_type".into(), self.family().into());
        config.entry("vocab_size").or_insert_with(|| json!(vocab_size));
        Value::Object(config)
    }

    /// Tokens per sequence.
    pub(crate) fn seq_len(&self, spec: &Spec) -> usize {
        self.data.seq_len.unwrap_or(spec.max_position_embeddings)
    }

    /// The recipe with every default filled in: it gives the same run again.
    pub fn resolved(&self, facts: &Facts<'_>) -> Self {
        let mut recipe = self.clone();
        let seq_len = self.seq_len(facts.spec);
        recipe.data.seq_len = Some(seq_len);
        recipe.resolve_model(facts.config);
        if self.stage == Stage::MaskedLm {
            recipe.data.mask_share.get_or_insert(MASK_SHARE);
        }
        if self.stage == Stage::Qa {
            recipe.data.doc_stride.get_or_insert(DOC_STRIDE.min(seq_len / 4));
        }
        if matches!(self.stage, Stage::Pretrain | Stage::MaskedLm) {
            recipe.data.mode.get_or_insert(DataMode::Packed);
        }
        (recipe.data.validation_fraction, recipe.data.validation_tail) = self.held_out_shares();
        let precision = self.train.precision.settled();
        let tokens = self.depth_tokens(facts.spec);
        let adapter = self.peft.as_ref();
        let train = &mut recipe.train;
        train.precision = match precision {
            Precision::F32 => PrecisionChoice::F32,
            Precision::Bf16 => PrecisionChoice::Bf16,
        };
        if let Some(peft) = adapter {
            train.lr.get_or_insert(peft.learning_rate());
        }
        train.lr.get_or_insert(match (self.stage, self.model.depth) {
            (_, Some(_)) => learning_rate(facts.spec.hidden_size),
            (Stage::Sft, None) => 2e-5,
            (Stage::Distill, None) if self.model.path.is_some() => 2e-5,
            (Stage::Reward, None) => 1e-4,
            (Stage::Ppo, None) => 3e-6,
            (stage, None) if stage.learns_preferences() || stage.is_online() => 1e-6,
            (_, None) if self.model.path.is_some() && self.stage != Stage::Pretrain => 5e-5,
            (_, None) => 6e-4,
        });
        let batch = self.batch(seq_len, tokens);
        train.batch = Some(batch);
        train.batch_tokens = None;
        train.micro_batch = Some(train.micro_batch.unwrap_or((MICRO_BATCH_TOKENS / seq_len).max(1)).min(batch));
        if train.recompute == Recompute::Auto {
            train.recompute = Recompute::None;
            let needed = predicted_rss_mib(&train.step_memory(facts.spec, seq_len, facts.frozen));
            if facts.available_mib.is_some_and(|available| needed > available / 10 * 9) {
                train.recompute = Recompute::Block;
            }
        }
        let steps = self.steps(facts, batch, seq_len, tokens);
        (train.steps, train.epochs, train.tokens) = (Some(steps), None, None);
        train.fill_in_optimization();
        let eval_every = *train.eval_every.get_or_insert((steps / 10).max(1));
        train.sample_every.get_or_insert(eval_every);
        train.checkpoint_every.get_or_insert((steps / 5).clamp(1, 1000));
        if train.sample_prompts.is_empty() {
            train.sample_prompts.push(String::new());
        }
        recipe
    }

    /// What a step of the resolved recipe takes. `frozen` are the bytes of all that a step of an adapter holds besides
    /// activations: the weights, and what is the adapter's own.
    pub fn step_memory(&self, spec: &Spec, frozen: Option<usize>) -> StepMemory {
        self.train.step_memory(spec, self.seq_len(spec), frozen)
    }

    /// Shares that are held out: of the documents, or of the text's end; both `None` where there are files for it.
    pub(crate) fn held_out_shares(&self) -> (Option<f64>, Option<f64>) {
        let data = &self.data;
        if !data.validation.is_empty() || data.validation_fraction.is_some() || data.validation_tail.is_some() {
            return (data.validation_fraction, data.validation_tail);
        }
        let is_table = |pattern: &String| {
            let bare = pattern.strip_suffix(".gz").or(pattern.strip_suffix(".zst")).unwrap_or(pattern);
            [".jsonl", ".csv", ".parquet"].iter().any(|ending| bare.ends_with(ending))
        };
        let is_one_text = data.text_split == TextSplit::File && !data.train.iter().any(is_table);
        let is_text = matches!(self.stage, Stage::Pretrain | Stage::MaskedLm) || self.data.noise != Noise::None;
        if is_one_text && is_text { (None, Some(HELD_OUT_TAIL)) } else { (Some(HELD_OUT), None) }
    }

    fn resolve_model(&mut self, config: &Value) {
        if self.model.path.is_some() {
            return;
        }
        self.model.family = Some(self.family().to_string());
        (self.model.depth, self.model.tokens_per_parameter) = (None, None);
        let derived = ["architectures", "model_type", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"];
        let fields = config.as_object().into_iter().flatten();
        self.model.config = fields
            .filter(|(key, value)| !value.is_null() && !derived.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let tokenizer = &mut self.tokenizer;
        if tokenizer.path.is_none() {
            let kind = *tokenizer.kind.get_or_insert(TokenizerKind::ByteBpe);
            if kind != TokenizerKind::Char {
                tokenizer.vocab_size.get_or_insert(DEFAULT_VOCAB_SIZE);
            }
            if kind == TokenizerKind::ByteBpe {
                tokenizer.split_digits.get_or_insert(false);
            }
            tokenizer.min_frequency.get_or_insert(DEFAULT_MIN_FREQUENCY);
            tokenizer.max_bytes.get_or_insert(DEFAULT_TOKENIZER_BYTES);
        }
    }

    /// Length of the run that the depth dial asks for.
    fn depth_tokens(&self, spec: &Spec) -> Option<u64> {
        let ratio = self.model.tokens_per_parameter.unwrap_or(TOKENS_PER_PARAMETER);
        self.model.depth.map(|_| (ratio * footprint(spec).matmul_parameters as f64) as u64)
    }

    fn batch(&self, seq_len: usize, depth_tokens: Option<u64>) -> usize {
        let rows = |tokens: u64| (tokens as f64 / seq_len as f64).round().max(1.0) as usize;
        match (self.train.batch, self.train.batch_tokens, self.stage) {
            (Some(batch), ..) => batch,
            (None, Some(tokens), _) => rows(tokens),
            (None, None, Stage::Distill) => 16,
            (None, None, stage) if stage.learns_preferences() || stage.is_online() => 16,
            (None, None, Stage::Pretrain | Stage::MaskedLm | Stage::Seq2seq) => rows(
                self.train.tokens.or(depth_tokens).filter(|_| self.model.depth.is_some()).map_or(16384, batch_tokens),
            ),
            (None, None, _) => rows(4096),
        }
    }

    fn steps(&self, facts: &Facts<'_>, batch: usize, seq_len: usize, depth_tokens: Option<u64>) -> u64 {
        let of_tokens = |tokens: u64| tokens.div_ceil((batch * seq_len) as u64);
        let train = &self.train;
        let of_epochs = |epochs: f64| (epochs * facts.sequences as f64 / batch as f64).ceil() as u64;
        let steps = train.steps.or(train.epochs.map(of_epochs)).or(train.tokens.or(depth_tokens).map(of_tokens));
        steps.unwrap_or(1).max(1)
    }

    /// The schedule of a resolved recipe.
    pub(crate) fn schedule(&self, steps: u64) -> Schedule {
        let part = |fraction: f64| (fraction * steps as f64).round() as u64;
        Schedule {
            kind: self.train.schedule,
            steps,
            warmup_steps: part(self.train.warmup).min(steps.saturating_sub(1)),
            decay_steps: part(self.train.decay.unwrap_or(DECAY)),
            decay_shape: DecayShape::OneMinusSqrt,
            cycles: self.train.cycles.unwrap_or(CYCLES),
            power: self.train.power.unwrap_or(POWER),
            minimum: self.train.min_lr_ratio,
        }
    }
}

/// Share of the run in which `wsd` falls, by default.
const DECAY: f64 = 0.2;
/// Waves of `cosine_restarts` by default.
const CYCLES: u64 = 4;
/// Exponent of `polynomial` by default.
const POWER: f64 = 2.0;
/// Share of one long text that is held out by default.
const HELD_OUT_TAIL: f64 = 0.05;
/// Share of the documents that is held out by default.
pub(crate) const HELD_OUT: f64 = 0.01;
/// Vocabulary of a new tokenizer by default.
pub(crate) const DEFAULT_VOCAB_SIZE: usize = 8192;
/// How often a pair must occur to be learnt, by default.
pub(crate) const DEFAULT_MIN_FREQUENCY: u64 = 0;
/// Most text that a new vocabulary is learnt from, by default.
pub(crate) const DEFAULT_TOKENIZER_BYTES: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use loam_models::LanguageModel;

    #[test]
    fn activations_are_made_again_only_where_they_do_not_fit() {
        let config = json!({"model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 8, "n_head": 2, "n_positions": 256});
        let model = LanguageModel::new(&config, 0).unwrap();
        let recipe =
            Recipe::parse("stage = \"pretrain\"\n[train]\nbatch = 32\n", std::path::Path::new("test")).unwrap();
        let resolved = |available_mib| {
            let facts =
                Facts { spec: model.spec(), config: model.config(), sequences: 100, frozen: None, available_mib };
            recipe.resolved(&facts)
        };
        let whole = resolved(None);
        assert_eq!(whole.train.recompute, Recompute::None);
        let needed = predicted_rss_mib(&whole.step_memory(model.spec(), None));
        assert_eq!(resolved(Some(2 * needed)).train.recompute, Recompute::None);
        let tight = resolved(Some(needed));
        assert_eq!(tight.train.recompute, Recompute::Block);
        assert!(predicted_rss_mib(&tight.step_memory(model.spec(), None)) < needed / 2);
    }

    #[test]
    fn a_running_mean_of_the_weights_is_counted() {
        let config =
            json!({"model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 32});
        let model = LanguageModel::new(&config, 0).unwrap();
        let memory = |line: &str| {
            let text = format!("stage = \"pretrain\"\n[train]\n{line}\n");
            Recipe::parse(&text, std::path::Path::new("test")).unwrap().step_memory(model.spec(), None)
        };
        let (plain, with_mean) = (memory(""), memory("ema_decay = 0.99"));
        let copy = 4 * footprint(model.spec()).parameters;
        assert_eq!((with_mean.optimizer, with_mean.peak), (plain.optimizer + copy, plain.peak + copy));
    }
}
