//! How the next token is chosen.

use crate::Error;
use crate::preset::{SamplerPreset, SamplerStep, check_order};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sampling settings. The default is plain sampling from the model's own distribution: every step is off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Whose order of steps and edge cases apply.
    pub preset: SamplerPreset,
    /// The order of the steps, instead of the preset's. A setting whose step is not named is an error.
    pub samplers: Option<Vec<SamplerStep>>,
    /// Divides the logits; 0 takes the most likely token every time.
    pub temperature: f32,
    /// Lets the temperature vary by this much around `temperature`, with the entropy; 0 keeps it fixed.
    pub dynatemp_range: f32,
    /// Power of the entropy's share of its maximum from which the varying temperature follows.
    pub dynatemp_exponent: f32,
    /// Only this many most likely tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are considered; 1 considers all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one are considered; 0 considers all.
    pub min_p: f32,
    /// Only tokens whose surprise is nearest to the entropy, up to this sum of probabilities; 1 considers all.
    pub typical_p: f32,
    /// Only logits at most this many standard deviations below the largest; 0 (or less) considers all.
    pub top_n_sigma: f32,
    /// How often the likely tokens are dropped, all but the least likely of them.
    pub xtc_probability: f32,
    /// From which probability on a token counts as likely for that; more than 0.5 switches it off.
    pub xtc_threshold: f32,
    /// Strength of the penalty on going on with a repeated passage; 0 is none.
    pub dry_multiplier: f32,
    /// Base of its growth with the length of the passage; less than 1 is none.
    pub dry_base: f32,
    /// Passages up to this length in tokens may be repeated freely.
    pub dry_allowed_length: usize,
    /// How many of the last tokens it looks at; -1 is all, 0 switches it off.
    pub dry_penalty_last_n: i32,
    /// Texts that no repeated passage reaches across.
    pub dry_sequence_breakers: Vec<String>,
    /// 1 or 2: version of mirostat that chooses the tokens, in place of everything that cuts; 0 is none.
    pub mirostat: u8,
    /// Its target surprise, in bits per token.
    pub mirostat_tau: f32,
    /// How fast it learns.
    pub mirostat_eta: f32,
    /// Divides positive and multiplies negative logits of tokens that already occurred; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token for each time that it occurred.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that occurred at all.
    pub presence_penalty: f32,
    /// How many of the last tokens the three penalties look at; -1 is all, 0 switches them off. Without it the
    /// preset decides.
    pub penalty_last_n: Option<i32>,
    /// Added to the logits of these ids.
    pub logit_bias: BTreeMap<u32, f32>,
    /// No end token before this many tokens.
    pub min_tokens: usize,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the generation; they are not part of the result.
    pub stop: Vec<String>,
    /// Seed of the random choice: the same seed gives the same text.
    pub seed: u64,
    /// How many of the most likely tokens are reported with each token, under the model itself.
    pub top_logprobs: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            preset: SamplerPreset::Hf,
            samplers: None,
            temperature: 1.0,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            dry_multiplier: 0.0,
            dry_base: 1.75,
            dry_allowed_length: 2,
            dry_penalty_last_n: -1,
            dry_sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            mirostat: 0,
            mirostat_tau: 5.0,
            mirostat_eta: 0.1,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_last_n: None,
            logit_bias: BTreeMap::new(),
            min_tokens: 0,
            max_tokens: 256,
            stop: Vec::new(),
            seed: 0,
            top_logprobs: 0,
        }
    }
}

/// Both ends belong to it, unless the lower one is open.
struct Range {
    low: f32,
    is_open: bool,
    high: f32,
}

impl Range {
    // Written so that NaN, which fails every comparison, is outside.
    fn contains(&self, value: f32) -> bool {
        value >= self.low && value <= self.high && !(self.is_open && value == self.low)
    }

    fn describe(&self) -> String {
        match self.is_open {
            true => format!("more than {}, at most {}", self.low, self.high),
            false => format!("{} to {}", self.low, self.high),
        }
    }
}

impl Sampling {
    /// The most likely token every time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The steps that apply, in their order.
    pub fn steps(&self) -> &[SamplerStep] {
        match &self.samplers {
            Some(steps) => steps,
            None if self.mirostat > 0 => SamplerPreset::mirostat_steps(),
            None => self.preset.steps(),
        }
    }

    /// Refuses values that have no meaning, and settings that no step would obey; the error names the setting, what it
    /// may be and the value found.
    pub fn validate(&self) -> Result<(), Error> {
        for (name, value, range) in self.ranges() {
            if !range.contains(value) {
                return refuse(name, &range.describe(), &value.to_string());
            }
        }
        if self.mirostat > 2 {
            return refuse("mirostat", "0, 1 or 2", &self.mirostat.to_string());
        }
        if self.dry_penalty_last_n < -1 {
            return refuse("dry_penalty_last_n", "-1 or more", &self.dry_penalty_last_n.to_string());
        }
        if let Some(n) = self.penalty_last_n.filter(|&n| n < -1) {
            return refuse("penalty_last_n", "-1 or more", &n.to_string());
        }
        if self.dry_sequence_breakers.iter().any(String::is_empty) {
            return refuse("dry_sequence_breakers", "texts that are not empty", "an empty text");
        }
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || **bias == f32::INFINITY) {
            return refuse("logit_bias", "numbers, or minus infinity", &format!("{bias} for {id}"));
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens", "at least 1", "0");
        }
        if self.min_tokens > self.max_tokens {
            return refuse("min_tokens", "at most max_tokens", &self.min_tokens.to_string());
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "texts that are not empty", "an empty text");
        }
        check_order(self.steps())?;
        self.check_steps()
    }

    fn ranges(&self) -> Vec<(&'static str, f32, Range)> {
        let closed = |low, high| Range { low, is_open: false, high };
        let above = |low, high| Range { low, is_open: true, high };
        vec![
            ("temperature", self.temperature, closed(0.0, 100.0)),
            ("dynatemp_range", self.dynatemp_range, closed(0.0, 100.0)),
            ("dynatemp_exponent", self.dynatemp_exponent, closed(0.0, 100.0)),
            ("top_p", self.top_p, above(0.0, 1.0)),
            ("min_p", self.min_p, closed(0.0, 1.0)),
            ("typical_p", self.typical_p, above(0.0, 1.0)),
            ("top_n_sigma", self.top_n_sigma, closed(-1.0, 100.0)),
            ("xtc_probability", self.xtc_probability, closed(0.0, 1.0)),
            ("xtc_threshold", self.xtc_threshold, closed(0.0, 1.0)),
            ("dry_multiplier", self.dry_multiplier, closed(0.0, 100.0)),
            ("dry_base", self.dry_base, closed(0.0, 100.0)),
            ("mirostat_tau", self.mirostat_tau, closed(0.0, 100.0)),
            ("mirostat_eta", self.mirostat_eta, closed(0.0, 1.0)),
            ("repetition_penalty", self.repetition_penalty, above(0.0, 100.0)),
            ("frequency_penalty", self.frequency_penalty, closed(-100.0, 100.0)),
            ("presence_penalty", self.presence_penalty, closed(-100.0, 100.0)),
        ]
    }

    /// Refuses a setting whose step does not run: it would be ignored.
    fn check_steps(&self) -> Result<(), Error> {
        let plain = Self::default();
        let has_penalty =
            self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        let used = [
            ("logit_bias", !self.logit_bias.is_empty(), SamplerStep::LogitBias),
            ("a penalty", has_penalty, SamplerStep::Penalties),
            ("dry_multiplier", self.dry_multiplier != plain.dry_multiplier, SamplerStep::Dry),
            ("top_n_sigma", self.top_n_sigma > 0.0, SamplerStep::TopNSigma),
            ("top_k", self.top_k != plain.top_k, SamplerStep::TopK),
            ("typical_p", self.typical_p != plain.typical_p, SamplerStep::TypicalP),
            ("top_p", self.top_p != plain.top_p, SamplerStep::TopP),
            ("min_p", self.min_p != plain.min_p, SamplerStep::MinP),
            ("xtc_probability", self.xtc_probability != plain.xtc_probability, SamplerStep::Xtc),
            ("temperature", self.temperature != plain.temperature, SamplerStep::Temperature),
            ("dynatemp_range", self.dynatemp_range != plain.dynatemp_range, SamplerStep::Temperature),
            ("mirostat", self.mirostat != 0, SamplerStep::Mirostat),
        ];
        let steps = self.steps();
        if steps.contains(&SamplerStep::Mirostat) && self.mirostat == 0 {
            return refuse("mirostat", "1 or 2 where it is one of the samplers", "0");
        }
        match used.iter().find(|(_, is_set, step)| *is_set && !steps.contains(step)) {
            Some((name, ..)) => refuse(name, &format!("its step among the samplers {steps:?}"), "no such step"),
            None => Ok(()),
        }
    }
}

fn refuse<T>(name: &str, expected: &str, found: &str) -> Result<T, Error> {
    Err(Error::InvalidSampling { name: name.into(), expected: expected.into(), found: found.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_and_greedy_are_valid_and_json_may_set_a_part() {
        Sampling::default().validate().unwrap();
        Sampling::greedy().validate().unwrap();
        let some: Sampling = serde_json::from_str(r#"{"temperature": 0.5, "stop": ["\n"]}"#).unwrap();
        assert_eq!(some, Sampling { temperature: 0.5, stop: vec!["\n".into()], ..Sampling::default() });
        assert!(serde_json::from_str::<Sampling>(r#"{"temprature": 0.5}"#).is_err());
    }

    #[test]
    fn the_order_is_data_under_the_names_of_each_engine() {
        let json = r#"{"preset": "vllm", "samplers": ["temp", "typ_p", "top_k"], "logit_bias": {"7": -1.5}}"#;
        let some: Sampling = serde_json::from_str(json).unwrap();
        assert_eq!(some.preset, SamplerPreset::OpenAi);
        assert_eq!(some.steps(), [SamplerStep::Temperature, SamplerStep::TypicalP, SamplerStep::TopK]);
        assert_eq!(some.logit_bias[&7], -1.5);
        assert_eq!("top_n_sigma".parse(), Ok(SamplerStep::TopNSigma));
        assert_eq!("llamacpp".parse(), Ok(SamplerPreset::LlamaCpp));
        assert!("top_q".parse::<SamplerStep>().unwrap_err().contains("top_n_sigma"));
        for preset in [SamplerPreset::Hf, SamplerPreset::OpenAi, SamplerPreset::LlamaCpp] {
            assert_eq!(preset.steps().len(), 10);
            check_order(preset.steps()).unwrap();
        }
    }

    #[test]
    fn a_setting_that_no_step_would_obey_is_refused() {
        let base = Sampling::default;
        let only = |steps: &[SamplerStep]| Some(steps.to_vec());
        let temperature = only(&[SamplerStep::Temperature]);
        let cases = [
            (Sampling { samplers: temperature.clone(), top_k: 4, ..base() }, "top_k"),
            (Sampling { samplers: temperature, presence_penalty: 0.1, ..base() }, "a penalty"),
            (Sampling { samplers: only(&[SamplerStep::TopK]), temperature: 0.0, ..base() }, "temperature"),
            (Sampling { samplers: only(&[SamplerStep::TopK; 2]), ..base() }, "samplers"),
            (
                Sampling { samplers: only(&[SamplerStep::Mirostat, SamplerStep::TopK]), mirostat: 2, ..base() },
                "samplers",
            ),
            (Sampling { samplers: only(&[SamplerStep::Mirostat]), ..base() }, "mirostat"),
            (Sampling { mirostat: 1, top_p: 0.5, ..base() }, "top_p"),
        ];
        for (sampling, name) in cases {
            let message = sampling.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("'{name}'")), "{message}");
        }
        Sampling { mirostat: 2, temperature: 0.7, ..base() }.validate().unwrap();
    }

    #[test]
    fn each_value_without_meaning_is_refused_by_name() {
        let base = Sampling::default;
        let cases = [
            (Sampling { temperature: -1.0, ..base() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..base() }, "temperature"),
            (Sampling { top_p: 0.0, ..base() }, "top_p"),
            (Sampling { top_p: 1.1, ..base() }, "top_p"),
            (Sampling { min_p: -0.1, ..base() }, "min_p"),
            (Sampling { typical_p: 0.0, ..base() }, "typical_p"),
            (Sampling { xtc_probability: 1.5, ..base() }, "xtc_probability"),
            (Sampling { mirostat: 3, ..base() }, "mirostat"),
            (Sampling { penalty_last_n: Some(-2), ..base() }, "penalty_last_n"),
            (Sampling { dry_penalty_last_n: -2, ..base() }, "dry_penalty_last_n"),
            (Sampling { logit_bias: [(3, f32::NAN)].into(), ..base() }, "logit_bias"),
            (Sampling { min_tokens: 300, ..base() }, "min_tokens"),
            (Sampling { repetition_penalty: 0.0, ..base() }, "repetition_penalty"),
            (Sampling { repetition_penalty: f32::INFINITY, ..base() }, "repetition_penalty"),
            (Sampling { max_tokens: 0, ..base() }, "max_tokens"),
            (Sampling { stop: vec![String::new()], ..base() }, "stop"),
        ];
        for (sampling, name) in cases {
            let message = sampling.validate().unwrap_err().to_string();
            assert!(message.contains(name) && message.contains("expected"), "{message}");
        }
    }
}
