//! Recomputing instead of keeping: activations of a part of the network are thrown away and made again in backward.

use crate::autograd::{is_recording, postponed};
use crate::parameter::Parameter;
use crate::tensor::Tensor;

impl Tensor {
    /// `work(inputs)`, of which only the inputs are kept for backward (Chen et al. 2016, "Training deep nets with
    /// sublinear memory cost"): backward runs `work` once more, with recording, and goes through that. `work` must be a
    /// function of its inputs and of `parameters` alone; then values and gradients are the same to the bit.
    pub fn recomputed(
        inputs: &[&Self],
        parameters: &[Parameter],
        work: impl Fn(&[Self]) -> Self + Send + 'static,
    ) -> Self {
        let owned: Vec<Self> = inputs.iter().map(|&input| input.clone()).collect();
        let used: Vec<Self> = parameters.iter().map(Self::parameter).collect();
        if !is_recording() || !owned.iter().chain(&used).any(Self::wants_grad) {
            return work(&owned);
        }
        let output = postponed(|| work(&owned));
        let leaves: Vec<Parameter> = owned
            .iter()
            .map(|input| {
                let leaf = Parameter::new(input.dense());
                leaf.set_trainable(input.wants_grad());
                leaf
            })
            .collect();
        let parents: Vec<&Self> = owned.iter().chain(&used).collect();
        Self::from_op(output.dense(), &parents, move |dy, grads| {
            // The parameters among the parents get their gradients from here, too.
            let again: Vec<Self> = leaves.iter().map(Self::parameter).collect();
            work(&again).backward_with(dy.clone());
            drop(again);
            for (index, leaf) in leaves.into_iter().enumerate() {
                if let Some(grad) = leaf.take_grad() {
                    grads.add(index, grad);
                }
            }
        })
    }
}
