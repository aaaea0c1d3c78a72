//! What an adapter is, as data.

use serde_json::Value;

/// An adapter: its method, and what else of the model it trains.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The method.
    pub method: Method,
    /// Modules that are trained as a whole, by the ends of their names: the tokens' vectors, the head, linear layers.
    pub modules_to_save: Vec<String>,
    /// Tokens whose vectors are trained, in `lora` only.
    pub trainable_tokens: Vec<u32>,
    /// Where the model is that it was made for.
    pub base: Option<String>,
}

impl Config {
    /// The method alone.
    pub fn new(method: Method) -> Self {
        Self { method, modules_to_save: Vec::new(), trainable_tokens: Vec::new(), base: None }
    }
}

/// A method, with its settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// `W + s B A` (Hu et al. 2022), and its relatives.
    Lora(Lora),
    /// `W + s B E A` with ranks that move to where they matter (Zhang et al. 2023).
    AdaLora(AdaLora),
    /// `W + diag(b) B diag(d) A` with fixed random A and B that all layers share (Kopiczko et al. 2024).
    Vera(Vera),
    /// Factors on keys, values and inside the feed-forward (Liu et al. 2022).
    Ia3(Ia3),
    /// Keys and values in front of every text (Li and Liang 2021; Liu et al. 2022, "P-tuning v2").
    Prefix(Prefix),
    /// Vectors in front of every text (Lester et al. 2021).
    Prompt(PromptTuning),
    /// Vectors in front of every text, made by a network (Liu et al. 2021).
    PTuning(PTuning),
    /// Small networks where a block's halves join the residual stream (Houlsby et al. 2019).
    Bottleneck(Bottleneck),
}

impl Method {
    /// Its name in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Lora(lora) if lora.use_dora => "DoRA",
            Self::Lora(_) => "LoRA",
            Self::AdaLora(_) => "AdaLoRA",
            Self::Vera(_) => "VeRA",
            Self::Ia3(_) => "IA3",
            Self::Prefix(_) => "prefix tuning",
            Self::Prompt(_) => "prompt tuning",
            Self::PTuning(_) => "P-tuning",
            Self::Bottleneck(_) => "bottleneck adapters",
        }
    }
}

/// Which linear layers an adapter changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Targets {
    /// Those that PEFT takes for the model's family.
    #[default]
    Default,
    /// Every one but the head.
    AllLinear,
    /// Those whose names end like one of these.
    Names(Vec<String>),
    /// Those whose whole name matches a regular expression.
    Pattern(String),
}

/// Settings of LoRA. The defaults are those of PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Which layers.
    pub targets: Targets,
    /// Rank.
    pub r: usize,
    /// The change is scaled by alpha over r.
    pub alpha: f64,
    /// Probability that an element of what the adapter reads is zeroed in training.
    pub dropout: f64,
    /// Whether the scale is alpha over the root of r (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Whether the rows' lengths are trained apart from their directions (Liu et al. 2024).
    pub use_dora: bool,
    /// How A and B start.
    pub init: LoraInit,
    /// Ranks of the layers whose names end with a regular expression; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas in the same way.
    pub alpha_pattern: Vec<(String, f64)>,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            targets: Targets::Default,
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            init: LoraInit::Default,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

/// How A and B start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// A uniform as a linear layer's weight, B zero.
    #[default]
    Default,
    /// A normal with standard deviation 1 / r, B zero.
    Gaussian,
    /// Both as linear layers' weights: not the identity.
    Random,
    /// The weight's largest singular vectors, taken out of the weight (Meng et al. 2024).
    Pissa,
    /// The first columns of the weight's QR decomposition, taken out of the weight (Büyükakyüz 2024).
    Olora,
}

impl LoraInit {
    /// Whether the adapter starts with a part of the weight, which the rest then lacks.
    pub fn takes_from_weight(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }
}

/// Settings of AdaLoRA. The defaults are those of PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLora {
    /// Which layers.
    pub targets: Targets,
    /// Rank of every layer at the start.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_r: usize,
    /// The change is scaled by alpha over the rank.
    pub alpha: f64,
    /// Probability that an element of what the adapter reads is zeroed in training.
    pub dropout: f64,
    /// Steps before ranks begin to shrink.
    pub tinit: u64,
    /// Steps at the end in which they stay.
    pub tfinal: u64,
    /// Steps between two changes of ranks.
    pub delta_t: u64,
    /// Decay of the importance's running mean.
    pub beta1: f64,
    /// Decay of its uncertainty's.
    pub beta2: f64,
    /// Factor on how far A and B are from orthogonal, which is added to the loss.
    pub orth_reg_weight: f64,
    /// Steps of the run.
    pub total_step: u64,
    /// For every layer which ranks are left, once that is settled.
    pub rank_pattern: Vec<(String, Vec<bool>)>,
}

impl Default for AdaLora {
    fn default() -> Self {
        Self {
            targets: Targets::Default,
            init_r: 12,
            target_r: 8,
            alpha: 8.0,
            dropout: 0.0,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: 1,
            rank_pattern: Vec::new(),
        }
    }
}

/// Settings of VeRA. The defaults are those of PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct Vera {
    /// Which layers.
    pub targets: Targets,
    /// Rank.
    pub r: usize,
    /// Probability that an element of what the adapter reads is zeroed in training.
    pub dropout: f64,
    /// What d starts with; b starts with zero.
    pub d_initial: f64,
    /// Seed of the fixed matrices.
    pub projection_prng_key: u64,
}

impl Default for Vera {
    fn default() -> Self {
        Self { targets: Targets::Default, r: 256, dropout: 0.0, d_initial: 0.1, projection_prng_key: 0 }
    }
}

/// Settings of IA3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ia3 {
    /// Which layers.
    pub targets: Targets,
    /// Those among them whose input is scaled, not their output; by default PEFT's for the family.
    pub feedforward: Option<Vec<String>>,
}

/// Settings of prefix tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct Prefix {
    /// Virtual tokens.
    pub num_virtual_tokens: usize,
    /// Width of the network that makes keys and values while training; without one they are trained themselves.
    pub projection: Option<usize>,
}

/// Settings of prompt tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptTuning {
    /// Virtual tokens.
    pub num_virtual_tokens: usize,
    /// How they start.
    pub init: PromptInit,
}

/// How the vectors of prompt tuning start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PromptInit {
    /// Normal with variance one. Hardly learns: real vectors are much shorter.
    Random,
    /// Those of a text's tokens.
    Text(String),
    /// Those of tokens drawn from the vocabulary.
    #[default]
    SampleVocab,
}

/// Settings of P-tuning.
#[derive(Clone, Debug, PartialEq)]
pub struct PTuning {
    /// Virtual tokens.
    pub num_virtual_tokens: usize,
    /// The network that makes them while training.
    pub encoder: PromptEncoder,
    /// Its width; 0 is the model's.
    pub hidden_size: usize,
    /// Its layers, of an LSTM.
    pub num_layers: usize,
}

/// What makes the vectors of P-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptEncoder {
    /// Three linear layers.
    Mlp,
    /// A bidirectional LSTM and two linear layers.
    Lstm,
}

/// Settings of bottleneck adapters, by the names of AdapterHub.
#[derive(Clone, Debug, PartialEq)]
pub struct Bottleneck {
    /// After attention.
    pub mh_adapter: bool,
    /// After the feed-forward.
    pub output_adapter: bool,
    /// The model's width over that of the bottleneck.
    pub reduction_factor: f64,
    /// Its activation.
    pub non_linearity: String,
    /// Whether it reads the sum with the residual stream, normed where the block's norm comes last.
    pub original_ln_before: bool,
    /// Whether it stands beside the block's half, reading what that reads, instead of behind it.
    pub is_parallel: bool,
    /// Factor on what it adds.
    pub scaling: f64,
    /// How it starts: `bert`, `mam_adapter` (the identity) or `houlsby`.
    pub init_weights: String,
    /// Probability that an element of what it adds is zeroed in training.
    pub dropout: f64,
    /// All of the file's settings, to be written as they were read.
    pub raw: Option<Value>,
}

impl Bottleneck {
    /// After attention and feed-forward (Houlsby et al. 2019).
    pub fn houlsby() -> Self {
        Self {
            mh_adapter: true,
            output_adapter: true,
            reduction_factor: 16.0,
            non_linearity: "swish".into(),
            original_ln_before: false,
            is_parallel: false,
            scaling: 1.0,
            init_weights: "bert".into(),
            dropout: 0.0,
            raw: None,
        }
    }

    /// After the feed-forward only (Pfeiffer et al. 2021).
    pub fn pfeiffer() -> Self {
        Self { mh_adapter: false, non_linearity: "relu".into(), original_ln_before: true, ..Self::houlsby() }
    }

    /// Beside the feed-forward (He et al. 2022).
    pub fn parallel() -> Self {
        Self {
            mh_adapter: false,
            reduction_factor: 2.0,
            non_linearity: "relu".into(),
            is_parallel: true,
            scaling: 4.0,
            init_weights: "mam_adapter".into(),
            ..Self::houlsby()
        }
    }
}
