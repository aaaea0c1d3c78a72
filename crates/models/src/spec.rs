//! [`Spec`]: a model as data. A family translates `config.json` into one; the stacks run it.

use loam_nn::{Activation, AttentionConfig, ExpertsConfig, FeedForwardConfig, NormConfig, RopeConfig};

/// How tokens learn where they are, before the first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A learned vector per position, added to the token's (GPT-2, BERT).
    Learned {
        /// Rows of the table before that of position 0 (OPT and RoBERTa have two).
        offset: usize,
    },
    /// Sines and cosines of fixed frequencies, added (Vaswani et al. 2017, section 3.5).
    Sinusoidal {
        /// Whether sines and cosines alternate, as in the paper; else the first half is sines (Marian).
        interleaved: bool,
    },
    /// Not at all: attention knows, by rotation or by biases.
    InAttention,
}

/// A learned bias on the scores by how far apart query and key are (Raffel et al. 2020, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeBias {
    /// Classes of distance.
    pub num_buckets: usize,
    /// Distances from which on all fall into the last class.
    pub max_distance: usize,
}

/// Where a block's norms are, and what its two halves read. x is the block's input, A attention, F the feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `y = x + A(norm(x))`, then `y + F(norm(y))`.
    PreNorm,
    /// `y = norm(x + A(x))`, then `norm(y + F(y))` (the original Transformer, BERT).
    PostNorm,
    /// `y = x + norm(A(norm(x)))`, then `y + norm(F(norm(y)))` (Gemma 2).
    Sandwich,
    /// `x + A(norm(x)) + F(norm'(x))` (GPT-NeoX).
    Parallel,
    /// `x + A(norm(x)) + F(norm(x))`, one norm for both (PaLM, GPT-J).
    ParallelSharedNorm,
}

/// One block: attention, perhaps attention to a memory, and a feed-forward around a residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSpec {
    /// How its parts are joined.
    pub residual: Residual,
    /// Its norms.
    pub norm: NormConfig,
    /// Whether attention has a norm of its own (ModernBERT's first block has not).
    pub has_attention_norm: bool,
    /// Rotation of queries and keys.
    pub rope: Option<RopeConfig>,
    /// Attention.
    pub attention: AttentionConfig,
    /// Attention to an encoder's output, after the first, with a norm and a residual of its own.
    pub cross_attention: Option<AttentionConfig>,
    /// Feed-forward, or each of the experts.
    pub feed_forward: FeedForwardConfig,
    /// Experts and their router, where there is more than one feed-forward.
    pub experts: Option<ExpertsConfig>,
}

impl LayerSpec {
    /// Attention and a feed-forward, without rotation.
    pub fn new(
        residual: Residual,
        norm: NormConfig,
        attention: AttentionConfig,
        feed_forward: FeedForwardConfig,
    ) -> Self {
        let (rope, cross_attention, experts) = (None, None, None);
        Self { residual, norm, has_attention_norm: true, rope, attention, cross_attention, feed_forward, experts }
    }
}

/// Blocks, and what comes before and after them.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSpec {
    /// Positions.
    pub position: Position,
    /// Relative positions, the same in all blocks.
    pub relative_bias: Option<RelativeBias>,
    /// Norm of the embeddings (BERT, BART).
    pub embedding_norm: Option<NormConfig>,
    /// Blocks, first to last.
    pub layers: Vec<LayerSpec>,
    /// Norm after the last block.
    pub final_norm: Option<NormConfig>,
}

impl StackSpec {
    /// Blocks whose norm comes first, and once more at the end.
    pub fn pre_norm(position: Position, layers: Vec<LayerSpec>) -> Self {
        let final_norm = layers.first().map(|layer| layer.norm);
        Self { position, relative_bias: None, embedding_norm: None, layers, final_norm }
    }

    /// Blocks whose norm comes last; one more at the beginning.
    pub fn post_norm(position: Position, layers: Vec<LayerSpec>) -> Self {
        let embedding_norm = layers.first().map(|layer| layer.norm);
        Self { position, relative_bias: None, embedding_norm, layers, final_norm: None }
    }
}

/// What a model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Probabilities of tokens: the next ones, or the masked ones.
    LanguageModel,
    /// Nothing but hidden states.
    Embedding,
    /// One or more scores per sequence.
    SequenceClassification,
    /// Scores per token.
    TokenClassification,
    /// For every token, how likely an answer starts and ends there.
    QuestionAnswering,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 5] = [
        Self::LanguageModel,
        Self::Embedding,
        Self::SequenceClassification,
        Self::TokenClassification,
        Self::QuestionAnswering,
    ];

    /// Name of the head's parameters.
    pub fn module(self) -> &'static str {
        match self {
            Self::LanguageModel => "lm_head",
            Self::Embedding => "pooler",
            Self::SequenceClassification => "classifier",
            Self::TokenClassification => "token_classifier",
            Self::QuestionAnswering => "qa_outputs",
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LanguageModel => "tokens",
            Self::Embedding => "nothing",
            Self::SequenceClassification => "sequence classification",
            Self::TokenClassification => "token classification",
            Self::QuestionAnswering => "question answering",
        })
    }
}

/// Which hidden states a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Every one.
    Every,
    /// The first of a sequence.
    First,
    /// The last of a sequence.
    Last,
    /// The mean over a sequence.
    Mean,
}

/// What a head does to a hidden state before it scores: `norm(activation(W x + b))`, without change of width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformSpec {
    /// Whether there is a b.
    pub has_bias: bool,
    /// Non-linearity.
    pub activation: Activation,
    /// Norm.
    pub norm: Option<NormConfig>,
}

/// What turns hidden states into scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadSpec {
    /// What for.
    pub task: Task,
    /// What it reads.
    pub reads: Reads,
    /// What comes first.
    pub transform: Option<TransformSpec>,
    /// Scores; the vocabulary is not counted here.
    pub num_labels: usize,
    /// Whether scores have a bias.
    pub has_bias: bool,
    /// Whether that bias is no weight but a constant (BART).
    pub is_bias_frozen: bool,
    /// Factor on what a language model's head reads (T5).
    pub scale: Option<f32>,
}

impl HeadSpec {
    /// One product with the head's or the token table's weight.
    pub fn tokens() -> Self {
        Self::labels(Task::LanguageModel, Reads::Every, 0)
    }

    /// `num_labels` scores for what is read.
    pub fn labels(task: Task, reads: Reads, num_labels: usize) -> Self {
        Self { task, reads, transform: None, num_labels, has_bias: false, is_bias_frozen: false, scale: None }
    }
}

/// A whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Family name, as `model_type` writes it.
    pub family: &'static str,
    /// Tokens it knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest context it was made for.
    pub max_position_embeddings: usize,
    /// Kinds of token, each with a vector of its own (BERT's first and second sentence); 0 is none.
    pub type_vocab_size: usize,
    /// Factor on token embeddings (Gemma).
    pub embedding_scale: Option<f32>,
    /// The stack whose output the head reads.
    pub stack: StackSpec,
    /// The stack that reads the source, whose output the other one's cross-attention looks at.
    pub encoder: Option<StackSpec>,
    /// The head.
    pub head: HeadSpec,
    /// Soft cap of the logits (Gemma 2).
    pub final_logit_softcapping: Option<f32>,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of fresh weights; where they are scaled by their inputs, a factor on it.
    pub initializer_range: f32,
    /// Whether fresh weights have a standard deviation of one over the root of their inputs, queries smaller still, and
    /// embeddings of one (T5, whose scores are not scaled).
    pub is_scaled_by_inputs: bool,
}

impl Spec {
    /// Whether positions see only what came before: such a model can write.
    pub fn is_causal(&self) -> bool {
        self.stack.layers.iter().all(|layer| layer.attention.is_causal)
    }

    /// All blocks, the encoder's first.
    pub fn all_layers(&self) -> impl Iterator<Item = &LayerSpec> {
        self.encoder.iter().chain([&self.stack]).flat_map(|stack| &stack.layers)
    }

    /// Widest head times heads: the sizes a reader asks for first, as one line.
    pub fn summary(&self) -> String {
        let layer = &self.stack.layers[0];
        let layers = match &self.encoder {
            Some(encoder) => format!("{} + {}", encoder.layers.len(), self.stack.layers.len()),
            None => self.stack.layers.len().to_string(),
        };
        format!(
            "{}: {layers} layers, hidden {}, {} heads ({} kv) of {}, feed-forward {}, vocabulary {}, context {}",
            self.family,
            self.hidden_size,
            layer.attention.num_attention_heads,
            layer.attention.num_key_value_heads,
            layer.attention.head_dim,
            layer.feed_forward.intermediate_size,
            self.vocab_size,
            self.max_position_embeddings
        )
    }
}
