//! What compression costs: the same texts through two models.

use std::time::Instant;

use loam_models::{Forward, Hooks, Input, LanguageModel};
use loam_tensor::{Tensor, no_grad};
use rayon::prelude::*;

use crate::{Error, Result, Watch};

/// Rows of text, each read from its own beginning; every token but the first of a row is predicted.
#[derive(Clone, Debug)]
pub struct Windows {
    rows: Vec<Vec<u32>>,
}

impl Windows {
    /// Cuts a text into rows of at most `length` tokens, `tokens_at_most` in all.
    pub fn new(tokens: &[u32], length: usize, tokens_at_most: usize) -> Result<Self> {
        let tokens = &tokens[..tokens.len().min(tokens_at_most)];
        let rows: Vec<Vec<u32>> = tokens.chunks(length.max(2)).filter(|r| r.len() > 1).map(<[u32]>::to_vec).collect();
        if rows.is_empty() {
            return Err(Error::setting("the text has no two tokens to predict one of", "give a longer text"));
        }
        Ok(Self { rows })
    }

    /// Tokens that are predicted.
    pub fn predicted(&self) -> usize {
        self.rows.iter().map(|row| row.len() - 1).sum()
    }
}

/// Two models on the same text. Natural logarithms.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// Tokens predicted.
    pub tokens: usize,
    /// Perplexity of the first model: e to the mean negative log-likelihood.
    pub perplexity_before: f64,
    /// Of the second one.
    pub perplexity_after: f64,
    /// Mean of `KL(first || second)` over positions, in nats.
    pub kl_divergence: f64,
    /// Standard error of that mean.
    pub kl_error: f64,
    /// The divergence that 99 % of the positions stay below.
    pub kl_p99: f64,
    /// Share of positions in which both find the same token most likely.
    pub same_top: f64,
}

/// One position: both negative log-likelihoods, the divergence, whether the most likely token is the same.
type Position = (f64, f64, f64, bool);

/// Positions whose logits exist together.
const TOGETHER: usize = 256;

/// Compares two models that share a vocabulary.
pub fn compare(
    before: &LanguageModel,
    after: &LanguageModel,
    windows: &Windows,
    watch: Watch<'_>,
) -> Result<Comparison> {
    let (own, other) = (before.spec().vocab_size, after.spec().vocab_size);
    if own != other {
        return Err(Error::setting(
            format!("the models have {own} and {other} tokens; their predictions cannot be compared"),
            "compare models with one tokenizer",
        ));
    }
    let mut positions: Vec<Position> = Vec::with_capacity(windows.predicted());
    for (index, row) in windows.rows.iter().enumerate() {
        watch(index, windows.rows.len());
        let hidden = |model: &LanguageModel| {
            no_grad(|| model.hidden(&Input::rows(&row[..row.len() - 1], 1), Forward::default()))
        };
        let (left, right) = (hidden(before)?, hidden(after)?);
        let places: Vec<u32> = (0..row.len() as u32 - 1).collect();
        for places in places.chunks(TOGETHER) {
            let logits =
                |model: &LanguageModel, hidden: &Tensor| no_grad(|| model.logits_at(hidden, places, &Hooks::On));
            let (left, right) = (logits(before, &left)?.to_vec(), logits(after, &right)?.to_vec());
            let targets = &row[places[0] as usize + 1..];
            let rows = left.par_chunks_exact(own).zip(right.par_chunks_exact(own)).zip(targets.par_iter());
            positions.par_extend(rows.map(|((left, right), &target)| position(left, right, target as usize)));
        }
    }
    watch(windows.rows.len(), windows.rows.len());
    Ok(summed(&positions))
}

fn position(left: &[f32], right: &[f32], target: usize) -> Position {
    let (a, b) = (log_sum(left), log_sum(right));
    let mut divergence = 0.0;
    for (&x, &y) in left.iter().zip(right) {
        let p = f64::from(x) - a;
        divergence += p.exp() * (p - (f64::from(y) - b));
    }
    (a - f64::from(left[target]), b - f64::from(right[target]), divergence.max(0.0), top(left) == top(right))
}

fn log_sum(logits: &[f32]) -> f64 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    f64::from(most) + sum.ln()
}

fn top(logits: &[f32]) -> usize {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

fn summed(positions: &[Position]) -> Comparison {
    let count = positions.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Position) -> f64| positions.iter().map(of).sum::<f64>() / count;
    let kl = mean(&|p| p.2);
    let variance = mean(&|p| (p.2 - kl).powi(2));
    let mut sorted: Vec<f64> = positions.iter().map(|p| p.2).collect();
    sorted.sort_by(f64::total_cmp);
    let p99 = sorted.get((sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0);
    Comparison {
        tokens: positions.len(),
        perplexity_before: mean(&|p| p.0).exp(),
        perplexity_after: mean(&|p| p.1).exp(),
        kl_divergence: kl,
        kl_error: (variance / count).sqrt(),
        kl_p99: p99,
        same_top: mean(&|p| f64::from(u8::from(p.3))),
    }
}

/// Tokens per second of one text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Speed {
    /// Read at once.
    pub prefill_tokens_per_s: f64,
    /// Written one after the other.
    pub decode_tokens_per_s: f64,
}

/// Measures a model on the first tokens of a text: a pass over `prompt` of them, then `steps` single ones; the faster of
/// two tries each.
pub fn speed(model: &LanguageModel, windows: &Windows, prompt: usize, steps: usize) -> Result<Speed> {
    let row = &windows.rows[0];
    let cut = prompt.min(row.len() - 1).max(1);
    let steps = steps.min(model.spec().max_position_embeddings.saturating_sub(cut)).max(1);
    let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..2 {
        let mut cache = model.new_cache();
        let mut pass = |tokens: &[u32]| {
            let start = Instant::now();
            let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
            no_grad(|| model.last_logits(&Input::rows(tokens, 1), forward))?;
            Ok::<f64, Error>(start.elapsed().as_secs_f64())
        };
        prefill = prefill.min(pass(&row[..cut])?);
        let mut sum = 0.0;
        for step in 0..steps {
            sum += pass(&row[(cut + step) % row.len()..][..1])?;
        }
        decode = decode.min(sum);
    }
    Ok(Speed { prefill_tokens_per_s: cut as f64 / prefill, decode_tokens_per_s: steps as f64 / decode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_scored_by_both_models() {
        // Probabilities 3/4 and 1/4 against 1/2 and 1/2.
        let (left, right) = ([3.0_f32.ln(), 0.0], [1.0, 1.0]);
        let (own, other, kl, same) = position(&left, &right, 1);
        assert!((own - 4.0_f64.ln()).abs() < 1e-6 && (other - 2.0_f64.ln()).abs() < 1e-6);
        assert!((kl - (0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln())).abs() < 1e-6, "{kl}");
        assert!(same, "of equal ones the first counts");
        assert_eq!(position(&left, &left, 0).2, 0.0);
    }

    #[test]
    fn a_text_is_cut_into_rows() {
        let windows = Windows::new(&[1, 2, 3, 4, 5, 6, 7], 3, 100).expect("rows");
        assert_eq!(windows.predicted(), 4, "the last token alone predicts nothing");
        assert!(Windows::new(&[1], 8, 100).is_err());
    }
}
