//! Distillation: a student takes over a teacher's distribution of the next token (Hinton et al. 2015; Agarwal et al. 2024,
//! "On-policy distillation of language models").

use std::sync::Arc;

use loam_data::preference::AnswerBatch;
use loam_models::LanguageModel;
use loam_tensor::no_grad;

use super::{Loss, Objective, Pass, states};
use crate::error::Result;
use crate::losses::preference::generalised_jsd;

/// The mean over answers' tokens of the generalised Jensen-Shannon divergence of teacher and student.
pub struct Distill {
    /// Who is imitated.
    pub teacher: Arc<LanguageModel>,
    /// 0 is the forward Kullback-Leibler divergence, KL(teacher ‖ student); 1 the reverse one; the divergences between mix
    /// both distributions.
    pub beta: f32,
    /// What logits of both are divided by.
    pub temperature: f32,
}

impl Objective for Distill {
    type Batch = AnswerBatch<()>;

    fn counted(&self, batch: &Self::Batch) -> usize {
        batch.places.len()
    }

    fn tokens(&self, batch: &Self::Batch) -> usize {
        batch.text_tokens()
    }

    fn loss(&mut self, model: &LanguageModel, batch: &Self::Batch, pass: &Pass) -> Result<Loss> {
        let taught = no_grad(|| states(&self.teacher, batch, &pass.quiet()))?;
        let own = states(model, batch, pass)?;
        let mut failed = None;
        let (mut agreed, mut likelihood) = (0, 0.0f64);
        let tensor = model.loss_of_logits(&own, |student, rows| {
            let wanted = no_grad(|| self.teacher.logits_of(&taught.narrow(0, rows.start, rows.len())));
            let teacher = wanted.unwrap_or_else(|error| {
                failed = Some(error);
                student.detach()
            });
            // Vocabularies of one family are padded to different lengths.
            let width = student.size(1).min(teacher.size(1));
            let (student, teacher) = (student.narrow(1, 0, width), teacher.narrow(1, 0, width));
            if pass.measures {
                let best = |values: Vec<f32>| values.chunks_exact(width).map(argmax).collect::<Vec<_>>();
                agreed += best(student.to_vec()).iter().zip(best(teacher.to_vec())).filter(|(a, b)| **a == *b).count();
                let logs = student.log_softmax().gather_last(&batch.next[rows]);
                likelihood += logs.to_vec().iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            generalised_jsd(&student, &teacher, self.beta, self.temperature).sum().scale(pass.scale)
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let metrics = match pass.measures {
            true => vec![("agreement", agreed as f64), ("nll_loss", -likelihood)],
            false => Vec::new(),
        };
        Ok(Loss { tensor, metrics })
    }
}

fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, &x)| if x > best.1 { (at, x) } else { best }).0
}
