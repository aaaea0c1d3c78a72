//! Extractive question answering: where in its text the answer starts and ends.

use loam_data::LabelledBatch;
use loam_data::labelled::qa::AnswerSpan;
use loam_data::loader::IGNORED;
use loam_models::LanguageModel;
use loam_tensor::Tensor;

use super::labelled::{Texts, argmax};
use super::{Loss, Objective, Pass};
use crate::error::Result;

/// Mean of the cross-entropies of the answer's first and last position among those of its text (Devlin et al. 2019,
/// section 4.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Qa;

impl Objective for Qa {
    type Batch = LabelledBatch<AnswerSpan>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.labels.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        Texts(batch).tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let scores = Texts(batch).scores(model, pass)?;
        let (mut total, mut right): (Option<Tensor>, f64) = (None, 0.0);
        for text in &batch.texts {
            let label = batch.labels[text.example];
            let own = scores.narrow(0, text.range.start, text.range.len());
            let side = |side: usize| own.narrow(1, side, 1).reshape([1, text.range.len()]);
            let (start, end) = (side(0), side(1));
            if pass.measures {
                let found = (argmax(&start.to_vec()), argmax(&end.to_vec()));
                right += f64::from(u8::from(found == (label.start, label.end)));
            }
            let half = pass.scale / 2.0;
            let loss = &start.cross_entropy(&[label.start as i32], half, pass.terms)
                + &end.cross_entropy(&[label.end as i32], half, pass.terms);
            total = Some(total.map_or(loss.clone(), |total| &total + &loss));
        }
        // A batch of padding alone has no loss.
        let nothing = || scores.cross_entropy(&vec![IGNORED; scores.count() / 2], pass.scale, pass.terms);
        let metrics = if pass.measures { vec![("exact_match", right)] } else { Vec::new() };
        Ok(Loss { tensor: total.unwrap_or_else(nothing), metrics })
    }
}
