//! Recomputing instead of keeping: activations of a part of the network are thrown away and made again in backward.

use crate::autograd::{is_recording, no_grad};
use crate::parameter::Parameter;
use crate::tensor::Tensor;

impl Tensor {
    /// `work(self)`, of which only the input is kept for backward (Chen et al. 2016, "Training deep nets with sublinear
    /// memory cost"): backward runs `work` once more, with recording, and goes through that. `work` must be a function of
    /// its input and of `parameters` alone; then values and gradients are the same to the bit.
    pub fn recomputed(&self, parameters: &[Parameter], work: impl Fn(&Self) -> Self + Send + 'static) -> Self {
        let used: Vec<Self> = parameters.iter().map(Self::parameter).collect();
        if !is_recording() || !(self.wants_grad() || used.iter().any(Self::wants_grad)) {
            return work(self);
        }
        let output = no_grad(|| work(self));
        let (input, wants_grad) = (self.dense(), self.wants_grad());
        let parents: Vec<&Self> = std::iter::once(self).chain(&used).collect();
        Self::from_op(output.dense(), &parents, move |dy, grads| {
            let leaf = Parameter::new(input);
            leaf.set_trainable(wants_grad);
            // The parameters among the parents get their gradients from here, too.
            work(&Self::parameter(&leaf)).backward_with(dy.clone());
            if let Some(grad) = leaf.take_grad() {
                grads.add(0, grad);
            }
        })
    }
}
