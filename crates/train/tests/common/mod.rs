//! A tiny model and batches that can be learnt, shared by the integration tests.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loam_data::CausalBatch;
use loam_models::LanguageModel;
use loam_tensor::{CrossEntropyTerms, Precision};
use loam_train::recipe::ScheduleKind;
use loam_train::{DecayShape, Hooks, MetricRow, Observer, OptimizerSettings, Result, Schedule, Settings, Validation};
use serde_json::json;

pub const VOCAB: u32 = 23;

pub fn tiny_model(seed: u64) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "tie_word_embeddings": true,
    });
    LanguageModel::new(&config, seed).unwrap()
}

/// Rows in which every token is a fixed function of the one before.
pub fn batch(rows: usize, time: usize, seed: u64) -> CausalBatch {
    let (tokens, targets, positions) = (Vec::new(), Vec::new(), vec![0; rows * time]);
    let mut batch =
        CausalBatch { rows, seq_len: time, tokens, targets, segments: None, positions, lengths: vec![time; rows] };
    for row in 0..rows as u64 {
        let mut token = ((seed * 7 + row * 3) % u64::from(VOCAB)) as u32;
        for _ in 0..time {
            batch.tokens.push(token);
            token = (token * 5 + 3) % VOCAB;
            batch.targets.push(token as i32);
        }
    }
    batch
}

/// A few rows of their own for every step.
pub fn source(step: u64) -> Result<Vec<CausalBatch>> {
    Ok(vec![batch(3, 16, step), batch(2, 16, step + 1000)])
}

pub fn settings(steps: u64) -> Settings {
    Settings {
        lr: 3e-3,
        schedule: Schedule {
            kind: ScheduleKind::Cosine,
            steps,
            warmup_steps: 2,
            decay_steps: 0,
            decay_shape: DecayShape::Linear,
            cycles: 0,
            power: 0.0,
            minimum: 0.1,
        },
        optimizer: OptimizerSettings::default(),
        clip: 1.0,
        precision: Precision::F32,
        dropout: 0.0,
        neftune_alpha: None,
        recompute: false,
        terms: CrossEntropyTerms::default(),
        ema_decay: None,
        seed: 1,
        eval_every: 0,
        eval_batches: 2,
        sample_every: 0,
        checkpoint_every: 0,
        keep_checkpoints: 2,
        early_stop: None,
    }
}

/// Collects what happens, and raises the stop flag after a step.
#[derive(Default)]
pub struct Witness {
    pub rows: Vec<MetricRow>,
    pub evaluations: Vec<loam_train::EvalRow>,
    pub messages: Vec<String>,
    pub stop_at: Option<u64>,
    pub stop: Arc<AtomicBool>,
}

impl Witness {
    pub fn losses(&self) -> Vec<f64> {
        self.rows.iter().map(|row| row.loss).collect()
    }

    pub fn stopping_at(step: u64) -> Self {
        Self { stop_at: Some(step), ..Self::default() }
    }
}

impl Observer for Witness {
    fn on_step(&mut self, row: &MetricRow, _total: u64) {
        self.rows.push(row.clone());
        if self.stop_at == Some(row.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn on_eval(&mut self, row: &loam_train::EvalRow) {
        self.evaluations.push(row.clone());
    }

    fn on_message(&mut self, message: &str) {
        self.messages.push(message.to_string());
    }
}

pub fn hooks(witness: &mut Witness) -> Hooks<'_> {
    let stop = witness.stop.clone();
    Hooks { observer: witness, sample: None, stop }
}

/// Every weight of a model, in bits.
pub fn bits(model: &LanguageModel) -> Vec<u32> {
    model.parameters().iter().flat_map(|(_, p)| p.to_vec()).map(f32::to_bits).collect()
}

/// Held-out batches in memory.
pub struct HeldOut(pub Vec<CausalBatch>);

impl Validation<CausalBatch> for HeldOut {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn batch(&self, index: u64) -> Result<CausalBatch> {
        Ok(self.0[index as usize].clone())
    }

    fn bytes_per_token(&self) -> Option<f64> {
        Some(2.0)
    }
}
