//! Contrastive learning of sentence embeddings: a text is nearer to its paraphrase than to every other one.

use loam_data::LabelledBatch;
use loam_models::{LanguageModel, Reads, pool};
use loam_tensor::Tensor;

use super::labelled::{Texts, argmax};
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::info_nce;

/// Cross-entropy of the positive among all positives and negatives of the batch, by cosine over temperature (InfoNCE, van
/// den Oord et al. 2018; sentence-transformers' MultipleNegativesRankingLoss).
#[derive(Clone, Copy, Debug)]
pub struct Contrastive {
    /// What cosines are divided by.
    pub temperature: f32,
}

impl Default for Contrastive {
    fn default() -> Self {
        Self { temperature: 0.05 }
    }
}

impl Objective for Contrastive {
    type Batch = LabelledBatch<()>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        Texts(batch).tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let texts = Texts(batch);
        let hidden = texts.with_input(model, |input| model.hidden(input, pass.forward()))?;
        let means = pool(&hidden, &texts.ranges(), Reads::Mean);
        // Texts come example by example: the anchor first, then the positive, then perhaps a negative.
        let mut places = [Vec::new(), Vec::new(), Vec::new()];
        let mut before = None;
        for (index, text) in (0u32..).zip(&batch.texts) {
            let nth = before.filter(|&(example, _)| example == text.example).map_or(0, |(_, nth)| nth + 1);
            places[nth.min(2)].push(index);
            before = Some((text.example, nth));
        }
        let [anchors, positives, negatives] = places;
        let candidates = [positives, negatives].concat();
        let pick = |rows: &[u32]| means.embedding(rows, [rows.len()]);
        let (a, b) = (pick(&anchors), pick(&candidates));
        let metrics = if pass.measures { vec![("accuracy", nearest_is_own(&a, &b))] } else { Vec::new() };
        // The mean over the anchors, as a sum.
        Ok(Loss { tensor: info_nce(&a, &b, self.temperature).scale(anchors.len() as f32 * pass.scale), metrics })
    }
}

/// Rows of `a` to which, of all rows of `b`, the one with the same number is nearest by cosine.
fn nearest_is_own(a: &Tensor, b: &Tensor) -> f64 {
    let (width, a, b) = (a.shape().width(), a.to_vec(), b.to_vec());
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    let cosines = |row: &[f32]| -> Vec<f32> { b.chunks(width).map(|c| dot(row, c) / dot(c, c).sqrt()).collect() };
    a.chunks(width).enumerate().filter(|(own, row)| argmax(&cosines(row)) == *own).count() as f64
}
