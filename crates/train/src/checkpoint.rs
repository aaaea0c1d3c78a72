//! Checkpoints: everything a run needs to go on as if nothing had happened.
//!
//! `checkpoints/step-000500/` appears as a whole and is durable before `checkpoints/latest` names it. Each directory
//! lists its files with size and hash, so that a damaged one is noticed and the one before it is used.

use std::fs;
use std::path::{Path, PathBuf};

use loam_formats::{Dtype, SafeTensors, TensorOut, atomic, safetensors};
use loam_tensor::{Parameter, Raw};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::error::{Error, Result};
use crate::optim::{Optimizer, State};
use crate::trainer::Guard;

const MODEL: &str = "model.safetensors";
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";
const SOURCE: &str = "source.json";
const LATEST: &str = "latest";

/// What the trainer remembers between steps, besides weights and optimizer state. The data needs nothing: a batch is a
/// function of seed and step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Step of the last evaluation.
    pub eval_step: u64,
    /// Best evaluation loss so far.
    pub best_loss: Option<f64>,
    /// Step of that evaluation.
    pub best_step: u64,
    /// Evaluations since then.
    pub evals_without_gain: u64,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// How far the check of the gradients is. Checkpoints from before it was kept have been checked.
    #[serde(default = "done")]
    pub guard: Guard,
}

fn done() -> Guard {
    Guard::Done
}

/// `trainer.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    progress: Progress,
    files: Vec<FileCheck>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FileCheck {
    name: String,
    bytes: u64,
    xxh3: String,
}

impl FileCheck {
    fn of(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let map = loam_formats::Mapped::open(&path)?;
        let xxh3 = format!("{:016x}", XxHash3_64::oneshot(&map));
        Ok(Self { name: name.into(), bytes: map.len() as u64, xxh3 })
    }
}

/// The directory `checkpoints/` of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    /// Name of the file with the weights.
    weights: &'static str,
}

impl Checkpoints {
    /// The checkpoints in a directory, which need not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), weights: MODEL }
    }

    /// The same, where an adapter is trained.
    pub fn of_adapter(self) -> Self {
        Self { weights: ADAPTER, ..self }
    }

    /// Where the checkpoint of a step lies.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:06}"))
    }

    /// Writes a checkpoint, names it in `latest`, and then removes all but the newest `keep` and that of `best_step`. `source`
    /// is the state of what batches are drawn from, where it has one.
    pub fn save(
        &self,
        parameters: &[(String, Parameter)],
        optimizer: &Optimizer,
        progress: &Progress,
        keep: usize,
        source: Option<&str>,
    ) -> Result<PathBuf> {
        let path = self.path(progress.step);
        atomic::replace_dir(&path, |dir| -> Result<()> {
            write_tensors(&dir.join(self.weights), parameters)?;
            write_state(&dir.join(OPTIMIZER), &optimizer.state())?;
            let mut files = vec![FileCheck::of(dir, self.weights)?, FileCheck::of(dir, OPTIMIZER)?];
            if let Some(source) = source {
                atomic::write_file(dir.join(SOURCE), source.as_bytes())?;
                files.push(FileCheck::of(dir, SOURCE)?);
            }
            let manifest = Manifest { progress: progress.clone(), files };
            let json = serde_json::to_string_pretty(&manifest).expect("a manifest is made of texts and numbers");
            Ok(atomic::write_file(dir.join(TRAINER), format!("{json}\n").as_bytes())?)
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        atomic::write_file(self.dir.join(LATEST), format!("{name}\n").as_bytes())?;
        self.prune(keep, progress)?;
        Ok(path)
    }

    fn prune(&self, keep: usize, progress: &Progress) -> Result<()> {
        let mut others: Vec<u64> = self.steps()?.into_iter().filter(|&step| step != progress.step).collect();
        others.retain(|&step| step != progress.best_step);
        let old = others.len().saturating_sub(keep.max(1) - 1);
        for &step in &others[..old] {
            let path = self.path(step);
            fs::remove_dir_all(&path).map_err(|e| loam_formats::Error::io("remove", &path, e))?;
        }
        Ok(())
    }

    /// The state of what batches are drawn from in the checkpoint of a step.
    pub fn source_state(&self, step: u64) -> Result<Option<String>> {
        let path = self.path(step).join(SOURCE);
        match fs::read_to_string(&path) {
            Ok(state) => Ok(Some(state)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(loam_formats::Error::io("read", &path, e).into()),
        }
    }

    /// Steps of which there is a checkpoint, in ascending order.
    pub fn steps(&self) -> Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(loam_formats::Error::io("read", &self.dir, e).into()),
        };
        let number = |name: String| name.strip_prefix("step-").and_then(|digits| digits.parse().ok());
        let mut steps: Vec<u64> =
            entries.filter_map(|entry| number(entry.ok()?.file_name().into_string().ok()?)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes what killed writers left.
    pub fn clean(&self) -> Result<Vec<PathBuf>> {
        Ok(atomic::clean_leftovers(&self.dir)?)
    }

    /// Loads the newest checkpoint that is whole into model and optimizer. Reports those it had to pass over. `None`
    /// where there is no checkpoint at all; an error where there are some and none is whole.
    ///
    /// The directories are what counts; `latest` is for readers. It may name an older one after a kill between the two.
    pub fn load_latest(
        &self,
        parameters: &[(String, Parameter)],
        optimizer: &mut Optimizer,
        report: &mut dyn FnMut(&str),
    ) -> Result<Option<Progress>> {
        let steps = self.steps()?;
        let mut first_error = None;
        for &step in steps.iter().rev() {
            match self.load(step, parameters, Some(&mut *optimizer)) {
                Ok(progress) => return Ok(Some(progress)),
                Err(error) => {
                    report(&format!("passing over a damaged checkpoint: {error}"));
                    first_error = first_error.or(Some(error));
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// Loads the checkpoint of a step: weights, and optimizer state where an optimizer is given. Nothing changes
    /// unless all of it is whole.
    pub fn load(
        &self,
        step: u64,
        parameters: &[(String, Parameter)],
        optimizer: Option<&mut Optimizer>,
    ) -> Result<Progress> {
        let dir = self.path(step);
        let manifest_path = dir.join(TRAINER);
        let text =
            fs::read_to_string(&manifest_path).map_err(|e| loam_formats::Error::io("read", &manifest_path, e))?;
        let manifest: Manifest = serde_json::from_str(&text)
            .map_err(|e| Error::checkpoint(&manifest_path, format!("not a trainer.json: {e}")))?;
        for expected in &manifest.files {
            if FileCheck::of(&dir, &expected.name)? != *expected {
                let path = dir.join(&expected.name);
                return Err(Error::checkpoint(
                    &path,
                    "size or hash is not what trainer.json says: the file is damaged",
                ));
            }
        }
        let weights = read_tensors(&dir.join(self.weights), parameters)?;
        let state = match &optimizer {
            Some(optimizer) => Some(read_state(&dir.join(OPTIMIZER), &optimizer.state())?),
            None => None,
        };
        for ((_, parameter), values) in parameters.iter().zip(&weights) {
            parameter.set(values);
        }
        if let (Some(optimizer), Some(state)) = (optimizer, state) {
            optimizer.restore(state, manifest.progress.step);
        }
        Ok(manifest.progress)
    }
}

fn write_tensors(path: &Path, parameters: &[(String, Parameter)]) -> Result<()> {
    let tensors = parameters.iter().map(|(name, parameter)| {
        let shape = parameter.shape().to_vec();
        TensorOut::lazy(name.clone(), Dtype::F32, &shape, move || {
            safetensors::encode_f32(Dtype::F32, parameter.value().f32()).into_owned().into()
        })
    });
    Ok(safetensors::write(path, &[], tensors)?)
}

fn read_tensors(path: &Path, parameters: &[(String, Parameter)]) -> Result<Vec<Vec<f32>>> {
    let file = SafeTensors::open(path)?;
    let read = |(name, parameter): &(String, Parameter)| {
        let view = file.get(name)?;
        if view.shape != &parameter.shape()[..] {
            let problem = format!("`{name}` has shape {:?}, the model needs {:?}", view.shape, parameter.shape());
            return Err(Error::checkpoint(path, problem));
        }
        Ok(view.to_f32()?)
    };
    parameters.iter().map(read).collect()
}

fn write_state(path: &Path, state: &[(String, &State)]) -> Result<()> {
    let tensors = state.iter().map(|(name, tensor)| match tensor {
        State::F32(raw) => TensorOut::from_f32(name.clone(), Dtype::F32, &raw.shape(), raw.f32()),
        State::U8(codes) => TensorOut::new(name.clone(), Dtype::U8, &[codes.len()], codes),
    });
    Ok(safetensors::write(path, &[], tensors)?)
}

/// Reads tensors that must be there with these names, shapes and types.
fn read_state(path: &Path, expected: &[(String, &State)]) -> Result<Vec<State>> {
    let file = SafeTensors::open(path)?;
    let read = |(name, tensor): &(String, &State)| {
        if !file.contains(name) {
            let problem =
                format!("`{name}` is missing: was it written with another `train.optimizer` or `train.ema_decay`?");
            return Err(Error::checkpoint(path, problem));
        }
        let view = file.get(name)?;
        match tensor {
            State::F32(raw) if view.dtype == Dtype::F32 && *view.shape == raw.shape()[..] => {
                Ok(State::F32(Raw::from_f32(&view.to_f32()?, raw.shape())))
            }
            State::U8(codes) if view.dtype == Dtype::U8 && *view.shape == [codes.len()] => {
                Ok(State::U8(view.bytes.to_vec()))
            }
            _ => {
                let problem = format!("`{name}` is {} {:?}, which the optimizer cannot use", view.dtype, view.shape);
                Err(Error::checkpoint(path, problem))
            }
        }
    };
    expected.iter().map(read).collect()
}
