//! The section `[peft]`: an adapter is trained, and the model stays as it is.

use std::collections::BTreeMap;

use loam_models::Mix;
use loam_peft::{
    AdaLora, Bottleneck, Config, Ia3, Lora, LoraInit, Method, PTuning, Prefix, PromptEncoder, PromptInit, PromptTuning,
    Targets, Vera,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Recipe, Stage};

/// An adapter that is trained while the model of `model.path` stays as it is. The run leaves it in `adapter/`, in PEFT's layout
/// (bottleneck adapters: AdapterHub's).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PeftSection {
    /// The method. One of `method` and `path` is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<PeftMethod>,
    /// Directory of an adapter to go on with, instead of a fresh one; its files say all but `quant` and `lr_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Rounds the model's weights to fewer bits first, such as `q8_0`, `q4_k_m` or `q4_0`: with `lora` this is QLoRA. Default: no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quant: Option<String>,
    /// Linear layers that are changed, by the ends of their names in the model's files, such as `q_proj`; `all-linear` alone is
    /// every one but the head; a single name with regular-expression signs is matched against whole names. Default: those that
    /// PEFT takes for the family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Rank; in `adalora` that at the start. Default: 8, in `adalora` 12, in `vera` 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r: Option<usize>,
    /// The change is scaled by alpha over r. Default: 8, as in PEFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Probability that an element of what the adapter reads is zeroed in training. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Whether the scale is alpha over the root of r (Kalajdzievski 2023). Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rslora: Option<bool>,
    /// How A starts in `lora` and `dora`: `uniform`, or `gaussian` with standard deviation 1 / r. B starts at zero. Default: `uniform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PeftInit>,
    /// The learning rate of B over that of A, such as 16 (LoRA+, Hayou et al. 2024). Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_ratio: Option<f64>,
    /// Ranks of layers whose names end with a regular expression. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas in the same way. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Mean rank at the end; `adalora` only. Default: 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_r: Option<usize>,
    /// Fraction of the steps before ranks begin to shrink; `adalora` only. Default: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tinit: Option<f64>,
    /// Fraction of the steps at the end in which ranks stay; `adalora` only. Default: 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tfinal: Option<f64>,
    /// Factor on how far A and B are from orthogonal, which is added to the loss; `adalora` only. Default: 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orth_reg_weight: Option<f64>,
    /// Virtual tokens of `prompt`, `p_tuning` and `prefix`. Default: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_tokens: Option<usize>,
    /// How the vectors of `prompt` start: `sample_vocab`, `text` or `random`, which hardly learns. Default: `sample_vocab`, or `text`
    /// where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_init: Option<PeftPromptInit>,
    /// A text that the vectors of `prompt`, or the keys and values of `prefix`, start from. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Width of a network that makes the keys and values of `prefix` while training. Default: none, they are trained themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<usize>,
    /// The network that makes the vectors of `p_tuning`: `mlp` or `lstm`. Default: `mlp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<PeftEncoder>,
    /// Width of that network. Default: the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_width: Option<usize>,
    /// The model's width over that of a bottleneck. Default: 16, in `parallel` 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction: Option<f64>,
    /// Activation of a bottleneck. Default: `swish` in `houlsby`, else `relu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// Modules that are trained as a whole besides: `lm_head`, `embed_tokens` (as the model's files call them), linear layers.
    /// Default: none; a classifier's head always is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Tokens whose vectors are trained besides `lora`, such as new ones. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trainable_tokens: Vec<String>,
}

/// Methods of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeftMethod {
    /// A product of two narrow matrices beside each weight (Hu et al. 2022).
    Lora,
    /// The same, with the lengths of the weight's rows trained apart (Liu et al. 2024).
    Dora,
    /// LoRA that starts with the weight's largest singular vectors (Meng et al. 2024).
    Pissa,
    /// LoRA that starts with the weight's QR decomposition (Büyükakyüz 2024).
    Olora,
    /// LoRA whose ranks move to where they matter (Zhang et al. 2023).
    Adalora,
    /// Vectors around random matrices that all layers share (Kopiczko et al. 2024).
    Vera,
    /// Factors on keys, values and inside the feed-forward (Liu et al. 2022).
    Ia3,
    /// Keys and values in front of every text (Li and Liang 2021).
    Prefix,
    /// Vectors in front of every text, made by a network (Liu et al. 2021).
    PTuning,
    /// Vectors in front of every text (Lester et al. 2021).
    Prompt,
    /// Small networks after attention and feed-forward (Houlsby et al. 2019).
    Houlsby,
    /// Small networks after the feed-forward (Pfeiffer et al. 2021).
    Pfeiffer,
    /// Small networks beside the feed-forward (He et al. 2022).
    Parallel,
}

/// How A starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeftInit {
    /// As a linear layer's weight.
    Uniform,
    /// Normal with standard deviation 1 / r.
    Gaussian,
}

/// How the vectors of prompt tuning start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeftPromptInit {
    /// As those of random tokens.
    SampleVocab,
    /// As those of `text`.
    Text,
    /// Normal with variance one.
    Random,
}

/// What makes the vectors of P-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeftEncoder {
    /// Three linear layers.
    Mlp,
    /// A bidirectional LSTM and two linear layers.
    Lstm,
}

use PeftMethod::{
    Adalora, Dora, Houlsby, Ia3 as Ia3Method, Olora, PTuning as PTuningMethod, Parallel, Pfeiffer, Pissa,
};
use PeftMethod::{Lora as LoraMethod, Prefix as PrefixMethod, Prompt as PromptMethod, Vera as VeraMethod};

const LORAS: &[PeftMethod] = &[LoraMethod, Dora, Pissa, Olora];
const RANKED: &[PeftMethod] = &[LoraMethod, Dora, Pissa, Olora, Adalora, VeraMethod];
const SCALED: &[PeftMethod] = &[LoraMethod, Dora, Pissa, Olora, Adalora];
const LINEAR: &[PeftMethod] = &[LoraMethod, Dora, Pissa, Olora, Adalora, VeraMethod, Ia3Method];
const BOTTLENECKS: &[PeftMethod] = &[Houlsby, Pfeiffer, Parallel];
const DROPPING: &[PeftMethod] = &[LoraMethod, Dora, Pissa, Olora, Adalora, VeraMethod, Houlsby, Pfeiffer, Parallel];
const PROMPTS: &[PeftMethod] = &[PrefixMethod, PTuningMethod, PromptMethod];

impl PeftMethod {
    /// The name that recipes use.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl PeftSection {
    /// Which keys are set, and the methods that look at them.
    fn keys(&self) -> [(&'static str, bool, &'static [PeftMethod]); 21] {
        [
            ("targets", self.targets.is_some(), LINEAR),
            ("r", self.r.is_some(), RANKED),
            ("alpha", self.alpha.is_some(), SCALED),
            ("dropout", self.dropout.is_some(), DROPPING),
            ("rslora", self.rslora.is_some(), LORAS),
            ("init", self.init.is_some(), &[LoraMethod, Dora]),
            ("lr_ratio", self.lr_ratio.is_some(), LORAS),
            ("rank_pattern", !self.rank_pattern.is_empty(), LORAS),
            ("alpha_pattern", !self.alpha_pattern.is_empty(), LORAS),
            ("target_r", self.target_r.is_some(), &[Adalora]),
            ("tinit", self.tinit.is_some(), &[Adalora]),
            ("tfinal", self.tfinal.is_some(), &[Adalora]),
            ("orth_reg_weight", self.orth_reg_weight.is_some(), &[Adalora]),
            ("virtual_tokens", self.virtual_tokens.is_some(), PROMPTS),
            ("prompt_init", self.prompt_init.is_some(), &[PromptMethod]),
            ("text", self.text.is_some(), &[PromptMethod, PrefixMethod]),
            ("projection", self.projection.is_some(), &[PrefixMethod]),
            ("encoder", self.encoder.is_some(), &[PTuningMethod]),
            ("encoder_width", self.encoder_width.is_some(), &[PTuningMethod]),
            ("reduction", self.reduction.is_some(), BOTTLENECKS),
            ("activation", self.activation.is_some(), BOTTLENECKS),
        ]
    }

    /// Everything that contradicts itself.
    pub(super) fn check(&self, recipe: &Recipe, problems: &mut Vec<String>) {
        if recipe.model.path.is_none() {
            problems.push("`peft` needs a pretrained model: set `model.path`".into());
        }
        match (self.method, &self.path) {
            (None, None) => problems.push("`peft` needs a `method`, or the `path` of an adapter".into()),
            (Some(_), Some(_)) => {
                problems.push("`peft.path` opens an adapter, `peft.method` makes one: keep one".into())
            }
            _ => {}
        }
        for (key, is_set, owners) in self.keys() {
            let fits = self.method.map_or(key == "lr_ratio", |method| owners.contains(&method));
            if is_set && !fits {
                let names: Vec<String> = owners.iter().map(|owner| format!("`{}`", owner.name())).collect();
                problems.push(match self.method {
                    Some(method) => {
                        format!("`peft.{key}` is for {}, this is `{}`", names.join(", "), method.name())
                    }
                    None => format!("`peft.{key}` cannot be set: the adapter of `peft.path` is as it is"),
                });
            }
        }
        let above = |x: Option<f64>| x.is_some_and(|x| !(x > 0.0 && x.is_finite()));
        let share = |x: Option<f64>| x.is_some_and(|x| !(0.0..1.0).contains(&x));
        let checks = [
            ("r", self.r == Some(0), "above 0"),
            ("target_r", self.target_r == Some(0), "above 0"),
            ("virtual_tokens", self.virtual_tokens == Some(0), "above 0"),
            ("projection", self.projection == Some(0), "above 0"),
            ("encoder_width", self.encoder_width == Some(0), "above 0"),
            ("alpha", above(self.alpha), "above 0"),
            ("lr_ratio", above(self.lr_ratio), "above 0"),
            ("reduction", above(self.reduction), "above 0"),
            ("dropout", share(self.dropout), "at least 0 and below 1"),
            ("tinit", share(self.tinit), "a fraction of the steps"),
            ("tfinal", share(self.tfinal), "a fraction of the steps"),
        ];
        problems.extend(
            checks.iter().filter(|(_, bad, _)| *bad).map(|(key, _, range)| format!("`peft.{key}` must be {range}")),
        );
        if self.prompt_init == Some(PeftPromptInit::Text) && self.text.is_none() {
            problems.push("`peft.prompt_init = \"text\"` needs a `peft.text`".into());
        }
        if self.tinit.unwrap_or(TINIT) + self.tfinal.unwrap_or(TFINAL) >= 1.0 {
            problems.push("`peft.tinit` and `peft.tfinal` leave no steps in which ranks could shrink".into());
        }
        if let Some(Err(error)) = self.quant.as_ref().map(|quant| quant.parse::<Mix>()) {
            problems.push(format!("`peft.quant`: {error}"));
        }
        if matches!(recipe.stage, Stage::Qa | Stage::TokenClassify) {
            let stage = recipe.stage.name();
            problems
                .push(format!("stage `{stage}` trains a head that adapter files have no place for; leave `peft` out"));
        }
    }

    /// The learning rate where the recipe has none: small for matrices that start beside a weight, large for few numbers.
    pub(super) fn learning_rate(&self) -> f64 {
        match self.method {
            Some(VeraMethod | Ia3Method | PrefixMethod | PromptMethod) => 5e-3,
            Some(PTuningMethod) => 1e-3,
            _ => 2e-4,
        }
    }

    /// The adapter that the section describes, for a run of so many steps; `None` where it opens one.
    pub(crate) fn config(&self, steps: u64) -> Option<Config> {
        let method = self.method?;
        let bottleneck = |base: Bottleneck| {
            Method::Bottleneck(Bottleneck {
                reduction_factor: self.reduction.unwrap_or(base.reduction_factor),
                non_linearity: self.activation.clone().unwrap_or(base.non_linearity),
                dropout: self.dropout.unwrap_or(0.0),
                ..base
            })
        };
        let num_virtual_tokens = self.virtual_tokens.unwrap_or(VIRTUAL_TOKENS);
        let method = match method {
            LoraMethod | Dora | Pissa | Olora => Method::Lora(self.lora(method)),
            Adalora => Method::AdaLora(self.adalora(steps)),
            VeraMethod => {
                let plain = Vera::default();
                let (r, dropout) = (self.r.unwrap_or(plain.r), self.dropout.unwrap_or(0.0));
                Method::Vera(Vera { targets: self.layers(), r, dropout, ..plain })
            }
            Ia3Method => Method::Ia3(Ia3 { targets: self.layers(), feedforward: None }),
            PrefixMethod => Method::Prefix(Prefix { num_virtual_tokens, projection: self.projection }),
            PromptMethod => {
                let init = match (self.prompt_init, &self.text) {
                    (Some(PeftPromptInit::Random), _) => PromptInit::Random,
                    (Some(PeftPromptInit::SampleVocab), _) | (None, None) => PromptInit::SampleVocab,
                    (_, text) => PromptInit::Text(text.clone().unwrap_or_default()),
                };
                Method::Prompt(PromptTuning { num_virtual_tokens, init })
            }
            PTuningMethod => Method::PTuning(PTuning {
                num_virtual_tokens,
                encoder: match self.encoder {
                    Some(PeftEncoder::Lstm) => PromptEncoder::Lstm,
                    _ => PromptEncoder::Mlp,
                },
                hidden_size: self.encoder_width.unwrap_or(0),
                num_layers: 2,
            }),
            Houlsby => bottleneck(Bottleneck::houlsby()),
            Pfeiffer => bottleneck(Bottleneck::pfeiffer()),
            Parallel => bottleneck(Bottleneck::parallel()),
        };
        Some(Config { modules_to_save: self.modules_to_save.clone(), ..Config::new(method) })
    }

    fn layers(&self) -> Targets {
        match self.targets.as_deref() {
            None => Targets::Default,
            Some([one]) if one.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
            Some([one]) if one.contains(['*', '(', '[', '|', '\\', '+', '?']) => Targets::Pattern(one.clone()),
            Some(names) => Targets::Names(names.to_vec()),
        }
    }

    fn lora(&self, method: PeftMethod) -> Lora {
        let plain = Lora::default();
        Lora {
            targets: self.layers(),
            r: self.r.unwrap_or(plain.r),
            alpha: self.alpha.unwrap_or(plain.alpha),
            dropout: self.dropout.unwrap_or(0.0),
            use_rslora: self.rslora.unwrap_or(false),
            use_dora: method == Dora,
            init: match (method, self.init) {
                (Pissa, _) => LoraInit::Pissa,
                (Olora, _) => LoraInit::Olora,
                (_, Some(PeftInit::Gaussian)) => LoraInit::Gaussian,
                _ => LoraInit::Default,
            },
            rank_pattern: self.rank_pattern.clone().into_iter().collect(),
            alpha_pattern: self.alpha_pattern.clone().into_iter().collect(),
        }
    }

    fn adalora(&self, steps: u64) -> AdaLora {
        let plain = AdaLora::default();
        let part = |share: f64| (share * steps as f64) as u64;
        AdaLora {
            targets: self.layers(),
            init_r: self.r.unwrap_or(plain.init_r),
            target_r: self.target_r.unwrap_or(plain.target_r),
            alpha: self.alpha.unwrap_or(plain.alpha),
            dropout: self.dropout.unwrap_or(0.0),
            tinit: part(self.tinit.unwrap_or(TINIT)),
            tfinal: part(self.tfinal.unwrap_or(TFINAL)),
            orth_reg_weight: self.orth_reg_weight.unwrap_or(plain.orth_reg_weight),
            total_step: steps,
            ..plain
        }
    }
}

/// Shares of the steps in AdaLoRA.
const TINIT: f64 = 0.1;
const TFINAL: f64 = 0.3;
/// Virtual tokens of soft prompts.
const VIRTUAL_TOKENS: usize = 20;
