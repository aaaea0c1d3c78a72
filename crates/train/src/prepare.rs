//! What a run starts from: tokenizer, model, data.

mod answers;
mod chats;
mod labelled;
mod lessons;
mod online;
mod pairs;
mod rated;
mod records;
mod reference;
mod start;
mod text;

use std::path::Path;

use loam_models::{LanguageModel, Task};
use serde_json::Value;

pub(crate) use start::Start;

use crate::adapter::AdapterRun;
use crate::batch::{Source, Validation};
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::recipe::{Noise, Recipe, Stage};
use crate::run_dir::RunDir;
use crate::trainer::{Hooks, Observer, Settings, Summary, Trainer};
use chats::Chats;
use pairs::Pairs;
use text::Text;

/// The data of a stage, ready to be drawn from.
pub(crate) trait StageData {
    /// Training sequences in one pass over the data.
    fn sequences(&self) -> u64;

    /// What `environment.json` says about it.
    fn description(&self) -> Value;

    /// The token that ends the assistant's turn, where conversations are trained on.
    fn chat_end(&self) -> Option<u32> {
        None
    }

    /// Positions of a target, where sequences have two sides.
    fn target_len(&self) -> Option<usize> {
        None
    }

    /// Trains with the stage's objective.
    fn train(&self, run: StageRun<'_>) -> Result<Summary>;
}

/// A stage about to run.
pub(crate) struct StageRun<'a> {
    /// What the run starts from.
    pub(crate) start: &'a Start,
    /// The model.
    pub(crate) model: &'a LanguageModel,
    /// The recipe with every default filled in.
    pub(crate) recipe: &'a Recipe,
    /// Where the run keeps its files.
    pub(crate) dir: &'a RunDir,
    /// Whether it goes on from a checkpoint.
    pub(crate) resume: bool,
    /// The outside.
    pub(crate) hooks: Hooks<'a>,
    /// The adapter that is trained instead of the model.
    pub(crate) adapter: Option<&'a AdapterRun>,
}

impl StageRun<'_> {
    /// Sequences per step, and per forward pass.
    fn rows(&self) -> (usize, usize) {
        let batch = self.recipe.train.batch.unwrap_or(1);
        (batch, self.recipe.train.micro_batch.unwrap_or(batch))
    }

    /// Runs the loop.
    fn run<O: Objective>(
        mut self,
        mut objective: O,
        source: &dyn Source<O::Batch>,
        validation: Option<&dyn Validation<O::Batch>>,
    ) -> Result<Summary> {
        Trainer::new(self.model, &mut objective, source, validation, Settings::of(self.recipe))
            .with_adapter(self.adapter)
            .in_run_dir(self.dir, self.resume, self.hooks.observer)?
            .run(&mut self.hooks)
    }
}

/// Reads, encodes and splits the data of a recipe.
pub(crate) fn open_data(
    recipe: &Recipe,
    start: &Start,
    cache_dir: &Path,
    observer: &mut dyn Observer,
) -> Result<Box<dyn StageData>> {
    check_stage(recipe.stage, start)?;
    let (seq_len, context) = (recipe.seq_len(start.model.spec()), start.model.spec().max_position_embeddings);
    if seq_len > context {
        return Err(Error::Examples {
            what: format!("data.seq_len is {seq_len}, longer than the model's context of {context}"),
            hint: "lower data.seq_len, or make a model with a longer context".into(),
        });
    }
    Ok(match recipe.stage {
        Stage::Seq2seq if recipe.data.noise == Noise::None => Box::new(Pairs::open(recipe, start, seq_len, observer)?),
        Stage::Pretrain | Stage::MaskedLm | Stage::Seq2seq => {
            Box::new(Text::open(recipe, start, seq_len, cache_dir, observer)?)
        }
        Stage::Sft => Box::new(Chats::open(recipe, start, seq_len, observer)?),
        Stage::Distill => Box::new(lessons::Lessons::open(recipe, start, seq_len, observer)?),
        Stage::Classify => Box::new(labelled::classify(recipe, start, seq_len, observer)?),
        Stage::TokenClassify => Box::new(labelled::token_classify(recipe, start, seq_len, observer)?),
        Stage::Qa => Box::new(labelled::qa(recipe, start, seq_len, observer)?),
        Stage::Contrastive => Box::new(labelled::contrastive(recipe, start, seq_len, observer)?),
        Stage::Kto => Box::new(rated::RatedData::open(recipe, start, seq_len, cache_dir, observer)?),
        stage if stage.learns_preferences() => {
            Box::new(answers::PairData::open(recipe, start, seq_len, cache_dir, observer)?)
        }
        _ => Box::new(online::Prompts::open(recipe, start, seq_len, observer)?),
    })
}

/// Refuses a model of a kind that the stage cannot train.
fn check_stage(stage: Stage, start: &Start) -> Result<()> {
    let spec = start.model.spec();
    let (fits, needed, families) = match stage {
        stage
            if stage.learns_preferences()
                || stage.is_online()
                || matches!(stage, Stage::Pretrain | Stage::Sft | Stage::Distill) =>
        {
            (spec.encoder.is_none() && spec.is_causal(), "a model that writes from left to right", "`llama` or `gpt2`")
        }
        Stage::MaskedLm => (!spec.is_causal(), "a model that sees both sides", "`bert` or `modernbert`"),
        Stage::Seq2seq => (spec.encoder.is_some(), "a model with an encoder and a decoder", "`t5` or `bart`"),
        _ => (spec.encoder.is_none(), "a model of one stack", "`bert` or `modernbert`"),
    };
    if fits && (stage != Stage::MaskedLm || spec.head.task == Task::LanguageModel) {
        return Ok(());
    }
    Err(Error::Examples {
        what: format!("stage `{}` needs {needed}, and a {} model is none", stage.name(), spec.family),
        hint: format!("take a family such as {families}"),
    })
}
