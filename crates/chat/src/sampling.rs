//! How the next token is chosen.

use crate::Error;
use serde::{Deserialize, Serialize};

/// Sampling settings. The default is plain sampling from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token every time.
    pub temperature: f32,
    /// Only this many most likely tokens are considered; 0 considers all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability are considered; 1 considers all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one are considered; 0 considers all.
    pub min_p: f32,
    /// Makes tokens that already occurred less likely; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the generation; they are not part of the result.
    pub stop: Vec<String>,
    /// Seed of the random choice: the same seed gives the same text.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_tokens: 256,
            stop: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// The most likely token every time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values that have no meaning; the error names the setting, its range and the value found.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |name: &str, expected: &str, found: String| {
            Err(Error::InvalidSampling { name: name.into(), expected: expected.into(), found })
        };
        // Written so that NaN, which fails every comparison, is refused too.
        let in_range = |value: f32, low: f32, high: f32| value >= low && value <= high;
        if !in_range(self.temperature, 0.0, 100.0) {
            return refuse("temperature", "0 to 100", self.temperature.to_string());
        }
        if !(in_range(self.top_p, 0.0, 1.0) && self.top_p > 0.0) {
            return refuse("top_p", "more than 0, at most 1", self.top_p.to_string());
        }
        if !in_range(self.min_p, 0.0, 1.0) {
            return refuse("min_p", "0 to 1", self.min_p.to_string());
        }
        if !(in_range(self.repetition_penalty, 0.0, 100.0) && self.repetition_penalty > 0.0) {
            return refuse("repetition_penalty", "more than 0, at most 100", self.repetition_penalty.to_string());
        }
        if self.max_tokens == 0 {
            return refuse("max_tokens", "at least 1", "0".into());
        }
        if self.stop.iter().any(String::is_empty) {
            return refuse("stop", "texts that are not empty", "an empty text".into());
        }
        Ok(())
    }
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
    fn each_value_without_meaning_is_refused_by_name() {
        let base = Sampling::default;
        let cases = [
            (Sampling { temperature: -1.0, ..base() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..base() }, "temperature"),
            (Sampling { top_p: 0.0, ..base() }, "top_p"),
            (Sampling { top_p: 1.1, ..base() }, "top_p"),
            (Sampling { min_p: -0.1, ..base() }, "min_p"),
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
