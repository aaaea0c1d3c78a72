//! Classes, several classes or a number for every text.

use loam_data::LabelledBatch;
use loam_data::labelled::classify::Label;
use loam_models::LanguageModel;
use loam_tensor::Tensor;

use super::labelled::{Texts, argmax};
use super::{Loss, Objective, Pass};
use crate::error::Result;
use crate::losses::{bce_with_logits, mse};

/// Mean cross-entropy of the class, binary cross-entropy of each class, or squared error of the number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Classify;

impl Objective for Classify {
    type Batch = LabelledBatch<Label>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        Texts(batch).tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let scores = Texts(batch).scores(model, pass)?;
        let (rows, width) = (batch.labels.len(), scores.shape().width());
        let values = if pass.measures { scores.to_vec() } else { Vec::new() };
        let right = |matches: &dyn Fn(&[f32], &Label) -> bool| {
            values.chunks(width).zip(&batch.labels).filter(|(row, label)| matches(row, label)).count() as f64
        };
        let (tensor, metrics) = match batch.labels.first() {
            Some(Label::Value(_)) => {
                let wanted: Vec<f32> = batch.labels.iter().map(value_of).collect();
                // The mean over all rows and numbers, as a sum.
                (mse(&scores, &Tensor::from_slice(&wanted, [rows, 1])).scale(rows as f32 * pass.scale), Vec::new())
            }
            Some(Label::Classes(_)) => {
                let mut wanted = vec![0.0; rows * width];
                for (row, label) in wanted.chunks_mut(width).zip(&batch.labels) {
                    classes_of(label).iter().for_each(|&class| row[class as usize] = 1.0);
                }
                let loss = bce_with_logits(&scores, &Tensor::from_slice(&wanted, [rows, width]));
                let all_right = |row: &[f32], label: &Label| {
                    (0u32..).zip(row).all(|(class, score)| (*score > 0.0) == classes_of(label).contains(&class))
                };
                (loss.scale(rows as f32 * pass.scale), vec![("accuracy", right(&all_right))])
            }
            _ => {
                let wanted: Vec<i32> = batch.labels.iter().map(|label| classes_of(label)[0] as i32).collect();
                let is_right = |row: &[f32], label: &Label| argmax(row) == classes_of(label)[0] as usize;
                (scores.cross_entropy(&wanted, pass.scale, pass.terms), vec![("accuracy", right(&is_right))])
            }
        };
        Ok(Loss { tensor, metrics: if pass.measures { metrics } else { Vec::new() } })
    }
}

fn value_of(label: &Label) -> f32 {
    match label {
        Label::Value(value) => *value,
        _ => 0.0,
    }
}

fn classes_of(label: &Label) -> &[u32] {
    match label {
        Label::Class(class) => std::slice::from_ref(class),
        Label::Classes(classes) => classes,
        Label::Value(_) => &[],
    }
}
