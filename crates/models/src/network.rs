//! A whole network: the token table, one or two stacks, a head.

use loam_nn::{Embedding, Hooks, Init, Linear, Module, PromptHook, Slot, join};
use loam_tensor::{Parameter, Tensor};

use crate::head::Head;
use crate::prompt::Layout;
use crate::spec::Spec;
use crate::stack::{Forward, Input, Stack};

/// Everything of a model that has parameters.
pub(crate) struct Network {
    pub(crate) embed_tokens: Embedding,
    embedding_scale: Option<f32>,
    /// Reads the source.
    encoder: Option<Stack>,
    pub(crate) stack: Stack,
    pub(crate) head: Head,
    /// What stands in front of every text, where something does.
    pub(crate) prompt: Slot<dyn PromptHook>,
}

impl Network {
    /// Zero weights and identity norms.
    pub(crate) fn zeros(spec: &Spec) -> Self {
        // Blocks are counted through, the stack's before the encoder's.
        let first = spec.stack.layers.len() as u64;
        Self {
            embed_tokens: Embedding::zeros(spec.vocab_size, spec.hidden_size),
            embedding_scale: spec.embedding_scale,
            encoder: spec.encoder.as_ref().map(|encoder| Stack::zeros(spec, encoder, first)),
            stack: Stack::zeros(spec, &spec.stack, 0),
            head: Head::zeros(spec),
            prompt: Slot::default(),
        }
    }

    /// Fresh weights for the parameters that `which` picks.
    pub(crate) fn initialise(&self, spec: &Spec, seed: u64, which: impl Fn(&str) -> bool) {
        self.visit("", &mut |name, parameter| {
            if parameter.shape().len() == 2 && which(&name) {
                let std = if spec.is_scaled_by_inputs {
                    spec.initializer_range * by_inputs(spec, &name, parameter.shape()[1])
                } else {
                    spec.initializer_range * by_depth(spec, &name)
                };
                Init::Normal { std }.fill(parameter, seed, &name);
            }
        });
    }

    /// `[batch, time] -> [batch, time, hidden]`, of the stack that the head reads.
    pub(crate) fn hidden(&self, input: &Input<'_>, forward: Forward<'_>) -> Tensor {
        let is_start = forward.cache.as_ref().is_none_or(|cache| cache.is_empty());
        match self.prompt.of(&forward.hooks).filter(|hook| is_start && hook.count() > 0) {
            None => self.stack.forward(self.vectors(input, &forward), input, forward, None),
            Some(hook) => self.behind_prompt(hook.as_ref(), input, forward),
        }
    }

    /// `[batch, time] -> [batch, time, hidden]`, of the encoder of two stacks.
    pub(crate) fn encoded(&self, input: &Input<'_>, forward: Forward<'_>) -> Option<Tensor> {
        self.encoder.as_ref().map(|encoder| encoder.forward(self.vectors(input, &forward), input, forward, None))
    }

    /// The pass over every text and what stands in front of it; the latter's hidden states are left out.
    fn behind_prompt(&self, hook: &dyn PromptHook, input: &Input<'_>, forward: Forward<'_>) -> Tensor {
        let (prompt, layout) = (hook.prompt(), Layout::of(input, hook.count()));
        let own = self.vectors(input, &forward);
        let width = own.shape().width();
        let rows = [&own.reshape([input.batch * input.time, width]), &prompt.vectors];
        let x = Tensor::concat(&rows, 0).embedding(&layout.sources, [input.batch, layout.time]);
        let prefix = (!prompt.keys_and_values.is_empty()).then(|| (&prompt.keys_and_values[..], layout.places.clone()));
        let hidden = self.stack.forward(x, &layout.input(), forward, prefix);
        let flat = hidden.reshape([input.batch * layout.time, width]);
        flat.embedding(&layout.kept, [input.batch, input.time])
    }

    /// What the first block reads of the tokens.
    pub(crate) fn vectors(&self, input: &Input<'_>, forward: &Forward<'_>) -> Tensor {
        let x = self.embed_tokens.hooked(input.tokens, input.batch, input.time, &forward.hooks);
        let x = self.embedding_scale.map_or(x.clone(), |scale| x.scale(scale));
        forward.noise.map_or(x.clone(), |noise| &x + &noise.of(input, x.shape().width()))
    }

    /// The weight `[vocab, hidden]` of a language model's head.
    pub(crate) fn vocabulary(&self, hooks: &Hooks) -> Tensor {
        let own = self.head.weight().unwrap_or(&self.embed_tokens.weight);
        let hooked = match (self.head.hook.of(hooks), self.embed_tokens.hook.of(hooks)) {
            (Some(hook), _) => Some(hook.table(own, false)),
            (None, Some(hook)) if self.head.weight().is_none() => Some(hook.table(own, true)),
            _ => None,
        };
        hooked.unwrap_or_else(|| Tensor::parameter(own))
    }
}

/// `1 / sqrt(2 layers)` for the projections that write to the residual stream, so that its variance does not grow with
/// depth (Radford et al. 2019, section 2.3).
fn by_depth(spec: &Spec, name: &str) -> f32 {
    match name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
        true => (2.0 * spec.stack.layers.len() as f32).sqrt().recip(),
        false => 1.0,
    }
}

/// What T5 draws: tokens of variance one, projections that keep the variance, queries so small that scores have variance
/// one although nothing divides them.
fn by_inputs(spec: &Spec, name: &str, inputs: usize) -> f32 {
    let root = |n: usize| (n as f32).sqrt().recip();
    if name.starts_with("embed_tokens") || name.starts_with("lm_head") {
        1.0
    } else if name.ends_with("relative_bias.weight") {
        root(spec.hidden_size)
    } else if name.ends_with("q_proj.weight") {
        root(inputs) * root(spec.stack.layers[0].attention.head_dim)
    } else {
        root(inputs)
    }
}

impl Module for Network {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.embed_tokens.visit(&join(path, "embed_tokens"), visit);
        self.stack.visit(path, visit);
        self.encoder.visit(&join(path, "encoder"), visit);
        self.head.visit(path, visit);
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.stack.visit_linears(path, visit);
        self.encoder.visit_linears(&join(path, "encoder"), visit);
    }
}
