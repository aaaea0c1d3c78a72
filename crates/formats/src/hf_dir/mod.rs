//! A model as a directory, the way Hugging Face lays it out: `config.json`, weights in one or several files
//! (safetensors; PyTorch's own are read too), the tokenizer's files.

mod read;
mod weights;
mod write;

pub use read::HfDir;
pub use weights::Weights;
pub use write::HfWriter;

/// Architecture and its numbers.
pub const CONFIG: &str = "config.json";
/// Defaults of sampling, and the ids that start and end a text.
pub const GENERATION_CONFIG: &str = "generation_config.json";
/// Weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// Which of several weight files holds which tensor.
pub const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Weights in one file of PyTorch's, as models were published before safetensors.
pub const TORCH_WEIGHTS: &str = "pytorch_model.bin";
/// Which of several PyTorch files holds which tensor.
pub const TORCH_WEIGHTS_INDEX: &str = "pytorch_model.bin.index.json";
/// The whole tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// What the tokenizer's file does not say: special tokens by role, longest input, chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The chat template as a file of its own.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Every file that may belong to a tokenizer; copied along when a model is converted.
pub const TOKENIZER_FILES: [&str; 11] = [
    TOKENIZER,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
];
