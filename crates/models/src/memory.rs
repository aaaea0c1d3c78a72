//! What a training step holds at most, predicted from the [`Spec`]: the same buffers in the same order, counted.

use loam_tensor::{Precision, head_chunk_rows, is_worth_remaking};

use crate::footprint::footprint;
use crate::spec::{LayerSpec, Position, Spec};

/// What a step looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Element type of the operands of matrix products.
    pub precision: Precision,
    /// Whether backward makes the activations of a block once more.
    pub recompute: bool,
    /// Whether each gradient is consumed as soon as it is complete.
    pub at_once: bool,
    /// The bytes of the weights where all of them are frozen, as under an adapter.
    pub frozen: Option<usize>,
}

impl StepShape {
    /// Whether a gradient goes before the backward pass of its block is through. A block that is made once more runs its
    /// own backward pass to the end.
    fn frees_within_blocks(&self) -> bool {
        self.at_once && !self.recompute
    }
}

/// Bytes of a training step with AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StepMemory {
    /// Weights: in f32 where they are trained.
    pub weights: usize,
    /// What the optimizer remembers: AdamW its two moments.
    pub optimizer: usize,
    /// Gradients that exist at once.
    pub gradients: usize,
    /// Activations that forward keeps for backward.
    pub activations: usize,
    /// Most bytes that are held at once: less than the sum of the parts, which do not exist all at once, or more, since
    /// some are held for a moment only.
    pub peak: usize,
}

/// Predicts what a step of training holds. Buffers below a memory page are left out. Of an adapter nothing is counted,
/// but its inputs, which are those of the frozen products.
pub fn step_memory(spec: &Spec, step: &StepShape) -> StepMemory {
    let counts = footprint(spec);
    let (parameters, tokens, hidden) = (counts.parameters, step.tokens, spec.hidden_size);
    let half = step.precision == Precision::Bf16;
    let is_trained = step.frozen.is_none();
    // What gradients of weights take.
    let slope = |bytes: usize| if is_trained { bytes } else { 0 };
    let weights = step.frozen.unwrap_or(4 * parameters);
    let optimizer = slope(8 * parameters);
    let head = slope(4 * spec.vocab_size * hidden);
    let stream = 4 * tokens * hidden;
    let layers: Vec<Layer> = spec.all_layers().map(|layer| Layer::of(layer, hidden, step)).collect();
    let kept = |layer: &Layer| if step.recompute { stream } else { layer.kept };
    let activations = layers.iter().map(kept).sum::<usize>() + stream;

    // The head: the last norm's input and output, the gradients of the output and of the head, a chunk of logits.
    let chunk = head_chunk_rows(tokens, spec.vocab_size);
    let logits = chunk * spec.vocab_size * 4;
    let operands = stream + if half { stream / 2 } else { 0 };
    let mut peak = activations + operands + stream + 4 * chunk * hidden + head + logits;

    // Backward, block by block: what was kept goes, gradients of weights come.
    let mut gradients = if step.at_once && !spec.tie_word_embeddings { 0 } else { head };
    // The last norm's backward comes first, and frees its input.
    let mut held = activations - stream;
    for layer in layers.iter().rev() {
        // Its input was kept.
        let again = if step.recompute { layer.kept - stream } else { 0 };
        peak = peak.max(held + again + gradients + layer.feed_forward_backward);
        let early = if step.frees_within_blocks() { 0 } else { layer.feed_forward_gradients };
        peak = peak.max(held + again - layer.feed_forward_kept + gradients + early + layer.attention_backward);
        gradients += if step.at_once { 0 } else { layer.gradients };
        held -= kept(layer);
    }
    let tables = match spec.stack.position {
        Position::Learned { offset } => 4 * (spec.max_position_embeddings + offset) * hidden,
        Position::Sinusoidal { .. } | Position::InAttention => 0,
    };
    let embeddings = slope(tables) + if spec.tie_word_embeddings { 0 } else { head };
    peak = peak.max(held + gradients + embeddings + stream);
    let gradients = if step.at_once { head } else { slope(4 * parameters) };
    StepMemory { weights, optimizer, gradients, activations, peak: weights + optimizer + peak }
}

/// Bytes of one block: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
struct Layer {
    /// What forward keeps, and the part of it that is gone once the feed-forward's backward is through.
    kept: usize,
    feed_forward_kept: usize,
    /// Most that either half of the backward pass holds besides.
    feed_forward_backward: usize,
    attention_backward: usize,
    /// Gradients of all weights, and of the feed-forward's.
    gradients: usize,
    feed_forward_gradients: usize,
}

impl Layer {
    fn of(spec: &LayerSpec, hidden: usize, step: &StepShape) -> Self {
        let (a, f, tokens) = (&spec.attention, &spec.feed_forward, step.tokens);
        let (inner, kv) = (a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim);
        let (wide, ways) = (f.intermediate_size, 1 + usize::from(f.gated));
        let half = step.precision == Precision::Bf16;
        // Activations are kept in bf16 where products are. A norm's output is one operand of several products; it is made
        // again where it is large, as is the output of the activation.
        let size = if half { 2 } else { 4 };
        let kept_or_remade = |width: usize| if is_worth_remaking(tokens * width) { 0 } else { size * width * tokens };
        let (normed, activated) = (kept_or_remade(hidden), kept_or_remade(wide));
        let feed_forward_kept = tokens * (4 * hidden + size * ways * wide) + normed + activated;
        let attention_kept = tokens * (4 * (hidden + a.num_attention_heads) + size * (2 * inner + 2 * kv)) + normed;
        let stream = 4 * tokens * hidden;
        let one_wide = 4 * tokens * wide;
        let slope = |bytes: usize| if step.frozen.is_none() { bytes } else { 0 };
        let down = slope(4 * hidden * wide);
        // The last product's backward: its input made again, its weight's gradient. Then the activation's: its input was
        // freed, its own inputs' gradients come.
        let last_product = if activated == 0 { size * tokens * wide } else { 0 } + down;
        let activation =
            (ways * one_wide + if step.frees_within_blocks() { 0 } else { down }).saturating_sub(activated);
        let feed_forward_gradients = slope(4 * hidden * wide * (1 + ways));
        let attention_gradients = slope(4 * hidden * (2 * inner + 2 * kv));
        Self {
            kept: attention_kept + feed_forward_kept,
            feed_forward_kept,
            feed_forward_backward: stream + one_wide + last_product.max(activation),
            attention_backward: 2 * stream + 4 * tokens * (2 * inner + 2 * kv) + slope(4 * hidden * inner),
            gradients: feed_forward_gradients + attention_gradients,
            feed_forward_gradients,
        }
    }
}
