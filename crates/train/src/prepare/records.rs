//! Records of files, with a part held out.

use std::path::{Path, PathBuf};

use loam_data::dialogue::{DatasetInfo, Layout, Table};
use loam_data::labelled::token_classify::join;
use loam_data::source::Source;
use serde_json::{Value, json};

use super::start::expand;
use crate::error::Result;
use crate::recipe::{HELD_OUT, Noise, Recipe, Stage};
use crate::run::file_hashes;

/// Records to train on, and records to measure with.
pub(super) struct Split<T> {
    pub(super) train: Vec<T>,
    pub(super) held_out: Vec<T>,
    /// What `environment.json` says about them.
    pub(super) description: Value,
}

impl<T> Split<T> {
    /// Reads all files. What is held out is chosen by a hash of the record (`text` is what is hashed), so that it stays
    /// held out when the data grows.
    pub(super) fn read(
        recipe: &Recipe,
        read: impl Fn(&[PathBuf]) -> Result<Vec<T>>,
        text: impl Fn(&T) -> String,
    ) -> Result<Self> {
        let opened = |patterns: &[String]| {
            let files = expand(patterns)?;
            Ok((read(&files)?, files))
        };
        Self::parts(recipe, opened, text)
    }

    /// The same of tables in any layout that is known.
    pub(super) fn of_tables(
        recipe: &Recipe,
        read: impl Fn(&[Table]) -> loam_data::Result<Vec<T>>,
        text: impl Fn(&T) -> String,
    ) -> Result<Self> {
        let opened = |patterns: &[String]| {
            let tables = tables(recipe, patterns)?;
            let files = tables.iter().map(|table| table.source().path().to_path_buf()).collect();
            Ok((read(&tables)?, files))
        };
        Self::parts(recipe, opened, text)
    }

    fn parts(
        recipe: &Recipe,
        opened: impl Fn(&[String]) -> Result<(Vec<T>, Vec<PathBuf>)>,
        text: impl Fn(&T) -> String,
    ) -> Result<Self> {
        let (all, files) = opened(&recipe.data.train)?;
        let share = recipe.data.validation_fraction.or(recipe.data.validation_tail).unwrap_or(HELD_OUT);
        let (held_out, train): (Vec<_>, Vec<_>) = if recipe.data.validation.is_empty() {
            all.into_iter().partition(|record| share > 0.0 && hash_unit(&text(record)) < share)
        } else {
            (opened(&recipe.data.validation)?.0, all)
        };
        let description = json!({"files": file_hashes(&files)?, "train": train.len(), "held_out": held_out.len()});
        Ok(Self { train, held_out, description })
    }
}

/// The tables that patterns name, or those that a `dataset_info.json` calls so.
pub(super) fn tables(recipe: &Recipe, patterns: &[String]) -> Result<Vec<Table>> {
    let data = &recipe.data;
    let layout = Layout { format: data.format.map(Into::into), columns: data.fields.clone(), ..Layout::default() };
    let Some(info) = &data.dataset_info else {
        return Ok(expand(patterns)?
            .iter()
            .map(|file| Table::open(file, &layout))
            .collect::<loam_data::Result<_>>()?);
    };
    let info = DatasetInfo::open(Path::new(info))?;
    let tables = patterns.iter().map(|name| info.tables(name, &data.fields));
    Ok(tables.collect::<loam_data::Result<Vec<_>>>()?.concat())
}

/// The texts of a stage's records, for a tokenizer to learn from; `None` for stages of plain text.
pub(super) fn texts(recipe: &Recipe) -> Result<Option<Vec<String>>> {
    let fields: &[&str] = match recipe.stage {
        Stage::Seq2seq if recipe.data.noise == Noise::None => &["source", "target"],
        Stage::Classify => &["text", "text_pair"],
        Stage::TokenClassify => &["tokens"],
        Stage::Qa => &["context", "question"],
        Stage::Contrastive => &["anchor", "positive", "negative"],
        _ => return Ok(None),
    };
    // Optional fields are read where the recipe names them.
    let is_read = |name: &str| !["text_pair", "negative"].contains(&name) || recipe.data.fields.contains_key(name);
    let mut texts = Vec::new();
    for path in expand(&recipe.data.train)? {
        for record in Source::open(&path)?.records() {
            let record = record?;
            for name in fields.iter().filter(|name| is_read(name)) {
                let field = recipe.data.field(name);
                texts.push(match *name {
                    "tokens" => join(&record.list(&field)?).0,
                    _ => record.text(&field)?,
                });
            }
        }
    }
    Ok(Some(texts))
}

/// A number in [0, 1) that depends on the text alone.
fn hash_unit(text: &str) -> f64 {
    (twox_hash::XxHash3_64::oneshot(text.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}
