//! Everything that contradicts itself in a recipe, found at once.

use std::path::Path;

use loam_formats::nearest;
use serde_json::Value;

use super::{Labels, Noise, Recipe, ScheduleKind, Stage, TokenizerKind};
use crate::error::Error;

/// Fields of `config.json` that some checkpoint has although no family needs them.
const OPTIONAL_FIELDS: [&str; 8] = [
    "head_dim",
    "rope_scaling",
    "rope_parameters",
    "scale_attn_weights",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
];

/// What the layouts of conversations call their fields.
const DIALOGUE_FIELDS: [&str; 10] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "prompt",
    "completion",
];

impl Recipe {
    /// Reports every contradiction and every value out of range. `path` is only used in messages.
    pub fn validate(&self, path: &Path) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut hint = None;
        self.check_model(&mut problems, &mut hint);
        self.check_tokenizer(&mut problems);
        self.check_data(&mut problems);
        self.check_length(&mut problems);
        self.check_numbers(&mut problems);
        let batch = self.train.batch.zip(self.train.micro_batch);
        self.preference.check(self.stage, batch, &mut problems);
        self.distill.check(self.stage, &mut problems);
        self.rl.check(self.stage, self.train.batch, &mut problems);
        if let Some(peft) = &self.peft {
            peft.check(self, &mut problems);
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Recipe { path: path.into(), problems, hint }) }
    }

    /// Family of a new model.
    pub(crate) fn family(&self) -> &str {
        self.model.family.as_deref().unwrap_or("llama")
    }

    fn check_model(&self, problems: &mut Vec<String>, hint: &mut Option<String>) {
        let model = &self.model;
        let is_new = model.family.is_some() || model.depth.is_some();
        match (&model.path, is_new) {
            (Some(_), true) => {
                problems.push(
                    "`model.path` opens a model, `model.family` and `model.depth` make a new one: keep one".into(),
                );
            }
            (None, false) => problems.push("`model` needs a `path`, a `family` or a `depth`".into()),
            (Some(_), false) if !model.config.is_empty() => {
                let keys: Vec<_> = model.config.keys().map(|key| format!("`model.{key}`")).collect();
                problems.push(format!("{} cannot be set: `model.path` opens a model as it is", keys.join(", ")));
            }
            _ => {}
        }
        if model.new_head.is_some() && is_new {
            problems.push("`model.new_head` is for a model that is opened: a new one has the head of its stage".into());
        }
        if model.path.is_some() && model.initializer.is_some() {
            problems.push("`model.initializer` is for a new model, `model.path` opens one: keep one".into());
        }
        let continues = self.stage == Stage::Sft || self.stage.learns_preferences() || self.stage.is_online();
        if continues && is_new {
            problems.push(format!("`stage = \"{}\"` needs a pretrained model: set `model.path`", self.stage.name()));
        }
        if model.depth.is_some_and(|depth| depth == 0 || depth > 128) {
            problems.push("`model.depth` must be between 1 and 128".into());
        }
        if is_new {
            self.check_family(problems, hint);
        }
    }

    fn check_family(&self, problems: &mut Vec<String>, hint: &mut Option<String>) {
        let family = match loam_models::family_by_name(self.family()) {
            Ok(family) => family,
            Err(error) => return problems.push(format!("`model.family`: {error}")),
        };
        let defaults = (family.defaults)();
        let known = |key: &str| defaults.get(key).is_some() || OPTIONAL_FIELDS.contains(&key);
        for (key, value) in &self.model.config {
            if !known(key) {
                let fields = defaults.as_object().into_iter().flat_map(|map| map.keys().map(String::as_str));
                let close =
                    nearest(key, fields.chain(["path", "family", "depth", "tokens_per_parameter", "initializer"]));
                *hint = hint.take().or(close.map(|name| format!("did you mean `model.{name}`?")));
                problems.push(format!("unknown key `model.{key}`: not a field of a {} config.json", family.name));
            } else if let Some(expected) = other_type(value, &defaults[key.as_str()]) {
                problems.push(format!("`model.{key}` must be {expected}, found {value}"));
            }
        }
    }

    fn check_tokenizer(&self, problems: &mut Vec<String>) {
        let tokenizer = &self.tokenizer;
        if self.model.path.is_some() && !tokenizer.is_empty() {
            problems.push("`tokenizer` cannot be set: the model of `model.path` brings its own".into());
        }
        let is_new = self.model.path.is_none();
        if self.stage == Stage::Distill && is_new && tokenizer.path.is_none() {
            problems.push("`tokenizer.path` is missing: a new student has its teacher's tokenizer".into());
        }
        if tokenizer.path.is_some() && (tokenizer.kind.is_some() || tokenizer.vocab_size.is_some()) {
            problems.push("`tokenizer.path` opens one, `tokenizer.kind` and `vocab_size` train one: keep one".into());
        }
        if tokenizer.kind != Some(TokenizerKind::Char) && tokenizer.vocab_size.is_some_and(|size| size < 300) {
            problems.push("`tokenizer.vocab_size` must be at least 300: 256 bytes and the special tokens".into());
        }
    }

    fn check_data(&self, problems: &mut Vec<String>) {
        let data = &self.data;
        if data.train.is_empty() {
            problems.push("`data.train` names no file".into());
        }
        let held_out = [
            (!data.validation.is_empty(), "`data.validation`"),
            (data.validation_fraction.is_some(), "`data.validation_fraction`"),
            (data.validation_tail.is_some(), "`data.validation_tail`"),
        ];
        let set: Vec<_> = held_out.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
        if set.len() > 1 {
            problems.push(format!("{} exclude each other: keep one", set.join(" and ")));
        }
        for (name, share) in
            [("validation_fraction", data.validation_fraction), ("validation_tail", data.validation_tail)]
        {
            if share.is_some_and(|share| !(0.0..=0.5).contains(&share)) {
                problems.push(format!("`data.{name}` must be between 0 and 0.5"));
            }
        }
        self.check_stage_data(problems);
        if data.seq_len.is_some_and(|len| len < 2) {
            problems.push("`data.seq_len` must be at least 2 tokens".into());
        }
    }

    /// Keys that another stage would look at.
    fn check_stage_data(&self, problems: &mut Vec<String>) {
        let (data, stage) = (&self.data, self.stage);
        let known: &[&str] = match stage {
            Stage::Seq2seq => &["source", "target"],
            Stage::Classify => &["text", "text_pair", "label"],
            Stage::TokenClassify => &["tokens", "tags"],
            Stage::Qa => &["context", "question", "answers"],
            Stage::Contrastive => &["anchor", "positive", "negative"],
            Stage::Kto => &["label", "chosen", "rejected"],
            stage if stage.learns_preferences() => &["chosen", "rejected", "margin"],
            stage if stage.is_online() => &["answer"],
            _ => &[],
        };
        let dialogue: &[&str] = if stage.reads_dialogues() { &DIALOGUE_FIELDS } else { &[] };
        let known = [known, dialogue].concat();
        for key in data.fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            problems.push(format!("`data.fields.{key}` is no field of stage `{}`, which has {known}", stage.name()));
        }
        if !stage.reads_dialogues() && (data.format.is_some() || data.dataset_info.is_some()) {
            problems.push(format!(
                "`data.format` and `data.dataset_info` are for conversations, stage `{}` reads none",
                stage.name()
            ));
        }
        let only = [
            (data.noise != Noise::None, "data.noise", Stage::Seq2seq),
            (data.target_len.is_some(), "data.target_len", Stage::Seq2seq),
            (data.labels != Labels::Class, "data.labels", Stage::Classify),
            (data.mask_share.is_some(), "data.mask_share", Stage::MaskedLm),
            (data.whole_words, "data.whole_words", Stage::MaskedLm),
            (data.doc_stride.is_some(), "data.doc_stride", Stage::Qa),
            (self.train.temperature.is_some(), "train.temperature", Stage::Contrastive),
            (self.train.neftune_alpha.is_some(), "train.neftune_alpha", Stage::Sft),
        ];
        for (_, key, owner) in only.iter().filter(|(is_set, _, owner)| *is_set && *owner != stage) {
            problems.push(format!("`{key}` is for stage `{}`, this is `{}`", owner.name(), stage.name()));
        }
        if data.mask_share.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
            problems.push("`data.mask_share` must be between 0 and 1".into());
        }
        if self.train.temperature.is_some_and(|temperature| !(temperature > 0.0 && temperature.is_finite())) {
            problems.push("`train.temperature` must be above 0".into());
        }
    }

    fn check_length(&self, problems: &mut Vec<String>) {
        let train = &self.train;
        if train.batch.is_some() && train.batch_tokens.is_some() {
            problems.push("`train.batch` and `train.batch_tokens` say the same thing: keep one".into());
        }
        let set = [
            (train.steps.is_some(), "`train.steps`"),
            (train.epochs.is_some(), "`train.epochs`"),
            (train.tokens.is_some(), "`train.tokens`"),
        ];
        let set: Vec<_> = set.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
        match set.len() {
            0 if self.model.depth.is_none() => {
                problems.push(
                    "the length of the run is missing: set `train.steps`, `train.epochs` or `train.tokens`".into(),
                );
            }
            0 | 1 => {}
            _ => problems.push(format!("{} exclude each other: keep one", set.join(" and "))),
        }
        let zeros = [
            ("steps", train.steps == Some(0)),
            ("tokens", train.tokens == Some(0)),
            ("epochs", train.epochs.is_some_and(|epochs| !(epochs > 0.0 && epochs.is_finite()))),
            ("batch", train.batch == Some(0)),
            ("batch_tokens", train.batch_tokens == Some(0)),
            ("micro_batch", train.micro_batch == Some(0)),
            ("threads", train.threads == Some(0)),
            ("eval_batches", train.eval_batches == 0),
            ("keep_checkpoints", train.keep_checkpoints == 0),
        ];
        problems
            .extend(zeros.iter().filter(|(_, bad)| *bad).map(|(name, _)| format!("`train.{name}` must be above 0")));
        if let (Some(batch), Some(micro)) = (train.batch, train.micro_batch)
            && micro > batch
        {
            problems.push(format!("`train.micro_batch` is {micro}, more than `train.batch` = {batch}"));
        }
    }

    fn check_numbers(&self, problems: &mut Vec<String>) {
        let train = &self.train;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let checks = [
            ("lr", train.lr.is_some_and(|lr| !(lr > 0.0 && lr < 10.0)), "above 0 and below 10"),
            ("min_lr_ratio", !(0.0..=1.0).contains(&train.min_lr_ratio), "between 0 and 1"),
            ("warmup", !unit(train.warmup), "a fraction of the steps, at least 0 and below 1"),
            (
                "decay",
                train.decay.is_some_and(|d| !(d > 0.0 && d <= 1.0)),
                "a fraction of the steps, above 0 and at most 1",
            ),
            ("weight_decay", !(train.weight_decay >= 0.0 && train.weight_decay < 10.0), "at least 0 and below 10"),
            ("beta1", !unit(train.beta1), "at least 0 and below 1"),
            ("beta2", !unit(train.beta2), "at least 0 and below 1"),
            ("momentum", train.momentum.is_some_and(|momentum| !unit(momentum)), "at least 0 and below 1"),
            ("cycles", train.cycles == Some(0), "above 0"),
            ("power", train.power.is_some_and(|power| !(power > 0.0 && power <= 100.0)), "above 0 and at most 100"),
            ("eps", !(train.eps > 0.0 && train.eps < 1.0), "above 0 and below 1"),
            ("clip", !(train.clip >= 0.0 && train.clip.is_finite()), "at least 0"),
            ("dropout", !unit(train.dropout), "at least 0 and below 1"),
            (
                "neftune_alpha",
                train.neftune_alpha.is_some_and(|alpha| !(alpha > 0.0 && alpha.is_finite())),
                "above 0, 5 is usual",
            ),
            ("label_smoothing", !unit(train.label_smoothing), "at least 0 and below 1"),
            ("z_loss", !unit(train.z_loss), "at least 0 and below 1"),
            ("ema_decay", train.ema_decay.is_some_and(|decay| !(decay > 0.0 && decay < 1.0)), "above 0 and below 1"),
        ];
        problems.extend(
            checks.iter().filter(|(_, bad, _)| *bad).map(|(name, _, range)| format!("`train.{name}` must be {range}")),
        );
        for (key, is_set, schedule, name) in [
            ("decay", train.decay.is_some(), ScheduleKind::Wsd, "wsd"),
            ("cycles", train.cycles.is_some(), ScheduleKind::CosineRestarts, "cosine_restarts"),
            ("power", train.power.is_some(), ScheduleKind::Polynomial, "polynomial"),
        ] {
            if is_set && train.schedule != schedule {
                problems.push(format!("`train.{key}` belongs to `train.schedule = \"{name}\"`"));
            }
        }
        if train.momentum.is_some() && !train.optimizer.has_momentum() {
            let owners = "\"momentum\"`, `\"nesterov\"` and `\"muon\"`; the others have `train.beta1`";
            problems.push(format!("`train.momentum` belongs to `train.optimizer = {owners}"));
        }
        if train.schedule == ScheduleKind::Wsd && train.warmup + train.decay.unwrap_or(0.2) > 1.0 {
            problems.push("`train.warmup` and `train.decay` together exceed the run".into());
        }
        if let Some(stop) = train.early_stop {
            if stop.patience == 0 {
                problems.push("`train.early_stop.patience` must be above 0".into());
            }
            if train.eval_every == Some(0) {
                problems.push("`train.early_stop` needs evaluations, `train.eval_every = 0` has none".into());
            }
        }
    }
}

/// What type the default has, if the value has another.
fn other_type(value: &Value, default: &Value) -> Option<&'static str> {
    match default {
        Value::Bool(_) if !value.is_boolean() => Some("true or false"),
        Value::Number(number) if number.is_u64() && !value.is_u64() => Some("a whole number"),
        Value::Number(_) if !value.is_number() => Some("a number"),
        Value::String(_) if !value.is_string() => Some("a text"),
        _ => None,
    }
}
