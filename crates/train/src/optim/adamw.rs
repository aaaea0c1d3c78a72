//! AdamW (Loshchilov and Hutter 2019): Adam with weight decay that does not go through the moments.

use std::collections::HashMap;

use loam_tensor::{Device, Parameter};

/// Settings that stay the same for a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Betas {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the squared gradient's mean.
    pub eps: f64,
    /// Decoupled decay of matrices; tensors with fewer than two axes have none.
    pub weight_decay: f64,
}

/// The optimizer and its state: two moments per trainable parameter.
pub struct AdamW {
    betas: Betas,
    slots: Vec<Slot>,
    /// Index of a parameter's slot, by its address.
    places: HashMap<usize, usize>,
    steps: u64,
}

struct Slot {
    name: String,
    parameter: Parameter,
    m: Parameter,
    v: Parameter,
    weight_decay: f64,
}

impl AdamW {
    /// An optimizer of all trainable parameters, with zero moments.
    pub fn new(parameters: &[(String, Parameter)], betas: Betas) -> Self {
        let slot = |(name, parameter): &(String, Parameter)| Slot {
            name: name.clone(),
            parameter: parameter.clone(),
            m: Parameter::zeros(parameter.shape()),
            v: Parameter::zeros(parameter.shape()),
            weight_decay: if parameter.shape().len() >= 2 { betas.weight_decay } else { 0.0 },
        };
        let slots: Vec<Slot> = parameters.iter().filter(|(_, parameter)| parameter.is_trainable()).map(slot).collect();
        let places = slots.iter().enumerate().map(|(index, slot)| (slot.parameter.address(), index)).collect();
        Self { betas, slots, places, steps: 0 }
    }

    /// Begins a step: each parameter may be updated once until the next one.
    pub fn begin_step(&mut self) {
        self.steps += 1;
    }

    /// Updates a parameter with its gradient, multiplied by `grad_scale`, and frees that. Nothing without a gradient.
    pub fn update(&mut self, parameter: &Parameter, lr: f64, grad_scale: f64) {
        let Some(slot) = self.places.get(&parameter.address()).map(|&index| &self.slots[index]) else { return };
        let step = loam_tensor::AdamW {
            lr: lr as f32,
            beta1: self.betas.beta1 as f32,
            beta2: self.betas.beta2 as f32,
            eps: self.betas.eps as f32,
            weight_decay: slot.weight_decay as f32,
            grad_scale: grad_scale as f32,
            step: self.steps,
        };
        parameter.step(|value, grad| {
            slot.m.change(|m| slot.v.change(|v| Device::Cpu.backend().adamw(value, grad, m, v, &step)));
        });
        parameter.clear_grad();
    }

    /// Both moments of every parameter: `m.<name>`, then `v.<name>`.
    pub fn state(&self) -> Vec<(String, Parameter)> {
        let both =
            |slot: &Slot| [(format!("m.{}", slot.name), slot.m.clone()), (format!("v.{}", slot.name), slot.v.clone())];
        self.slots.iter().flat_map(both).collect()
    }

    /// Takes over moments in the order of [`AdamW::state`], after `steps` steps.
    pub fn restore(&mut self, state: &[Vec<f32>], steps: u64) {
        for ((_, moment), values) in self.state().iter().zip(state) {
            moment.set(values);
        }
        self.steps = steps;
    }
}
