//! Log-probabilities of answers under the reference, computed once and kept on disk under the hash of what they depend on.

use std::path::Path;

use loam_data::preference::{AnswerBatch, Answers, Whole};
use loam_formats::atomic;
use loam_models::LanguageModel;
use loam_tensor::{no_grad, with_precision};
use serde_json::json;
use twox_hash::XxHash3_128;

use super::start::Start;
use crate::error::Result;
use crate::losses::policy::segment_sums;
use crate::objective::{Pass, Scored};
use crate::recipe::Recipe;
use crate::run::file_hashes;
use crate::trainer::{Observer, Settings};

/// Texts that are scored together.
const BATCH: usize = 16;

/// One log-probability per text of every example: that of its trained tokens under the reference model.
pub(super) fn log_probs<L: Clone>(
    recipe: &Recipe,
    start: &Start,
    examples: &[Answers<L>],
    cache_dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>> {
    let precision = Settings::of(recipe).precision;
    let other = recipe.preference.reference.as_ref().map(Path::new);
    let weights = match other {
        None => start.base["files"].clone(),
        Some(path) => file_hashes(&super::start::weight_files(path)?)?,
    };
    let hashes: Vec<_> = weights.as_array().into_iter().flatten().map(|file| file["xxh3"].clone()).collect();
    let texts: Vec<_> =
        examples.iter().map(|e| e.texts.iter().map(|t| (&t.ids, &t.trained)).collect::<Vec<_>>()).collect();
    // Under an adapter the model that is scored with is the one that is frozen.
    let frozen = recipe.peft.as_ref().filter(|_| other.is_none()).map(|section| &section.quant);
    let identity = json!({
        "weights": hashes, "frozen": frozen, "precision": format!("{precision:?}"), "texts": texts,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let key = format!("{:032x}", XxHash3_128::oneshot(identity.to_string().as_bytes()));
    let path = cache_dir.join("reference").join(format!("{key}.f32"));
    let counts: Vec<usize> = examples.iter().map(|example| example.texts.len()).collect();
    let count: usize = counts.iter().sum();
    let values = match std::fs::read(&path) {
        Ok(bytes) if bytes.len() == 4 * count => {
            observer.on_message(&format!("reference log-probabilities: {}", path.display()));
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        _ => {
            observer.on_message(&format!("scoring {count} answers with the reference model"));
            let values = with_precision(precision, || {
                let opened = other.map(LanguageModel::open_to_run).transpose()?;
                no_grad(|| score(opened.as_ref().unwrap_or(&start.model), examples))
            })?;
            let bytes: Vec<u8> = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
            atomic::write_file(&path, &bytes)?;
            values
        }
    };
    let mut values = values.into_iter();
    Ok(counts.iter().map(|&count| values.by_ref().take(count).collect()).collect())
}

fn score<L: Clone>(model: &LanguageModel, examples: &[Answers<L>]) -> Result<Vec<f32>> {
    let pass = Pass::measuring();
    let mut values = Vec::new();
    for part in examples.chunks(BATCH) {
        let batch = AnswerBatch::pack(part.iter(), Whole::of(part.iter()));
        let scored = Scored::of(model, &batch, &pass, 1.0)?;
        values.extend(segment_sums(&scored.tokens, &batch.answers).to_vec());
    }
    Ok(values)
}
