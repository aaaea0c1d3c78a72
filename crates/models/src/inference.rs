//! What running a model holds at most, predicted from its [`Spec`] and the bytes of its weights: the buffers of a pass,
//! counted where the most of them exist at once.

use loam_nn::KvType;
use loam_tensor::DType;

use crate::error::Error;
use crate::model::LanguageModel;
use crate::quantise::{Mix, Plan};
use crate::spec::{LayerSpec, Spec};

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunShape {
    /// Positions that each sequence has room for.
    pub context: usize,
    /// Sequences at once.
    pub sequences: usize,
    /// Most tokens of a pass.
    pub chunk: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Threads, each with scratch memory of its own.
    pub threads: usize,
}

/// Bytes of the weights in a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct WeightMemory {
    /// Pages of the file that products read where they lie.
    pub mapped: usize,
    /// Copies beside the file: tables of f32, rows that change places.
    pub copied: usize,
    /// What opening takes besides, for a moment.
    pub opening: usize,
    /// Whether what lies inside of a gated feed-forward is ever whole: quantised ones are one operation.
    pub is_wide: bool,
}

impl WeightMemory {
    /// Of tensors that are opened one after the other: what one takes for a moment comes on top of those before it.
    pub(crate) fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        let (mut sum, mut most) = (Self::default(), 0);
        for one in parts {
            sum.mapped += one.mapped;
            sum.copied += one.copied;
            sum.is_wide |= one.is_wide;
            most = most.max(sum.mapped + sum.copied + one.opening);
        }
        Self { opening: most - (sum.mapped + sum.copied), ..sum }
    }
}

/// Bytes of a running model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RunMemory {
    /// Weights, in the file's map and beside it.
    pub weights: usize,
    /// Keys and values of all sequences, with all of their room.
    pub kv: usize,
    /// Buffers of a pass.
    pub activations: usize,
    /// Memory of threads: weights while they are unpacked, rounded activations.
    pub scratch: usize,
    /// What lies empty between the buffers of the pool.
    pub gaps: usize,
    /// Most of all at once, while opening or while running, without the program itself.
    pub peak: usize,
}

/// Widths of one block.
struct Widths {
    inner: usize,
    keys: usize,
    wide: usize,
    is_gated: bool,
}

impl Widths {
    fn of(layer: &LayerSpec) -> Self {
        let a = &layer.attention;
        Self {
            inner: a.num_attention_heads * a.head_dim,
            keys: a.num_key_value_heads * a.head_dim,
            wide: layer.feed_forward.intermediate_size,
            is_gated: layer.feed_forward.gated,
        }
    }
}

/// Numbers of keys and values per position, in all blocks.
pub fn kv_numbers(spec: &Spec) -> usize {
    spec.stack.layers.iter().map(|layer| 2 * Widths::of(layer).keys).sum()
}

/// Numbers per token that a pass holds at most: the stream, the norm's output, and the queries and what rotates them, the
/// heads' output; or the stream, both norms' outputs, the joined stream, and what is inside of the feed-forward, or, where
/// that is never whole, its result.
pub fn activation_numbers(spec: &Spec, is_wide: bool) -> usize {
    let hidden = spec.hidden_size;
    let of = |layer: &LayerSpec| {
        let w = Widths::of(layer);
        let attention = (2 * hidden + 2 * w.inner + 2 * w.keys).max(3 * hidden + 2 * w.inner);
        let wide = match (w.is_gated, is_wide) {
            (true, true) => (3 * w.wide).max(2 * w.wide + hidden),
            (true, false) => hidden,
            (false, _) => 2 * w.wide + hidden,
        };
        let feed_forward = 4 * hidden + wide;
        attention.max(feed_forward).max(6 * hidden)
    };
    spec.all_layers().map(of).max().unwrap_or(0)
}

/// Widest input of a linear layer, or of those outside of gated feed-forwards.
fn widest(spec: &Spec, is_wide: bool) -> usize {
    let of = |layer: &LayerSpec| {
        let w = Widths::of(layer);
        w.inner.max(if is_wide || !w.is_gated { w.wide } else { 0 }).max(spec.hidden_size)
    };
    spec.all_layers().map(of).max().unwrap_or(0)
}

/// Scratch of a thread besides rounded activations: rows of weights while they are unpacked, tiles of attention, halves of
/// feed-forwards until they meet.
const THREAD_SCRATCH: usize = 1 << 20;
/// The pool of `loam-tensor` takes memory from the system in slabs of this size.
const SLAB_BYTES: usize = 36 << 20;

/// Predicts what running a model holds.
pub fn run_memory(spec: &Spec, weights: WeightMemory, shape: &RunShape) -> RunMemory {
    let positions = shape.context * shape.sequences;
    let kv = (kv_numbers(spec) as f64 * positions as f64 * shape.kv.bytes()) as usize;
    let rows = shape.chunk.min(shape.context).max(shape.sequences);
    let activations = 4 * (rows * activation_numbers(spec, weights.is_wide) + spec.vocab_size * shape.sequences);
    // Activations in eight bits, with a scale and a sum per 32 of them; of a feed-forward its input's, too.
    let scratch = rows * (spec.hidden_size + widest(spec, true)) * 5 / 4 + shape.threads * THREAD_SCRATCH;
    let pooled = weights.copied + activations + if shape.kv == KvType::Full { kv } else { 0 };
    // Buffers of different sizes come and go, and the widest do not fit into what smaller ones leave: about two of them
    // lie empty, but never more than the rest of the last slab.
    let gaps = (2 * 4 * rows * widest(spec, weights.is_wide)).min(pooled.next_multiple_of(SLAB_BYTES) - pooled);
    let held = weights.mapped + weights.copied;
    let peak = (held + weights.opening).max(held + kv + activations + scratch + gaps);
    RunMemory { weights: held, kv, activations, scratch, gaps, peak }
}

impl LanguageModel {
    /// Bytes of the weights of a GGUF file that `mix` makes of this model, and of the process that opens it.
    pub fn mapped_memory(&self, mix: Mix) -> Result<WeightMemory, Error> {
        self.gguf_memory(Some(mix))
    }

    /// Bytes of the weights that products read, the head's among them, in these types, or in f32 where there is none.
    pub fn product_bytes(&self, types: &Plan) -> usize {
        let reads =
            |name: &str| name.starts_with("layers.") || name == "lm_head.weight" || name == "embed_tokens.weight";
        let is_table = |name: &str| name == "embed_tokens.weight" && !self.spec().tie_word_embeddings;
        let bytes = |name: &str, count: usize| types.get(name).copied().unwrap_or(DType::F32).bytes(count);
        let all = self.parameters();
        all.iter()
            .filter(|(n, p)| p.shape().len() == 2 && reads(n) && !is_table(n))
            .map(|(n, p)| bytes(n, p.count()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn model() -> LanguageModel {
        let config = json!({
            "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "tie_word_embeddings": false,
        });
        LanguageModel::new(&config, 1).expect("a valid configuration")
    }

    #[test]
    fn keys_and_values_grow_with_positions_sequences_and_bytes() {
        let (model, weights) = (model(), WeightMemory::default());
        let kv = |context, sequences, kv| {
            run_memory(model.spec(), weights, &RunShape { context, sequences, chunk: 16, kv, threads: 1 }).kv
        };
        // 3 blocks, keys and values, 2 heads of 16.
        assert_eq!(kv(100, 1, KvType::Full), 3 * 2 * 32 * 100 * 4);
        assert_eq!(kv(100, 4, KvType::F16), 3 * 2 * 32 * 100 * 4 * 2);
        assert_eq!(kv(32, 1, KvType::Q8_0), 3 * 2 * 32 * 34);
        assert!("q8_1".parse::<KvType>().is_err() && "Q4_0".parse::<KvType>().is_ok());
    }

    #[test]
    fn a_files_bytes_are_those_of_its_tensors_and_what_changes_places_is_copied() {
        let model = model();
        let mix: Mix = "q8_0".parse().expect("a mix");
        let memory = model.mapped_memory(mix).expect("qwen2 is in GGUF");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m.gguf");
        let settings = crate::GgufSettings { mix: Some(mix), ..Default::default() };
        model.save_gguf(&path, settings).expect("written");
        let gguf = loam_formats::Gguf::open(&path).expect("read");
        assert_eq!(memory.mapped, gguf.tensors().iter().map(|t| t.byte_len()).sum::<usize>());
        // Norms and biases are f32: 7 norms of 64, and per block biases of 64 + 32 + 32.
        assert_eq!(memory.copied, 4 * (7 * 64 + 3 * 128));
    }
}
