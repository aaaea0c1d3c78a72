//! Conversations and questions with answers, from tables in every layout that is common.
//!
//! A [`Layout`] says how the rows of a file are read: which format they have, what their fields are called, how roles are
//! named. What is not said is found out from the first row ([`Layout::detected`]). [`Table`] is a file with its layout,
//! [`DatasetInfo`] a list of them as LLaMA-Factory keeps one.

mod dataset_info;
mod layout;
pub(crate) mod turns;

pub use dataset_info::DatasetInfo;
pub use layout::{Format, Layout, Tags};

use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::preference::Turns;
use crate::source::{Record, Records, Source};

/// A conversation, or a question with its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialogue {
    /// What is only read.
    pub prompt: Turns,
    /// What the model learns to write: of messages the assistant's, all of them.
    pub answer: Turns,
    /// The functions that the model may call, as the chat template gets them.
    pub tools: Vec<Value>,
}

/// A file, and how its rows are read.
#[derive(Debug, Clone)]
pub struct Table {
    source: Source,
    layout: Layout,
}

impl Table {
    /// Opens a file. What `layout` leaves open is found out from its first row.
    pub fn open(path: &Path, layout: &Layout) -> Result<Self> {
        let source = Source::open(path)?;
        let first = source.records().next().transpose()?;
        let layout = first.map_or_else(|| Ok(layout.clone()), |row| layout.detected(&row))?;
        Ok(Self { source, layout })
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// How its rows are read.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its rows.
    pub fn records(&self) -> Records {
        self.source.records()
    }

    /// Its rows as conversations.
    pub fn dialogues(&self) -> impl Iterator<Item = Result<Dialogue>> + '_ {
        self.records().map(|row| row.and_then(|row: Record| self.layout.dialogue(&row)))
    }
}

/// All conversations of some tables.
pub fn read_dialogues(tables: &[Table]) -> Result<Vec<Dialogue>> {
    tables.iter().flat_map(Table::dialogues).collect()
}
