//! The stages of training.

use loam_models::Task;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The next token of plain text.
    Pretrain,
    /// The assistant's tokens of conversations.
    Sft,
    /// The masked tokens of plain text, for models that see both sides.
    MaskedLm,
    /// The target of a source, or what was damaged in a text, for models with an encoder and a decoder.
    Seq2seq,
    /// Classes of texts, or of pairs of texts.
    Classify,
    /// A class for every word (NER).
    TokenClassify,
    /// Where a passage has the answer to a question.
    Qa,
    /// Sentence embeddings: texts near to their paraphrases.
    Contrastive,
    /// A teacher's distribution of the next token, on the assistant's tokens of conversations or of own answers to them.
    Distill,
    /// A number for an answer: the better of two has the larger one.
    Reward,
    /// Preferences, against a reference (direct preference optimisation and its family).
    Dpo,
    /// Answers that are wanted or not.
    Kto,
    /// Preferences, by odds and without a reference.
    Orpo,
    /// Preferences, by likelihood per token and without a reference.
    Simpo,
    /// Preferences, by likelihood and without a reference.
    Cpo,
    /// Rewards of own answers, each against the others to its prompt.
    Grpo,
    /// The same, against the mean of the others.
    Rloo,
    /// The same, against the mean of all.
    Reinforce,
    /// The same, against what a value function expects.
    Ppo,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 19] = [
        Self::Pretrain,
        Self::Sft,
        Self::MaskedLm,
        Self::Seq2seq,
        Self::Classify,
        Self::TokenClassify,
        Self::Qa,
        Self::Contrastive,
        Self::Distill,
        Self::Reward,
        Self::Dpo,
        Self::Kto,
        Self::Orpo,
        Self::Simpo,
        Self::Cpo,
        Self::Grpo,
        Self::Rloo,
        Self::Reinforce,
        Self::Ppo,
    ];

    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Sft => "sft",
            Self::MaskedLm => "masked_lm",
            Self::Seq2seq => "seq2seq",
            Self::Classify => "classify",
            Self::TokenClassify => "token_classify",
            Self::Qa => "qa",
            Self::Contrastive => "contrastive",
            Self::Distill => "distill",
            Self::Reward => "reward",
            Self::Dpo => "dpo",
            Self::Kto => "kto",
            Self::Orpo => "orpo",
            Self::Simpo => "simpo",
            Self::Cpo => "cpo",
            Self::Grpo => "grpo",
            Self::Rloo => "rloo",
            Self::Reinforce => "reinforce",
            Self::Ppo => "ppo",
        }
    }

    /// What the model's head is for.
    pub(crate) fn task(self) -> Task {
        match self {
            Self::Classify | Self::Reward => Task::SequenceClassification,
            Self::TokenClassify => Task::TokenClassification,
            Self::Qa => Task::QuestionAnswering,
            Self::Contrastive => Task::Embedding,
            _ => Task::LanguageModel,
        }
    }

    /// Whether its data are answers that are preferred, wanted or not.
    pub(crate) fn learns_preferences(self) -> bool {
        matches!(self, Self::Reward | Self::Dpo | Self::Kto | Self::Orpo | Self::Simpo | Self::Cpo)
    }

    /// Whether the model's own answers are what it learns from.
    pub(crate) fn is_online(self) -> bool {
        matches!(self, Self::Grpo | Self::Rloo | Self::Reinforce | Self::Ppo)
    }

    /// Whether it reads conversations, preferences or prompts, in any layout of tables that is known.
    pub(crate) fn reads_dialogues(self) -> bool {
        matches!(self, Self::Sft | Self::Distill) || self.learns_preferences() || self.is_online()
    }
}
