//! Recomputing instead of keeping: activations of a part of the network are thrown away and made again in backward.

use crate::autograd::{is_recording, no_grad};
use crate::parameter::Parameter;
use crate::tensor::Tensor;

impl Tensor {
    /// `work(self)`, of which only the input is kept for backward (Chen et al. 2016, "Training deep nets with sublinear
    /// memory cost"): backward runs `work` once more, with recording, and goes through that. `work` must be a function of
    /// its input and of parameters alone; then values and gradients are the same to the bit. Where the input wants no
    /// gradient nothing is saved by this, and `work` is simply run.
    pub fn recomputed(&self, work: impl Fn(&Self) -> Self + Send + 'static) -> Self {
        if !is_recording() || !self.wants_grad() {
            return work(self);
        }
        let output = no_grad(|| work(self));
        let input = self.dense();
        Self::from_op(output.dense(), &[self], move |dy, grads| {
            let leaf = Parameter::new(input);
            work(&Self::parameter(&leaf)).backward_with(dy.clone());
            if let Some(grad) = leaf.take_grad() {
                grads.add(0, grad);
            }
        })
    }
}
