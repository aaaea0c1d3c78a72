//! Names and layouts of a family's weights in its files, as a table that runs in both directions.

use std::collections::BTreeMap;

use loam_tensor::Parameter;

use crate::spec::Spec;

/// How a tensor in the file relates to the parameters it feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The same numbers; those of several parameters one after the other.
    Keep,
    /// `[in, out]` in the file, `[out, in]` here; several parameters side by side.
    Transpose,
    /// Several parameters, head by head: the first head of each, then the second (GPT-NeoX).
    ByHead,
}

/// One row: name in the file, name here, and the transform. `{i}` is the layer, `{e}` the expert; `{q|k|v}` in the name
/// here stands for that many parameters, which one tensor of the file holds.
pub struct Row {
    file: &'static str,
    here: &'static str,
    transform: Transform,
}

/// A row of a [`WeightMap`].
pub const fn row(file: &'static str, here: &'static str, transform: Transform) -> Row {
    Row { file, here, transform }
}

impl Row {
    /// The layers and experts that the row stands for.
    fn repeats(&self, spec: &Spec) -> Vec<(usize, usize)> {
        let layers = if self.file.contains("{i}") { spec.layers.len() } else { 1 };
        let experts = |layer: usize| match spec.layers.get(layer).and_then(|layer| layer.experts) {
            Some(experts) if self.file.contains("{e}") => experts.num_experts,
            _ => 1,
        };
        (0..layers).flat_map(|layer| (0..experts(layer)).map(move |expert| (layer, expert))).collect()
    }
}

/// A family's rows.
pub struct WeightMap {
    /// Rows; those whose parameters a configuration lacks (biases, an untied head) are skipped.
    pub rows: &'static [Row],
    /// Tensors of files that carry nothing to learn.
    pub ignored_suffixes: &'static [&'static str],
    /// A prefix that some checkpoints leave out.
    pub optional_prefix: &'static str,
}

/// A row made concrete: one tensor of the file and the parameters it feeds.
pub(crate) struct Entry {
    /// Name in the file.
    pub(crate) name: String,
    /// One parameter, or several that the file keeps in one tensor.
    pub(crate) parameters: Vec<Parameter>,
    transform: Transform,
    heads: usize,
}

/// A name with every choice of its `{a|b}`.
fn choices(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_string()] };
    let Some((parts, after)) = rest.split_once('}') else { return vec![pattern.to_string()] };
    parts.split('|').map(|part| format!("{before}{part}{after}")).collect()
}

impl WeightMap {
    /// The entries for a model with these parameters. Every parameter is fed by exactly one entry.
    pub(crate) fn entries(&self, parameters: &[(String, Parameter)], spec: &Spec) -> Vec<Entry> {
        let by_name: BTreeMap<&str, &Parameter> = parameters.iter().map(|(name, p)| (name.as_str(), p)).collect();
        let mut entries = Vec::new();
        for row in self.rows {
            for (layer, expert) in row.repeats(spec) {
                let fill =
                    |pattern: &str| pattern.replace("{i}", &layer.to_string()).replace("{e}", &expert.to_string());
                let names = choices(&fill(row.here));
                let found: Vec<Parameter> =
                    names.iter().filter_map(|name| by_name.get(name.as_str()).map(|&p| p.clone())).collect();
                if found.len() == names.len() {
                    let heads = spec.layers.get(layer).map_or(1, |layer| layer.attention.num_attention_heads);
                    entries.push(Entry { name: fill(row.file), parameters: found, transform: row.transform, heads });
                }
            }
        }
        let fed: usize = entries.iter().map(|entry| entry.parameters.len()).sum();
        assert_eq!(fed, parameters.len(), "a weight map names every parameter of its family once");
        entries
    }
}

impl Entry {
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
            Transform::Keep | Transform::ByHead => first.with(0, self.rows()).to_vec(),
        }
    }

    /// Which row of the file (or column, where it is transposed) each row of the parameters is, in their order.
    fn places(&self) -> Vec<usize> {
        if self.transform != Transform::ByHead {
            return (0..self.rows()).collect();
        }
        let (parts, head) = (self.parameters.len(), self.rows() / self.parameters.len() / self.heads);
        let place = |part: usize, row: usize| (row / head * parts + part) * head + row % head;
        (0..parts).flat_map(|part| (0..self.heads * head).map(move |row| place(part, row))).collect()
    }

    /// Fills the parameters from the tensor of the file.
    pub(crate) fn import(&self, values: &[f32]) {
        let (rows, width, places) = (self.rows(), self.width(), self.places());
        let mut places = places.iter();
        for parameter in &self.parameters {
            let mut own = Vec::with_capacity(parameter.count());
            for &place in places.by_ref().take(parameter.shape()[0]) {
                match self.transform {
                    Transform::Transpose => own.extend((0..width).map(|c| values[c * rows + place])),
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
                _ => out[place * width..][..width].copy_from_slice(row),
            }
        }
        out
    }
}
