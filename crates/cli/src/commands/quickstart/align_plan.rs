//! Numbers and recipes of the second half of the road: a reward model, PPO, DPO, GRPO, and a LoRA for a second task.

use super::plan::{Run, quoted};
use crate::failure::Failure;
use loam_train::Recipe;
use std::path::Path;

/// How much there is to align with, and how long each stage runs. A batch counts pairs (reward, dpo), answers (ppo, grpo) or
/// rows (lora).
#[derive(Debug, Clone, Copy)]
pub struct AlignPlan {
    /// Training pairs.
    pub pairs: usize,
    /// Held-out pairs.
    pub valid_pairs: usize,
    /// Questions whose answers are rewarded.
    pub prompts: usize,
    /// Held-out ones, for the runs' own evaluations.
    pub valid_prompts: usize,
    /// Training examples of the second task.
    pub topics: usize,
    /// Held-out ones.
    pub valid_topics: usize,
    /// The reward model.
    pub reward: Run,
    /// PPO.
    pub ppo: Run,
    /// DPO.
    pub dpo: Run,
    /// GRPO.
    pub grpo: Run,
    /// The LoRA.
    pub lora: Run,
}

/// The full road's.
pub const FULL: AlignPlan = AlignPlan {
    pairs: 8000,
    valid_pairs: 200,
    prompts: 4000,
    valid_prompts: 64,
    topics: 2000,
    valid_topics: 200,
    reward: Run { steps: 400, batch: 24, lr: 1e-3 },
    ppo: Run { steps: 120, batch: 64, lr: 1e-5 },
    dpo: Run { steps: 200, batch: 16, lr: 1e-4 },
    grpo: Run { steps: 60, batch: 64, lr: 4e-5 },
    lora: Run { steps: 120, batch: 4, lr: 5e-3 },
};

/// The fast road's.
pub const FAST: AlignPlan = AlignPlan {
    pairs: 800,
    valid_pairs: 60,
    prompts: 400,
    valid_prompts: 16,
    topics: 400,
    valid_topics: 60,
    reward: Run { steps: 80, batch: 16, lr: 1e-3 },
    ppo: Run { steps: 24, batch: 32, lr: 3e-5 },
    dpo: Run { steps: 40, batch: 16, lr: 1e-4 },
    grpo: Run { steps: 12, batch: 32, lr: 4e-5 },
    lora: Run { steps: 30, batch: 4, lr: 5e-3 },
};

/// Most tokens of an answer that is rewarded; the longest right one has about two thirds of it.
const ANSWER_TOKENS: usize = 32;

/// Files of one part of the data, to train on and held out.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// To train on.
    pub train: &'a Path,
    /// Held out.
    pub valid: &'a Path,
}

/// A recipe from its stage's own lines.
fn recipe(stage: &str, seed: u64, model: &Path, files: Files<'_>, run: &Run, more: &str) -> Result<Recipe, Failure> {
    let text = format!(
        "stage = \"{stage}\"\nseed = {seed}\n[model]\npath = {model}\n\
         [data]\ntrain = [{train}]\nvalidation = [{valid}]\n\
         [train]\nsteps = {steps}\nbatch = {batch}\nlr = {lr}\nweight_decay = 0.0\n\
         sample_every = 0\neval_every = 0\ncheckpoint_every = 0\n{more}",
        model = quoted(model),
        train = quoted(files.train),
        valid = quoted(files.valid),
        steps = run.steps,
        batch = run.batch,
        lr = run.lr,
    );
    Ok(Recipe::parse(&text, Path::new("quickstart"))?)
}

impl AlignPlan {
    /// The reward model.
    pub fn reward_recipe(&self, seed: u64, model: &Path, pairs: Files<'_>) -> Result<Recipe, Failure> {
        recipe("reward", seed, model, pairs, &self.reward, "[preference]\ncentering = 0.01\n")
    }

    /// PPO against a reward model.
    pub fn ppo_recipe(&self, seed: u64, model: &Path, prompts: Files<'_>, reward: &Path) -> Result<Recipe, Failure> {
        let more = format!(
            "schedule = \"constant\"\n[rl]\nreward = {{ kind = \"model\", path = {} }}\nmax_new_tokens = {ANSWER_TOKENS}\n\
             beta = 0.2\niterations = 4\nmissing_end_penalty = 1.0\n",
            quoted(reward)
        );
        recipe("ppo", seed, model, prompts, &self.ppo, &more)
    }

    /// DPO.
    pub fn dpo_recipe(&self, seed: u64, model: &Path, pairs: Files<'_>) -> Result<Recipe, Failure> {
        let more = "[preference]\nloss = [\"sigmoid\", \"sft\"]\nloss_weights = [1.0, 0.2]\nbeta = 0.1\n";
        recipe("dpo", seed, model, pairs, &self.dpo, more)
    }

    /// GRPO with the garden's own scorer.
    pub fn grpo_recipe(&self, seed: u64, model: &Path, prompts: Files<'_>) -> Result<Recipe, Failure> {
        let more = format!(
            "schedule = \"constant\"\n[rl]\nreward = {{ kind = \"garden\" }}\nsamples = 8\nbeta = 0.01\n\
             max_new_tokens = {ANSWER_TOKENS}\nclip_high = 0.28\n"
        );
        recipe("grpo", seed, model, prompts, &self.grpo, &more)
    }

    /// A LoRA on conversations of the second task.
    pub fn lora_recipe(&self, seed: u64, model: &Path, topics: Files<'_>) -> Result<Recipe, Failure> {
        let more = "[peft]\nmethod = \"lora\"\ntargets = [\"all-linear\"]\nr = 8\nalpha = 16.0\n";
        recipe("sft", seed, model, topics, &self.lora, more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_are_valid_also_with_awkward_paths() {
        let path = Path::new("a \"quoted\" dir\\sub/花园.jsonl");
        let files = Files { train: path, valid: path };
        for plan in [FULL, FAST] {
            let recipes = [
                plan.reward_recipe(1, path, files),
                plan.ppo_recipe(1, path, files, path),
                plan.dpo_recipe(1, path, files),
                plan.grpo_recipe(1, path, files),
                plan.lora_recipe(1, path, files),
            ];
            for recipe in recipes {
                recipe.unwrap().validate(path).unwrap();
            }
        }
    }
}
