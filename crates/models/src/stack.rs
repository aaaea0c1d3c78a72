//! A stack of blocks: the one forward pass of encoders and decoders, for training and inference alike.

use std::sync::Arc;

use loam_nn::{
    DropoutKey, Embedding, Hooks, KvCache, LayerContext, Linear, Memory, Module, Norm, Prefix, RelativePositions, Rope,
    RopeConfig, join, sinusoids,
};
use loam_tensor::{CrossEntropyTerms, Parameter, RopeTables, Tensor};

use crate::block::Block;
use crate::noise::EmbeddingNoise;
use crate::spec::{Position, Spec, StackSpec};

/// Tokens of a batch, row after row, and where they sit.
#[derive(Clone, Default)]
pub struct Input<'a> {
    /// `[batch * time]`.
    pub tokens: &'a [u32],
    /// Rows.
    pub batch: usize,
    /// Tokens per row.
    pub time: usize,
    /// Position of every token, `[batch * time]`; by default they count up from the cache's length.
    pub positions: Option<&'a [u32]>,
    /// Document of every token, `[batch * time]`: attention stays within a document.
    pub segments: Option<Arc<[u32]>>,
    /// Borders of the documents of a single row, from 0 to `time`, instead of `segments`: each document gets the bits
    /// that it would get alone. For inference, with `positions` that start anew with each.
    pub runs: Option<Arc<[usize]>>,
    /// Kind of every token, `[batch * time]` (BERT's first and second sentence); by default all are of kind 0.
    pub token_types: Option<&'a [u32]>,
    /// What the encoder made of the source, for models that have one.
    pub memory: Option<&'a Memory>,
}

impl<'a> Input<'a> {
    /// Rows of equal length, each one document that starts at position 0.
    pub fn rows(tokens: &'a [u32], batch: usize) -> Self {
        Self { tokens, batch, time: tokens.len() / batch.max(1), ..Self::default() }
    }
}

/// How a forward pass runs.
#[derive(Default)]
pub struct Forward<'a> {
    /// Earlier positions, for step-by-step decoding.
    pub cache: Option<&'a mut KvCache>,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// Noise on the token vectors, while training with it.
    pub noise: Option<EmbeddingNoise>,
    /// Whether backward computes each block's activations again instead of keeping them: the same numbers, a third more
    /// time, a fraction of the memory.
    pub recompute: bool,
    /// What a position's part in auxiliary losses is multiplied by, while training; else 0.
    pub auxiliary_scale: f32,
    /// What the loss has besides the negative log-likelihood, while training.
    pub terms: CrossEntropyTerms,
    /// Which hooks the pass goes through.
    pub hooks: Hooks,
}

/// Keys and values of every block, and for every position of the batch where its own are.
pub(crate) type KeysAndValues<'a> = (&'a [(Tensor, Tensor)], Arc<[u32]>);

/// Blocks, and what comes before and after them.
pub(crate) struct Stack {
    embed_positions: Option<Embedding>,
    position: Position,
    relative: Option<RelativePositions>,
    token_types: Option<Embedding>,
    embedding_norm: Option<Norm>,
    pub(crate) layers: Vec<Block>,
    norm: Option<Norm>,
    /// The layers' rotations, each once.
    ropes: Vec<Rope>,
    /// Number of the first block, for dropout: no two stacks of a model share one.
    first_index: u64,
}

impl Stack {
    /// Zero weights and identity norms.
    pub(crate) fn zeros(spec: &Spec, stack: &StackSpec, first_index: u64) -> Self {
        let hidden = spec.hidden_size;
        let mut ropes: Vec<RopeConfig> = Vec::new();
        let mut place = |rope: RopeConfig| {
            ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
                ropes.push(rope);
                ropes.len() - 1
            })
        };
        let layers = stack.layers.iter().map(|layer| Block::zeros(hidden, layer, layer.rope.map(&mut place))).collect();
        let table = |rows: usize| Embedding::zeros(rows, hidden);
        let attention = stack.layers[0].attention;
        Self {
            embed_positions: match stack.position {
                Position::Learned { offset } => Some(table(spec.max_position_embeddings + offset)),
                Position::Sinusoidal { .. } | Position::InAttention => None,
            },
            position: stack.position,
            relative: stack.relative_bias.map(|bias| {
                let heads = attention.num_attention_heads;
                RelativePositions::zeros(bias.num_buckets, bias.max_distance, heads, attention.is_causal)
            }),
            token_types: (spec.type_vocab_size > 0).then(|| table(spec.type_vocab_size)),
            embedding_norm: stack.embedding_norm.map(|norm| Norm::new(hidden, norm)),
            layers,
            norm: stack.final_norm.map(|norm| Norm::new(hidden, norm)),
            ropes: ropes.iter().map(Rope::new).collect(),
            first_index,
        }
    }

    /// From the vectors of the tokens `[batch, time, hidden]` to the hidden states, after the final norm.
    /// A prefix is keys and values of every block, and for every position where its own are.
    pub(crate) fn forward(
        &self,
        tokens: Tensor,
        input: &Input<'_>,
        mut forward: Forward<'_>,
        prefix: Option<KeysAndValues<'_>>,
    ) -> Tensor {
        let start = forward.cache.as_ref().map_or(0, |cache| cache.len());
        let (context, ropes) = self.context(input, &forward, start);
        let mut x = self.entered(tokens, input, start, &context);
        for (place, layer) in self.layers.iter().enumerate() {
            let index = self.first_index + place as u64;
            let mut context = LayerContext { rope: layer.rope.map(|rope| ropes[rope].clone()), ..context.clone() };
            context.prefix = prefix.as_ref().map(|(layers, places)| {
                let (keys, values) = layers[place].clone();
                Prefix { keys, values, places: places.clone() }
            });
            if let Some(memory) = &mut context.memory {
                // A node of its own for every layer adds up the layer's gradients first, recomputed or not.
                memory.hidden = memory.hidden.reshape(memory.hidden.shape());
            }
            x = match forward.cache.as_mut() {
                Some(cache) => layer.forward(&x, index, &context, Some(&mut cache.layers[place])),
                None if forward.recompute => recomputed(&x, layer, index, context),
                None => layer.forward(&x, index, &context, None),
            };
        }
        self.leave(&x)
    }

    /// What all blocks share in a pass that begins after `start` positions, and every rotation's tables.
    fn context(&self, input: &Input<'_>, forward: &Forward<'_>, start: usize) -> (LayerContext, Vec<RopeTables>) {
        let row = positions(input, start);
        let ropes = self.ropes.iter().map(|rope| rope.tables(input.positions.unwrap_or(&row))).collect();
        let context = LayerContext {
            rope: None,
            segments: input.segments.clone(),
            runs: input.runs.clone(),
            bias: self.relative.as_ref().map(|relative| relative.forward(input.time, start + input.time)),
            memory: input.memory.cloned(),
            dropout: forward.dropout,
            auxiliary_scale: forward.auxiliary_scale,
            hooks: forward.hooks.clone(),
            prefix: None,
        };
        (context, ropes)
    }

    /// What the first block reads.
    fn entered(&self, tokens: Tensor, input: &Input<'_>, start: usize, context: &LayerContext) -> Tensor {
        let mut x = self.with_positions(tokens, input, &positions(input, start));
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(&x);
        }
        context.drop(x, Block::first_place(self.first_index))
    }

    /// What the first block reads in a pass from the first position on.
    pub(crate) fn enter(&self, tokens: Tensor, input: &Input<'_>) -> Tensor {
        let (context, _) = self.context(input, &Forward::default(), 0);
        self.entered(tokens, input, 0, &context)
    }

    /// One block of such a pass.
    pub(crate) fn step(&self, place: usize, x: &Tensor, input: &Input<'_>) -> Tensor {
        let (context, ropes) = self.context(input, &Forward::default(), 0);
        let layer = &self.layers[place];
        let context = LayerContext { rope: layer.rope.map(|rope| ropes[rope].clone()), ..context };
        layer.forward(x, self.first_index + place as u64, &context, None)
    }

    /// The final norm.
    pub(crate) fn leave(&self, x: &Tensor) -> Tensor {
        self.norm.as_ref().map_or(x.clone(), |norm| norm.forward(x))
    }

    /// Adds what tells a token's position and kind. `row` holds the positions of a row that states none.
    fn with_positions(&self, mut x: Tensor, input: &Input<'_>, row: &[u32]) -> Tensor {
        let (batch, time) = (input.batch, input.time);
        if let Some(table) = &self.token_types {
            // One vector serves the whole batch where all are of one kind.
            let kinds = match input.token_types {
                Some(kinds) => table.forward(kinds, batch, time),
                None => Tensor::parameter(&table.weight).embedding(&vec![0; time], [time]),
            };
            x = &x + &kinds;
        }
        if let (Some(table), Position::Learned { offset }) = (&self.embed_positions, self.position) {
            let places = |positions: &[u32]| positions.iter().map(|p| p + offset as u32).collect::<Vec<_>>();
            let positions = match input.positions {
                Some(positions) => table.forward(&places(positions), batch, time),
                None => Tensor::parameter(&table.weight).embedding(&places(row), [time]),
            };
            x = &x + &positions;
        }
        if let Position::Sinusoidal { interleaved } = self.position {
            let width = x.shape().width();
            let vectors = sinusoids(input.positions.unwrap_or(row), width, interleaved);
            x = &x + &if input.positions.is_some() { vectors.reshape([batch, time, width]) } else { vectors };
        }
        x
    }
}

/// Positions of a row that states none.
fn positions(input: &Input<'_>, start: usize) -> Vec<u32> {
    (start as u32..(start + input.time) as u32).collect()
}

/// The block's output, whose inside backward makes again.
fn recomputed(x: &Tensor, layer: &Block, index: u64, context: LayerContext) -> Tensor {
    // Whatever the block differentiates has to be named.
    let mut inputs = vec![x];
    inputs.extend(&context.bias);
    inputs.extend(context.memory.iter().map(|memory| &memory.hidden));
    inputs.extend(context.prefix.iter().flat_map(|prefix| [&prefix.keys, &prefix.values]));
    let (own, layer) = (context.clone(), layer.clone());
    let mut parameters = layer.parameters();
    parameters.extend(layer.hooked_parameters(&context.hooks));
    Tensor::recomputed(&inputs, &parameters, move |inputs| {
        let mut rest = inputs[1..].iter().cloned();
        let mut context = own.clone();
        context.bias = context.bias.and_then(|_| rest.next());
        context.memory = context.memory.map(|memory| Memory { hidden: rest.next().unwrap_or(memory.hidden), ..memory });
        if let Some(prefix) = &mut context.prefix
            && let (Some(keys), Some(values)) = (rest.next(), rest.next())
        {
            (prefix.keys, prefix.values) = (keys, values);
        }
        layer.forward(&inputs[0], index, &context, None)
    })
}

impl Module for Stack {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.embed_positions.visit(&join(path, "embed_positions"), visit);
        self.relative.visit(&join(path, "relative_bias"), visit);
        self.token_types.visit(&join(path, "token_types"), visit);
        self.embedding_norm.visit(&join(path, "embedding_norm"), visit);
        self.layers.visit(&join(path, "layers"), visit);
        self.norm.visit(&join(path, "norm"), visit);
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.layers.visit_linears(&join(path, "layers"), visit);
    }
}
