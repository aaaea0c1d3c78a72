//! Adapters of one model, of which every text goes through its own, or through none, in the same pass.

use std::sync::Arc;

use loam_models::{Hooks, LanguageModel};
use loam_peft::{Adapter, AdapterSet};

use super::request::AdapterId;
use crate::Error;

/// The adapters in a model's seams.
#[derive(Default)]
pub(super) struct Adapters {
    set: Option<AdapterSet>,
    /// Names, in the order of the set.
    ids: Vec<AdapterId>,
    last: u64,
}

impl Adapters {
    /// Puts one more in. An error where it cannot share a pass with others.
    pub(super) fn add(&mut self, model: &LanguageModel, adapter: Arc<Adapter>) -> Result<AdapterId, Error> {
        if model.spec().encoder.is_some() {
            let problem = "need a model of one stack where each request has its own";
            return Err(Error::Setting { key: "adapters", problem });
        }
        let mut all = self.take();
        all.push(adapter);
        let set = AdapterSet::attach_idle(model, all);
        if let Err(error) = set.rows(&[Some(self.ids.len())]) {
            let mut all = set.detach();
            all.pop();
            self.put(model, all);
            return Err(error.into());
        }
        self.set = Some(set);
        self.last += 1;
        self.ids.push(AdapterId(self.last));
        Ok(AdapterId(self.last))
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, model: &LanguageModel, id: AdapterId) {
        if let Some(place) = self.ids.iter().position(|known| *known == id) {
            let mut all = self.take();
            all.remove(place);
            self.ids.remove(place);
            self.put(model, all);
        }
    }

    fn take(&mut self) -> Vec<Arc<Adapter>> {
        self.set.take().map_or_else(Vec::new, AdapterSet::detach)
    }

    fn put(&mut self, model: &LanguageModel, all: Vec<Arc<Adapter>>) {
        self.set = (!all.is_empty()).then(|| AdapterSet::attach_idle(model, all));
    }

    /// Whether a name is known.
    pub(super) fn has(&self, id: AdapterId) -> bool {
        self.ids.contains(&id)
    }

    /// The hooks of a pass over parts of texts end to end: each part's adapter and its number of tokens.
    pub(super) fn hooks(&self, parts: &[(Option<AdapterId>, usize)]) -> Result<Hooks, Error> {
        let number = |id: AdapterId| self.ids.iter().position(|known| *known == id).ok_or(Error::NoAdapter);
        match (&self.set, parts) {
            (None, _) => Ok(Hooks::default()),
            (Some(_), parts) if parts.iter().all(|(id, _)| id.is_none()) => Ok(Hooks::Off),
            (Some(set), [(id, _)]) => Ok(set.rows(&[id.map(number).transpose()?])?),
            (Some(set), parts) => {
                let mut numbers = Vec::new();
                for (id, count) in parts {
                    numbers.extend(std::iter::repeat_n(id.map(number).transpose()?, *count));
                }
                Ok(set.rows(&numbers)?)
            }
        }
    }
}
