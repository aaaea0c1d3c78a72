//! Preferences from files, encoded: pairs, and answers that are wanted or not.

use std::path::{Path, PathBuf};

use loam_data::preference::{
    self, AnswerLoader, Answers, Encoder, Preference, PreferenceFields, Rated, read_pairs, read_rated, unpaired,
};
use loam_data::source::Source as File;
use rayon::prelude::*;
use serde_json::Value;

use super::records::Split;
use super::reference;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::InOrder;
use crate::conversations::end_token;
use crate::error::Result;
use crate::objective::{Dpo, Kto, KtoBatch, KtoLabel, Odds, OddsKind, PairLabel, Reward};
use crate::recipe::{Recipe, Stage};
use crate::trainer::{Observer, Summary};

/// The names that a recipe gives the fields.
pub(super) fn fields(recipe: &Recipe) -> PreferenceFields {
    let field = |name: &str| recipe.data.field(name);
    PreferenceFields {
        prompt: field("prompt"),
        chosen: field("chosen"),
        rejected: field("rejected"),
        margin: field("margin"),
        completion: field("completion"),
        label: field("label"),
    }
}

pub(super) fn opened(files: &[PathBuf]) -> loam_data::Result<Vec<File>> {
    files.iter().map(|file| File::open(file)).collect()
}

fn encoder(start: &Start, seq_len: usize) -> Encoder<'_> {
    Encoder { tokenizer: &start.tokenizer, template: start.template.as_ref(), max_len: seq_len }
}

/// Pairs of a recipe.
pub(super) struct PairData {
    train: Vec<Answers<PairLabel>>,
    held_out: Vec<Answers<PairLabel>>,
    description: Value,
}

impl PairData {
    pub(super) fn open(
        recipe: &Recipe,
        start: &Start,
        seq_len: usize,
        cache_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let fields = fields(recipe);
        let read = |files: &[PathBuf]| Ok(read_pairs(&opened(files)?, &fields)?);
        let Split { train, held_out, description } = Split::read(recipe, read, |pair| format!("{pair:?}"))?;
        observer.on_message(&format!("data: {} pairs, {} held out", train.len(), held_out.len()));
        let encoder = encoder(start, seq_len);
        let encode = |(number, pair): (usize, &Preference)| {
            let text = |answer| encoder.answer(&pair.prompt, answer, number);
            let label = PairLabel { margin: pair.margin, ..PairLabel::default() };
            Ok(Answers { texts: vec![text(&pair.chosen)?, text(&pair.rejected)?], label })
        };
        let all =
            |pairs: &[Preference]| -> loam_data::Result<Vec<_>> { pairs.par_iter().enumerate().map(encode).collect() };
        let (mut train, mut held_out) = (all(&train)?, all(&held_out)?);
        if recipe.stage == Stage::Dpo {
            for part in [&mut train, &mut held_out] {
                let values = reference::log_probs(recipe, start, part, cache_dir, observer)?;
                part.iter_mut().zip(values).for_each(|(pair, values)| pair.label.reference = [values[0], values[1]]);
            }
        }
        Ok(Self { train, held_out, description })
    }
}

impl StageData for PairData {
    fn sequences(&self) -> u64 {
        self.train.len() as u64
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        end_token(&self.train.first()?.texts)
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (batch, micro) = run.rows();
        let loader = AnswerLoader::new(self.train.clone(), batch, run.recipe.seed)?;
        let source = |step: u64| Ok(loader.micro_batches(step, micro));
        let held_out = match self.held_out.is_empty() {
            true => None,
            false => Some(AnswerLoader::new(self.held_out.clone(), micro, run.recipe.seed)?),
        };
        let validation = held_out.as_ref().map(|loader| InOrder {
            len: loader.batches_in_order(micro),
            batch: |index| loader.batch_in_order(index, micro),
            bytes_per_token: None,
        });
        let validation = validation.as_ref().map(|validation| validation as _);
        let (stage, preference) = (run.recipe.stage, run.recipe.preference.clone());
        let odds = |kind| Odds {
            kind,
            beta: preference.beta(stage),
            gamma: preference.gamma as f32,
            label_smoothing: preference.label_smoothing as f32,
            sft_weight: preference.sft_weight(stage),
        };
        match stage {
            Stage::Dpo => {
                let weights = preference.loss_weights.iter().map(|&weight| weight as f32).chain(std::iter::repeat(1.0));
                let losses = preference.loss.iter().copied().zip(weights).collect();
                run.run(Dpo { losses, settings: preference.dpo() }, &source, validation)
            }
            Stage::Orpo => run.run(odds(OddsKind::Orpo), &source, validation),
            Stage::Simpo => run.run(odds(OddsKind::Simpo), &source, validation),
            Stage::Cpo => run.run(odds(OddsKind::Cpo), &source, validation),
            _ => run.run(Reward { centering: preference.centering as f32 }, &source, validation),
        }
    }
}

/// Answers of a recipe that are wanted or not, each with the answer before it in its place.
pub(super) struct RatedData {
    train: Vec<Answers<KtoLabel>>,
    mismatched: Vec<Answers<KtoLabel>>,
    held_out: Vec<Answers<KtoLabel>>,
    held_out_mismatched: Vec<Answers<KtoLabel>>,
    description: Value,
}

impl RatedData {
    pub(super) fn open(
        recipe: &Recipe,
        start: &Start,
        seq_len: usize,
        cache_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let fields = fields(recipe);
        let read = |files: &[PathBuf]| {
            let files = opened(files)?;
            // Pairs are taken apart.
            let is_pairs = files
                .iter()
                .flat_map(File::records)
                .next()
                .is_some_and(|first| first.is_ok_and(|row| row.has(&fields.chosen) && row.has(&fields.rejected)));
            Ok(if is_pairs { unpaired(&read_pairs(&files, &fields)?) } else { read_rated(&files, &fields)? })
        };
        let Split { train, held_out, description } = Split::read(recipe, read, |rated| format!("{rated:?}"))?;
        let wanted = train.iter().filter(|rated| rated.wanted).count();
        observer.on_message(&format!(
            "data: {} answers, {wanted} of them wanted, {} held out",
            train.len(),
            held_out.len()
        ));
        let encoder = encoder(start, seq_len);
        let mut parts = Vec::new();
        for rated in [&train, &held_out] {
            let own: loam_data::Result<Vec<_>> = rated
                .par_iter()
                .enumerate()
                .map(|(number, one)| encode(&encoder, one, &one.completion, number))
                .collect();
            // What is too long with another's answer is no sample of the distance; its own answer takes the place.
            let mismatched = rated.iter().enumerate().map(|(number, one)| {
                let before = &rated[(number + rated.len() - 1) % rated.len()];
                let other = encode(&encoder, one, &before.completion, number);
                other.or_else(|_| encode(&encoder, one, &one.completion, number))
            });
            let mismatched: loam_data::Result<Vec<_>> = mismatched.collect();
            for mut part in [own?, mismatched?] {
                let values = reference::log_probs(recipe, start, &part, cache_dir, observer)?;
                part.iter_mut().zip(values).for_each(|(one, values)| one.label.reference = values[0]);
                parts.push(part);
            }
        }
        let [train, mismatched, held_out, held_out_mismatched] = <[Vec<_>; 4]>::try_from(parts).unwrap_or_default();
        Ok(Self { train, mismatched, held_out, held_out_mismatched, description })
    }
}

fn encode(
    encoder: &Encoder<'_>,
    rated: &Rated,
    completion: &preference::Turns,
    number: usize,
) -> loam_data::Result<Answers<KtoLabel>> {
    let label = KtoLabel { wanted: rated.wanted, reference: 0.0 };
    Ok(Answers { texts: vec![encoder.answer(&rated.prompt, completion, number)?], label })
}

impl StageData for RatedData {
    fn sequences(&self) -> u64 {
        self.train.len() as u64
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        end_token(&self.train.first()?.texts)
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (batch, micro) = run.rows();
        let loader = |part: &Vec<_>, batch| AnswerLoader::new(part.clone(), batch, run.recipe.seed);
        // Two loaders of one seed and one length have one order.
        let (own, other) = (loader(&self.train, batch)?, loader(&self.mismatched, batch)?);
        let source = |step: u64| {
            let pairs = own.micro_batches(step, micro).into_iter().zip(other.micro_batches(step, micro));
            Ok(pairs.map(|(answers, mismatched)| KtoBatch { answers, mismatched }).collect())
        };
        let held_out = match self.held_out.is_empty() {
            true => None,
            false => Some((loader(&self.held_out, micro)?, loader(&self.held_out_mismatched, micro)?)),
        };
        let validation = held_out.as_ref().map(|(own, other)| InOrder {
            len: own.batches_in_order(micro),
            batch: |index| KtoBatch {
                answers: own.batch_in_order(index, micro),
                mismatched: other.batch_in_order(index, micro),
            },
            bytes_per_token: None,
        });
        let preference = &run.recipe.preference;
        let objective = Kto {
            beta: preference.beta(Stage::Kto),
            desirable: preference.desirable_weight as f32,
            undesirable: preference.undesirable_weight as f32,
        };
        run.run(objective, &source, validation.as_ref().map(|validation| validation as _))
    }
}
