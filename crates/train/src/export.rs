//! The trained model as a directory that other tools open.

use std::path::Path;

use loam_formats::{HfWriter, atomic};
use loam_models::{LanguageModel, Spec, Task, footprint};
use loam_tokenizer::{ChatTemplate, DirectoryOptions, Tokenizer, save_directory};
use serde_json::{Map, Value, json};

use crate::error::Result;

/// What goes into a model directory besides the weights.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// How it talks, if it does.
    pub template: Option<&'a ChatTemplate>,
    /// The token that ends the assistant's turn, for a model that talks.
    pub chat_end: Option<u32>,
    /// The model card.
    pub card: &'a str,
}

/// Writes the directory in Hugging Face layout, whole or not at all.
pub fn export_model(path: &Path, export: &Export<'_>) -> Result<()> {
    atomic::replace_dir(path, |dir| -> Result<()> {
        let writer = HfWriter::create(dir)?;
        export.model.save(&writer, None)?;
        let options = DirectoryOptions {
            template: export.template,
            model_max_length: Some(export.model.spec().max_position_embeddings),
        };
        save_directory(dir, export.tokenizer, options)?;
        let spec = export.model.spec();
        if spec.head.task == Task::LanguageModel && (spec.is_causal() || spec.encoder.is_some()) {
            writer.generation_config(&generation_config(export))?;
        }
        if spec.head.task == Task::Embedding {
            sentence_transformer(&writer, spec)?;
        }
        writer.text("README.md", export.card)?;
        Ok(())
    })
}

/// What sentence-transformers reads besides: the mean of the hidden states, brought to length one.
fn sentence_transformer(writer: &HfWriter, spec: &Spec) -> Result<()> {
    let module = |index: usize, path: &str, kind: &str| json!({"idx": index, "name": index.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules =
        [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Normalize", "Normalize")];
    let pooling = json!({"word_embedding_dimension": spec.hidden_size, "pooling_mode_mean_tokens": true});
    let reading = json!({"max_seq_length": spec.max_position_embeddings, "do_lower_case": false});
    writer.json("modules.json", &json!(modules))?;
    writer.json("sentence_bert_config.json", &reading)?;
    Ok(writer.json("1_Pooling/config.json", &pooling)?)
}

/// `generation_config.json`: a model that talks stops where the assistant's turn ends.
fn generation_config(export: &Export<'_>) -> Value {
    let mut ends: Vec<u32> = export.chat_end.into_iter().chain(export.tokenizer.eos_id()).collect();
    ends.dedup();
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.into(), value);
    if let Some(bos) = export.tokenizer.bos_id() {
        set("bos_token_id", json!(bos));
    }
    match ends[..] {
        [] => None,
        [one] => set("eos_token_id", json!(one)),
        _ => set("eos_token_id", json!(ends)),
    };
    if let Some(start) = export.model.config().get("decoder_start_token_id") {
        set("decoder_start_token_id", start.clone());
    }
    if let Some(pad) = export.tokenizer.pad_id() {
        set("pad_token_id", json!(pad));
    }
    Value::Object(config)
}

/// What the model card says about where a model comes from.
pub struct CardFacts<'a> {
    /// Name of the run.
    pub name: &'a str,
    /// `pretrain` or `sft`.
    pub stage: &'a str,
    /// The model it was made from.
    pub base: Option<&'a str>,
    /// Steps, and tokens read.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Held-out loss in nats per token, with bits per byte where known.
    pub held_out: Option<(f64, Option<f64>)>,
    /// The resolved recipe.
    pub recipe: &'a str,
}

/// How a model is used, in the words of the hub and of transformers.
struct Usage {
    pipeline: &'static str,
    class: &'static str,
    command: &'static str,
}

impl Usage {
    fn of(spec: &Spec) -> Self {
        let (pipeline, class, command) = match spec.head.task {
            Task::LanguageModel if spec.encoder.is_some() => {
                ("text2text-generation", "AutoModelForSeq2SeqLM", "loam generate . \"A source\" --beams 4")
            }
            Task::LanguageModel if !spec.is_causal() => {
                ("fill-mask", "AutoModelForMaskedLM", "loam model logits . --tokens 1,2,3")
            }
            Task::LanguageModel => ("text-generation", "AutoModelForCausalLM", "loam generate . \"Once\""),
            Task::Embedding => ("sentence-similarity", "AutoModel", "loam embed . \"A text\" \"Another text\""),
            Task::SequenceClassification => {
                ("text-classification", "AutoModelForSequenceClassification", "loam model show .")
            }
            Task::TokenClassification => {
                ("token-classification", "AutoModelForTokenClassification", "loam model show .")
            }
            Task::QuestionAnswering => ("question-answering", "AutoModelForQuestionAnswering", "loam model show ."),
        };
        Self { pipeline, class, command }
    }
}

/// `README.md` of a model directory.
pub fn model_card(model: &LanguageModel, facts: &CardFacts<'_>) -> String {
    let counts = footprint(model.spec());
    let usage = Usage::of(model.spec());
    let base = facts.base.map_or(String::new(), |base| format!("base_model: {base}\n"));
    let held_out = match facts.held_out {
        None => "not measured".into(),
        Some((loss, None)) => format!("{loss:.4} nats per token"),
        Some((loss, Some(bits))) => format!("{loss:.4} nats per token, {bits:.4} bits per byte"),
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: {pipeline}\ntags:\n- loam\n- {stage}\n{base}---\n\n\
         # {name}\n\nTrained with Loam {version} (stage `{stage}`).\n\n\
         | | |\n|---|---|\n| architecture | {summary} |\n| parameters | {parameters} |\n| steps | {steps} |\n\
         | tokens read | {tokens} |\n| held-out loss | {held_out} |\n\n\
         ## Use\n\n```sh\n{command}\n```\n\n```python\n\
         from transformers import {class}, AutoTokenizer\n\
         model, tokenizer = {class}.from_pretrained(\".\"), AutoTokenizer.from_pretrained(\".\")\n```\n\n\
         ## Recipe\n\n```toml\n{recipe}```\n",
        pipeline = usage.pipeline,
        command = usage.command,
        class = usage.class,
        stage = facts.stage,
        name = facts.name,
        version = env!("CARGO_PKG_VERSION"),
        summary = model.spec().summary(),
        parameters = counts.parameters,
        steps = facts.steps,
        tokens = facts.tokens,
        recipe = facts.recipe,
    )
}
