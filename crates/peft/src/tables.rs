//! Vectors of tokens, and the head: trained as a whole, or some rows of them.

use std::sync::Arc;

use loam_models::{LanguageModel, TableSite};
use loam_nn::TableHook;
use loam_tensor::{Parameter, Raw, Tensor};

use crate::error::{Error, Result};
use crate::linear::{Named, file_name};

/// A place of a table, and what stands there.
pub(crate) struct Tabled {
    pub(crate) key: String,
    pub(crate) site: TableSite,
    pub(crate) hook: Arc<dyn Table>,
}

/// A table that can be put into a model for good.
pub(crate) trait Table: TableHook {
    /// The model's table with it.
    fn merged(&self, own: &Parameter) -> Vec<f32>;
}

/// A table of its own.
pub(crate) struct WholeTable(pub(crate) Parameter);

impl TableHook for WholeTable {
    fn rows(&self, _own: &Parameter, ids: &[u32], lead: [usize; 2]) -> Tensor {
        Tensor::parameter(&self.0).embedding(ids, lead)
    }

    fn table(&self, own: &Parameter, is_shared: bool) -> Tensor {
        // As in PEFT: a head that is tied to the tokens' vectors keeps those of the model.
        Tensor::parameter(if is_shared { own } else { &self.0 })
    }
}

impl Table for WholeTable {
    fn merged(&self, _own: &Parameter) -> Vec<f32> {
        self.0.to_vec()
    }
}

/// Some rows of its own.
struct RowsOfTable {
    tokens: Vec<u32>,
    /// `[tokens, width]`.
    delta: Parameter,
}

impl RowsOfTable {
    /// Where each id is in the model's `rows` rows and, after them, ours.
    fn places(&self, rows: usize, ids: impl Iterator<Item = u32>) -> Vec<u32> {
        let place = |id: u32| self.tokens.iter().position(|&token| token == id).map_or(id, |at| (rows + at) as u32);
        ids.map(place).collect()
    }
}

impl TableHook for RowsOfTable {
    fn rows(&self, own: &Parameter, ids: &[u32], lead: [usize; 2]) -> Tensor {
        // Only what is looked up is copied: the vectors of the batch, then ours.
        let looked_up = Tensor::parameter(own).embedding(ids, [ids.len()]);
        let all = Tensor::concat(&[&looked_up, &Tensor::parameter(&self.delta)], 0);
        let place = |(at, id): (usize, &u32)| {
            self.tokens.iter().position(|token| token == id).map_or(at as u32, |own| (ids.len() + own) as u32)
        };
        let places: Vec<u32> = ids.iter().enumerate().map(place).collect();
        all.embedding(&places, lead)
    }

    fn table(&self, own: &Parameter, _is_shared: bool) -> Tensor {
        let rows = own.shape()[0];
        // Decoded, where it is quantised.
        let whole = Raw::from_f32(&own.to_vec(), own.shape());
        let all = Tensor::concat(&[&Tensor::constant(whole), &Tensor::parameter(&self.delta)], 0);
        all.embedding(&self.places(rows, 0..rows as u32), [rows])
    }
}

impl Table for RowsOfTable {
    fn merged(&self, own: &Parameter) -> Vec<f32> {
        let (mut values, delta, width) = (own.to_vec(), self.delta.to_vec(), own.shape()[1]);
        for (&token, row) in self.tokens.iter().zip(delta.chunks_exact(width)) {
            values[token as usize * width..][..width].copy_from_slice(row);
        }
        values
    }
}

/// Rows of the tokens' vectors (and of a tied head) that are trained.
pub(crate) fn token_rows(model: &LanguageModel, tokens: &[u32]) -> Result<(Named, Vec<Tabled>)> {
    let site = model.table_sites().into_iter().next().expect("every model has tokens' vectors");
    let shape = site.weight.shape();
    let mut sorted = tokens.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != tokens.len() {
        return Err(Error::Setting("a token is listed twice among those whose vectors are trained".into()));
    }
    if let Some(beyond) = tokens.iter().find(|&&token| token as usize >= shape[0]) {
        return Err(Error::Setting(format!("token {beyond} is outside of the vocabulary of {}", shape[0])));
    }
    let (values, width) = (site.weight.to_vec(), shape[1]);
    let rows: Vec<f32> = tokens.iter().flat_map(|&token| values[token as usize * width..][..width].to_vec()).collect();
    let delta = Parameter::new(Raw::from_f32(&rows, [tokens.len(), width]));
    let name = file_name(&site.name, "token_adapter.trainable_tokens_delta");
    let hook = Arc::new(RowsOfTable { tokens: tokens.to_vec(), delta: delta.clone() });
    Ok((vec![(name, delta)], vec![Tabled { key: "tokens".into(), site, hook }]))
}
