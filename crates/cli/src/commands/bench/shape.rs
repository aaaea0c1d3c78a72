//! The models and batches that are measured, on any machine the same.

use crate::args::BenchConfig;
use crate::failure::Failure;
use loam_kernels::rng::Rng;
use loam_models::LanguageModel;
use serde_json::json;

/// A shape that PyTorch was measured on, too (`shared/bench/gpt_torch.py`).
#[derive(Clone, Copy)]
pub struct Shape {
    pub name: &'static str,
    pub vocab: usize,
    width: usize,
    layers: usize,
    heads: usize,
    pub time: usize,
    pub batch: usize,
    pub steps: usize,
}

impl Shape {
    pub fn of(config: BenchConfig) -> Self {
        let shape = |name, vocab, width, layers, heads, time, batch, steps| Self {
            name,
            vocab,
            width,
            layers,
            heads,
            time,
            batch,
            steps,
        };
        match config {
            BenchConfig::Small => shape("small", 65, 128, 4, 4, 64, 12, 60),
            BenchConfig::Baby => shape("baby", 65, 384, 6, 6, 256, 16, 10),
            BenchConfig::Gpt2 => shape("gpt2", 50_304, 768, 12, 12, 256, 4, 5),
        }
    }

    pub fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// Six per parameter of the matrix products and token, and the two products of causal attention.
    pub fn flop(&self) -> f64 {
        let (c, l, tokens) = (self.width as f64, self.layers as f64, self.tokens() as f64);
        let matmul = l * 12.0 * c * c + self.vocab as f64 * c;
        6.0 * matmul * tokens + 6.0 * l * c * self.time as f64 * tokens
    }

    /// Parameters of the head.
    pub fn head_parameters(&self) -> usize {
        self.vocab * self.width
    }

    /// The model with random weights.
    pub fn model(&self) -> Result<LanguageModel, Failure> {
        let config = json!({
            "model_type": "gpt2", "vocab_size": self.vocab, "n_embd": self.width, "n_layer": self.layers,
            "n_head": self.heads, "n_positions": self.time, "tie_word_embeddings": false,
        });
        Ok(LanguageModel::new(&config, 0)?)
    }

    /// Random token ids.
    pub fn draw(&self, purpose: &str, count: usize) -> Vec<u32> {
        let rng = Rng::new(0, purpose, 0);
        (0..count).map(|i| rng.below(i as u64, self.vocab as u64) as u32).collect()
    }
}
