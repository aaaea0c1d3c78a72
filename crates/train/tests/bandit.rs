//! PPO with the real engine on a bandit of two states: it reaches the optimum that is known in closed form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Witness, hooks, settings};
use loam_models::{Forward, Input, LanguageModel};
use loam_tensor::{Parameter, Precision, no_grad};
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};
use loam_train::losses::policy::{KlEstimator, RewardScale};
use loam_train::objective::Ppo;
use loam_train::reward::{Answered, Reward};
use loam_train::{Prompted, Result, RolloutSettings, Rollouts, Stage, Trainer};
use serde_json::json;

const BETA: f64 = 0.5;

/// In state `a` the answer `x` is right, in state `b` the answer `y`.
struct Bandit;

impl Reward for Bandit {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        let right = |answer: &Answered<'_>| match answer.prompt.text.as_str() {
            "a" => answer.text == "x",
            _ => answer.text == "y",
        };
        Ok(answers.iter().map(|answer| f64::from(u8::from(right(answer)))).collect())
    }
}

fn tokenizer() -> Tokenizer {
    let text = ["abxy".to_string()];
    let config = TrainConfig::new(TrainKind::Char);
    train(text.iter().cloned().map(Ok::<_, loam_tokenizer::Error>), &config, &mut |_| {}).unwrap()
}

fn model(tokenizer: &Tokenizer) -> LanguageModel {
    let config = json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8,
    });
    LanguageModel::new(&config, 5).unwrap()
}

/// Probabilities of all tokens in a state.
fn policy(model: &LanguageModel, state: u32) -> Vec<f64> {
    let logits = no_grad(|| model.last_logits(&Input::rows(&[state], 1), Forward::default())).unwrap();
    logits.softmax().to_vec().into_iter().map(f64::from).collect()
}

#[test]
fn ppo_reaches_the_known_optimum_of_a_bandit() {
    let tokenizer = tokenizer();
    let (model, reference) = (model(&tokenizer), model(&tokenizer));
    let id = |text: &str| tokenizer.token_to_id(text).unwrap();
    let states = [("a", "x"), ("b", "y")];
    let prompts: Vec<Prompted> = states
        .iter()
        .map(|(state, _)| Prompted { text: (*state).into(), ids: vec![id(state)], ..Prompted::default() })
        .collect();
    let rollout = RolloutSettings {
        stage: Stage::Ppo,
        batch: 256,
        micro_batch: 256,
        samples: 128,
        max_new_tokens: 1,
        temperature: 1.0,
        iterations: 4,
        minibatches: 1,
        beta: BETA,
        kl: KlEstimator::K1,
        target_kl: None,
        scale: RewardScale::None,
        gamma: 1.0,
        lambda: 0.95,
        missing_end_penalty: 0.0,
        seed: 3,
        precision: Precision::F32,
    };
    let value_head = Parameter::zeros([1, 16]);
    let rollouts = Rollouts::new(
        (&model, Some(&reference)),
        &tokenizer,
        (prompts, Vec::new()),
        Box::new(Bandit),
        Some(value_head.clone()),
        rollout,
    )
    .unwrap();
    let mut objective = Ppo { value_head, value_coefficient: 0.1, value_clip: 0.2, clip: (0.2, 0.2), temperature: 1.0 };
    let mut settings = settings(240);
    settings.lr = 4e-3;
    settings.optimizer.weight_decay = 0.0;
    let mut witness = Witness::default();
    Trainer::new(&model, &mut objective, &rollouts, None, settings).run(&mut hooks(&mut witness)).unwrap();
    let rewards: Vec<f64> = witness.rows.iter().map(|row| row.metrics["reward"]).collect();
    assert!(rewards[0] < 0.4 && rewards.last().unwrap() > &0.5, "{rewards:?}");
    for (state, right) in states {
        // The best policy with a price on the distance: the reference's probabilities times e^(reward / price).
        let (before, after) = (policy(&reference, id(state)), policy(&model, id(state)));
        let weight = |token: usize| before[token] * if token == id(right) as usize { (1.0 / BETA).exp() } else { 1.0 };
        let total: f64 = (0..before.len()).map(weight).sum();
        for (token, probability) in after.iter().enumerate() {
            let best = weight(token) / total;
            assert!(
                (probability - best).abs() < 0.05,
                "state {state}, token {token}: {probability:.3}, best {best:.3}"
            );
        }
    }
}
