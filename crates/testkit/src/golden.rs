//! The golden directories written by `scripts/goldens.py` (goldens/README.md lists them).

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An array from a golden file: row-major values and their shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<T> {
    /// Size of each axis, outermost first.
    pub shape: Vec<usize>,
    /// The values, last axis fastest.
    pub values: Vec<T>,
}

/// Settings of the recorded AdamW trajectories.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    /// Learning rate, the same in every step.
    pub lr: f64,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of tensors with at least two axes; the others have none.
    pub weight_decay: f64,
    /// The gradient of all parameters together is scaled down to this norm.
    pub max_grad_norm: f64,
}

/// One golden file: named arrays of f32 and i64.
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    floats: BTreeMap<String, Array<f32>>,
    integers: BTreeMap<String, Array<i64>>,
    metadata: BTreeMap<String, String>,
}

impl Golden {
    /// Logits, loss and gradients of a case: `goldens/<case>/golden.safetensors`.
    pub fn open(case: &str) -> Self {
        Self::read(&golden_dir(case).join("golden.safetensors"))
    }

    /// The same for two packed documents, where the case has it (`gpt2-plain` and `llama-gqa`).
    pub fn packed(case: &str) -> Self {
        Self::read(&golden_dir(case).join("packed.safetensors"))
    }

    /// What a model with another head gives: `goldens/<case>/scores.safetensors`.
    pub fn scores(case: &str) -> Self {
        Self::read(&golden_dir(case).join("scores.safetensors"))
    }

    /// Whether there is an array of that name.
    pub fn has(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.integers.contains_key(name)
    }

    /// Twenty optimizer steps, where the case has them (`gpt2-plain` and `llama-gqa`).
    pub fn trajectory(case: &str) -> Self {
        Self::read(&golden_dir(case).join("trajectory.safetensors"))
    }

    /// Reads any file of f32 and i64 arrays.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("cannot read golden {}: {error}", path.display()));
        let refuse = |error| -> ! { panic!("golden {} is not a safetensors file: {error}", path.display()) };
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|error| refuse(error));
        let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| refuse(error));
        let mut golden = Self {
            path: path.to_owned(),
            floats: BTreeMap::new(),
            integers: BTreeMap::new(),
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
        };
        for (name, view) in tensors.iter() {
            let shape = view.shape().to_vec();
            match view.dtype() {
                Dtype::F32 => {
                    let values = numbers(view.data(), f32::from_le_bytes);
                    golden.floats.insert(name.to_owned(), Array { shape, values });
                }
                Dtype::I64 => {
                    let values = numbers(view.data(), i64::from_le_bytes);
                    golden.integers.insert(name.to_owned(), Array { shape, values });
                }
                other => panic!("golden {}: `{name}` is {other:?}, expected F32 or I64", path.display()),
            }
        }
        golden
    }

    /// The f32 array of that name.
    #[track_caller]
    pub fn floats(&self, name: &str) -> &Array<f32> {
        self.floats.get(name).unwrap_or_else(|| self.missing(name))
    }

    /// The i64 array of that name: token ids, targets, positions.
    #[track_caller]
    pub fn integers(&self, name: &str) -> &Array<i64> {
        self.integers.get(name).unwrap_or_else(|| self.missing(name))
    }

    /// The mean loss over the targets that count.
    pub fn loss(&self) -> f32 {
        self.floats("loss").values[0]
    }

    /// The gradient of every parameter, under the parameter's name in transformers, in alphabetical order.
    pub fn gradients(&self) -> impl Iterator<Item = (&str, &Array<f32>)> {
        self.floats.iter().filter_map(|(name, array)| Some((name.strip_prefix("gradient.")?, array)))
    }

    /// The optimizer's settings, in a trajectory.
    #[track_caller]
    pub fn adamw(&self) -> AdamW {
        serde_json::from_str(self.metadata("adamw"))
            .unwrap_or_else(|error| panic!("golden {}: adamw: {error}", self.path.display()))
    }

    /// A text that the file says about itself.
    #[track_caller]
    pub fn metadata(&self, name: &str) -> &str {
        self.metadata.get(name).unwrap_or_else(|| self.missing(name))
    }

    #[track_caller]
    fn missing(&self, name: &str) -> ! {
        let known: Vec<_> = self.floats.keys().chain(self.integers.keys()).chain(self.metadata.keys()).collect();
        panic!("golden {} has no `{name}`; it has {known:?}", self.path.display())
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], decode: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect()
}

/// Where all golden files lie.
pub(crate) fn root() -> PathBuf {
    workspace_root().join("crates/testkit/goldens")
}

/// The workspace's root directory: above the package that cargo runs this test in. What the compiler saw may have been
/// another checkout that shares the target directory.
pub fn workspace_root() -> PathBuf {
    let here = std::env::current_dir().expect("tests run in their package's directory");
    let root = here.ancestors().find(|path| path.join("Cargo.lock").is_file());
    root.unwrap_or_else(|| panic!("no Cargo.lock in or above {}", here.display())).to_owned()
}

/// The Hugging Face directory of a case; panics where there is no such case.
#[track_caller]
pub fn golden_dir(case: &str) -> PathBuf {
    let directory = root().join(case);
    assert!(directory.join("config.json").is_file(), "no golden case `{case}`; there are {:?}", cases());
    directory
}

/// The directory of a tiny sentence encoder and what sentence-transformers makes of its texts
/// (`scripts/goldens_embed.py`).
#[track_caller]
pub fn encoder(case: &str) -> (PathBuf, EncoderGolden) {
    let directory = workspace_root().join("crates/testkit/encoders").join(case);
    let file = directory.join("golden.json");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let golden = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    (directory, golden)
}

/// What a sentence encoder makes of some texts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderGolden {
    /// The texts.
    pub texts: Vec<String>,
    /// Token ids of each, with what is added around them, cut to the encoder's window.
    pub ids: Vec<Vec<u32>>,
    /// Embedding of each.
    pub embeddings: Vec<Vec<f32>>,
}

/// The names of all cases, in alphabetical order.
pub fn cases() -> Vec<String> {
    directories_with("golden.safetensors")
}

fn directories_with(file: &str) -> Vec<String> {
    let entries = fs::read_dir(root()).unwrap_or_else(|error| panic!("cannot list {}: {error}", root().display()));
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            entry.path().join(file).is_file().then_some(name)
        })
        .collect();
    names.sort();
    names
}

/// The names of the cases with another head than one over tokens, in alphabetical order.
pub fn head_cases() -> Vec<String> {
    directories_with("scores.safetensors")
}

/// The cases of one family: `gpt2` or `llama`. Panics where there is none, so that a loop over them cannot be empty.
#[track_caller]
pub fn cases_of(family: &str) -> Vec<String> {
    let prefix = format!("{family}-");
    let found: Vec<_> = cases().into_iter().filter(|case| case.starts_with(&prefix)).collect();
    assert!(!found.is_empty(), "no golden case of family `{family}`; there are {:?}", cases());
    found
}

/// A copy of a case's directory that a test may damage; it disappears with the returned handle.
#[track_caller]
pub fn golden_copy(case: &str) -> TempDir {
    let copy = TempDir::new().unwrap_or_else(|error| panic!("cannot make a temporary directory: {error}"));
    let source = golden_dir(case);
    let files = fs::read_dir(&source).unwrap_or_else(|error| panic!("cannot list {}: {error}", source.display()));
    for file in files.filter_map(Result::ok) {
        let target = copy.path().join(file.file_name());
        let copied = fs::read(file.path()).and_then(|bytes| fs::write(&target, bytes));
        copied.unwrap_or_else(|error| panic!("cannot copy to {}: {error}", target.display()));
    }
    copy
}

/// A copy of a case whose weights are those of PyTorch (`scripts/goldens_pickle.py`): the same numbers, in
/// `pytorch_model.bin` or its shards.
#[track_caller]
pub fn pickled_copy(case: &str) -> TempDir {
    let copy = golden_copy(case);
    let source = workspace_root().join("crates/testkit/pickles").join(case);
    let files = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    };
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    for file in files(copy.path()).iter().filter(|file| name(file).starts_with("model")) {
        fs::remove_file(file).unwrap_or_else(|error| panic!("cannot remove {}: {error}", file.display()));
    }
    for file in files(&source) {
        fs::copy(&file, copy.path().join(name(&file))).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_holds_tokens_targets_logits_loss_and_gradients_of_matching_shapes() {
        let cases = cases();
        assert!(cases.len() >= 18, "found only {cases:?}");
        for case in cases {
            let golden = Golden::open(&case);
            assert_eq!(golden.integers("tokens").shape, [2, 17], "{case}");
            assert_eq!(golden.integers("targets").shape, [2, 17], "{case}");
            assert!(golden.integers("targets").values.contains(&-100), "{case}");
            assert_eq!(golden.floats("logits").shape[..2], [2, 17], "{case}");
            assert!(golden.loss().is_finite() && golden.loss() > 1.0, "{case}: loss {}", golden.loss());
            assert!(golden.gradients().count() >= 15, "{case}");
            for (name, gradient) in golden.gradients() {
                assert_eq!(gradient.values.len(), gradient.shape.iter().product::<usize>(), "{case} {name}");
                // A key's bias shifts all scores of a query alike, where nothing rotates.
                let is_key_bias = [".k_proj.bias", ".key.bias", ".k_lin.bias"].iter().any(|end| name.ends_with(end));
                let has_effect = !is_key_bias || case.starts_with("qwen2") || case.starts_with("llama");
                assert_eq!(gradient.values.iter().any(|value| *value != 0.0), has_effect, "{case} {name}");
            }
        }
    }

    #[test]
    fn the_loss_is_the_mean_cross_entropy_of_the_logits() {
        for case in cases() {
            let golden = Golden::open(&case);
            let (logits, targets) = (golden.floats("logits"), golden.integers("targets"));
            let mut losses = Vec::new();
            for (row, &target) in logits.values.chunks(logits.shape[2]).zip(&targets.values) {
                let Ok(target) = usize::try_from(target) else { continue };
                let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                losses.push(total.ln() - f64::from(row[target]));
            }
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            assert!((mean - f64::from(golden.loss())).abs() < 1e-5, "{case}: {mean} and {}", golden.loss());
        }
    }

    #[test]
    fn packed_cases_start_positions_again_at_the_second_document() {
        for case in ["gpt2-plain", "llama-gqa"] {
            let golden = Golden::packed(case);
            let documents = &golden.integers("documents").values;
            let positions = &golden.integers("positions").values;
            let border = documents.iter().position(|id| *id == 1).expect("two documents");
            assert_eq!(positions[border], 0);
            assert_eq!(positions[border - 1], border as i64 - 1);
            assert_eq!(golden.integers("targets").values[border - 1], -100);
        }
    }

    #[test]
    fn trajectories_hold_twenty_steps_that_learn_and_the_settings_they_were_made_with() {
        for case in ["gpt2-plain", "llama-gqa"] {
            let golden = Golden::trajectory(case);
            let losses = &golden.floats("losses").values;
            assert_eq!(losses.len(), 20);
            assert!(losses[19] < losses[0] - 1.0, "{case}: {losses:?}");
            assert_eq!(golden.integers("tokens").shape, [20, 4, 16]);
            assert!(golden.adamw().lr > 0.0);
            assert_eq!(golden.adamw().max_grad_norm, 1.0);
        }
    }

    #[test]
    fn a_copy_can_be_damaged_without_touching_the_original() {
        let copy = golden_copy("gpt2-plain");
        fs::write(copy.path().join("model.safetensors"), b"damaged").expect("writable");
        assert!(fs::metadata(golden_dir("gpt2-plain").join("model.safetensors")).expect("there").len() > 1000);
    }

    #[test]
    #[should_panic(expected = "no golden case `gpt3-plain`")]
    fn an_unknown_case_is_refused_with_the_list_of_cases() {
        Golden::open("gpt3-plain");
    }

    #[test]
    #[should_panic(expected = "has no `logit`")]
    fn an_unknown_array_is_refused_with_the_list_of_arrays() {
        Golden::open("gpt2-plain").floats("logit");
    }

    #[test]
    fn goldens_stay_small_enough_to_commit() {
        fn size(path: &Path) -> u64 {
            let entries = fs::read_dir(path).expect("listable").map(|entry| entry.expect("readable").path());
            entries.map(|path| if path.is_dir() { size(&path) } else { path.metadata().expect("there").len() }).sum()
        }
        for case in cases() {
            let taken = size(&golden_dir(&case));
            let allowed = if ["gpt2-plain", "llama-gqa"].contains(&case.as_str()) { 300_000 } else { 110_000 };
            assert!(taken < allowed, "{case} takes {taken} bytes; make it smaller");
        }
        let mean = size(&root()) / cases().len() as u64;
        assert!(mean < 90_000, "the goldens take {mean} bytes per case; make the cases smaller");
    }
}
