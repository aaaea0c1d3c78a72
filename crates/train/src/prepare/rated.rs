//! Answers that are wanted or not.

use std::path::Path;

use loam_data::dialogue::Table;
use loam_data::preference::{Answers, Rated, Turns, read_pairs, read_rated, unpaired};
use serde_json::Value;

use super::answers::{Parts, encoder};
use super::records::Split;
use super::reference;
use super::start::Start;
use super::{StageData, StageRun};
use crate::batch::InOrder;
use crate::error::Result;
use crate::objective::{Kto, KtoBatch, KtoLabel};
use crate::recipe::{Recipe, Stage};
use crate::trainer::{Observer, Summary};

/// Answers of a recipe, each beside the answer before it in its place.
pub(super) struct RatedData {
    own: Parts<KtoLabel>,
    mismatched: Parts<KtoLabel>,
}

/// Pairs are taken apart.
fn read(tables: &[Table]) -> loam_data::Result<Vec<Rated>> {
    let is_pair = |table: &Table| {
        let has = |row: &loam_data::source::Record, name: &str| row.has(table.layout().column(name));
        table.records().next().is_some_and(|row| row.is_ok_and(|row| has(&row, "chosen") && has(&row, "rejected")))
    };
    let mut rated = Vec::new();
    for table in tables {
        let one = std::slice::from_ref(table);
        rated.extend(if is_pair(table) { unpaired(&read_pairs(one)?) } else { read_rated(one)? });
    }
    Ok(rated)
}

impl RatedData {
    pub(super) fn open(
        recipe: &Recipe,
        start: &Start,
        seq_len: usize,
        cache_dir: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let Split { train, held_out, description } = Split::of_tables(recipe, read, |rated| format!("{rated:?}"))?;
        let wanted = train.iter().filter(|rated| rated.wanted).count();
        observer.on_message(&format!(
            "data: {} answers, {wanted} of them wanted, {} held out",
            train.len(),
            held_out.len()
        ));
        let encoder = encoder(start, seq_len);
        let encode = |rated: &Rated, completion: &Turns, number: usize| {
            let label = KtoLabel { wanted: rated.wanted, reference: 0.0 };
            Ok(Answers { texts: vec![encoder.answer(&rated.prompt, completion, number)?], label })
        };
        let beside = |rated: Vec<Rated>| {
            let before: Vec<Turns> =
                (0..rated.len()).map(|at| rated[(at + rated.len() - 1) % rated.len()].completion.clone()).collect();
            rated.into_iter().zip(before).collect::<Vec<_>>()
        };
        let pairs = || Split {
            train: beside(train.clone()),
            held_out: beside(held_out.clone()),
            description: description.clone(),
        };
        let mut own = Parts::encoded(pairs(), |number, (rated, _)| encode(rated, &rated.completion, number))?;
        // What is too long with another's answer is no sample of the distance; its own answer takes the place.
        let mut mismatched = Parts::encoded(pairs(), |number, (rated, before)| {
            encode(rated, before, number).or_else(|_| encode(rated, &rated.completion, number))
        })?;
        for parts in [&mut own, &mut mismatched] {
            for part in [&mut parts.train, &mut parts.held_out] {
                let values = reference::log_probs(recipe, start, part, cache_dir, observer)?;
                part.iter_mut().zip(values).for_each(|(one, values)| one.label.reference = values[0]);
            }
        }
        Ok(Self { own, mismatched })
    }
}

impl StageData for RatedData {
    fn sequences(&self) -> u64 {
        self.own.train.len() as u64
    }

    fn description(&self) -> Value {
        self.own.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        self.own.end()
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let micro = run.rows().1;
        // Two loaders of one seed and one length have one order.
        let (own, other) = (self.own.loader(&run)?, self.mismatched.loader(&run)?);
        let source = |step: u64| {
            let pairs = own.micro_batches(step, micro).into_iter().zip(other.micro_batches(step, micro));
            Ok(pairs.map(|(answers, mismatched)| KtoBatch { answers, mismatched }).collect())
        };
        let held_out = self.own.validation(&run)?.zip(self.mismatched.validation(&run)?);
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
