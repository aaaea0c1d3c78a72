//! From rewards to advantages, by stage.

use super::Rollouts;
use super::phase::Item;
use crate::losses::policy::{gae, group_advantages, kl_values, leave_one_out, whiten};
use crate::recipe::Stage;

impl Rollouts<'_> {
    /// How far each token of each answer is from the reference, where there is one.
    pub(super) fn distances(&self, items: &[Item]) -> Option<Vec<Vec<f32>>> {
        self.reference?;
        let distance = |item: &Item| kl_values(self.settings.kl, &item.label.old, &item.label.reference);
        Some(items.iter().map(distance).collect())
    }

    /// Fills in advantages, and returns of the value function in PPO.
    pub(super) fn advantages(
        &self,
        items: &mut [Item],
        rewards: &[f64],
        distances: Option<&[Vec<f32>]>,
        coefficient: f64,
    ) {
        let settings = &self.settings;
        let price =
            |index: usize, token: usize| distances.map_or(0.0, |all| coefficient * f64::from(all[index][token]));
        if settings.stage == Stage::Ppo {
            let mut all = Vec::new();
            for (index, item) in items.iter_mut().enumerate() {
                let mut per_token: Vec<f64> = (0..item.tokens.len()).map(|token| -price(index, token)).collect();
                if let Some(last) = per_token.last_mut() {
                    *last += rewards[index];
                }
                let values: Vec<f64> = item.label.values.iter().map(|&value| f64::from(value)).collect();
                let (advantages, returns) = gae(&per_token, &values, settings.gamma, settings.lambda);
                item.label.returns = returns.iter().map(|&value| value as f32).collect();
                all.extend(advantages);
            }
            whiten(&mut all, false);
            let mut all = all.into_iter();
            for item in items {
                item.label.advantages = all.by_ref().take(item.tokens.len()).map(|value| value as f32).collect();
            }
            return;
        }
        let priced: Vec<f64> = match settings.stage {
            // The distance is a part of GRPO's loss.
            Stage::Grpo => rewards.to_vec(),
            _ => {
                let total =
                    |index: usize, item: &Item| (0..item.tokens.len()).map(|token| price(index, token)).sum::<f64>();
                items.iter().enumerate().map(|(index, item)| rewards[index] - total(index, item)).collect()
            }
        };
        let advantages = match settings.stage {
            Stage::Grpo => group_advantages(&priced, settings.samples, settings.scale),
            Stage::Rloo => leave_one_out(&priced, settings.samples),
            _ => {
                let mean = priced.iter().sum::<f64>() / priced.len().max(1) as f64;
                priced.iter().map(|reward| reward - mean).collect()
            }
        };
        for (item, advantage) in items.iter_mut().zip(advantages) {
            item.label.advantages = vec![advantage as f32; item.tokens.len()];
        }
    }
}
