//! Labelled texts from files: classes, tags, answers, paraphrases.

use std::fmt::Debug;
use std::path::PathBuf;

use loam_data::labelled::classify::{self, ClassifyFields, Label, LabelKind, LabelSet};
use loam_data::labelled::contrastive::{self, ContrastiveFields};
use loam_data::labelled::qa::{self, AnswerSpan, QaFields};
use loam_data::labelled::token_classify::{self, TagFields};
use loam_data::source::Source as File;
use loam_data::{Labelled, LabelledBatch, LabelledConfig, LabelledLoader};
use serde_json::Value;

use super::records::Split;
use super::start::{Start, expand};
use super::{StageData, StageRun};
use crate::batch::InOrder;
use crate::error::Result;
use crate::objective::{Classify, Contrastive, Objective, Qa, TokenClassify};
use crate::recipe::{DOC_STRIDE, Labels, Recipe, Stage};
use crate::trainer::{Observer, Summary};

/// Labelled examples of a recipe, encoded.
pub(super) struct Examples<L> {
    train: Vec<Labelled<L>>,
    held_out: Vec<Labelled<L>>,
    sequences: u64,
    description: Value,
}

impl<L: Clone + Send + Sync> Examples<L> {
    /// Reads the records, encodes them with `encode`, which also counts those that lost their end.
    fn of<T: Debug>(
        recipe: &Recipe,
        seq_len: usize,
        observer: &mut dyn Observer,
        read: impl Fn(&[File]) -> loam_data::Result<Vec<T>>,
        encode: impl Fn(&[T]) -> loam_data::Result<(Vec<Labelled<L>>, u64)>,
    ) -> Result<Self> {
        let split = Split::read(recipe, |files| Ok(read(&opened(files)?)?), |record| format!("{record:?}"))?;
        let (train, cut) = encode(&split.train)?;
        let (held_out, _) = encode(&split.held_out)?;
        let cut = if cut == 0 { String::new() } else { format!("; {cut} are too long and lose their end") };
        observer.on_message(&format!("data: {} examples, {} held out{cut}", train.len(), held_out.len()));
        let sequences = LabelledLoader::new(train.clone(), config(recipe, 1, seq_len))?.rows_per_epoch();
        Ok(Self { train, held_out, sequences, description: split.description })
    }

    fn run<O: Objective<Batch = LabelledBatch<L>>>(&self, run: StageRun<'_>, objective: O) -> Result<Summary> {
        let ((batch, rows), seq_len) = (run.rows(), run.recipe.data.seq_len.unwrap_or(2));
        let train = LabelledLoader::new(self.train.clone(), config(run.recipe, batch, seq_len))?;
        let source = |step: u64| Ok(train.micro_batches(step, rows));
        let held_out = match self.held_out.is_empty() {
            true => None,
            false => Some(LabelledLoader::new(self.held_out.clone(), config(run.recipe, rows, seq_len))?),
        };
        let validation = held_out.as_ref().map(|loader| InOrder {
            len: loader.batches_in_order(),
            batch: |index| loader.batch_in_order(index),
            bytes_per_token: None,
        });
        run.run(objective, &source, validation.as_ref().map(|validation| validation as _))
    }
}

impl<L: Clone + Send + Sync + Stageable> StageData for Examples<L> {
    fn sequences(&self) -> u64 {
        self.sequences
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        L::train(self, run)
    }
}

/// Labels that belong to a stage.
pub(super) trait Stageable: Sized {
    /// Trains with the stage's objective.
    fn train(examples: &Examples<Self>, run: StageRun<'_>) -> Result<Summary>;
}

impl Stageable for Label {
    fn train(examples: &Examples<Self>, run: StageRun<'_>) -> Result<Summary> {
        examples.run(run, Classify)
    }
}

impl Stageable for Vec<i32> {
    fn train(examples: &Examples<Self>, run: StageRun<'_>) -> Result<Summary> {
        examples.run(run, TokenClassify)
    }
}

impl Stageable for AnswerSpan {
    fn train(examples: &Examples<Self>, run: StageRun<'_>) -> Result<Summary> {
        examples.run(run, Qa)
    }
}

impl Stageable for () {
    fn train(examples: &Examples<Self>, run: StageRun<'_>) -> Result<Summary> {
        // Sentences are pooled from hidden states, so a pooler of the checkpoint learns nothing.
        for (name, parameter) in run.model.parameters() {
            if name.starts_with("pooler.") {
                parameter.set_trainable(false);
            }
        }
        let temperature = run.recipe.train.temperature.unwrap_or(Contrastive::default().temperature as f64) as f32;
        examples.run(run, Contrastive { temperature })
    }
}

pub(super) fn classify(
    recipe: &Recipe,
    start: &Start,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Examples<Label>> {
    let (fields, kind) = (classify_fields(recipe), kind(recipe));
    let labels = LabelSet::from_names(start.labels.clone());
    Examples::of(
        recipe,
        seq_len,
        observer,
        |files| classify::read(files, &fields, kind),
        |rows| classify::encode(rows, &labels, kind, &start.tokenizer, seq_len),
    )
}

pub(super) fn token_classify(
    recipe: &Recipe,
    start: &Start,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Examples<Vec<i32>>> {
    let (fields, labels) = (tag_fields(recipe), LabelSet::from_names(start.labels.clone()));
    Examples::of(
        recipe,
        seq_len,
        observer,
        |files| token_classify::read(files, &fields),
        |rows| token_classify::encode(rows, &labels, &start.tokenizer, seq_len),
    )
}

pub(super) fn qa(
    recipe: &Recipe,
    start: &Start,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Examples<AnswerSpan>> {
    let field = |name: &str| recipe.data.field(name);
    let fields = QaFields { context: field("context"), question: field("question"), answers: field("answers") };
    let doc_stride = recipe.data.doc_stride.unwrap_or(DOC_STRIDE.min(seq_len / 4));
    Examples::of(
        recipe,
        seq_len,
        observer,
        |files| qa::read(files, &fields),
        |rows| Ok((qa::encode(rows, &start.tokenizer, seq_len, doc_stride)?.0, 0)),
    )
}

pub(super) fn contrastive(
    recipe: &Recipe,
    start: &Start,
    seq_len: usize,
    observer: &mut dyn Observer,
) -> Result<Examples<()>> {
    let negative = recipe.data.fields.get("negative").cloned();
    let fields =
        ContrastiveFields { anchor: recipe.data.field("anchor"), positive: recipe.data.field("positive"), negative };
    Examples::of(
        recipe,
        seq_len,
        observer,
        |files| contrastive::read(files, &fields),
        |rows| contrastive::encode(rows, &start.tokenizer, seq_len),
    )
}

/// The classes that a recipe's files name, in the order that a new head numbers them; none for stages without classes.
pub(super) fn labels(recipe: &Recipe) -> Result<Vec<String>> {
    let names = match recipe.stage {
        Stage::Classify if recipe.data.labels == Labels::Value => return Ok(vec!["value".into()]),
        Stage::Reward => return Ok(vec!["reward".into()]),
        Stage::Classify | Stage::TokenClassify => names(recipe)?,
        _ => return Ok(Vec::new()),
    };
    Ok(LabelSet::of(&names).names().to_vec())
}

fn names(recipe: &Recipe) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for patterns in [&recipe.data.train, &recipe.data.validation] {
        if patterns.is_empty() {
            continue;
        }
        let files = opened(&expand(patterns)?)?;
        if recipe.stage == Stage::Classify {
            let rows = classify::read(&files, &classify_fields(recipe), kind(recipe))?;
            names.extend(rows.into_iter().flat_map(|row| row.classes));
        } else {
            names.extend(token_classify::read(&files, &tag_fields(recipe))?.into_iter().flat_map(|row| row.tags));
        }
    }
    Ok(names)
}

fn classify_fields(recipe: &Recipe) -> ClassifyFields {
    let text_pair = recipe.data.fields.get("text_pair").cloned();
    ClassifyFields { text: recipe.data.field("text"), text_pair, label: recipe.data.field("label") }
}

fn tag_fields(recipe: &Recipe) -> TagFields {
    TagFields { words: recipe.data.field("tokens"), tags: recipe.data.field("tags") }
}

fn kind(recipe: &Recipe) -> LabelKind {
    match recipe.data.labels {
        Labels::Class => LabelKind::Class,
        Labels::Classes => LabelKind::Classes,
        Labels::Value => LabelKind::Value,
    }
}

fn opened(files: &[PathBuf]) -> Result<Vec<File>> {
    Ok(files.iter().map(|file| File::open(file)).collect::<loam_data::Result<Vec<_>>>()?)
}

fn config(recipe: &Recipe, rows: usize, seq_len: usize) -> LabelledConfig {
    LabelledConfig { batch_tokens: rows * seq_len, seq_len, seed: recipe.seed }
}
