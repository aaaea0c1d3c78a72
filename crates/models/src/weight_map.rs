//! Names and layouts of a family's weights in its files, as a table that runs in both directions.

use std::collections::BTreeMap;

use loam_tensor::Parameter;

/// How a tensor in the file relates to the parameters it feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// The same numbers.
    Keep,
    /// `[in, out]` in the file, `[out, in]` here.
    Transpose,
    /// `[q; k; v]` in the file, three parameters here.
    SplitQkv,
    /// `[in, q | k | v]` in the file, three `[out, in]` parameters here.
    SplitQkvTranspose,
}

/// One row: name in the file, name here, and the transform; `{i}` is the layer, `{qkv}` each of q, k and v.
pub struct Row {
    file: &'static str,
    here: &'static str,
    transform: Transform,
}

/// A row of a [`WeightMap`].
pub const fn row(file: &'static str, here: &'static str, transform: Transform) -> Row {
    Row { file, here, transform }
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
    /// One parameter, or q, k and v.
    pub(crate) parameters: Vec<Parameter>,
    transform: Transform,
}

impl WeightMap {
    /// The entries for a model with these parameters. Every parameter is fed by exactly one entry.
    pub(crate) fn entries(&self, parameters: &[(String, Parameter)], num_layers: usize) -> Vec<Entry> {
        let by_name: BTreeMap<&str, &Parameter> = parameters.iter().map(|(name, p)| (name.as_str(), p)).collect();
        let mut entries = Vec::new();
        for row in self.rows {
            let layers = if row.file.contains("{i}") { num_layers } else { 1 };
            for layer in 0..layers {
                let fill = |pattern: &str| pattern.replace("{i}", &layer.to_string());
                let here = fill(row.here);
                let names: Vec<String> = match here.contains("{qkv}") {
                    true => ["q", "k", "v"].iter().map(|part| here.replace("{qkv}", part)).collect(),
                    false => vec![here],
                };
                let found: Vec<Parameter> =
                    names.iter().filter_map(|name| by_name.get(name.as_str()).map(|&p| p.clone())).collect();
                if found.len() == names.len() {
                    entries.push(Entry { name: fill(row.file), parameters: found, transform: row.transform });
                }
            }
        }
        let fed: usize = entries.iter().map(|entry| entry.parameters.len()).sum();
        assert_eq!(fed, parameters.len(), "a weight map names every parameter of its family once");
        entries
    }
}

impl Entry {
    /// Shape of the tensor in the file.
    pub(crate) fn file_shape(&self) -> Vec<usize> {
        let first = self.parameters[0].shape();
        let rows: usize = self.parameters.iter().map(|parameter| parameter.shape()[0]).sum();
        match self.transform {
            Transform::Keep => first.to_vec(),
            Transform::SplitQkv => vec![rows],
            Transform::Transpose | Transform::SplitQkvTranspose => vec![first[1], rows],
        }
    }

    /// Fills the parameters from the tensor of the file.
    pub(crate) fn import(&self, values: &[f32]) {
        match self.transform {
            Transform::Keep => self.parameters[0].set(values),
            Transform::SplitQkv => {
                let mut rest = values;
                for parameter in &self.parameters {
                    let (own, after) = rest.split_at(parameter.count());
                    parameter.set(own);
                    rest = after;
                }
            }
            Transform::Transpose | Transform::SplitQkvTranspose => {
                let columns: usize = self.parameters.iter().map(|parameter| parameter.shape()[0]).sum();
                let mut first = 0;
                for parameter in &self.parameters {
                    let (rows, width) = (parameter.shape()[0], parameter.shape()[1]);
                    let mut own = vec![0.0; rows * width];
                    for (r, row) in own.chunks_exact_mut(width).enumerate() {
                        for (c, value) in row.iter_mut().enumerate() {
                            *value = values[c * columns + first + r];
                        }
                    }
                    parameter.set(&own);
                    first += rows;
                }
            }
        }
    }

    /// The tensor of the file from the parameters' values, or from their gradients.
    pub(crate) fn export(&self, read: impl Fn(&Parameter) -> Vec<f32>) -> Vec<f32> {
        let parts: Vec<Vec<f32>> = self.parameters.iter().map(read).collect();
        match self.transform {
            Transform::Keep | Transform::SplitQkv => parts.concat(),
            Transform::Transpose | Transform::SplitQkvTranspose => {
                let shape = self.file_shape();
                let mut out = vec![0.0; shape[0] * shape[1]];
                let mut first = 0;
                for (part, parameter) in parts.iter().zip(&self.parameters) {
                    let (rows, width) = (parameter.shape()[0], parameter.shape()[1]);
                    for (r, row) in part.chunks_exact(width).enumerate() {
                        for (c, &value) in row.iter().enumerate() {
                            out[c * shape[1] + first + r] = value;
                        }
                    }
                    first += rows;
                }
                out
            }
        }
    }
}
