//! Names and layouts of a family's weights in its files, as a table that runs in both directions.

use std::collections::BTreeMap;
use std::sync::Arc;

use loam_kernels::parallel::for_chunks;
use loam_kernels::quant::{dequantise_rows, quantise_rows};
use loam_tensor::{DType, GgmlType, Nf4, Parameter, Raw, SharedBytes, halves_as_bf16};

use crate::quantise::kept_type;
use crate::spec::{Spec, Task};

/// Rows that a thread copies at a time.
const ROWS_TOGETHER: usize = 64;

/// How a tensor in the file relates to the parameters it feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The same numbers; those of several parameters one after the other.
    Keep,
    /// `[in, out]` in the file, `[out, in]` here; several parameters side by side.
    Transpose,
    /// Several parameters, head by head: the first head of each, then the second (GPT-NeoX).
    ByHead,
    /// `[1, n]` in the file, `[n]` here.
    AsRow,
    /// Matrices of one shape, those of all experts, in a tensor with an axis more (GGUF).
    Stack,
    /// Rows of each head in the order in which rotation pairs them: feature i, then i + half (GGUF of Llama).
    RopePair,
    /// One more in the file (GGUF of Gemma's norms).
    PlusOne,
}

/// One row: name in the file, name here, and the transform. `{i}` is the layer, `{e}` the expert; `{q|k|v}` in the name
/// here stands for that many parameters, which one tensor of the file holds; `[q|k|v]`, in both names, for that many
/// tensors and as many parameters. `{e}` in the name here alone is all experts in one tensor.
pub struct Row {
    file: &'static str,
    here: &'static str,
    transform: Transform,
    /// A parameter that has to be there, or must not.
    beside: Option<(&'static str, bool)>,
}

/// A row of a [`WeightMap`].
pub const fn row(file: &'static str, here: &'static str, transform: Transform) -> Row {
    Row { file, here, transform, beside: None }
}

impl Row {
    /// The same, for configurations that have the parameter `other`, or that lack it.
    pub const fn beside(self, other: &'static str, is_there: bool) -> Self {
        Self { beside: Some((other, is_there)), ..self }
    }

    /// The names that the row stands for: for every alternative, layer and expert, in the file and here.
    fn names(&self, spec: &Spec) -> Vec<(String, Vec<String>)> {
        let (files, heres) = (alternatives(self.file), alternatives(self.here));
        assert_eq!(files.len(), heres.len(), "{} and {} have as many alternatives", self.file, self.here);
        files.iter().zip(&heres).flat_map(|(file, here)| repeated(file, here, spec)).collect()
    }
}

/// The names of one alternative, for every layer and expert.
fn repeated(file: &str, here: &str, spec: &Spec) -> Vec<(String, Vec<String>)> {
    let stack = match &spec.encoder {
        Some(encoder) if here.starts_with("encoder.") => encoder,
        _ => &spec.stack,
    };
    let layers = if file.contains("{i}") { stack.layers.len() } else { 1 };
    let experts = |layer: usize| match stack.layers.get(layer).and_then(|layer| layer.experts) {
        Some(experts) if file.contains("{e}") => experts.num_experts,
        _ => 1,
    };
    let all_experts = |layer: usize, here: &str| -> Vec<String> {
        let one = |e: usize| here.replace("{e}", &e.to_string());
        let count = stack.layers.get(layer).and_then(|layer| layer.experts).map_or(0, |experts| experts.num_experts);
        (0..count).map(one).collect()
    };
    if here.contains("{e}") && !file.contains("{e}") {
        let name = |pattern: &str, layer: usize| pattern.replace("{i}", &layer.to_string());
        let stacks = (0..layers).map(|layer| (name(file, layer), all_experts(layer, &name(here, layer))));
        return stacks.filter(|(_, here): &(String, Vec<String>)| !here.is_empty()).collect();
    }
    let places = (0..layers).flat_map(|layer| (0..experts(layer)).map(move |expert| (layer, expert)));
    let fill = |name: &str, (layer, expert): (usize, usize)| {
        name.replace("{i}", &layer.to_string()).replace("{e}", &expert.to_string())
    };
    places.map(|place| (fill(file, place), split(&fill(here, place), ['{', '}']))).collect()
}

/// A pattern with every choice of every `[a|b]`.
fn alternatives(pattern: &str) -> Vec<String> {
    let chosen = split(pattern, ['[', ']']);
    if chosen.len() == 1 { chosen } else { chosen.iter().flat_map(|pattern| alternatives(pattern)).collect() }
}

/// A pattern with every choice of its first group, `a|b` between brackets.
fn split(pattern: &str, brackets: [char; 2]) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once(brackets[0]) else { return vec![pattern.to_string()] };
    let Some((parts, after)) = rest.split_once(brackets[1]) else { return vec![pattern.to_string()] };
    parts.split('|').map(|part| format!("{before}{part}{after}")).collect()
}

/// A family's rows.
pub struct WeightMap {
    /// Rows; those whose parameters a configuration lacks (biases, an untied head) are skipped.
    pub rows: &'static [Row],
    /// Tensors of files that carry nothing to learn.
    pub ignored_suffixes: &'static [&'static str],
    /// Other names of a tied table.
    pub copies: &'static [&'static str],
    /// A prefix that some checkpoints leave out.
    pub optional_prefix: &'static str,
}

/// A row made concrete: one tensor of the file and the parameters it feeds.
pub(crate) struct Entry {
    /// Name in the file.
    pub(crate) name: String,
    /// Names of the parameters that it feeds.
    pub(crate) feeds: Vec<String>,
    /// One parameter, or several that the file keeps in one tensor.
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) transform: Transform,
    head_dim: usize,
}

impl WeightMap {
    /// The entries for a model with these parameters. Every parameter is fed by exactly one entry.
    pub(crate) fn entries(&self, parameters: &[(String, Parameter)], spec: &Spec) -> Vec<Entry> {
        let by_name: BTreeMap<&str, &Parameter> = parameters.iter().map(|(name, p)| (name.as_str(), p)).collect();
        let mut entries = Vec::new();
        for row in self.rows {
            for (name, here) in row.names(spec) {
                let found: Vec<Parameter> =
                    here.iter().filter_map(|name| by_name.get(name.as_str()).map(|&p| p.clone())).collect();
                let is_meant = row.beside.is_none_or(|(other, is_there)| by_name.contains_key(other) == is_there);
                if is_meant && found.len() == here.len() {
                    let head_dim = spec.stack.layers[0].attention.head_dim;
                    entries.push(Entry { name, feeds: here, parameters: found, transform: row.transform, head_dim });
                }
            }
        }
        let fed = |name: &str| entries.iter().filter(|entry| entry.feeds.iter().any(|fed| fed == name)).count();
        for (name, _) in parameters {
            assert_eq!(fed(name), 1, "a weight map names every parameter of its family once: {name}");
        }
        entries
    }
}

impl Entry {
    /// Whether it belongs to a head, which another task would not have.
    pub(crate) fn is_of_head(&self) -> bool {
        self.feeds[0].split('.').next().is_some_and(|module| Task::ALL.iter().any(|task| task.module() == module))
    }

    /// Rows of all parameters together.
    fn rows(&self) -> usize {
        self.parameters.iter().map(|parameter| parameter.shape()[0]).sum()
    }

    /// Numbers per row.
    fn width(&self) -> usize {
        self.parameters[0].count() / self.parameters[0].shape()[0]
    }

    /// Shape of the tensor in the file.
    pub(crate) fn file_shape(&self) -> Vec<usize> {
        let first = self.parameters[0].shape();
        match self.transform {
            Transform::Transpose => vec![first[1], self.rows()],
            Transform::AsRow => vec![1, first[0]],
            Transform::Stack => vec![self.parameters.len(), first[0], first[1]],
            _ => first.with(0, self.rows()).to_vec(),
        }
    }

    /// Which row of the file (or column, where it is transposed) each row of the parameters is, in their order.
    pub(crate) fn places(&self) -> Vec<usize> {
        let (rows, head) = (self.rows(), self.head_dim);
        match self.transform {
            Transform::ByHead => {
                let parts = self.parameters.len();
                let place = |part: usize, row: usize| (row / head * parts + part) * head + row % head;
                (0..parts).flat_map(|part| (0..rows / parts).map(move |row| place(part, row))).collect()
            }
            Transform::RopePair => {
                let half = head / 2;
                let place = |row: usize| row / head * head + row % head % half * 2 + row % head / half;
                (0..rows).map(place).collect()
            }
            _ => (0..rows).collect(),
        }
    }

    /// Fills the parameters from the tensor of the file.
    pub(crate) fn import(&self, values: &[f32]) {
        if let ([parameter], true) = (&*self.parameters, self.is_in_order()) {
            return parameter.set(values);
        }
        let (rows, width, places) = (self.rows(), self.width(), self.places());
        let mut places = places.iter();
        for parameter in &self.parameters {
            let mut own = Vec::with_capacity(parameter.count());
            for &place in places.by_ref().take(parameter.shape()[0]) {
                match self.transform {
                    Transform::Transpose => own.extend((0..width).map(|c| values[c * rows + place])),
                    Transform::PlusOne => own.extend(values[place * width..][..width].iter().map(|x| x - 1.0)),
                    _ => own.extend_from_slice(&values[place * width..][..width]),
                }
            }
            parameter.set(&own);
        }
    }

    /// The tensor of the file from the parameters' values, or from their gradients.
    pub(crate) fn export(&self, read: impl Fn(&Parameter) -> Vec<f32>) -> Vec<f32> {
        let (rows, width) = (self.rows(), self.width());
        let values: Vec<f32> = self.parameters.iter().flat_map(read).collect();
        let mut out = vec![0.0; values.len()];
        for (row, place) in values.chunks_exact(width).zip(self.places()) {
            match self.transform {
                Transform::Transpose => row.iter().enumerate().for_each(|(c, &x)| out[c * rows + place] = x),
                Transform::PlusOne => {
                    out[place * width..][..width].iter_mut().zip(row).for_each(|(out, x)| *out = x + 1.0);
                }
                _ => out[place * width..][..width].copy_from_slice(row),
            }
        }
        out
    }

    /// Whether products can read the tensor's rows where they lie.
    pub(crate) fn has_whole_rows(&self) -> bool {
        let is_kept = !matches!(self.transform, Transform::Transpose | Transform::AsRow | Transform::PlusOne);
        is_kept && self.parameters.iter().all(|parameter| parameter.shape().len() == 2)
    }

    /// Whether every parameter's rows lie one after the other in the tensor, so that nothing is copied.
    pub(crate) fn is_in_order(&self) -> bool {
        self.has_whole_rows() && self.in_order().all(|is_in_order| is_in_order)
    }

    /// Whether rows of every parameter change places, so that all of the tensor is copied.
    pub(crate) fn is_all_moved(&self) -> bool {
        self.has_whole_rows() && !self.in_order().any(|is_in_order| is_in_order)
    }

    /// Of each parameter, whether its rows lie one after the other in the tensor.
    fn in_order(&self) -> impl Iterator<Item = bool> {
        let mut places = self.places().into_iter();
        self.parameters.iter().map(move |parameter| {
            let own: Vec<usize> = places.by_ref().take(parameter.shape()[0]).collect();
            follow_each_other(&own)
        })
    }

    /// Fills the parameters from a tensor of a file, which begins at `start` of `bytes`. Where `in_place`, they keep
    /// its element type and, unless rows change places, the file's own bytes; a row is whole blocks, so that nothing is
    /// rounded either way. But where products of bf16 are in force and take no other halves, those are rounded:
    /// [`kept_type`]. Returns whether the parameters have bytes of their own, so that the file's are done with.
    pub(crate) fn import_blocks(&self, ty: GgmlType, bytes: &SharedBytes, start: usize, in_place: bool) -> bool {
        let (width, row_bytes) = (self.width(), DType::Ggml(ty).bytes(self.width()));
        let data = &bytes.as_ref().as_ref()[start..][..self.rows() * row_bytes];
        if in_place && kept_type(ty) != ty {
            let rounded = halves_as_bf16(data);
            self.import_blocks(kept_type(ty), &rounded, 0, in_place);
            return true;
        }
        if !in_place || !self.has_whole_rows() {
            let mut values = vec![0.0; self.rows() * width];
            dequantise_rows(ty, data, &mut values);
            self.import(&values);
            return false;
        }
        let places = self.places();
        let mut places = places.as_slice();
        for parameter in &self.parameters {
            let rows = parameter.shape()[0];
            let own;
            (own, places) = places.split_at(rows);
            let (bytes, start): (SharedBytes, usize) = if follow_each_other(own) {
                (bytes.clone(), start + own[0] * row_bytes)
            } else {
                (Arc::new(gathered(data, own, row_bytes)), 0)
            };
            parameter.replace(Raw::quantised(ty, [rows, width], bytes, start));
        }
        self.is_all_moved()
    }

    /// Whether the parameter can be what bitsandbytes makes of the tensor, and the other way round.
    pub(crate) fn is_one_matrix(&self) -> bool {
        self.transform == Transform::Keep && self.parameters.len() == 1 && self.parameters[0].shape().len() == 2
    }

    /// Fills the parameters from a tensor in NF4: as it is, or decoded where it is several matrices or lies another way.
    pub(crate) fn import_nf4(&self, weights: Nf4) {
        if self.is_one_matrix() {
            let shape = self.parameters[0].shape();
            return self.parameters[0].replace(Raw::nf4(weights, [shape[0], shape[1]]));
        }
        let mut values = vec![0.0; weights.count()];
        weights.decode_all(&mut values);
        self.import(&values);
    }

    /// The tensor of a GGUF file in element type `ty`: the parameters' own blocks where they have that type.
    pub(crate) fn export_blocks(&self, ty: GgmlType) -> Vec<u8> {
        let row_bytes = DType::Ggml(ty).bytes(self.width());
        let values: Vec<Raw> = self.parameters.iter().map(Parameter::value).collect();
        let blocks: Option<Vec<&[u8]>> =
            values.iter().map(|raw| raw.as_quantised().filter(|own| own.ty == ty).map(|own| own.bytes)).collect();
        let mut out = vec![0; self.rows() * row_bytes];
        match blocks.filter(|_| self.has_whole_rows()) {
            Some(blocks) => {
                let rows = blocks.iter().flat_map(|bytes| bytes.chunks_exact(row_bytes));
                rows.zip(self.places()).for_each(|(row, place)| {
                    out[place * row_bytes..][..row_bytes].copy_from_slice(row);
                });
            }
            None => quantise_rows(ty, &self.export(Parameter::to_vec), self.width(), None, &mut out),
        }
        out
    }
}

/// Whether rows lie one after the other.
fn follow_each_other(rows: &[usize]) -> bool {
    rows.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// Some rows of a tensor, one after the other. They are copied by all threads, also for the time that new memory takes.
fn gathered(data: &[u8], rows: &[usize], row_bytes: usize) -> Vec<u8> {
    let mut gathered = vec![0; rows.len() * row_bytes];
    for_chunks(&mut gathered, row_bytes * ROWS_TOGETHER, |offset, piece| {
        for (row, copy) in rows[offset / row_bytes..].iter().zip(piece.chunks_exact_mut(row_bytes)) {
            copy.copy_from_slice(&data[row * row_bytes..][..row_bytes]);
        }
    });
    gathered
}
