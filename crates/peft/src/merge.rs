//! Putting an adapter into the weights for good, taking it out again, and what that changes.

use std::sync::Arc;

use loam_models::{Forward, Hooks, Input, LanguageModel, Plan};
use loam_tensor::{DType, Parameter, Raw, no_grad};
use serde::Serialize;

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::set::AdapterSet;

/// A merged adapter: what the weights were before.
pub struct Merged {
    originals: Vec<(Parameter, Raw)>,
}

impl Merged {
    /// Puts the weights back as they were, to the bit.
    pub fn unmerge(self) {
        self.originals.into_iter().for_each(|(parameter, value)| parameter.replace(value));
    }
}

/// Puts a detached adapter into the weights of its model: the plain model then gives the same. Quantised weights are
/// decoded, changed and encoded again, which rounds the change.
pub fn merge(model: &LanguageModel, adapter: &Adapter) -> Result<Merged> {
    let refuse = |why: &str| {
        let name = adapter.config.method.name();
        Err(Error::Setting(format!("{name} cannot be merged: {why}; use the model with the adapter beside it")))
    };
    if adapter.prompt.is_some() {
        return refuse("what stands in front of every text is no weight");
    }
    if !adapter.joins.is_empty() {
        return refuse("between its two products is an activation, which the model's layers lack");
    }
    let names = model.parameters();
    let mut changes: Vec<(Parameter, Vec<f32>)> = Vec::new();
    for at in &adapter.linears {
        let (weight, bias) = at.adapter.merged(&at.linear);
        changes.push((at.linear.weight.clone(), weight));
        changes.extend(at.linear.bias.clone().zip(bias));
    }
    for at in &adapter.tables {
        let is_tied = model.spec().tie_word_embeddings && adapter.config.trainable_tokens.is_empty();
        if is_tied {
            return refuse(
                "the head and the tokens' vectors are one weight in the model, and only one of them is trained",
            );
        }
        changes.push((at.site.weight.clone(), at.hook.merged(&at.site.weight)));
    }
    if let Some((parameter, _)) = changes.iter().find(|(_, values)| values.iter().any(|x| !x.is_finite())) {
        let name = names.iter().find(|(_, p)| p.is_same(parameter)).map_or("a weight", |(name, _)| name.as_str());
        return refuse(&format!("`{name}` would hold numbers that are not finite"));
    }
    let originals: Vec<(Parameter, Raw)> = changes.iter().map(|(p, _)| (p.clone(), p.value())).collect();
    let mut plan = Plan::new();
    for (parameter, values) in &changes {
        let ty = parameter.dtype();
        if ty != DType::F32 {
            plan.extend(names.iter().find(|(_, p)| p.is_same(parameter)).map(|(name, _)| (name.clone(), ty)));
        }
        parameter.replace(Raw::from_f32(values, parameter.shape()));
    }
    model.quantise(&plan, None)?;
    Ok(Merged { originals })
}

/// How far the logits of a merged model are from those of the model with its adapter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Texts that were compared.
    pub texts: usize,
    /// Positions.
    pub positions: usize,
    /// Largest difference of a logit.
    pub max: f64,
    /// Mean difference.
    pub mean: f64,
    /// Share of the positions whose most likely token is the same.
    pub same_top: f64,
}

/// Logits of every position of some texts.
pub fn probe(model: &LanguageModel, texts: &[Vec<u32>], hooks: &Hooks) -> Result<Vec<Vec<f32>>> {
    let logits = |text: &Vec<u32>| -> Result<Vec<f32>> {
        let forward = Forward { hooks: hooks.clone(), ..Forward::default() };
        Ok(no_grad(|| model.logits(&Input::rows(text, 1), forward))?.to_vec())
    };
    texts.iter().map(logits).collect()
}

/// Compares logits over a vocabulary.
pub fn difference(before: &[Vec<f32>], after: &[Vec<f32>], vocab_size: usize) -> Difference {
    let (mut max, mut sum, mut count, mut same, mut positions) = (0.0f64, 0.0f64, 0usize, 0usize, 0usize);
    let top = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at);
    for (a, b) in before.iter().zip(after) {
        for (a, b) in a.chunks_exact(vocab_size).zip(b.chunks_exact(vocab_size)) {
            positions += 1;
            same += usize::from(top(a) == top(b));
            for (x, y) in a.iter().zip(b) {
                let gap = (f64::from(*x) - f64::from(*y)).abs();
                (max, sum, count) = (max.max(gap), sum + gap, count + 1);
            }
        }
    }
    Difference {
        texts: before.len(),
        positions,
        max,
        mean: sum / count.max(1) as f64,
        same_top: same as f64 / positions.max(1) as f64,
    }
}

/// What merging an adapter changes on some texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MergeReport {
    /// The merged model beside the model with its adapter: what merging itself costs.
    pub merged: Difference,
    /// The merged model beside the model alone: what the adapter does.
    pub adapter: Difference,
}

/// Merges an adapter and measures what that changes on some texts. The adapter must not be attached.
pub fn merge_with_report(
    model: &LanguageModel,
    adapter: &Arc<Adapter>,
    texts: &[Vec<u32>],
) -> Result<(Merged, MergeReport)> {
    let base = probe(model, texts, &Hooks::Off)?;
    let set = AdapterSet::attach(model, vec![adapter.clone()]);
    let with = probe(model, texts, &Hooks::On);
    set.detach();
    let with = with?;
    let merged = merge(model, adapter)?;
    let after = probe(model, texts, &Hooks::Off)?;
    let vocab = model.spec().vocab_size;
    let report = MergeReport { merged: difference(&with, &after, vocab), adapter: difference(&base, &after, vocab) };
    Ok((merged, report))
}
