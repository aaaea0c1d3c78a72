//! Prompts from files, and everything that online learning opens besides.

use std::path::Path;

use loam_data::preference::{Encoder, Prompt, read_prompts};
use loam_models::LanguageModel;
use loam_tensor::{Parameter, with_precision};
use serde_json::Value;

use super::records::Split;
use super::start::Start;
use super::{StageData, StageRun};
use crate::error::{Error, Result};
use crate::objective::{Policy, PolicyKind, Ppo};
use crate::recipe::{Recipe, Stage};
use crate::rollout::{HeldOut, Prompted, RolloutSettings, Rollouts};
use crate::trainer::{Observer, Settings, Summary};

/// Prompts of a recipe.
pub(super) struct Prompts {
    train: Vec<Prompted>,
    held_out: Vec<Prompted>,
    chat_end: Option<u32>,
    /// Answers in one pass over the prompts.
    answers: u64,
    description: Value,
}

impl Prompts {
    pub(super) fn open(recipe: &Recipe, start: &Start, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let Split { train, held_out, description } =
            Split::of_tables(recipe, read_prompts, |prompt| format!("{prompt:?}"))?;
        observer.on_message(&format!("data: {} prompts, {} held out", train.len(), held_out.len()));
        let encoder = Encoder { tokenizer: &start.tokenizer, template: start.template.as_ref(), max_len: seq_len };
        let encode = |prompt: Prompt| -> Result<Prompted> {
            let ids = encoder.prompt(&prompt.prompt)?;
            let (text, answer_field) = (prompt.prompt.last_text(), recipe.data.field("answer"));
            Ok(Prompted { text, ids, row: prompt.row, answer_field })
        };
        let all = |prompts: Vec<Prompt>| prompts.into_iter().map(encode).collect::<Result<Vec<_>>>();
        let (train, held_out) = (all(train)?, all(held_out)?);
        let eos = start.tokenizer.eos_id();
        let chat_end = start.tokenizer.stop_ids().into_iter().find(|&id| Some(id) != eos);
        let answers = (train.len() * recipe.rl.samples(recipe.stage)) as u64;
        Ok(Self { train, held_out, chat_end, answers, description })
    }
}

fn settings(recipe: &Recipe, (batch, micro_batch): (usize, usize)) -> RolloutSettings {
    let (rl, stage) = (&recipe.rl, recipe.stage);
    RolloutSettings {
        stage,
        batch,
        micro_batch,
        samples: rl.samples(stage),
        max_new_tokens: rl.max_new_tokens,
        temperature: rl.temperature as f32,
        iterations: rl.iterations(stage),
        minibatches: rl.minibatches,
        beta: rl.beta(stage),
        kl: rl.kl,
        target_kl: rl.target_kl,
        scale: rl.scale_rewards,
        gamma: rl.gamma,
        lambda: rl.lambda,
        missing_end_penalty: rl.missing_end_penalty.unwrap_or(0.0),
        seed: recipe.seed,
        precision: Settings::of(recipe).precision,
    }
}

impl StageData for Prompts {
    fn sequences(&self) -> u64 {
        self.answers
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn chat_end(&self) -> Option<u32> {
        self.chat_end
    }

    fn train(&self, run: StageRun<'_>) -> Result<Summary> {
        let (recipe, start) = (run.recipe, run.start);
        let (rl, stage) = (&recipe.rl, recipe.stage);
        let settings = settings(recipe, run.rows());
        let missing = || Error::Examples {
            what: "`rl.reward` is missing".into(),
            hint: "say what gives the rewards, such as reward = { kind = \"garden\" }".into(),
        };
        let reward = rl.reward.as_ref().ok_or_else(missing)?;
        let reward = crate::reward::open(reward, &start.tokenizer, settings.precision)?;
        // A second copy of the weights, only where it is looked at.
        let path = recipe.model.path.as_deref().map(Path::new);
        let path = path.filter(|_| settings.beta > 0.0);
        let reference = with_precision(settings.precision, || path.map(LanguageModel::open_to_run).transpose())?;
        let value_head = (stage == Stage::Ppo).then(|| Parameter::zeros([1, run.model.spec().hidden_size]));
        let rollouts = Rollouts::new(
            (run.model, reference.as_ref()),
            &start.tokenizer,
            (self.train.clone(), self.held_out.clone()),
            reward,
            value_head.clone(),
            settings,
        )?;
        let held_out = HeldOut(&rollouts);
        let (clip, temperature) = (rl.clip(), rl.temperature as f32);
        if let Some(value_head) = value_head {
            let objective = Ppo {
                value_head,
                value_coefficient: rl.value_coefficient as f32,
                value_clip: rl.value_clip as f32,
                clip,
                temperature,
            };
            return run.run(objective, &rollouts, Some(&held_out));
        }
        let kind = match stage {
            Stage::Rloo => PolicyKind::Rloo,
            Stage::Reinforce => PolicyKind::Reinforce,
            _ => PolicyKind::Grpo(rl.normalisation),
        };
        let beta = if stage == Stage::Grpo { rl.beta(stage) as f32 } else { 0.0 };
        run.run(Policy { kind, beta, clip, temperature }, &rollouts, Some(&held_out))
    }
}
