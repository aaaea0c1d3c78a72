//! Numbers and recipes of quickstart's first half: sizes, lengths, rates. The whole run is meant to take at most six minutes on
//! two cores, `--fast` a minute and a half.

use super::align_plan::{self, AlignPlan};
use loam_train::Recipe;
use std::path::Path;

use crate::failure::Failure;

/// How big the world, the model and the runs are.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Bytes of training text.
    pub train_bytes: usize,
    /// Bytes of held-out text.
    pub valid_bytes: usize,
    /// Training conversations.
    pub chats: usize,
    /// Held-out conversations, for the loss.
    pub valid_chats: usize,
    /// Held-out questions, for the score.
    pub questions: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the model.
    pub hidden_size: usize,
    /// Width of its feed-forward.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest text in tokens.
    pub context: usize,
    /// Pretraining.
    pub pretrain: Run,
    /// Instruction tuning.
    pub sft: Run,
    /// What comes after it.
    pub align: AlignPlan,
}

/// Length and speed of a training run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Optimizer steps.
    pub steps: u64,
    /// Rows of a full context per step; conversations are packed into rows, too.
    pub batch: usize,
    /// Highest learning rate.
    pub lr: f64,
}

/// The full road.
pub const FULL: Plan = Plan {
    train_bytes: 3_000_000,
    valid_bytes: 100_000,
    chats: 12_000,
    valid_chats: 200,
    questions: 300,
    vocab_size: 2048,
    hidden_size: 128,
    intermediate_size: 352,
    layers: 4,
    heads: 4,
    context: 256,
    pretrain: Run { steps: 600, batch: 8, lr: 3e-3 },
    sft: Run { steps: 900, batch: 8, lr: 2e-3 },
    align: align_plan::FULL,
};

/// The road in little more than a minute: enough to see every step, not enough to learn much.
pub const FAST: Plan = Plan {
    train_bytes: 600_000,
    valid_bytes: 30_000,
    chats: 3_000,
    valid_chats: 50,
    questions: 84,
    vocab_size: 1024,
    hidden_size: 96,
    intermediate_size: 256,
    layers: 3,
    heads: 3,
    context: 256,
    pretrain: Run { steps: 160, batch: 8, lr: 4e-3 },
    sft: Run { steps: 450, batch: 8, lr: 4e-3 },
    align: align_plan::FAST,
};

/// Of a user's text, the share at its end that is held out.
const HELD_OUT_TAIL: f64 = 0.05;

/// Where the files of one quickstart lie.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The text that is pretrained on.
    pub text: &'a Path,
    /// Held-out text; `None` takes the end of `text`.
    pub valid: Option<&'a Path>,
    /// The tokenizer's directory.
    pub tokenizer: &'a Path,
    /// Training conversations.
    pub chats: &'a Path,
    /// Held-out conversations.
    pub valid_chats: &'a Path,
    /// The pretrained model, once there is one.
    pub base: &'a Path,
}

impl Plan {
    /// The recipe of pretraining.
    pub fn pretrain_recipe(&self, seed: u64, places: &Places<'_>) -> Result<Recipe, Failure> {
        let held_out = match places.valid {
            Some(valid) => format!("validation = [{}]", quoted(valid)),
            // One long text: windows at random places.
            None => format!("validation_tail = {HELD_OUT_TAIL}\nmode = \"contiguous\""),
        };
        let text = format!(
            "stage = \"pretrain\"\nseed = {seed}\n\
             [model]\nfamily = \"llama\"\nhidden_size = {hidden}\nintermediate_size = {inner}\n\
             num_hidden_layers = {layers}\nnum_attention_heads = {heads}\nnum_key_value_heads = {heads}\n\
             max_position_embeddings = {context}\ntie_word_embeddings = true\n\
             [tokenizer]\npath = {tokenizer}\n\
             [data]\ntrain = [{text}]\n{held_out}\n\
             [train]\nsteps = {steps}\nbatch = {batch}\nlr = {lr}\nweight_decay = 0.1\nsample_tokens = 40\n\
             sample_every = {sample_every}\neval_every = {eval_every}\ncheckpoint_every = 0\n",
            hidden = self.hidden_size,
            inner = self.intermediate_size,
            layers = self.layers,
            heads = self.heads,
            context = self.context,
            tokenizer = quoted(places.tokenizer),
            text = quoted(places.text),
            steps = self.pretrain.steps,
            batch = self.pretrain.batch,
            lr = self.pretrain.lr,
            sample_every = self.pretrain.steps / 4,
            eval_every = self.pretrain.steps / 4,
        );
        Ok(Recipe::parse(&text, Path::new("quickstart"))?)
    }

    /// The recipe of instruction tuning.
    pub fn sft_recipe(&self, seed: u64, places: &Places<'_>) -> Result<Recipe, Failure> {
        let text = format!(
            "stage = \"sft\"\nseed = {seed}\n\
             [model]\npath = {base}\n\
             [data]\ntrain = [{chats}]\nvalidation = [{valid_chats}]\n\
             [train]\nsteps = {steps}\nbatch = {batch}\nlr = {lr}\nweight_decay = 0.1\n\
             sample_every = 0\neval_every = {eval_every}\ncheckpoint_every = 0\n",
            base = quoted(places.base),
            chats = quoted(places.chats),
            valid_chats = quoted(places.valid_chats),
            steps = self.sft.steps,
            batch = self.sft.batch,
            lr = self.sft.lr,
            eval_every = self.sft.steps / 4,
        );
        Ok(Recipe::parse(&text, Path::new("quickstart"))?)
    }
}

/// A path as a TOML text. JSON's escapes are TOML's, too.
pub fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy().as_ref()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_are_valid_also_with_awkward_paths() {
        let path = Path::new("a \"quoted\" dir\\sub/花园.txt");
        for (plan, valid) in [(FULL, Some(path)), (FAST, None)] {
            let places = Places { text: path, valid, tokenizer: path, chats: path, valid_chats: path, base: path };
            let pretrain = plan.pretrain_recipe(1, &places).unwrap();
            pretrain.validate(path).unwrap();
            assert_eq!(pretrain.data.train, [path.to_string_lossy()]);
            plan.sft_recipe(1, &places).unwrap().validate(path).unwrap();
        }
    }
}
