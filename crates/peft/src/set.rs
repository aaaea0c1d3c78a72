//! [`AdapterSet`]: adapters in a model's seams, one in use at a time, or a different one for every row of a batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loam_models::{Hooks, LanguageModel, TableSite};
use loam_nn::{JoinHook, LayerContext, Linear, LinearHook, Norm, Prompt, PromptHook, Slot, TableHook, by_row};
use loam_tensor::{Parameter, Tensor};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::linear::LinearAdapter;
use crate::prompt::SharedPrompt;
use crate::tables::Table;

/// Which adapter a pass without a word about it goes through.
type Active = Arc<AtomicUsize>;

/// Adapters attached to a model. Detach before another set is attached: seams hold one.
pub struct AdapterSet {
    adapters: Vec<Arc<Adapter>>,
    active: Active,
    /// Empties each seam.
    undo: Vec<Box<dyn Fn() + Send + Sync>>,
}

/// One place, and what each adapter puts there.
type Places<'a, S, H> = BTreeMap<&'a str, (&'a S, Vec<Option<Arc<H>>>)>;

/// Adapters of one place, by their number.
struct InLinear(Vec<Option<Arc<dyn LinearAdapter>>>, Active);
struct AtJoin(Vec<Option<Arc<dyn JoinHook>>>, Active);
struct InTable(Vec<Option<Arc<dyn Table>>>, Active);
struct InFront(Vec<Option<SharedPrompt>>, Active);

impl LinearHook for InLinear {
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor {
        let one = |number: usize, x: &Tensor| match self.0.get(number).and_then(Option::as_ref) {
            Some(adapter) => adapter.forward(linear, x, context),
            None => linear.apply(x),
        };
        match &context.hooks {
            Hooks::Rows(ids) => by_row(ids, &[x], |id, parts| match id {
                Some(number) => one(number, &parts[0]),
                None => linear.apply(&parts[0]),
            }),
            _ => one(self.1.load(Ordering::Relaxed), x),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.0.iter().flatten().flat_map(|adapter| adapter.parameters()).collect()
    }
}

impl JoinHook for AtJoin {
    fn forward(&self, branch: &Tensor, x: &Tensor, norm: Option<&Norm>, context: &LayerContext) -> Tensor {
        let one = |number: usize, branch: &Tensor, x: &Tensor| match self.0.get(number).and_then(Option::as_ref) {
            Some(hook) => hook.forward(branch, x, norm, context),
            None => branch.clone(),
        };
        match &context.hooks {
            Hooks::Rows(ids) => by_row(ids, &[branch, x], |id, parts| match id {
                Some(number) => one(number, &parts[0], &parts[1]),
                None => parts[0].clone(),
            }),
            _ => one(self.1.load(Ordering::Relaxed), branch, x),
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.0.iter().flatten().flat_map(|hook| hook.parameters()).collect()
    }
}

impl InTable {
    fn active(&self) -> Option<&Arc<dyn Table>> {
        self.0.get(self.1.load(Ordering::Relaxed)).and_then(Option::as_ref)
    }
}

impl TableHook for InTable {
    fn rows(&self, own: &Parameter, ids: &[u32], lead: [usize; 2]) -> Tensor {
        match self.active() {
            Some(hook) => hook.rows(own, ids, lead),
            None => Tensor::parameter(own).embedding(ids, lead),
        }
    }

    fn table(&self, own: &Parameter, is_shared: bool) -> Tensor {
        self.active().map_or_else(|| Tensor::parameter(own), |hook| hook.table(own, is_shared))
    }
}

impl InFront {
    fn active(&self) -> Option<&SharedPrompt> {
        self.0.get(self.1.load(Ordering::Relaxed)).and_then(Option::as_ref)
    }
}

impl PromptHook for InFront {
    fn count(&self) -> usize {
        self.active().map_or(0, |prompt| prompt.count())
    }

    fn prompt(&self) -> Prompt {
        match self.active() {
            Some(prompt) => prompt.prompt(),
            None => Prompt { vectors: Tensor::full([0, 0], 0.0), keys_and_values: Vec::new() },
        }
    }
}

impl AdapterSet {
    /// Puts adapters, made for this model, into its seams; the first is in use.
    pub fn attach(model: &LanguageModel, adapters: Vec<Arc<Adapter>>) -> Self {
        Self::attach_at(model, adapters, 0)
    }

    /// The same, but with none in use: a pass goes through them where [`AdapterSet::rows`] says so, and is else that of the
    /// model alone.
    pub fn attach_idle(model: &LanguageModel, adapters: Vec<Arc<Adapter>>) -> Self {
        Self::attach_at(model, adapters, usize::MAX)
    }

    fn attach_at(model: &LanguageModel, adapters: Vec<Arc<Adapter>>, first: usize) -> Self {
        let (active, count) = (Active::new(AtomicUsize::new(first)), adapters.len());
        let mut undo: Vec<Box<dyn Fn() + Send + Sync>> = Vec::new();
        let mut linears: Places<'_, Linear, dyn LinearAdapter> = BTreeMap::new();
        let mut joins: Places<'_, Slot<dyn JoinHook>, dyn JoinHook> = BTreeMap::new();
        let mut tables: Places<'_, TableSite, dyn Table> = BTreeMap::new();
        for (number, adapter) in adapters.iter().enumerate() {
            for at in &adapter.linears {
                let (_, places) = linears.entry(&at.key).or_insert((&at.linear, vec![None; count]));
                places[number] = Some(at.adapter.clone());
            }
            for at in &adapter.joins {
                let (_, places) = joins.entry(&at.key).or_insert((&at.slot, vec![None; count]));
                places[number] = Some(at.hook.clone());
            }
            for at in &adapter.tables {
                let (_, places) = tables.entry(&at.key).or_insert((&at.site, vec![None; count]));
                places[number] = Some(at.hook.clone());
            }
        }
        for (linear, places) in linears.into_values() {
            fill(&linear.hook, Arc::new(InLinear(places, active.clone())), &mut undo);
        }
        for (slot, places) in joins.into_values() {
            fill(slot, Arc::new(AtJoin(places, active.clone())), &mut undo);
        }
        for (site, places) in tables.into_values() {
            fill(&site.slot, Arc::new(InTable(places, active.clone())), &mut undo);
        }
        let prompts: Vec<Option<SharedPrompt>> = adapters.iter().map(|adapter| adapter.prompt.clone()).collect();
        if prompts.iter().any(Option::is_some) {
            fill(&model.prompt_slot(), Arc::new(InFront(prompts, active.clone())), &mut undo);
        }
        Self { adapters, active, undo }
    }

    /// The adapters, by number.
    pub fn adapters(&self) -> &[Arc<Adapter>] {
        &self.adapters
    }

    /// Makes passes with [`Hooks::On`] go through adapter `number` from now on.
    pub fn activate(&self, number: usize) -> Result<()> {
        if number >= self.adapters.len() {
            return Err(Error::Setting(format!("there is no adapter {number}, only {}", self.adapters.len())));
        }
        self.active.store(number, Ordering::Relaxed);
        Ok(())
    }

    /// A pass whose rows (or, of a single row, positions) go through different adapters, or through none.
    pub fn rows(&self, numbers: &[Option<usize>]) -> Result<Hooks> {
        for &number in numbers.iter().flatten() {
            let adapter = self.adapters.get(number);
            let adapter = adapter
                .ok_or_else(|| Error::Setting(format!("there is no adapter {number}, only {}", self.adapters.len())))?;
            if let Some(problem) = adapter.problem_with_rows() {
                return Err(Error::Setting(format!(
                    "adapter {number} ({}) cannot share a batch with others: {problem}",
                    adapter.config.method.name()
                )));
            }
        }
        Ok(Hooks::Rows(numbers.into()))
    }

    /// Takes the adapters out of the model.
    pub fn detach(self) -> Vec<Arc<Adapter>> {
        self.undo.iter().for_each(|undo| undo());
        self.adapters
    }
}

fn fill<H: ?Sized + Send + Sync + 'static>(slot: &Slot<H>, hook: Arc<H>, undo: &mut Vec<Box<dyn Fn() + Send + Sync>>) {
    slot.set(Some(hook));
    let slot = slot.clone();
    undo.push(Box::new(move || slot.set(None)));
}
