//! A class for every marked token (NER).

use loam_data::LabelledBatch;
use loam_models::LanguageModel;

use super::labelled::{Texts, argmax};
use super::{Loss, Objective, Pass};
use crate::batch;
use crate::error::Result;

/// Mean cross-entropy of the tokens' classes.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenClassify;

impl Objective for TokenClassify {
    type Batch = LabelledBatch<Vec<i32>>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch::counted(&batch.targets())
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        Texts(batch).tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let (scores, targets) = (Texts(batch).scores(model, pass)?, batch.targets());
        let mut metrics = Vec::new();
        if pass.measures {
            let (values, width) = (scores.to_vec(), scores.shape().width());
            let right = values.chunks(width).zip(&targets).filter(|(row, target)| argmax(row) as i32 == **target);
            metrics.push(("accuracy", right.count() as f64));
        }
        Ok(Loss { tensor: scores.cross_entropy(&targets, pass.scale, pass.terms), metrics })
    }
}
