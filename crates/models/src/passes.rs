//! A pass in pieces, for whoever changes a block's weights before the next block reads what it gives; and a model of
//! which nothing but the shape is known.

use std::path::Path;

use loam_formats::{Gguf, HfDir};
use loam_tensor::Tensor;

use crate::error::Error;
use crate::model::LanguageModel;
use crate::stack::{Forward, Input};

impl LanguageModel {
    /// The architecture of a Hugging Face directory or a GGUF file, from headers alone: weights of zeros that take no
    /// memory until someone looks at them.
    pub fn outline(path: impl AsRef<Path>) -> Result<Self, Error> {
        if Gguf::is_one(&path) {
            return Self::outline_of_gguf(&Gguf::open(path)?);
        }
        Self::zeros(HfDir::open(path)?.config().clone())
    }

    /// The architecture of a `config.json`, in which no key is left out, with weights of zeros.
    pub fn outline_of(config: &serde_json::Value) -> Result<Self, Error> {
        Self::zeros(config.clone())
    }

    /// What the first block reads, `[batch, time, hidden]`, in a pass from the first position on. Of a model of one stack.
    pub fn first_states(&self, input: &Input<'_>) -> Result<Tensor, Error> {
        self.check(input, &Forward::default())?;
        if self.spec().encoder.is_some() {
            return Err(Error::Input(format!("a {} model has two stacks, not one", self.spec().family)));
        }
        Ok(self.network.stack.enter(self.network.vectors(input, &Forward::default()), input))
    }

    /// What block `index` makes of such states, through the hooks.
    pub fn through_block(&self, index: usize, states: &Tensor, input: &Input<'_>) -> Tensor {
        self.network.stack.step(index, states, input)
    }

    /// The hidden states that the head reads, from what the last block gave.
    pub fn last_states(&self, states: &Tensor) -> Tensor {
        self.network.stack.leave(states)
    }
}
