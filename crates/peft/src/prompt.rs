//! Soft prompts: vectors, or keys and values, in front of every text.

use std::sync::Arc;

use loam_kernels::rng::Rng;
use loam_models::{Forward, Hooks, Input, LanguageModel};
use loam_nn::{Prompt, PromptHook};
use loam_tensor::{Parameter, Raw, Tensor, Unary, no_grad};

use crate::config::{PTuning, Prefix, PromptEncoder, PromptInit, PromptTuning};
use crate::error::{Error, Result};
use crate::linear::{Named, like_linear, normal};
use crate::lstm::Lstm;

/// Name of the one tensor that is saved.
pub(crate) const EMBEDDINGS: &str = "prompt_embeddings";

/// A linear layer's weight and bias.
struct Layer(Parameter, Parameter);

impl Layer {
    fn new(named: &mut Named, inputs: usize, outputs: usize, seed: u64, name: &str) -> Self {
        let layer = Self(Parameter::zeros([outputs, inputs]), Parameter::zeros([outputs]));
        let names = [format!("{name}.weight"), format!("{name}.bias")];
        like_linear(&layer.0, inputs, seed, &names[0]);
        like_linear(&layer.1, inputs, seed, &names[1]);
        named.extend(names.into_iter().zip([layer.0.clone(), layer.1.clone()]));
        layer
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&Tensor::parameter(&self.0), Some(&Tensor::parameter(&self.1)))
    }
}

/// What makes of the trained vectors those that stand in front.
enum Encoder {
    None,
    /// Layers with an activation between each two.
    Layers(Vec<Layer>, Unary),
    Recurrent(Lstm, Vec<Layer>),
}

fn through(layers: &[Layer], activation: Unary, x: &Tensor) -> Tensor {
    let (first, rest) = layers.split_first().expect("a network has a layer");
    rest.iter().fold(first.forward(x), |y, layer| layer.forward(&y.unary(activation)))
}

/// Soft prompts of all kinds.
pub(crate) struct SoftPrompt {
    /// `[count, width]`.
    embedding: Parameter,
    encoder: Encoder,
    /// Of prefix tuning: blocks, and width of keys and values; else nothing.
    prefix: Option<(usize, usize)>,
    hidden: usize,
}

impl SoftPrompt {
    /// What is saved: the trained vectors, through their network.
    pub(crate) fn embeddings(&self) -> Tensor {
        let x = Tensor::parameter(&self.embedding);
        match &self.encoder {
            Encoder::None => x,
            Encoder::Layers(layers, activation) => through(layers, *activation, &x),
            Encoder::Recurrent(lstm, layers) => through(layers, Unary::Relu, &lstm.forward(&x)),
        }
    }
}

impl PromptHook for SoftPrompt {
    fn count(&self) -> usize {
        self.embedding.shape()[0]
    }

    fn prompt(&self) -> Prompt {
        let all = self.embeddings();
        let Some((layers, width)) = self.prefix else { return Prompt { vectors: all, keys_and_values: Vec::new() } };
        let part = |at: usize| {
            let own = all.narrow(1, at * width, width);
            own.reshape([self.count(), width])
        };
        Prompt {
            // Nobody looks at what these positions compute: their keys and values are replaced.
            vectors: Tensor::full([self.count(), self.hidden], 0.0),
            keys_and_values: (0..layers).map(|layer| (part(2 * layer), part(2 * layer + 1))).collect(),
        }
    }
}

/// Encodes a text for the initial values that come from one.
pub type Encode<'a> = &'a dyn Fn(&str) -> Result<Vec<u32>, String>;

fn check(model: &LanguageModel, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::Setting("`num_virtual_tokens` must be above 0".into()));
    }
    if model.spec().encoder.is_some() {
        return Err(Error::Setting(
            "soft prompts are for models of one stack, not for an encoder with a decoder".into(),
        ));
    }
    Ok(())
}

/// Tokens of a text, cut or repeated to `count`.
fn tokens_of(text: &str, count: usize, encode: Option<Encode<'_>>) -> Result<Vec<u32>> {
    let encode = encode.ok_or_else(|| Error::Setting("an initial text needs the model's tokenizer".into()))?;
    let ids = encode(text).map_err(|error| Error::Setting(format!("the initial text cannot be encoded: {error}")))?;
    if ids.is_empty() {
        return Err(Error::Setting("the initial text has no token".into()));
    }
    Ok(ids.into_iter().cycle().take(count).collect())
}

/// Prompt tuning.
pub(crate) fn prompt_tuning(
    model: &LanguageModel,
    config: &PromptTuning,
    seed: u64,
    encode: Option<Encode<'_>>,
) -> Result<(Named, SoftPrompt)> {
    let (count, hidden) = (config.num_virtual_tokens, model.spec().hidden_size);
    check(model, count)?;
    let (table, name) = (model.token_table(), "prompt_encoder.embedding.weight");
    let vectors_of = |ids: &[u32]| no_grad(|| Tensor::parameter(&table).embedding(ids, [ids.len()]).to_vec());
    let values = match &config.init {
        PromptInit::Random => normal(count * hidden, 1.0, seed, name),
        PromptInit::Text(text) => vectors_of(&tokens_of(text, count, encode)?),
        PromptInit::SampleVocab => {
            let rng = Rng::new(seed, name, 0);
            let vocab = model.spec().vocab_size as u64;
            vectors_of(&(0..count as u64).map(|i| rng.below(i, vocab) as u32).collect::<Vec<_>>())
        }
    };
    let embedding = Parameter::new(Raw::from_f32(&values, [count, hidden]));
    let named = vec![(name.to_owned(), embedding.clone())];
    Ok((named, SoftPrompt { embedding, encoder: Encoder::None, prefix: None, hidden }))
}

/// P-tuning.
pub(crate) fn p_tuning(model: &LanguageModel, config: &PTuning, seed: u64) -> Result<(Named, SoftPrompt)> {
    let (count, hidden) = (config.num_virtual_tokens, model.spec().hidden_size);
    check(model, count)?;
    let (width, mut named) = (if config.hidden_size > 0 { config.hidden_size } else { hidden }, Vec::new());
    let name = "prompt_encoder.embedding.weight";
    let embedding = Parameter::new(Raw::from_f32(&normal(count * hidden, 1.0, seed, name), [count, hidden]));
    named.push((name.to_owned(), embedding.clone()));
    let layer = |named: &mut Named, inputs: usize, outputs: usize, at: usize| {
        Layer::new(named, inputs, outputs, seed, &format!("prompt_encoder.mlp_head.{at}"))
    };
    let encoder = match config.encoder {
        PromptEncoder::Mlp => {
            let layers = vec![
                layer(&mut named, hidden, width, 0),
                layer(&mut named, width, width, 2),
                layer(&mut named, width, hidden, 4),
            ];
            Encoder::Layers(layers, Unary::Relu)
        }
        PromptEncoder::Lstm => {
            if config.num_layers == 0 {
                return Err(Error::Setting("an LSTM needs a layer: `encoder_num_layers` must be above 0".into()));
            }
            let lstm = Lstm::new(&mut named, hidden, width, config.num_layers, seed, "prompt_encoder.lstm_head");
            let layers = vec![layer(&mut named, 2 * width, 2 * width, 0), layer(&mut named, 2 * width, hidden, 2)];
            Encoder::Recurrent(lstm, layers)
        }
    };
    Ok((named, SoftPrompt { embedding, encoder, prefix: None, hidden }))
}

/// Blocks, and width of keys and values, which are the same in all of them.
fn shape_of_keys(model: &LanguageModel) -> Result<(usize, usize)> {
    let layers = &model.spec().stack.layers;
    let width = |layer: &loam_models::LayerSpec| layer.attention.num_key_value_heads * layer.attention.head_dim;
    let first = width(&layers[0]);
    match layers.iter().all(|layer| width(layer) == first) {
        true => Ok((layers.len(), first)),
        false => Err(Error::Setting("prefix tuning needs keys of one width in all blocks".into())),
    }
}

/// Prefix tuning. With `text`, keys and values start as the model's own of it.
pub(crate) fn prefix_tuning(
    model: &LanguageModel,
    config: &Prefix,
    seed: u64,
    text: Option<(&str, Option<Encode<'_>>)>,
) -> Result<(Named, SoftPrompt)> {
    let (count, hidden) = (config.num_virtual_tokens, model.spec().hidden_size);
    check(model, count)?;
    let (layers, width) = shape_of_keys(model)?;
    let (mut named, name) = (Vec::new(), "prompt_encoder.embedding.weight");
    let own = if config.projection.is_some() { width } else { layers * 2 * width };
    let values = match text {
        None => normal(count * own, 1.0, seed, name),
        Some(_) if config.projection.is_some() => {
            return Err(Error::Setting("a prefix that a network makes cannot start from a text".into()));
        }
        Some((text, encode)) => keys_of(model, &tokens_of(text, count, encode)?)?,
    };
    let embedding = Parameter::new(Raw::from_f32(&values, [count, own]));
    named.push((name.to_owned(), embedding.clone()));
    let encoder = match config.projection {
        None => Encoder::None,
        Some(inner) => {
            let inner = if inner > 0 { inner } else { width };
            let layers = vec![
                Layer::new(&mut named, width, inner, seed, "prompt_encoder.transform.0"),
                Layer::new(&mut named, inner, layers * 2 * width, seed, "prompt_encoder.transform.2"),
            ];
            Encoder::Layers(layers, Unary::Tanh)
        }
    };
    Ok((named, SoftPrompt { embedding, encoder, prefix: Some((layers, width)), hidden }))
}

/// Keys and values of a text in all blocks, `[tokens, blocks * 2 * width]`.
fn keys_of(model: &LanguageModel, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut cache = model.new_cache();
    let forward = Forward { cache: Some(&mut cache), hooks: Hooks::Off, ..Forward::default() };
    no_grad(|| model.hidden(&Input::rows(tokens, 1), forward))?;
    let parts: Vec<Vec<f32>> = cache
        .layers
        .iter()
        .filter_map(|layer| layer.contents())
        .flat_map(|(keys, values)| [keys.to_vec(), values.to_vec()])
        .collect();
    let width = parts.first().map_or(0, |part| part.len() / tokens.len());
    Ok((0..tokens.len())
        .flat_map(|at| parts.iter().flat_map(move |part| part[at * width..][..width].to_vec()))
        .collect())
}

/// A soft prompt as it was saved: without its network.
pub(crate) fn collapsed(model: &LanguageModel, count: usize, is_prefix: bool) -> Result<(Named, SoftPrompt)> {
    check(model, count)?;
    let hidden = model.spec().hidden_size;
    let prefix = if is_prefix { Some(shape_of_keys(model)?) } else { None };
    let width = prefix.map_or(hidden, |(layers, width)| layers * 2 * width);
    let embedding = Parameter::zeros([count, width]);
    let named = vec![(EMBEDDINGS.to_owned(), embedding.clone())];
    Ok((named, SoftPrompt { embedding, encoder: Encoder::None, prefix, hidden }))
}

/// A prompt for whichever adapter is in use.
pub(crate) type SharedPrompt = Arc<SoftPrompt>;
