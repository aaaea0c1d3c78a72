//! Models in GGUF files, in both directions. Weights are read where they lie: a product takes the blocks of the file.

mod config;
mod names;
mod sampling;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use loam_formats::gguf::write_split;
use loam_formats::{Dtype, Gguf, GgufOut, GgufTensor, GgufValue, nearest};
use loam_kernels::quant::can_dequantise;
use loam_tensor::{DType, GgmlType, Parameter};

use crate::error::Error;
use crate::inference::WeightMemory;
use crate::model::LanguageModel;
use crate::quantise::{Mix, Plan, can_be_typed, kept_type};
use crate::spec::{Spec, Task};
use crate::stored::{entry_memory, is_in_place, is_mixed};
use crate::weight_map::Entry;
use config::{Facts, config, keys, rope_factors};
use names::{ARCHITECTURES, Architecture};

pub use sampling::{generation_config, sampling_keys};

/// The one tensor that feeds no parameter.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// How a model is written.
#[derive(Default)]
pub struct GgufSettings<'a> {
    /// Which element types the weights get. Else they keep theirs: that of their blocks, or `dtype` of `config.json`.
    pub mix: Option<Mix>,
    /// Keys beside the model's own: name, tokenizer.
    pub metadata: Vec<(String, GgufValue)>,
    /// Bytes of tensors per file at most.
    pub max_shard_bytes: Option<u64>,
    /// Is told the bytes of each tensor when it is about to be written.
    pub watch: Option<&'a dyn Fn(usize)>,
}

/// An architecture, and the keys of a model of it.
type Described = (&'static Architecture, Vec<(String, GgufValue)>);

/// The architecture that a file names.
fn architecture_of(gguf: &Gguf) -> Result<&'static Architecture, Error> {
    let name = gguf.text("general.architecture")?.unwrap_or_default();
    ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| Error::UnknownArchitecture {
        path: gguf.path().to_path_buf(),
        name: name.to_owned(),
        known: ARCHITECTURES.iter().map(|known| known.name).collect::<Vec<_>>().join(", "),
    })
}

/// What the tensors of a file say.
fn facts_of(gguf: &Gguf) -> Result<Facts, Error> {
    let table = gguf.get("token_embd.weight")?;
    let has = |name: &str| gguf.find(name).is_some();
    let factors = gguf.find(ROPE_FACTORS).map(|tensor| {
        let mut factors = vec![0.0; tensor.elements()];
        check_type(gguf, tensor)?;
        loam_kernels::quant::dequantise(tensor.ty, gguf.bytes(tensor), &mut factors);
        Ok::<_, Error>(factors)
    });
    Ok(Facts {
        vocab_size: table.shape[0],
        has_head: has("output.weight"),
        has_attention_bias: has("blk.0.attn_q.bias"),
        has_feed_forward_bias: has("blk.0.ffn_up.bias"),
        has_gate: has("dec.blk.0.ffn_gate.weight"),
        has_pooler: has("cls.weight"),
        token_types: gguf.find("token_types.weight").map_or(0, |table| table.shape[0]),
        labels: gguf.find("cls.output.weight").map(|weight| weight.shape[0]),
        rope_factors: factors.transpose()?,
        dtype: match table.ty {
            GgmlType::F16 => "float16",
            GgmlType::Bf16 => "bfloat16",
            _ => "float32",
        },
    })
}

/// Refuses an element type whose blocks cannot be decoded.
fn check_type(gguf: &Gguf, tensor: &GgufTensor) -> Result<(), Error> {
    if can_dequantise(tensor.ty) {
        return Ok(());
    }
    let reason =
        format!("tensor '{}' has the element type {}, which is not decoded here", tensor.name, tensor.ty.name());
    Err(loam_formats::Error::UnsupportedGguf { path: gguf.path().to_path_buf(), reason }.into())
}

impl LanguageModel {
    /// Opens a GGUF file. Weights of other types than F32 stay as they are, in the file's memory map, and cannot be
    /// trained.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let architecture = architecture_of(gguf)?;
        let model = Self::outline_of_gguf(gguf)?;
        let entries = architecture.weights.entries(&model.parameters(), model.spec());
        for (entry, tensor) in entries.iter().zip(tensors_of(gguf, architecture, &entries)?) {
            let (bytes, start) = gguf.shared_bytes(tensor);
            if entry.import_blocks(tensor.ty, &bytes, start, is_in_place(model.spec(), entry, tensor.ty)) {
                gguf.forget(tensor);
            }
        }
        Ok(model)
    }

    /// The architecture of a file, with weights of zeros.
    pub(crate) fn outline_of_gguf(gguf: &Gguf) -> Result<Self, Error> {
        Self::zeros(config(gguf, architecture_of(gguf)?, &facts_of(gguf)?)?)
    }

    /// What a file of these types takes in the process that opens it.
    pub(crate) fn gguf_memory(&self, mix: Option<Mix>) -> Result<WeightMemory, Error> {
        let (architecture, _) = self.describe()?;
        let entries = architecture.weights.entries(&self.parameters(), self.spec());
        let types = self.types(&entries, mix)?;
        Ok(WeightMemory::sum(entries.iter().zip(types).map(|(entry, ty)| entry_memory(self.spec(), entry, ty))))
    }

    /// What a file takes in the process that opens it, and the element type of every weight that is not F32. Refuses a
    /// file that does not hold this model, as opening it would. Reads headers alone.
    pub fn stored_in(&self, gguf: &Gguf) -> Result<(WeightMemory, Plan), Error> {
        let architecture = architecture_of(gguf)?;
        let entries = architecture.weights.entries(&self.parameters(), self.spec());
        let (mut parts, mut types) = (Vec::new(), Plan::new());
        for (entry, tensor) in entries.iter().zip(tensors_of(gguf, architecture, &entries)?) {
            parts.push(entry_memory(self.spec(), entry, tensor.ty));
            if is_in_place(self.spec(), entry, tensor.ty) {
                types.extend(entry.feeds.iter().map(|name| (name.clone(), DType::Ggml(kept_type(tensor.ty)))));
            }
        }
        let mut memory = WeightMemory::sum(parts);
        memory.is_wide |= is_mixed(&types);
        Ok((memory, types))
    }

    /// The tensors of a GGUF file of this model, each with the names of the parameters that it feeds.
    pub fn gguf_feeds(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        let (architecture, _) = self.describe()?;
        let entries = architecture.weights.entries(&self.parameters(), self.spec());
        Ok(entries.into_iter().map(|entry| (entry.name, entry.feeds)).collect())
    }

    /// The tensors that a GGUF file holds for this model: name, shape and element type.
    pub fn gguf_tensors(gguf: &Gguf) -> Vec<(String, Vec<usize>, GgmlType)> {
        gguf.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.ty)).collect()
    }

    /// Writes the model as GGUF, in one file or several; returns them. Refuses what the format has no words for.
    pub fn save_gguf(&self, path: &Path, settings: GgufSettings<'_>) -> Result<Vec<PathBuf>, Error> {
        let (architecture, mut metadata) = self.describe()?;
        let entries = architecture.weights.entries(&self.parameters(), self.spec());
        let types = self.types(&entries, settings.mix)?;
        let largest = entries.iter().zip(&types).max_by_key(|(entry, _)| entry.file_shape().iter().product::<usize>());
        let file_type =
            settings.mix.and_then(Mix::file_type).unwrap_or_else(|| type_number(largest.map(|(_, &ty)| ty)));
        metadata.push(("general.file_type".into(), file_type.into()));
        metadata.extend(settings.metadata);
        let factors = rope_factors(self.spec());
        let encoded: Vec<u8> = factors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let mut tensors = Vec::new();
        if let Some(factors) = &factors {
            tensors.push(GgufOut::new(ROPE_FACTORS, GgmlType::F32, &[factors.len()], &encoded));
        }
        for (entry, &ty) in entries.iter().zip(&types) {
            tensors.push(GgufOut::lazy(entry.name.clone(), ty, &entry.file_shape(), move || {
                let bytes = entry.export_blocks(ty);
                if let Some(watch) = settings.watch {
                    watch(bytes.len());
                }
                bytes.into()
            }));
        }
        Ok(write_split(path, &metadata, tensors, settings.max_shard_bytes.unwrap_or(u64::MAX))?)
    }

    /// The architecture that files of this model name, and its tensors there.
    pub(crate) fn gguf_entries(&self) -> Result<(&'static str, Vec<Entry>), Error> {
        let (architecture, _) = self.describe()?;
        Ok((architecture.name, architecture.weights.entries(&self.parameters(), self.spec())))
    }

    /// The architecture and the keys of this model; none where they would not mean the same model when read again.
    fn describe(&self) -> Result<Described, Error> {
        let spec = self.spec();
        let refused = |problem: String| Error::NotInGguf { family: spec.family, problem };
        let architecture =
            ARCHITECTURES.iter().find(|known| known.families.contains(&spec.family)).ok_or_else(|| {
                let known: Vec<&str> = ARCHITECTURES.iter().flat_map(|known| known.families).copied().collect();
                refused(format!("that is done for {}", known.join(", ")))
            })?;
        if !architecture.tasks.contains(&spec.head.task) {
            return Err(refused(format!("its head is for {}", spec.head.task)));
        }
        let layer = &spec.stack.layers[0];
        if architecture.name == "llama" && layer.rope.is_some_and(|rope| rope.rotary_dim != layer.attention.head_dim) {
            return Err(refused("only a part of each head rotates".into()));
        }
        let mut metadata = vec![
            ("general.architecture".to_owned(), GgufValue::from(architecture.name)),
            ("general.type".to_owned(), "model".into()),
            ("general.quantization_version".to_owned(), 2.into()),
        ];
        metadata.extend(keys(spec, architecture, self.config()));
        let start = self.config().get("decoder_start_token_id").and_then(serde_json::Value::as_u64);
        if let Some(start) = start.and_then(|start| u32::try_from(start).ok()).filter(|_| spec.encoder.is_some()) {
            metadata.push((format!("{}.decoder_start_token_id", architecture.name), start.into()));
        }
        let facts = Facts {
            vocab_size: spec.vocab_size,
            has_head: !spec.tie_word_embeddings,
            has_attention_bias: layer.attention.has_qkv_bias,
            has_feed_forward_bias: layer.feed_forward.has_bias,
            has_gate: layer.feed_forward.gated,
            has_pooler: spec.head.task != Task::LanguageModel && spec.head.transform.is_some(),
            token_types: spec.type_vocab_size,
            labels: (spec.head.task == Task::SequenceClassification).then_some(spec.head.num_labels),
            rope_factors: rope_factors(spec),
            dtype: "float32",
        };
        let read = config(&Gguf::from_metadata(metadata.clone()), architecture, &facts)?;
        let read = crate::family::of_config(&read)?.spec_of(&read)?;
        match difference(spec, &read) {
            None => Ok((architecture, metadata)),
            Some(problem) => Err(refused(problem)),
        }
    }

    /// The element type of each tensor.
    fn types(&self, entries: &[Entry], mix: Option<Mix>) -> Result<Vec<GgmlType>, Error> {
        if let Some(mix) = mix.filter(|mix| mix.file_type().is_none()) {
            let problem = format!("the format has no {}", mix.name());
            return Err(Error::NotInGguf { family: self.spec().family, problem });
        }
        let plan: Option<Plan> = mix.map(|mix| self.plan(mix));
        let plain = match self.file_dtype()? {
            Dtype::BF16 => GgmlType::Bf16,
            Dtype::F16 => GgmlType::F16,
            _ => GgmlType::F32,
        };
        let type_of = |name: &str, parameter: &Parameter| {
            if parameter.shape().len() != 2 || !can_be_typed(self.spec(), name) {
                return GgmlType::F32;
            }
            match (plan.as_ref().map(|plan| plan.get(name)), parameter.dtype()) {
                (Some(Some(DType::Ggml(ty))), _) => *ty,
                (Some(_), _) => GgmlType::F32,
                (None, DType::Ggml(ty)) => ty,
                (None, _) => plain,
            }
        };
        // Parameters that share a tensor share the finest of their types.
        let finest = |entry: &Entry| {
            let types = entry.feeds.iter().zip(&entry.parameters).map(|(name, parameter)| type_of(name, parameter));
            types.max_by_key(|ty| ty.block_bytes() * 256 / ty.block_len()).unwrap_or(GgmlType::F32)
        };
        Ok(entries.iter().map(finest).collect())
    }
}

/// The tensor that each entry is read from, in its shape and of a type that can be read; none may be left over.
fn tensors_of<'a>(
    gguf: &'a Gguf,
    architecture: &Architecture,
    entries: &[Entry],
) -> Result<Vec<&'a GgufTensor>, Error> {
    let tensor_of = |entry: &Entry| {
        let tensor = gguf.find(&entry.name).ok_or_else(|| Error::MissingWeight {
            path: gguf.path().to_path_buf(),
            name: entry.name.clone(),
            nearest: nearest(&entry.name, gguf.tensors().iter().map(|tensor| tensor.name.as_str())),
        })?;
        if tensor.shape != entry.file_shape() {
            return Err(Error::WeightShape {
                path: gguf.path().to_path_buf(),
                name: tensor.name.clone(),
                found: tensor.shape.clone(),
                expected: entry.file_shape(),
            });
        }
        check_type(gguf, tensor).map(|()| tensor)
    };
    let tensors: Vec<&GgufTensor> = entries.iter().map(tensor_of).collect::<Result<_, _>>()?;
    if tensors.len() < gguf.tensors().len() {
        refuse_left_over(gguf, architecture, entries)?;
    }
    Ok(tensors)
}

/// Says which tensor has no place in the model, if one is left.
fn refuse_left_over(gguf: &Gguf, architecture: &Architecture, entries: &[Entry]) -> Result<(), Error> {
    let used: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let is_known = |name: &str| architecture.weights.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix));
    let mut names = gguf.tensors().iter().map(|tensor| tensor.name.as_str());
    match names.find(|name| !used.contains(name) && !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::UnexpectedWeight {
            path: gguf.path().to_path_buf(),
            name: name.to_owned(),
            family: architecture.name,
            nearest: nearest(name, entries.iter().map(|entry| entry.name.as_str())),
        }),
    }
}

/// In what a model differs from the one that its keys would be read as; what only training asks for is no part of it.
fn difference(spec: &Spec, read: &Spec) -> Option<String> {
    let plain = |spec: &Spec| {
        let mut spec = Spec { family: "", initializer_range: 0.0, ..spec.clone() };
        let experts = spec.stack.layers.iter_mut().filter_map(|layer| layer.experts.as_mut());
        experts.for_each(|experts| experts.router_aux_loss_coef = 0.0);
        spec
    };
    let (spec, read) = (plain(spec), plain(read));
    if spec == read {
        return None;
    }
    let mut layers = spec.stack.layers.iter().zip(&read.stack.layers).enumerate();
    Some(match layers.find(|(_, (own, read))| own != read) {
        Some((index, (own, read))) => format!("layer {index} is {own:?}, and would be read as {read:?}"),
        None => format!("it would be read as another one: {}", read.summary()),
    })
}

/// `general.file_type` of a file most of which has this type.
fn type_number(ty: Option<GgmlType>) -> u32 {
    let mix = ty.and_then(|ty| ty.name().parse::<Mix>().ok());
    mix.and_then(Mix::file_type).unwrap_or(0)
}
