//! A model that is served: files, engine, and what is made of them once.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use loam_chat::{Message, Part};
use loam_formats::{Gguf, HfDir};
use loam_infer::scheduler::AdapterId;
use loam_infer::{Constraint, ConstraintCompiler, Embedder, Grammar, OpenModel, SchedulerSettings};
use loam_models::{KvType, LanguageModel, Task};
use loam_tokenizer::{Special, Tokenizer};

use crate::engine::Engine;
use crate::error::{ApiError, Error};
use crate::params::Wanted;
use crate::tools::{self, Format, Tools};

/// Compiled constraints that are kept: clients send the same schema again and again.
const KEPT_CONSTRAINTS: usize = 64;

/// A model with its files open, before the server starts.
#[derive(Debug)]
pub struct ServedModel {
    name: String,
    open: Option<OpenModel>,
    embedder: Option<Embedder>,
    draft: Option<Arc<LanguageModel>>,
}

impl ServedModel {
    /// Opens a directory under a name that clients call it by. A causal language model, or one of two stacks, writes; any
    /// model of one stack embeds.
    pub fn open(name: impl Into<String>, path: impl AsRef<Path>) -> Result<Self, Error> {
        let (name, path) = (name.into(), path.as_ref());
        // Directories of sentence-transformers keep the model in one of their own.
        let task = match HfDir::open(path) {
            // A file is opened to be asked what it is.
            _ if Gguf::is_one(path) => Task::LanguageModel,
            Ok(dir) => LanguageModel::task_of(dir.config()).map_err(loam_infer::Error::from)?,
            Err(_) => Task::Embedding,
        };
        let is_described = path.join("modules.json").exists();
        if is_described || task == Task::Embedding {
            return Ok(Self { name, open: None, embedder: Some(Embedder::open(path)?), draft: None });
        }
        if task != Task::LanguageModel {
            let reason = format!("{name} is a model for {task}: language models and embedding models are served");
            return Err(Error::Setting(reason));
        }
        let open = OpenModel::open(path)?;
        let spec = open.model.spec();
        let embedder = match spec.encoder {
            None => Some(Embedder::share(path, Arc::clone(&open.model), Arc::clone(&open.tokenizer))?),
            Some(_) => None,
        };
        let writes = spec.encoder.is_some() || spec.is_causal();
        Ok(Self { name, open: writes.then_some(open), embedder, draft: None })
    }

    /// The name that clients call it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, with a smaller model that guesses what it will write: the texts are the same, and come sooner where the
    /// guesses are right. The smaller model needs the same tokens.
    pub fn with_draft(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let draft = OpenModel::open(path.as_ref())?;
        let Some(open) = &self.open else {
            return Err(Error::Setting(format!("{} writes no text that a draft could guess", self.name)));
        };
        let (own, other) = (&open.tokenizer, &draft.tokenizer);
        let last = own.vocab_size().max(other.vocab_size()) as u32;
        if let Some(id) = (0..last).find(|&id| own.id_to_token(id) != other.id_to_token(id)) {
            let name = |token: Option<String>| token.map_or("nothing".to_owned(), |token| format!("{token:?}"));
            return Err(Error::Setting(format!(
                "{} is no draft for {}: token {id} is {} there and {} here; both need the same tokenizer",
                path.as_ref().display(),
                self.name,
                name(other.id_to_token(id)),
                name(own.id_to_token(id)),
            )));
        }
        Ok(Self { draft: Some(draft.model), ..self })
    }

    /// The weights.
    pub fn weights(&self) -> Option<&LanguageModel> {
        self.open.as_ref().map(|open| &*open.model).or(self.embedder.as_ref().map(Embedder::model))
    }

    pub(crate) fn start(
        self,
        settings: &dyn Fn(usize) -> SchedulerSettings,
        kv_type: KvType,
        pool: &Arc<rayon::ThreadPool>,
    ) -> Result<Model, Error> {
        let text = match self.open {
            Some(open) => Some(Text::start(Arc::new(open), self.draft, settings, kv_type, pool)?),
            None => None,
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let (text, embedder) = (text.map(Arc::new), self.embedder.map(Arc::new));
        Ok(Model { name: self.name, created, text, embedder, adapter: None })
    }
}

/// A model that is being served.
#[derive(Debug)]
pub(crate) struct Model {
    pub name: String,
    pub created: u64,
    text: Option<Arc<Text>>,
    embedder: Option<Arc<Embedder>>,
    /// What its texts go through, where it is a model with an adapter.
    pub adapter: Option<Loaded>,
}

/// An adapter that is in place.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub id: AdapterId,
    /// The model's name.
    pub parent: String,
    pub path: String,
}

/// What writes.
#[derive(Debug)]
pub(crate) struct Text {
    pub open: Arc<OpenModel>,
    pub engine: Engine,
    pub format: Format,
    compiler: OnceLock<Result<ConstraintCompiler, ApiError>>,
    constraints: Mutex<Vec<(Grammar, Constraint)>>,
    bytes: OnceLock<Vec<Option<Vec<u8>>>>,
}

impl Model {
    /// The part that writes.
    pub fn text(&self) -> Result<&Text, ApiError> {
        let message = || format!("{} embeds texts and writes none", self.name);
        self.text.as_deref().ok_or_else(|| ApiError::bad("model", message()))
    }

    /// The part that embeds.
    pub fn embedder(&self) -> Result<&Arc<Embedder>, ApiError> {
        let message = || format!("{} writes texts and embeds none", self.name);
        self.embedder.as_ref().ok_or_else(|| ApiError::bad("model", message()))
    }

    pub fn writes(&self) -> Option<&Text> {
        self.text.as_deref()
    }

    /// The same model with an adapter, under a name of its own. It embeds nothing: vectors are the model's.
    pub fn with_adapter(&self, name: String, adapter: Loaded, created: u64) -> Self {
        Self { name, created, text: self.text.clone(), embedder: None, adapter: Some(adapter) }
    }

    pub fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        match (&self.text, &self.embedder) {
            (Some(text), _) => Ok(&text.open.tokenizer),
            (None, Some(embedder)) => Ok(embedder.tokenizer()),
            (None, None) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the model has no tokenizer")),
        }
    }

    /// Most tokens of a text.
    pub fn context(&self) -> usize {
        match (&self.text, &self.embedder) {
            (Some(text), _) => text.context(),
            (None, Some(embedder)) => embedder.settings().max_tokens,
            (None, None) => 0,
        }
    }

    /// Whether everything that should run does.
    pub fn is_ready(&self) -> bool {
        self.text.as_ref().is_none_or(|text| text.engine.is_alive())
    }
}

impl Text {
    fn start(
        open: Arc<OpenModel>,
        draft: Option<Arc<LanguageModel>>,
        settings: &dyn Fn(usize) -> SchedulerSettings,
        kv_type: KvType,
        pool: &Arc<rayon::ThreadPool>,
    ) -> Result<Self, Error> {
        let settings = settings(open.model.spec().max_position_embeddings);
        let engine = Engine::start(Arc::clone(&open), draft, (settings, kv_type), Arc::clone(pool))?;
        let format = open.template.as_ref().map_or(Format::Told, |template| Format::of_template(template.source()));
        let (compiler, constraints, bytes) = (OnceLock::new(), Mutex::default(), OnceLock::new());
        Ok(Self { open, engine, format, compiler, constraints, bytes })
    }

    /// Most tokens, prompt and answer together.
    pub fn context(&self) -> usize {
        self.open.model.spec().max_position_embeddings
    }

    /// A conversation as the text that the model reads.
    pub fn render(&self, mut messages: Vec<Message>, tools: Option<&Tools>) -> Result<String, ApiError> {
        for (index, message) in messages.iter().enumerate() {
            if let Some(at) = message.content.iter().position(|part| !matches!(part, Part::Text { .. })) {
                let param = format!("messages[{index}].content[{at}]");
                return Err(ApiError::bad(param, "the model reads text alone"));
            }
        }
        // Templates join text with text.
        for message in &mut messages {
            if message.content.len() > 1 {
                message.content = vec![Part::text(message.text())];
            }
        }
        let template = self.open.template.as_ref().ok_or(loam_infer::Error::NoChatTemplate)?;
        let told = tools.map_or_else(Vec::new, |tools| tools.tell(&mut messages));
        if self.format == Format::Told {
            tools::as_text(&mut messages);
        }
        Ok(template.render(&messages, &told, true)?)
    }

    /// The tokens of such a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ApiError> {
        Ok(self.open.tokenizer.encode(text, Special::Parse)?)
    }

    /// Compiles what a text must obey. An error is one of `wanted`'s field.
    pub fn constraint(&self, wanted: &Wanted) -> Result<Constraint, ApiError> {
        let mut kept = self.constraints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = kept.iter().position(|(grammar, _)| *grammar == wanted.grammar) {
            let found = kept.remove(at);
            let constraint = found.1.clone();
            kept.push(found);
            return Ok(constraint);
        }
        drop(kept);
        let constraint = self.compile(&wanted.grammar).map_err(|error| error.about(wanted.param.as_str()))?;
        kept = self.constraints.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_CONSTRAINTS {
            kept.remove(0);
        }
        kept.push((wanted.grammar.clone(), constraint.clone()));
        Ok(constraint)
    }

    fn compile(&self, grammar: &Grammar) -> Result<Constraint, ApiError> {
        let tokenizer = &self.open.tokenizer;
        let compiler = self.compiler.get_or_init(|| {
            ConstraintCompiler::new(tokenizer, &tokenizer.stop_ids())
                .map_err(|error| ApiError::bad("", error.to_string()))
        });
        Ok(compiler.as_ref().map_err(ApiError::clone)?.compile(grammar)?)
    }

    /// The text of a token by itself, and its bytes.
    pub fn spell(&self, id: u32) -> (String, Vec<u8>) {
        let tokenizer = &self.open.tokenizer;
        let bytes = self.bytes.get_or_init(|| tokenizer.token_bytes().unwrap_or_default());
        match bytes.get(id as usize) {
            Some(Some(bytes)) => (String::from_utf8_lossy(bytes).into_owned(), bytes.clone()),
            _ => {
                let text = tokenizer.decode(&[id], false).unwrap_or_default();
                let bytes = text.clone().into_bytes();
                (text, bytes)
            }
        }
    }
}
