//! In which order samplers apply, as data.

use crate::Error;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// One step between the logits and the draw. Each works on what the one before left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerStep {
    /// Adds `logit_bias`.
    LogitBias,
    /// Repetition penalty, then frequency and presence penalty.
    Penalties,
    /// Makes what would go on repeating a longer passage less likely.
    Dry,
    /// Drops logits far below the largest, counted in standard deviations.
    TopNSigma,
    /// Keeps the most likely tokens by number.
    TopK,
    /// Keeps tokens about as surprising as the distribution is on average.
    #[serde(alias = "typical", alias = "typ_p")]
    TypicalP,
    /// Keeps the most likely tokens by their sum.
    TopP,
    /// Keeps tokens by their share of the most likely one's probability.
    MinP,
    /// Now and then drops all likely tokens but the least likely of them.
    Xtc,
    /// Divides the logits, by a factor that may depend on the entropy.
    #[serde(alias = "temp")]
    Temperature,
    /// Steers the surprise of the text to a target; always the last step.
    Mirostat,
}

impl FromStr for SamplerStep {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let name: StrDeserializer<'_, ValueError> = name.into_deserializer();
        Self::deserialize(name).map_err(|error| error.to_string())
    }
}

/// Whose order and edge cases apply. What an engine does not have comes where it does least harm: DRY after the
/// penalties, the rest after its own last step.
///
/// | | `hf` | `openai` | `llamacpp` |
/// |---|---|---|---|
/// | engine | transformers | vLLM | llama.cpp |
/// | order | bias, penalties, temperature, top-k, top-p, min-p, typical | bias, penalties, temperature, min-p, top-k, top-p | bias, penalties, DRY, top-nσ, top-k, typical, top-p, min-p, XTC, temperature |
/// | repetition penalty counts | prompt and output | prompt and output | the last 64 tokens |
/// | frequency and presence count | the output | the output | the last 64 tokens |
/// | top-k with several tokens equal to the k-th | keeps them all | keeps them all | keeps k, the lowest ids |
/// | typical ends | where the sum reaches p, with what is equally typical | as `hf` | where the sum exceeds p |
/// | greedy | temperature 0 | temperature below 0.00001 | temperature 0 |
///
/// Two things are ours in every preset: of equal logits the lowest id ranks first, and the draw is keyed by seed and
/// step instead of by a generator's past.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplerPreset {
    /// As `generate` of transformers.
    #[default]
    Hf,
    /// As vLLM, which is how OpenAI's parameters are read.
    #[serde(alias = "vllm")]
    OpenAi,
    /// As llama.cpp.
    LlamaCpp,
}

impl FromStr for SamplerPreset {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let name: StrDeserializer<'_, ValueError> = name.into_deserializer();
        Self::deserialize(name).map_err(|error| error.to_string())
    }
}

impl SamplerPreset {
    /// The steps in their order, without mirostat.
    pub fn steps(self) -> &'static [SamplerStep] {
        use SamplerStep::{Dry, LogitBias, MinP, Penalties, Temperature, TopK, TopNSigma, TopP, TypicalP, Xtc};
        match self {
            Self::Hf => &[LogitBias, Penalties, Dry, Temperature, TopK, TopP, MinP, TypicalP, TopNSigma, Xtc],
            Self::OpenAi => &[LogitBias, Penalties, Dry, Temperature, MinP, TopK, TopP, TypicalP, TopNSigma, Xtc],
            Self::LlamaCpp => &[LogitBias, Penalties, Dry, TopNSigma, TopK, TypicalP, TopP, MinP, Xtc, Temperature],
        }
    }

    /// The steps under mirostat, which takes the place of everything that cuts.
    pub fn mirostat_steps() -> &'static [SamplerStep] {
        &[SamplerStep::LogitBias, SamplerStep::Temperature, SamplerStep::Mirostat]
    }

    /// How many of the last tokens the penalties look at; `None` is all of them.
    pub fn penalty_window(self) -> Option<usize> {
        (self == Self::LlamaCpp).then_some(64)
    }
}

/// Refuses an order that names a step twice, or in which anything follows mirostat.
pub(crate) fn check_order(steps: &[SamplerStep]) -> Result<(), Error> {
    let refuse = |expected: &str, step: SamplerStep| {
        let found = format!("{step:?}");
        Err(Error::InvalidSampling { name: "samplers".into(), expected: expected.into(), found })
    };
    for (at, &step) in steps.iter().enumerate() {
        if steps[..at].contains(&step) {
            return refuse("each step once", step);
        }
        if step == SamplerStep::Mirostat && at + 1 < steps.len() {
            return refuse("mirostat, which draws, as the last step", steps[at + 1]);
        }
    }
    Ok(())
}
