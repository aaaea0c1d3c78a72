//! What looks wrong in a run, said once and in plain words, in English and Chinese.

use std::collections::BTreeSet;

use crate::metrics::MetricRow;

/// Steps at the start that later ones are compared with.
const FIRST_STEPS: usize = 5;
/// Steps in a row that something must hold for.
const PATIENCE: u32 = 10;

/// Follows the metrics of a run.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    entropy: Baseline,
    length: Baseline,
    likelihood: Baseline,
    rising_length: u32,
    displaced: u32,
    equal: u32,
    far: u32,
    certain: u32,
    said: BTreeSet<&'static str>,
}

/// The mean of the first steps.
#[derive(Debug, Default)]
struct Baseline {
    sum: f64,
    count: usize,
}

impl Baseline {
    /// Takes the value of a step; returns the baseline once it stands.
    fn of(&mut self, value: f64) -> Option<f64> {
        if self.count < FIRST_STEPS {
            (self.sum, self.count) = (self.sum + value, self.count + 1);
            return None;
        }
        Some(self.sum / self.count as f64)
    }
}

/// Counts steps in a row; true once there are enough.
fn lasts(count: &mut u32, holds: bool) -> bool {
    *count = if holds { *count + 1 } else { 0 };
    *count >= PATIENCE
}

impl Watch {
    /// Looks at a step, and hands warnings on.
    pub(crate) fn look(&mut self, row: &MetricRow, say: &mut dyn FnMut(&str)) {
        let metric = |name: &str| row.metrics.get(name).copied();
        let mut found = Vec::new();
        if let (Some(chosen), Some(margin), Some(log_probs)) =
            (metric("rewards/chosen"), metric("rewards/margins"), metric("logps/chosen"))
        {
            let start = self.likelihood.of(log_probs);
            let falls = start.is_some_and(|start| log_probs < 1.1 * start) && chosen < 0.0 && margin > 0.0;
            if lasts(&mut self.displaced, falls) {
                found.push(DISPLACEMENT);
            }
        }
        if let Some(kl) = metric("kl") {
            // Nats per answer in PPO and RLOO, per token in GRPO: either way far.
            if lasts(&mut self.far, kl > 20.0) {
                found.push(FAR);
            }
        }
        if let Some(entropy) = metric("entropy") {
            let start = self.entropy.of(entropy);
            if lasts(&mut self.certain, start.is_some_and(|start| entropy < 0.1 * start)) {
                found.push(CERTAIN);
            }
        }
        if let Some(length) = metric("completions/mean_length") {
            let start = self.length.of(length);
            if lasts(&mut self.rising_length, start.is_some_and(|start| length > 2.0 * start)) {
                found.push(LONGER);
            }
        }
        if let Some(share) = metric("frac_reward_zero_std")
            && lasts(&mut self.equal, share > 0.9)
        {
            found.push(EQUAL);
        }
        for text in found {
            if self.said.insert(text) {
                say(&format!("warning: step {}: {text}", row.step));
            }
        }
    }
}

const DISPLACEMENT: &str = "the chosen answers become less likely, too (likelihood displacement): the margin grows only because \
    the rejected ones fall faster. Try preference.loss = [\"sigmoid\", \"sft\"] or [\"apo_zero\"], or a larger beta. \
    被选中的回答的概率也在下降（似然位移），间隔变大只是因为被拒绝的回答下降得更快：可加入 sft 损失、改用 apo_zero 或增大 beta。";
const FAR: &str = "the model is far from the reference (KL above 20): it may have found answers that only please the reward. \
    Raise rl.beta or lower train.lr. 模型已远离参考模型（KL 大于 20），可能只是在讨好奖励：请增大 rl.beta 或降低 train.lr。";
const CERTAIN: &str = "the entropy fell below a tenth of what it was at the start: answers to one prompt hardly differ, and nothing \
    new is tried. Raise rl.temperature or rl.clip_high, or lower train.lr. \
    熵已不到开始时的十分之一，回答几乎不再变化：请提高 rl.temperature 或 rl.clip_high，或降低 train.lr。";
const LONGER: &str = "answers are twice as long as at the start, a sign of reward hacking: read some of them. Set \
    rl.missing_end_penalty or lower rl.max_new_tokens. \
    回答长度已是开始时的两倍，可能在钻奖励的空子：请查看样本，设置 rl.missing_end_penalty 或减小 rl.max_new_tokens。";
const EQUAL: &str = "in nearly all groups every answer gets the same reward, so nothing is learnt: the prompts are too easy or too \
    hard. Choose others, or raise rl.samples. 几乎所有组内的奖励都相同，学不到东西：题目太易或太难，请更换题目或增大 rl.samples。";

#[cfg(test)]
mod tests {
    use super::*;

    fn said(metrics: impl Fn(u64) -> Vec<(&'static str, f64)>) -> Vec<String> {
        let (mut watch, mut said) = (Watch::default(), Vec::new());
        for step in 1..=40 {
            let metrics = metrics(step).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let row = MetricRow {
                step,
                tokens: 0,
                loss: 0.0,
                lr: 0.0,
                grad_norm: 0.0,
                tokens_per_s: 0.0,
                ms: 0.0,
                rss_mib: 0,
                metrics,
            };
            watch.look(&row, &mut |message| said.push(message.to_owned()));
        }
        said
    }

    #[test]
    fn each_trouble_is_said_once_and_a_sound_run_has_none() {
        let sound =
            |_| vec![("entropy", 1.0), ("kl", 0.1), ("completions/mean_length", 10.0), ("frac_reward_zero_std", 0.5)];
        assert!(said(sound).is_empty());
        for (name, value, word) in [
            ("entropy", 0.01, "entropy"),
            ("kl", 30.0, "reference"),
            ("completions/mean_length", 25.0, "reward hacking"),
            ("frac_reward_zero_std", 1.0, "same reward"),
        ] {
            let messages = said(|step| vec![(name, if step < 10 { 1.0_f64.min(10.0) } else { value })]);
            assert_eq!(messages.len(), 1, "{name}: {messages:?}");
            assert!(messages[0].contains(word) && messages[0].contains('，'), "{messages:?}");
        }
        let falling =
            |step: u64| vec![("rewards/chosen", -0.1), ("rewards/margins", 0.5), ("logps/chosen", -10.0 - step as f64)];
        assert!(said(falling)[0].contains("likelihood displacement"));
    }
}
