//! From arguments to settings of the sampler, and to what constrains it.

use crate::args::{GrammarArgs, SamplingArgs};
use crate::failure::Failure;
use loam_chat::Sampling;
use loam_infer::{Constraint, ConstraintCompiler, Grammar, OpenModel};
use std::fs;
use std::path::Path;

/// The settings of the command line over those that the model's directory recommends. Who chooses the steps does without
/// a recommendation, which is for other steps.
pub fn sampling(args: &SamplingArgs, recommended: &Sampling) -> Sampling {
    let plain = Sampling::default();
    let has_own_steps = args.samplers.is_some() || args.mirostat.is_some_and(|version| version > 0);
    let base = if has_own_steps { &plain } else { recommended };
    let breakers = match args.dry_sequence_breaker.is_empty() {
        true => base.dry_sequence_breakers.clone(),
        false => args.dry_sequence_breaker.clone(),
    };
    Sampling {
        preset: args.sampler_preset.unwrap_or(base.preset),
        samplers: args.samplers.clone().or_else(|| base.samplers.clone()),
        temperature: args.temperature.unwrap_or(base.temperature),
        dynatemp_range: args.dynatemp_range.unwrap_or(base.dynatemp_range),
        dynatemp_exponent: args.dynatemp_exponent.unwrap_or(base.dynatemp_exponent),
        top_k: args.top_k.unwrap_or(base.top_k),
        top_p: args.top_p.unwrap_or(base.top_p),
        min_p: args.min_p.unwrap_or(base.min_p),
        typical_p: args.typical_p.unwrap_or(base.typical_p),
        top_n_sigma: args.top_n_sigma.unwrap_or(base.top_n_sigma),
        xtc_probability: args.xtc_probability.unwrap_or(base.xtc_probability),
        xtc_threshold: args.xtc_threshold.unwrap_or(base.xtc_threshold),
        dry_multiplier: args.dry_multiplier.unwrap_or(base.dry_multiplier),
        dry_base: args.dry_base.unwrap_or(base.dry_base),
        dry_allowed_length: args.dry_allowed_length.unwrap_or(base.dry_allowed_length),
        dry_penalty_last_n: args.dry_penalty_last_n.unwrap_or(base.dry_penalty_last_n),
        dry_sequence_breakers: breakers,
        mirostat: args.mirostat.unwrap_or(base.mirostat),
        mirostat_tau: args.mirostat_tau.unwrap_or(base.mirostat_tau),
        mirostat_eta: args.mirostat_eta.unwrap_or(base.mirostat_eta),
        repetition_penalty: args.repetition_penalty.unwrap_or(base.repetition_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(base.frequency_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(base.presence_penalty),
        penalty_last_n: args.penalty_last_n.or(base.penalty_last_n),
        logit_bias: args.logit_bias.iter().copied().collect(),
        min_tokens: args.min_tokens.unwrap_or(base.min_tokens),
        max_tokens: args.max_tokens.unwrap_or(base.max_tokens),
        stop: args.stop.clone(),
        seed: args.seed.unwrap_or(base.seed),
        top_logprobs: base.top_logprobs,
    }
}

/// What the text must obey, compiled for the model's vocabulary.
pub fn constraint(args: &GrammarArgs, open: &OpenModel) -> Result<Option<Constraint>, Failure> {
    let grammar = if let Some(path) = &args.json_schema {
        let text = read(path)?;
        let schema = serde_json::from_str(&text);
        Grammar::JsonSchema(schema.map_err(|e| Failure::new(format!("{} is not JSON: {e}", path.display())))?)
    } else if let Some(path) = &args.grammar {
        let text = read(path)?;
        match path.extension().is_some_and(|extension| extension == "lark") {
            true => Grammar::Lark(text),
            false => Grammar::Gbnf(text),
        }
    } else if let Some(regex) = &args.regex {
        Grammar::Regex(regex.clone())
    } else if args.json_object {
        Grammar::JsonObject
    } else {
        return Ok(None);
    };
    let compiler = ConstraintCompiler::new(&open.tokenizer, &open.tokenizer.stop_ids())?;
    Ok(Some(compiler.compile(&grammar)?))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|e| Failure::io(&format!("cannot read {}", path.display()), &e))
}
