//! Learning from rewards with the real engine, where the optimum is known: PPO on a bandit of two states, and GRPO, RLOO
//! and PPO on answers of two tokens that must end.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Witness, hooks, settings};
use loam_models::{Forward, Input, LanguageModel};
use loam_tensor::{Parameter, Precision, no_grad};
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};
use loam_train::losses::policy::{KlEstimator, Normalisation, RewardScale};
use loam_train::objective::{Policy, PolicyKind, Ppo};
use loam_train::reward::{Answered, Reward};
use loam_train::{PairSettings, Prompted, Result, RolloutSettings, Rollouts, Stage, Trainer, ranked_pairs};
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

/// The right answer to `a` is `xy`, to `b` it is `yx`; a third of the reward is for each letter in its place, and a third for
/// the right length.
struct Spelling;

impl Reward for Spelling {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        let reward = |answer: &Answered<'_>| {
            let wanted = if answer.prompt.text == "a" { "xy" } else { "yx" };
            let hits = answer.text.chars().zip(wanted.chars()).filter(|(a, b)| a == b).count();
            (hits as f64 + f64::from(u8::from(answer.text.chars().count() == 2))) / 3.0
        };
        Ok(answers.iter().map(reward).collect())
    }
}

/// Mean reward before the first step and in the last one.
fn spelling(stage: Stage, kind: Option<PolicyKind>) -> (f64, f64) {
    let tokenizer = tokenizer();
    let model = model(&tokenizer);
    let id = |text: &str| tokenizer.token_to_id(text).unwrap();
    let prompt = |text: &str| Prompted { text: text.into(), ids: vec![id(text)], ..Prompted::default() };
    let rollout = RolloutSettings {
        stage,
        batch: 64,
        micro_batch: 24,
        samples: 32,
        max_new_tokens: 4,
        temperature: 1.0,
        iterations: 1,
        minibatches: 1,
        beta: 0.0,
        kl: KlEstimator::K1,
        target_kl: None,
        scale: RewardScale::Group,
        gamma: 1.0,
        lambda: 0.95,
        missing_end_penalty: 0.0,
        seed: 2,
        precision: Precision::F32,
    };
    let value_head = kind.is_none().then(|| Parameter::zeros([1, 16]));
    let prompts = (["a", "b"].map(prompt).to_vec(), Vec::new());
    let rollouts =
        Rollouts::new((&model, None), &tokenizer, prompts, Box::new(Spelling), value_head.clone(), rollout).unwrap();
    let mut settings = settings(200);
    settings.lr = 1e-2;
    settings.optimizer.weight_decay = 0.0;
    let mut witness = Witness::default();
    let (clip, temperature) = ((0.2, 0.2), 1.0);
    match (kind, value_head) {
        (Some(kind), _) => {
            let mut objective = Policy { kind, beta: 0.0, clip, temperature };
            Trainer::new(&model, &mut objective, &rollouts, None, settings).run(&mut hooks(&mut witness)).unwrap();
        }
        (None, Some(value_head)) => {
            let mut objective = Ppo { value_head, value_coefficient: 0.1, value_clip: 0.2, clip, temperature };
            Trainer::new(&model, &mut objective, &rollouts, None, settings).run(&mut hooks(&mut witness)).unwrap();
        }
        (None, None) => unreachable!("PPO comes with a value head"),
    }
    let reward = |row: Option<&loam_train::MetricRow>| row.unwrap().metrics["reward"];
    (reward(witness.rows.first()), reward(witness.rows.last()))
}

#[test]
fn grpo_rloo_and_ppo_learn_letters_in_their_places_and_the_end() {
    let cases = [
        (Stage::Grpo, Some(PolicyKind::Grpo(Normalisation::Dapo))),
        (Stage::Rloo, Some(PolicyKind::Rloo)),
        (Stage::Ppo, None),
    ];
    let found = cases.map(|(stage, kind)| (stage, kind, spelling(stage, kind)));
    // Most come to 1; some settle where one of four letters is wrong, 0.83. Who does not look at the prompt gets 2/3 at most.
    assert!(found.iter().all(|(.., (first, last))| *first < 0.3 && *last > 0.8), "{found:#.3?}");
}

#[test]
fn pairs_of_own_answers_are_ranked_by_the_reward_however_the_prompts_are_cut() {
    let tokenizer = tokenizer();
    let model = model(&tokenizer);
    let id = |text: &str| tokenizer.token_to_id(text).unwrap();
    let prompt = |text: &str| Prompted { text: text.into(), ids: vec![id(text)], ..Prompted::default() };
    let prompts = ["a", "b", "a", "b", "a"].map(prompt);
    let settings =
        PairSettings { samples: 24, pairs: 2, temperature: 1.0, max_new_tokens: 4, seed: 2, precision: Precision::F32 };
    let pairs = |first: usize, prompts: &[Prompted]| {
        ranked_pairs((&model, &tokenizer), (first, prompts), &mut Spelling, &settings).unwrap()
    };
    let all = pairs(0, &prompts);
    assert!(all.len() > prompts.len(), "of so many answers some are better than others: {all:?}");
    for pair in &all {
        let answer = |text| Answered { prompt: &prompts[pair.prompt], tokens: &[], text };
        let rewards = Spelling.rewards(&[answer(&pair.chosen), answer(&pair.rejected)]).unwrap();
        assert_eq!([pair.score_chosen, pair.score_rejected], rewards[..]);
        assert!(pair.score_chosen > pair.score_rejected && !pair.rejected.is_empty());
    }
    assert_eq!(all, [pairs(0, &prompts[..2]), pairs(2, &prompts[2..])].concat());
}
