//! Optimizers: one file per rule, one rule per parameter, state per parameter.
//!
//! A [`Rule`] says how one parameter changes and which tensors it remembers; [`Optimizer`] holds those tensors, hands
//! them to checkpoints and takes them back. What a rule needs beyond them is a function of the step's number.

mod adafactor;
mod adagrad;
mod adam;
mod adamw;
mod adamw8bit;
mod lion;
mod momentum;
mod muon;
mod rmsprop;
mod sgd;

use std::collections::HashMap;

use loam_kernels::elementwise::lerp;
use loam_kernels::optim::Scale;
use loam_models::{Spec, footprint};
use loam_tensor::{Dims, Parameter, Raw};

pub use adafactor::Adafactor;
pub use adagrad::Adagrad;
pub use adam::Adam;
pub use adamw::AdamW;
pub use adamw8bit::AdamW8bit;
pub use lion::Lion;
pub use momentum::Momentum;
pub use muon::Muon;
pub use rmsprop::RmsProp;
pub use sgd::Sgd;

use crate::recipe::OptimizerKind;

/// Settings that stay the same for a whole run. Each optimizer looks at those that it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the squared gradient's mean.
    pub eps: f64,
    /// Decay of `momentum`, `nesterov` and `muon`.
    pub momentum: f64,
    /// Decay of matrices; tensors with fewer than two axes have none.
    pub weight_decay: f64,
}

/// The settings of an empty recipe.
impl Default for OptimizerSettings {
    fn default() -> Self {
        crate::recipe::TrainSection::default().optimizer_settings()
    }
}

/// A tensor that an optimizer remembers from step to step.
pub enum State {
    /// Numbers.
    F32(Raw),
    /// Codes of numbers, in one row.
    U8(Vec<u8>),
}

impl State {
    fn zeros(shape: impl Into<Dims>) -> Self {
        Self::F32(Raw::full(shape, 0.0))
    }
}

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub number: u64,
    /// Learning rate.
    pub lr: f64,
    /// Multiplies the gradient first: clipping.
    pub grad_scale: f64,
}

impl Step {
    fn scale(&self, weight_decay: f64) -> Scale {
        Scale { lr: self.lr, weight_decay, grad_scale: self.grad_scale }
    }
}

/// How one parameter changes.
pub trait Rule: Send + Sync {
    /// What it remembers of a parameter of this shape, by name, as it is before the first step.
    fn state(&self, shape: Dims) -> Vec<(&'static str, State)>;

    /// Changes `value` and its state, which has the order of [`Rule::state`].
    fn update(&self, value: &mut Raw, grad: &Raw, state: &mut [State], step: &Step);
}

fn foreign_state() -> ! {
    panic!("an optimizer's rule was handed another rule's state")
}

/// The rule of a parameter.
fn rule(settings: &OptimizerSettings, name: &str, shape: Dims) -> Box<dyn Rule> {
    let OptimizerSettings { kind, beta1, beta2, eps, momentum, .. } = *settings;
    let weight_decay = if shape.len() >= 2 { settings.weight_decay } else { 0.0 };
    match kind {
        OptimizerKind::Muon if muon::is_hidden_matrix(name, shape) => Box::new(Muon { momentum, weight_decay }),
        OptimizerKind::Adamw8bit if adamw8bit::is_worth_it(shape) => {
            Box::new(AdamW8bit(AdamW { beta1, beta2, eps, weight_decay }))
        }
        OptimizerKind::Adamw | OptimizerKind::Adamw8bit | OptimizerKind::Muon => {
            Box::new(AdamW { beta1, beta2, eps, weight_decay })
        }
        OptimizerKind::Adam => Box::new(Adam(AdamW { beta1, beta2, eps, weight_decay })),
        OptimizerKind::Sgd => Box::new(Sgd { weight_decay }),
        OptimizerKind::Momentum => Box::new(Momentum { momentum, nesterov: false, weight_decay }),
        OptimizerKind::Nesterov => Box::new(Momentum { momentum, nesterov: true, weight_decay }),
        OptimizerKind::Adagrad => Box::new(Adagrad { eps, weight_decay }),
        OptimizerKind::Rmsprop => Box::new(RmsProp { alpha: beta2, eps, weight_decay }),
        OptimizerKind::Adafactor => Box::new(Adafactor { weight_decay }),
        OptimizerKind::Lion => Box::new(Lion { beta1, beta2, weight_decay }),
    }
}

/// Bytes of the state of all parameters of a model, but for what is small.
pub(crate) fn state_bytes(kind: OptimizerKind, spec: &Spec) -> usize {
    let counts = footprint(spec);
    match kind {
        OptimizerKind::Adamw | OptimizerKind::Adam => 8 * counts.parameters,
        OptimizerKind::Momentum
        | OptimizerKind::Nesterov
        | OptimizerKind::Adagrad
        | OptimizerKind::Rmsprop
        | OptimizerKind::Lion => 4 * counts.parameters,
        OptimizerKind::Sgd | OptimizerKind::Adafactor => 0,
        // All matrices but the head, which a tied embedding is, too.
        OptimizerKind::Muon => {
            8 * counts.parameters - 4 * (counts.matmul_parameters - spec.vocab_size * spec.hidden_size)
        }
        OptimizerKind::Adamw8bit => 2 * counts.parameters + 8 * counts.parameters / loam_kernels::optim::BLOCK,
    }
}

/// An optimizer of a model's parameters, and its state.
pub struct Optimizer {
    slots: Vec<Slot>,
    /// Index of a parameter's slot, by its address.
    places: HashMap<usize, usize>,
    steps: u64,
    ema_decay: Option<f64>,
}

/// Name of the running mean in a checkpoint.
const MEAN: &str = "ema";

struct Slot {
    name: String,
    parameter: Parameter,
    /// Its learning rate over that of the run.
    lr_factor: f64,
    rule: Box<dyn Rule>,
    state: Vec<State>,
    state_names: Vec<&'static str>,
    /// Running mean of the values, where one is wanted.
    mean: Option<State>,
    /// The step that the mean has taken in last.
    mean_step: u64,
}

impl Slot {
    fn named_state(&self) -> impl Iterator<Item = (String, &State)> {
        let named = self.state_names.iter().copied().zip(&self.state).chain(self.mean.iter().map(|mean| (MEAN, mean)));
        named.map(|(state, tensor)| (format!("{state}.{}", self.name), tensor))
    }
}

impl Optimizer {
    /// An optimizer of all trainable parameters that has done no step.
    pub fn new(parameters: &[(String, Parameter)], settings: OptimizerSettings) -> Self {
        let slot = |(name, parameter): &(String, Parameter)| {
            let rule = rule(&settings, name, parameter.shape());
            let (state_names, state) = rule.state(parameter.shape()).into_iter().unzip();
            Slot {
                name: name.clone(),
                parameter: parameter.clone(),
                lr_factor: 1.0,
                rule,
                state,
                state_names,
                mean: None,
                mean_step: 0,
            }
        };
        let slots: Vec<Slot> = parameters.iter().filter(|(_, parameter)| parameter.is_trainable()).map(slot).collect();
        let places = slots.iter().enumerate().map(|(index, slot)| (slot.parameter.address(), index)).collect();
        Self { slots, places, steps: 0, ema_decay: None }
    }

    /// Gives some parameters a learning rate of their own, as a factor on the run's.
    pub fn with_lr_factors(mut self, factor: impl Fn(&str, &Parameter) -> f64) -> Self {
        self.slots.iter_mut().for_each(|slot| slot.lr_factor = factor(&slot.name, &slot.parameter));
        self
    }

    /// Keeps a running mean of every parameter besides: after the first step the weights themselves, after each further
    /// one `mean = decay mean + (1 - decay) value` (as `torch.optim.swa_utils.AveragedModel` does with `get_ema_avg_fn`).
    pub fn with_ema(mut self, decay: Option<f64>) -> Self {
        self.ema_decay = decay;
        for slot in &mut self.slots {
            slot.mean = decay.map(|_| State::F32(Raw::from_f32(slot.parameter.value().f32(), slot.parameter.shape())));
        }
        self
    }

    /// Exchanges every parameter with its running mean, where there is one; a second call exchanges them back.
    pub fn swap_ema(&mut self) {
        for slot in &mut self.slots {
            if let Some(State::F32(mean)) = &mut slot.mean {
                slot.parameter.swap(mean);
            }
        }
    }

    /// Begins a step: each parameter may be updated once until the next one.
    pub fn begin_step(&mut self) {
        self.steps += 1;
    }

    /// Updates a parameter with its gradient, multiplied by `grad_scale`, and frees that; then its running mean. Without a
    /// gradient the parameter stays.
    pub fn update(&mut self, parameter: &Parameter, lr: f64, grad_scale: f64) {
        let Some(&index) = self.places.get(&parameter.address()) else { return };
        let Slot { rule, state, mean, mean_step, lr_factor, .. } = &mut self.slots[index];
        let step = Step { number: self.steps, lr: lr * *lr_factor, grad_scale };
        parameter.step(|value, grad| rule.update(value, grad, state, &step));
        // Once a step, also where a parameter had no gradient in it.
        if let (Some(State::F32(mean)), true) = (mean, *mean_step < self.steps) {
            *mean_step = self.steps;
            let value = parameter.value();
            match self.ema_decay.filter(|_| self.steps > 1) {
                Some(decay) => lerp(mean.f32_mut(), (1.0 - decay) as f32, value.f32()),
                None => mean.f32_mut().copy_from_slice(value.f32()),
            }
        }
        parameter.clear_grad();
    }

    /// All that is remembered, as `<name of the state>.<name of the parameter>`.
    pub fn state(&self) -> Vec<(String, &State)> {
        self.slots.iter().flat_map(Slot::named_state).collect()
    }

    /// Takes over a state in the order of [`Optimizer::state`], after `steps` steps.
    pub fn restore(&mut self, state: Vec<State>, steps: u64) {
        let tensors = self.slots.iter_mut().flat_map(|slot| slot.state.iter_mut().chain(&mut slot.mean));
        tensors.zip(state).for_each(|(tensor, restored)| *tensor = restored);
        self.steps = steps;
    }
}

#[cfg(test)]
mod tests;
