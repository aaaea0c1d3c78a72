//! Calibration texts, run through a model block by block.

use std::collections::BTreeMap;
use std::sync::Arc;

use loam_models::{Input, LanguageModel, Linear, Task};
use loam_nn::LinearHook;
use loam_tensor::{Tensor, no_grad};

use crate::statistics::{Recorder, Statistics};
use crate::{Error, Result, Watch};

/// Tokens that run through a block at once.
const BATCH_TOKENS: usize = 2048;

/// Rows of tokens that say what a model's activations are like.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Rows of equal length.
    rows: Vec<Vec<u32>>,
}

/// A block of the model, and what its linear layers read.
pub(crate) struct Block {
    pub(crate) index: usize,
    /// Its layers, by the name of their modules.
    pub(crate) linears: Vec<(String, Linear)>,
    inputs: BTreeMap<String, Arc<Statistics>>,
}

impl Block {
    /// What a layer of the block reads; nothing where no token reached it (an expert that was never chosen).
    pub(crate) fn inputs(&self, name: &str) -> Option<&Arc<Statistics>> {
        self.inputs.get(name).filter(|inputs| inputs.rows > 0)
    }
}

impl Calibration {
    /// At most `samples` rows of `length` tokens of a text, spread evenly over it. Refuses a text without a whole row.
    pub fn new(tokens: &[u32], length: usize, samples: usize) -> Result<Self> {
        let whole = tokens.len() / length.max(1);
        if length == 0 || samples == 0 || whole == 0 {
            return Err(Error::setting(
                format!("{} tokens of calibration text make no row of {length}", tokens.len()),
                "give a longer text, or shorter rows with --context",
            ));
        }
        let rows = samples.min(whole);
        let row = |i: usize| tokens[i * whole / rows * length..][..length].to_vec();
        Ok(Self { rows: (0..rows).map(row).collect() })
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of a row.
    pub fn length(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    /// Rows that run together, end to end in a slice, with their number.
    fn batches(&self) -> Vec<(Vec<u32>, usize)> {
        let per_batch = (BATCH_TOKENS / self.length().max(1)).max(1);
        self.rows.chunks(per_batch).map(|rows| (rows.concat(), rows.len())).collect()
    }

    /// Calls `work` with every block and what its layers read, first to last. What `work` makes of a block's weights, the
    /// blocks after it are shown. `with_gram` asks for the inputs' products. Returns what the head reads.
    pub(crate) fn through_blocks(
        &self,
        model: &LanguageModel,
        with_gram: bool,
        watch: Watch<'_>,
        mut work: impl FnMut(&Block) -> Result<()>,
    ) -> Result<Statistics> {
        check(model)?;
        let batches = self.batches();
        let inputs: Vec<Input<'_>> = batches.iter().map(|(tokens, rows)| Input::rows(tokens, *rows)).collect();
        let first = |input: &Input<'_>| no_grad(|| model.first_states(input));
        let mut states = inputs.iter().map(first).collect::<Result<Vec<Tensor>, _>>()?;
        let mut linears = model.linears();
        let count = model.spec().stack.layers.len();
        for index in 0..count {
            watch(index, count);
            let prefix = format!("layers.{index}.");
            let own = linears.extract_if(.., |(name, _)| name.starts_with(&prefix)).collect();
            let step = |states: &[Tensor]| -> Vec<Tensor> {
                let pairs = states.iter().zip(&inputs);
                no_grad(|| pairs.map(|(x, input)| model.through_block(index, x, input)).collect())
            };
            let block = recorded(index, own, with_gram, || {
                step(&states);
            })?;
            work(&block)?;
            states = step(&states);
        }
        watch(count, count);
        let mut last = Statistics::new(model.spec().hidden_size, false);
        no_grad(|| states.iter().for_each(|x| last.add(&model.last_states(x).to_vec())));
        Ok(last)
    }

    /// The mean squares of what every linear layer and the head read, by the weights' names.
    pub fn importance(&self, model: &LanguageModel, watch: Watch<'_>) -> Result<loam_models::Importance> {
        let mut all = loam_models::Importance::new();
        let last = self.through_blocks(model, false, watch, |block| {
            for (name, _) in &block.linears {
                if let Some(inputs) = block.inputs(name) {
                    all.insert(format!("{name}.weight"), inputs.importance());
                }
            }
            Ok(())
        })?;
        let head = if model.spec().tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        all.insert(head.into(), last.importance());
        Ok(all)
    }

    /// How much every block turns its input: the mean over tokens of one minus the cosine between what it reads and gives.
    pub(crate) fn influence(&self, model: &LanguageModel) -> Result<Vec<f64>> {
        check(model)?;
        let count = model.spec().stack.layers.len();
        let (mut sums, mut tokens) = (vec![0.0; count], 0);
        for (row, rows) in self.batches() {
            let input = Input::rows(&row, rows);
            let mut x = no_grad(|| model.first_states(&input))?;
            for (index, sum) in sums.iter_mut().enumerate() {
                let y = no_grad(|| model.through_block(index, &x, &input));
                let (before, after, width) = (x.to_vec(), y.to_vec(), x.shape().width());
                *sum += before.chunks_exact(width).zip(after.chunks_exact(width)).map(turn).sum::<f64>();
                x = y;
            }
            tokens += row.len();
        }
        Ok(sums.into_iter().map(|sum| sum / tokens.max(1) as f64).collect())
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }
}

/// One minus the cosine between two vectors.
fn turn((x, y): (&[f32], &[f32])) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    1.0 - dot(x, y) / (dot(x, x) * dot(y, y)).sqrt().max(1e-30)
}

/// Refuses what the pass over blocks does not know.
fn check(model: &LanguageModel) -> Result<()> {
    let spec = model.spec();
    if spec.encoder.is_some() || spec.head.task != Task::LanguageModel {
        return Err(Error::setting(
            format!("a {} model with a head for {} is not compressed with calibration", spec.family, spec.head.task),
            "that is done for language models of one stack; `--method rtn` needs no calibration",
        ));
    }
    Ok(())
}

/// The layer whose inputs are those of `name`, too: queries', keys' and values', gates' and the wide projection's.
fn same_inputs(name: &str) -> String {
    for (suffix, other) in [("k_proj", "q_proj"), ("v_proj", "q_proj"), ("gate_proj", "up_proj")] {
        if let Some(module) = name.strip_suffix(suffix) {
            return format!("{module}{other}");
        }
    }
    name.to_owned()
}

/// Runs `pass` while every layer's inputs are looked at.
fn recorded(index: usize, linears: Vec<(String, Linear)>, with_gram: bool, pass: impl FnOnce()) -> Result<Block> {
    let mut recorders: BTreeMap<String, Arc<Recorder>> = BTreeMap::new();
    for (name, linear) in &linears {
        if same_inputs(name) == *name {
            let recorder = Arc::new(Recorder::new(linear.weight.shape()[1], with_gram));
            linear.hook.set(Some(recorder.clone() as Arc<dyn LinearHook>));
            recorders.insert(name.clone(), recorder);
        }
    }
    pass();
    linears.iter().for_each(|(_, linear)| linear.hook.set(None));
    let taken: BTreeMap<String, Arc<Statistics>> =
        recorders.into_iter().map(|(name, recorder)| (name, Arc::new(recorder.taken()))).collect();
    let mut inputs = BTreeMap::new();
    for (name, _) in &linears {
        let Some(seen) = taken.get(&same_inputs(name)) else { continue };
        if !seen.is_finite() {
            return Err(Error::NotFinite { name: name.clone() });
        }
        inputs.insert(name.clone(), seen.clone());
    }
    Ok(Block { index, linears, inputs })
}
