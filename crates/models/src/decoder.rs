//! The decoder-only stack: runs any [`Spec`] of that shape, for training and inference alike.

use std::sync::Arc;

use loam_nn::{
    Attention, DropoutKey, Embedding, Experts, FeedForward, Init, KvCache, LayerCache, LayerContext, Linear, Module,
    Norm, Rope, RopeConfig, join,
};
use loam_tensor::{AttentionMask, CrossEntropyTerms, Parameter, Tensor};

use crate::spec::{LayerSpec, Position, Residual, Spec};

/// Tokens of a batch, row after row, and where they sit.
#[derive(Clone, Debug)]
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
}

impl<'a> Input<'a> {
    /// Rows of equal length, each one document that starts at position 0.
    pub fn rows(tokens: &'a [u32], batch: usize) -> Self {
        Self { tokens, batch, time: tokens.len() / batch.max(1), positions: None, segments: None }
    }
}

/// How a forward pass runs.
#[derive(Default)]
pub struct Forward<'a> {
    /// Earlier positions, for step-by-step decoding.
    pub cache: Option<&'a mut KvCache>,
    /// Dropout, while training with it.
    pub dropout: Option<DropoutKey>,
    /// Whether backward computes each block's activations again instead of keeping them: the same numbers, a third more
    /// time, a fraction of the memory.
    pub recompute: bool,
    /// What a position's part in auxiliary losses is multiplied by, while training; else 0.
    pub auxiliary_scale: f32,
    /// What the loss has besides the negative log-likelihood, while training.
    pub terms: CrossEntropyTerms,
}

/// One block, joined as its [`Residual`] says.
#[derive(Clone)]
struct Block {
    residual: Residual,
    attention_norm: Norm,
    attention: Attention,
    /// Of what attention gives, in a sandwich.
    attention_post_norm: Option<Norm>,
    /// `None` where attention's serves both.
    feed_forward_norm: Option<Norm>,
    feed_forward: Wide,
    feed_forward_post_norm: Option<Norm>,
    /// Which of the decoder's rotations it uses.
    rope: Option<usize>,
}

/// What stands in a block's second half.
#[derive(Clone)]
enum Wide {
    Dense(FeedForward),
    Sparse(Experts),
}

impl Wide {
    fn forward(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        match self {
            Self::Dense(feed_forward) => feed_forward.forward(x),
            Self::Sparse(experts) => experts.forward(x, context),
        }
    }
}

impl Module for Wide {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        match self {
            Self::Dense(feed_forward) => feed_forward.visit(path, visit),
            Self::Sparse(experts) => experts.visit(path, visit),
        }
    }
}

impl Block {
    fn zeros(hidden_size: usize, spec: &LayerSpec, rope: Option<usize>) -> Self {
        let norm = || Norm::new(hidden_size, spec.norm);
        let is_sandwich = spec.residual == Residual::Sandwich;
        Self {
            residual: spec.residual,
            attention_norm: norm(),
            attention: Attention::zeros(hidden_size, &spec.attention),
            attention_post_norm: is_sandwich.then(norm),
            feed_forward_norm: (spec.residual != Residual::ParallelSharedNorm).then(norm),
            feed_forward: match &spec.experts {
                Some(experts) => Wide::Sparse(Experts::zeros(hidden_size, experts, &spec.feed_forward)),
                None => Wide::Dense(FeedForward::zeros(hidden_size, &spec.feed_forward)),
            },
            feed_forward_post_norm: is_sandwich.then(norm),
            rope,
        }
    }

    fn forward(&self, x: &Tensor, index: u64, context: &LayerContext, cache: Option<&mut LayerCache>) -> Tensor {
        let after = |norm: &Option<Norm>, y: Tensor| norm.as_ref().map_or(y.clone(), |norm| norm.forward(&y));
        let normed = self.attention_norm.forward(x);
        let attended = after(&self.attention_post_norm, self.attention.forward(&normed, context, cache));
        let joined = x + &context.drop(attended, 2 * index + 1);
        let input = match self.residual {
            Residual::PreNorm | Residual::Sandwich => after(&self.feed_forward_norm, joined.clone()),
            Residual::Parallel => after(&self.feed_forward_norm, x.clone()),
            Residual::ParallelSharedNorm => normed,
        };
        let fed = after(&self.feed_forward_post_norm, self.feed_forward.forward(&input, context));
        &joined + &context.drop(fed, 2 * index + 2)
    }
}

impl Module for Block {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.attention_norm.visit(&join(path, "attention_norm"), visit);
        self.attention.visit(&join(path, "attention"), visit);
        self.attention_post_norm.visit(&join(path, "attention_post_norm"), visit);
        self.feed_forward_norm.visit(&join(path, "feed_forward_norm"), visit);
        self.feed_forward.visit(&join(path, "feed_forward"), visit);
        self.feed_forward_post_norm.visit(&join(path, "feed_forward_post_norm"), visit);
    }
}

/// Embeddings, blocks, a final norm and a head.
pub(crate) struct Decoder {
    embed_tokens: Embedding,
    embedding_scale: Option<f32>,
    embed_positions: Option<Embedding>,
    /// Rows of that table before position 0.
    position_offset: u32,
    layers: Vec<Block>,
    norm: Norm,
    /// `None` when tied to the token embedding.
    lm_head: Option<Linear>,
    /// The layers' rotations, each once.
    ropes: Vec<Rope>,
}

impl Decoder {
    /// Zero weights and identity norms.
    pub(crate) fn zeros(spec: &Spec) -> Self {
        let hidden = spec.hidden_size;
        let mut ropes: Vec<RopeConfig> = Vec::new();
        let mut place = |rope: RopeConfig| {
            ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
                ropes.push(rope);
                ropes.len() - 1
            })
        };
        let layers = spec.layers.iter().map(|layer| Block::zeros(hidden, layer, layer.rope.map(&mut place))).collect();
        let offset = match spec.position {
            Position::Learned { offset } => Some(offset),
            Position::Rotary => None,
        };
        let table = |offset| Embedding::zeros(spec.max_position_embeddings + offset, hidden);
        Self {
            embed_tokens: Embedding::zeros(spec.vocab_size, hidden),
            embedding_scale: spec.embedding_scale,
            embed_positions: offset.map(table),
            position_offset: offset.unwrap_or(0) as u32,
            layers,
            norm: Norm::new(hidden, spec.final_norm),
            lm_head: (!spec.tie_word_embeddings).then(|| Linear::zeros(hidden, spec.vocab_size, false)),
            ropes: ropes.iter().map(Rope::new).collect(),
        }
    }

    /// Fresh weights: normal with `initializer_range`, and `1 / sqrt(2 layers)` of that for the projections that write
    /// to the residual stream, so that its variance does not grow with depth (Radford et al. 2019, section 2.3).
    pub(crate) fn initialise(&self, spec: &Spec, seed: u64) {
        let residual = spec.initializer_range / (2.0 * spec.layers.len() as f32).sqrt();
        self.visit("", &mut |name, parameter| {
            let std = match name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
                true => residual,
                false => spec.initializer_range,
            };
            if parameter.shape().len() == 2 {
                Init::Normal { std }.fill(parameter, seed, &name);
            }
        });
    }

    /// `[batch, time] -> [batch, time, hidden]`, after the final norm.
    pub(crate) fn hidden(&self, input: &Input<'_>, mut forward: Forward<'_>) -> Tensor {
        let (batch, time) = (input.batch, input.time);
        let start = forward.cache.as_ref().map_or(0, |cache| cache.len()) as u32;
        let row: Vec<u32> = (start..start + time as u32).collect();
        let ropes: Vec<_> = self.ropes.iter().map(|rope| rope.tables(input.positions.unwrap_or(&row))).collect();
        let context = LayerContext {
            rope: None,
            mask: AttentionMask { segments: input.segments.clone(), bias: None },
            dropout: forward.dropout,
            auxiliary_scale: forward.auxiliary_scale,
        };
        let mut x = self.embed_tokens.forward(input.tokens, batch, time);
        if let Some(scale) = self.embedding_scale {
            x = x.scale(scale);
        }
        if let Some(table) = &self.embed_positions {
            let places = |positions: &[u32]| positions.iter().map(|p| p + self.position_offset).collect::<Vec<_>>();
            // Without explicit positions one row of vectors serves the whole batch.
            let positions = match input.positions {
                Some(positions) => table.forward(&places(positions), batch, time),
                None => Tensor::parameter(&table.weight).embedding(&places(&row), [time]),
            };
            x = &x + &positions;
        }
        x = context.drop(x, 0);
        for (index, layer) in self.layers.iter().enumerate() {
            let context = LayerContext { rope: layer.rope.map(|rope| ropes[rope].clone()), ..context.clone() };
            x = match forward.cache.as_mut() {
                Some(cache) => layer.forward(&x, index as u64, &context, Some(&mut cache.layers[index])),
                None if forward.recompute => {
                    let layer = layer.clone();
                    x.recomputed(&layer.parameters(), move |x| layer.forward(x, index as u64, &context, None))
                }
                None => layer.forward(&x, index as u64, &context, None),
            };
        }
        self.norm.forward(&x)
    }

    /// The head's weight `[vocab, hidden]`.
    pub(crate) fn head(&self) -> Tensor {
        Tensor::parameter(self.lm_head.as_ref().map_or(&self.embed_tokens.weight, |head| &head.weight))
    }
}

impl Module for Decoder {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.embed_tokens.visit(&join(path, "embed_tokens"), visit);
        self.embed_positions.visit(&join(path, "embed_positions"), visit);
        self.layers.visit(&join(path, "layers"), visit);
        self.norm.visit(&join(path, "norm"), visit);
        self.lm_head.visit(&join(path, "lm_head"), visit);
    }
}
