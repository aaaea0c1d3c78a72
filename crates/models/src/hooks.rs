//! The seams of a model by the names of its family's files, for whoever puts something there.

use std::collections::HashMap;

use loam_nn::{JoinHook, Linear, Module, PromptHook, Slot, TableHook};
use loam_tensor::Parameter;

use crate::error::Error;
use crate::model::LanguageModel;
use crate::weight_map::{Entry, Transform};

/// A linear layer of the files, which may feed several here.
#[derive(Clone)]
pub struct LinearSite {
    /// Its module's name in the files, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The layers that it feeds.
    pub parts: Vec<LinearPart>,
    /// Whether the files have the weight as `[in, out]`.
    pub is_transposed: bool,
}

/// One layer here, and the outputs of the files' layer that are its own.
#[derive(Clone)]
pub struct LinearPart {
    /// Shares parameters and seam with the model.
    pub linear: Linear,
    /// Which outputs of the files' layer, in order.
    pub rows: Vec<usize>,
}

impl LinearSite {
    /// Inputs.
    pub fn in_features(&self) -> usize {
        self.parts[0].linear.weight.shape()[1]
    }

    /// Outputs of all parts together.
    pub fn out_features(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    /// The weight `[out, in]` in the files' order of outputs.
    pub fn weight(&self) -> Vec<f32> {
        let width = self.in_features();
        let mut all = vec![0.0; width * self.out_features()];
        for part in &self.parts {
            let own = part.linear.weight.to_vec();
            for (values, &row) in own.chunks_exact(width).zip(&part.rows) {
                all[row * width..][..width].copy_from_slice(values);
            }
        }
        all
    }
}

/// Where the two halves of a block join the residual stream.
#[derive(Clone)]
pub struct JoinSite {
    /// The block's name in the files, such as `model.layers.0`.
    pub name: String,
    /// Where attention joins.
    pub attention: Slot<dyn JoinHook>,
    /// Where the feed-forward joins.
    pub feed_forward: Slot<dyn JoinHook>,
}

/// A table of vectors, or the head.
#[derive(Clone)]
pub struct TableSite {
    /// Its module's name in the files, such as `model.embed_tokens`.
    pub name: String,
    /// Its weight; a tied head's is that of the tokens' vectors.
    pub weight: Parameter,
    /// The seam.
    pub slot: Slot<dyn TableHook>,
}

impl LanguageModel {
    /// Every linear layer in a block.
    pub fn linear_sites(&self) -> Vec<LinearSite> {
        self.sites(&self.entries())
    }

    /// The same by the names of a GGUF file, such as `blk.0.attn_q`, with the architecture's name.
    pub fn gguf_linear_sites(&self) -> Result<(&'static str, Vec<LinearSite>), Error> {
        let (architecture, entries) = self.gguf_entries()?;
        Ok((architecture, self.sites(&entries)))
    }

    fn sites(&self, entries: &[Entry]) -> Vec<LinearSite> {
        let mut layers = HashMap::new();
        self.network.visit_linears("", &mut |name, linear| {
            layers.insert(format!("{name}.weight"), linear.clone());
        });
        let site = |entry: &Entry| {
            let linears: Option<Vec<Linear>> = entry.feeds.iter().map(|name| layers.get(name).cloned()).collect();
            let places = entry.places();
            let mut start = 0;
            let part = |linear: Linear| {
                let count = linear.weight.shape()[0];
                start += count;
                LinearPart { linear, rows: places[start - count..start].to_vec() }
            };
            Some(LinearSite {
                name: entry.name.strip_suffix(".weight")?.to_owned(),
                parts: linears?.into_iter().map(part).collect(),
                is_transposed: entry.transform == Transform::Transpose,
            })
        };
        entries.iter().filter_map(site).collect()
    }

    /// Every linear layer in a block, by the name of its module here, such as `layers.0.attention.q_proj`.
    pub fn linears(&self) -> Vec<(String, Linear)> {
        let mut found = Vec::new();
        self.network.visit_linears("", &mut |name, linear| found.push((name, linear.clone())));
        found
    }

    /// Every block of the stack that the head reads.
    pub fn join_sites(&self) -> Vec<JoinSite> {
        let entries = self.entries();
        let layers = self.network.stack.layers.iter().enumerate();
        layers
            .map(|(index, block)| {
                let own = format!("layers.{index}.");
                let entry = entries.iter().find(|entry| entry.feeds[0].starts_with(&own));
                let name = entry.map_or(format!("layers.{index}"), |entry| up_to_number(&entry.name, index));
                let [attention, feed_forward] = block.joins.clone();
                JoinSite { name, attention, feed_forward }
            })
            .collect()
    }

    /// The tokens' vectors, and the head where there is one.
    pub fn table_sites(&self) -> Vec<TableSite> {
        let (entries, network) = (self.entries(), &self.network);
        let name_of = |parameter: &Parameter| {
            let entry = entries.iter().find(|entry| entry.parameters[0].is_same(parameter))?;
            Some(entry.name.strip_suffix(".weight")?.to_owned())
        };
        let tokens = &network.embed_tokens;
        let table = TableSite {
            name: name_of(&tokens.weight).unwrap_or_default(),
            weight: tokens.weight.clone(),
            slot: tokens.hook.clone(),
        };
        let own = network.head.weight();
        // A head without a weight of its own still has a name, by which the files of other models know it.
        let head_name = own.and_then(&name_of).unwrap_or_else(|| "lm_head".into());
        let head = TableSite {
            name: head_name,
            weight: own.unwrap_or(&tokens.weight).clone(),
            slot: network.head.hook.clone(),
        };
        vec![table, head]
    }

    /// What stands in front of every text.
    pub fn prompt_slot(&self) -> Slot<dyn PromptHook> {
        self.network.prompt.clone()
    }

    /// The tokens' vectors.
    pub fn token_table(&self) -> Parameter {
        self.network.embed_tokens.weight.clone()
    }
}

/// `a.b.3.c.d` up to the part that is `index`.
fn up_to_number(name: &str, index: usize) -> String {
    let (number, mut kept) = (index.to_string(), Vec::new());
    for part in name.split('.') {
        kept.push(part);
        if part == number {
            break;
        }
    }
    kept.join(".")
}
