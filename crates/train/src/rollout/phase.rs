//! The answers of some optimizer steps, and what a checkpoint keeps of them.

use serde::{Deserialize, Serialize};

use super::RolloutSettings;
use crate::error::{Error, Result};
use crate::losses::policy::std_dev;

/// Numbers of an answer, one per token each; those that a stage does not need are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RlLabel {
    /// How much better than expected the token was.
    #[serde(with = "bits")]
    pub advantages: Vec<f32>,
    /// Its log-probability when it was drawn.
    #[serde(with = "bits")]
    pub old: Vec<f32>,
    /// Its log-probability under the reference.
    #[serde(with = "bits")]
    pub reference: Vec<f32>,
    /// What the value function expected.
    #[serde(with = "bits")]
    pub values: Vec<f32>,
    /// What it should have expected.
    #[serde(with = "bits")]
    pub returns: Vec<f32>,
}

impl RlLabel {
    /// Whether it was better or worse than expected.
    pub(crate) fn teaches(&self) -> bool {
        self.advantages.iter().any(|&advantage| advantage != 0.0)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The number of its prompt.
    pub prompt: usize,
    /// Its tokens, with the end token where it has one.
    pub tokens: Vec<u32>,
    /// What the sampler says of their log-probabilities.
    #[serde(with = "bits")]
    pub sampled: Vec<f32>,
    /// Whether it ends.
    pub ended: bool,
    /// Its text.
    pub text: String,
    /// Its numbers.
    pub label: RlLabel,
}

/// What a phase was like, under the field's names for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct News {
    /// Mean reward.
    pub reward: f64,
    /// Mean over the groups of the rewards' standard deviation.
    pub reward_std: f64,
    /// Share of the groups all of whose answers got the same reward.
    pub frac_reward_zero_std: f64,
    /// Mean tokens of an answer.
    pub mean_length: f64,
    /// Share of the answers that do not end.
    pub clipped_ratio: f64,
    /// Largest difference between the log-probabilities of sampler and trainer.
    pub agreement: Option<f64>,
    /// Mean entropy before each token, in nats.
    pub entropy: Option<f64>,
    /// Mean distance to the reference, in nats per answer.
    pub kl: Option<f64>,
    /// Its price.
    pub coefficient: Option<f64>,
}

impl News {
    /// Of answers in groups of `group`.
    pub(super) fn of(items: &[Item], rewards: &[f64], group: usize) -> Self {
        let count = items.len().max(1) as f64;
        let spreads: Vec<f64> = rewards.chunks(group.max(1)).map(std_dev).collect();
        let groups = spreads.len().max(1) as f64;
        Self {
            reward: rewards.iter().sum::<f64>() / count,
            reward_std: spreads.iter().sum::<f64>() / groups,
            // A group of one says nothing.
            frac_reward_zero_std: match group {
                0 | 1 => 0.0,
                _ => spreads.iter().filter(|&&spread| spread < 1e-8).count() as f64 / groups,
            },
            mean_length: items.iter().map(|item| item.tokens.len()).sum::<usize>() as f64 / count,
            clipped_ratio: items.iter().filter(|item| !item.ended).count() as f64 / count,
            ..Self::default()
        }
    }

    /// By name.
    pub(super) fn metrics(&self) -> Vec<(&'static str, f64)> {
        let mut metrics = vec![
            ("reward", self.reward),
            ("reward_std", self.reward_std),
            ("frac_reward_zero_std", self.frac_reward_zero_std),
            ("completions/mean_length", self.mean_length),
            ("completions/clipped_ratio", self.clipped_ratio),
        ];
        metrics.extend(self.agreement.map(|difference| ("sampling/logp_difference", difference)));
        metrics.extend(self.entropy.map(|entropy| ("entropy", entropy)));
        metrics.extend(self.kl.map(|kl| ("kl", kl)));
        metrics.extend(self.coefficient.map(|coefficient| ("kl_coefficient", coefficient)));
        metrics
    }
}

/// Answers and where they belong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Phase {
    /// Its number.
    pub(super) index: u64,
    /// Price of the distance to the reference.
    pub(super) coefficient: f64,
    /// The answers.
    pub(super) items: Vec<Item>,
    /// What they were like.
    pub(super) news: News,
}

/// How much the price of the distance changes per answer (Ziegler et al. 2019, section 2.2).
const ADAPTATION: f64 = 0.1;

impl Phase {
    /// The price for the next phase.
    pub(super) fn next_coefficient(&self, settings: &RolloutSettings) -> f64 {
        let (Some(target), Some(kl)) = (settings.target_kl, self.news.kl) else { return self.coefficient };
        let error = (kl / target - 1.0).clamp(-0.2, 0.2);
        self.coefficient * (1.0 + ADAPTATION * error)
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("answers are texts and numbers")
    }

    pub(super) fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::checkpoint(std::path::Path::new("source.json"), format!("not a phase: {error}")))
    }
}

/// Floats as their bits, so that they come back as they were.
mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        Ok(Vec::<u32>::deserialize(deserializer)?.into_iter().map(f32::from_bits).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_comes_back_to_the_bit() {
        let label = RlLabel { advantages: vec![0.1, -1.0 / 3.0], old: vec![f32::MIN_POSITIVE], ..RlLabel::default() };
        let item =
            Item { prompt: 3, tokens: vec![1, 2], sampled: vec![-0.7], ended: true, text: "好\n\"".into(), label };
        let phase = Phase { index: 7, coefficient: 0.05, items: vec![item], news: News::default() };
        assert_eq!(Phase::from_json(&phase.to_json()).unwrap(), phase);
        assert!(Phase::from_json("{}").is_err());
    }
}
