//! The architectures of GGUF files: their families, and their tensors' names.

use crate::spec::Task;
use crate::weight_map::{Row, Transform::*, WeightMap, row};

/// One value of `general.architecture`.
pub(super) struct Architecture {
    pub(super) name: &'static str,
    /// `model_type` of the models that it holds.
    pub(super) families: &'static [&'static str],
    /// What they may be for.
    pub(super) tasks: &'static [Task],
    pub(super) weights: WeightMap,
    /// Which layers have a window where the file says nothing but how wide it is.
    pub(super) is_sliding: fn(usize) -> bool,
}

/// What readers need no place for: frequencies, which follow from the configuration, and their factors, which are read
/// with it.
const IGNORED: &[&str] = &["rope_freqs.weight", ".attn_rot_embd"];

const fn map(rows: &'static [Row]) -> WeightMap {
    WeightMap { rows, ignored_suffixes: IGNORED, copies: &["output.weight"], optional_prefix: "" }
}

/// Most architectures write tokens.
const TOKENS: &[Task] = &[Task::LanguageModel];

const ROUTER: Row = row("blk.{i}.ffn_gate_inp.weight", "layers.{i}.feed_forward.gate.weight", Keep);
const EXPERTS: Row = row(
    "blk.{i}.ffn_[gate|up|down]_exps.weight",
    "layers.{i}.feed_forward.experts.{e}.[gate|up|down]_proj.weight",
    Stack,
);

const LLAMA: Architecture = Architecture {
    name: "llama",
    families: &["llama", "mistral", "mixtral"],
    tasks: TOKENS,
    weights: map(&[
        row("token_embd.weight", "embed_tokens.weight", Keep),
        row("blk.{i}.attn_norm.weight", "layers.{i}.attention_norm.weight", Keep),
        row("blk.{i}.attn_[q|k].[weight|bias]", "layers.{i}.attention.[q|k]_proj.[weight|bias]", RopePair),
        row("blk.{i}.attn_[v|output].[weight|bias]", "layers.{i}.attention.[v|o]_proj.[weight|bias]", Keep),
        row("blk.{i}.ffn_norm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
        row(
            "blk.{i}.ffn_[gate|up|down].[weight|bias]",
            "layers.{i}.feed_forward.[gate|up|down]_proj.[weight|bias]",
            Keep,
        ),
        ROUTER,
        EXPERTS,
        row("output_norm.weight", "norm.weight", Keep),
        row("output.weight", "lm_head.weight", Keep),
    ]),
    is_sliding: |_| true,
};

/// Llama's names, nothing changes places.
const QWEN: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("blk.{i}.attn_norm.weight", "layers.{i}.attention_norm.weight", Keep),
    row("blk.{i}.attn_[q|k|v|output].[weight|bias]", "layers.{i}.attention.[q|k|v|o]_proj.[weight|bias]", Keep),
    row("blk.{i}.attn_[q|k]_norm.weight", "layers.{i}.attention.[q|k]_norm.weight", Keep),
    row("blk.{i}.ffn_norm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
    row("blk.{i}.ffn_[gate|up|down].[weight|bias]", "layers.{i}.feed_forward.[gate|up|down]_proj.[weight|bias]", Keep),
    ROUTER,
    EXPERTS,
    row("output_norm.weight", "norm.weight", Keep),
    row("output.weight", "lm_head.weight", Keep),
]);

const GEMMA: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("blk.{i}.[attn|post_attention]_norm.weight", "layers.{i}.[attention|attention_post]_norm.weight", PlusOne),
    row("blk.{i}.attn_[q|k|v|output].[weight|bias]", "layers.{i}.attention.[q|k|v|o]_proj.[weight|bias]", Keep),
    row("blk.{i}.attn_[q|k]_norm.weight", "layers.{i}.attention.[q|k]_norm.weight", PlusOne),
    row("blk.{i}.[ffn|post_ffw]_norm.weight", "layers.{i}.[feed_forward|feed_forward_post]_norm.weight", PlusOne),
    row("blk.{i}.ffn_[gate|up|down].weight", "layers.{i}.feed_forward.[gate|up|down]_proj.weight", Keep),
    row("output_norm.weight", "norm.weight", PlusOne),
    row("output.weight", "lm_head.weight", Keep),
]);

const PHI3: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("blk.{i}.attn_norm.weight", "layers.{i}.attention_norm.weight", Keep),
    row("blk.{i}.attn_qkv.weight", "layers.{i}.attention.{q|k|v}_proj.weight", Keep),
    row("blk.{i}.attn_output.weight", "layers.{i}.attention.o_proj.weight", Keep),
    row("blk.{i}.ffn_norm.weight", "layers.{i}.feed_forward_norm.weight", Keep),
    row("blk.{i}.ffn_up.weight", "layers.{i}.feed_forward.{gate|up}_proj.weight", Keep),
    row("blk.{i}.ffn_down.weight", "layers.{i}.feed_forward.down_proj.weight", Keep),
    row("output_norm.weight", "norm.weight", Keep),
    row("output.weight", "lm_head.weight", Keep),
]);

const GPT2: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("position_embd.weight", "embed_positions.weight", Keep),
    row("blk.{i}.[attn|ffn]_norm.[weight|bias]", "layers.{i}.[attention|feed_forward]_norm.[weight|bias]", Keep),
    row("blk.{i}.attn_qkv.[weight|bias]", "layers.{i}.attention.{q|k|v}_proj.[weight|bias]", Keep),
    row("blk.{i}.attn_output.[weight|bias]", "layers.{i}.attention.o_proj.[weight|bias]", Keep),
    row("blk.{i}.ffn_[up|down].[weight|bias]", "layers.{i}.feed_forward.[up|down]_proj.[weight|bias]", Keep),
    row("output_norm.[weight|bias]", "norm.[weight|bias]", Keep),
    row("output.weight", "lm_head.weight", Keep),
]);

const T5: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("[enc|dec].blk.0.attn_rel_b.weight", "[encoder.|]relative_bias.weight", Keep),
    row("[enc|dec].blk.{i}.attn_norm.weight", "[encoder.|]layers.{i}.attention_norm.weight", Keep),
    row("[enc|dec].blk.{i}.attn_[q|k|v|o].weight", "[encoder.|]layers.{i}.attention.[q|k|v|o]_proj.weight", Keep),
    row("dec.blk.{i}.cross_attn_norm.weight", "layers.{i}.cross_attention_norm.weight", Keep),
    row("dec.blk.{i}.cross_attn_[q|k|v|o].weight", "layers.{i}.cross_attention.[q|k|v|o]_proj.weight", Keep),
    row("[enc|dec].blk.{i}.ffn_norm.weight", "[encoder.|]layers.{i}.feed_forward_norm.weight", Keep),
    row(
        "[enc|dec].blk.{i}.ffn_[gate|up|down].weight",
        "[encoder.|]layers.{i}.feed_forward.[gate|up|down]_proj.weight",
        Keep,
    ),
    row("[enc|dec].output_norm.weight", "[encoder.|]norm.weight", Keep),
    row("output.weight", "lm_head.weight", Keep),
]);

/// The encoder alone: no head over tokens. `cls` is the dense layer that the first hidden state goes through, which
/// llama.cpp's own converter leaves out where nothing reads it.
const BERT: WeightMap = map(&[
    row("token_embd.weight", "embed_tokens.weight", Keep),
    row("position_embd.weight", "embed_positions.weight", Keep),
    row("token_types.weight", "token_types.weight", Keep),
    row("token_embd_norm.[weight|bias]", "embedding_norm.[weight|bias]", Keep),
    row("blk.{i}.attn_[q|k|v|output].[weight|bias]", "layers.{i}.attention.[q|k|v|o]_proj.[weight|bias]", Keep),
    row(
        "blk.{i}.[attn|layer]_output_norm.[weight|bias]",
        "layers.{i}.[attention|feed_forward]_norm.[weight|bias]",
        Keep,
    ),
    row("blk.{i}.ffn_[up|down].[weight|bias]", "layers.{i}.feed_forward.[up|down]_proj.[weight|bias]", Keep),
    row("cls.[weight|bias]", "pooler.dense.[weight|bias]", Keep),
    row("cls.[weight|bias]", "classifier.dense.[weight|bias]", Keep),
    row("cls.output.[weight|bias]", "classifier.[weight|bias]", Keep),
]);

const fn without_windows(name: &'static str, families: &'static [&'static str], weights: WeightMap) -> Architecture {
    Architecture { name, families, tasks: TOKENS, weights, is_sliding: |_| true }
}

/// Every architecture, in the order that messages list them.
pub(super) static ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    without_windows("qwen2", &["qwen2"], QWEN),
    without_windows("qwen3", &["qwen3"], QWEN),
    without_windows("qwen3moe", &["qwen3_moe"], QWEN),
    Architecture { is_sliding: |layer| layer % 2 == 0, ..without_windows("gemma2", &["gemma2"], GEMMA) },
    Architecture { is_sliding: |layer| layer % 6 != 5, ..without_windows("gemma3", &["gemma3_text"], GEMMA) },
    without_windows("phi3", &["phi3"], PHI3),
    without_windows("gpt2", &["gpt2"], GPT2),
    without_windows("t5", &["t5"], T5),
    Architecture {
        tasks: &[Task::Embedding, Task::SequenceClassification],
        ..without_windows("bert", &["bert"], BERT)
    },
];
