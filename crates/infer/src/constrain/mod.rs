//! Text that obeys a grammar: JSON of a schema, a regular expression, a context-free grammar.
//!
//! A [`ConstraintCompiler`] knows the vocabulary; it is made once per model. A [`Constraint`] is a compiled [`Grammar`],
//! made once and shared; [`Constraint::start`] gives each sequence its own [`Matcher`], which says before every draw which
//! tokens may come, and follows the one that was drawn. An end token may come only where the text is complete.
//!
//! Tokens are chosen freely among all spellings of a text, as the model likes; that text is forced here and there is no
//! reason to skip the model for it.
//!
//! What cannot be obeyed is an error, never ignored. The parser is `llguidance`.

mod gbnf;
mod schema;

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher as Inner, ParserFactory};
use loam_tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::Error;

/// What a text shall look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that is valid under a schema (2020-12, and what is common in earlier drafts). Properties come in the order of
    /// the schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A whole match of a regular expression, in the syntax of Rust's `regex`.
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark, from its rule `start`.
    Lark(String),
    /// A context-free grammar as llama.cpp writes it, from its rule `root`.
    Gbnf(String),
    /// A Lark grammar some of whose rules stand for JSON of a schema: their names and schemas. What is wrong with a schema
    /// is an error at its own place.
    LarkWithJson(String, Vec<(String, Value)>),
}

/// Compiles grammars for one vocabulary.
#[derive(Clone)]
pub struct ConstraintCompiler {
    factory: Arc<ParserFactory>,
}

impl std::fmt::Debug for ConstraintCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let vocab_size = self.factory.tok_env().tok_trie().vocab_size();
        f.debug_struct("ConstraintCompiler").field("vocab_size", &vocab_size).finish_non_exhaustive()
    }
}

impl ConstraintCompiler {
    /// A compiler for texts of `tokenizer` that end at `stop_ids`. An error where a token has no text of its own, as in
    /// WordPiece.
    pub fn new(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Result<Self, Error> {
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie(tokenizer, stop_ids)?));
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| invalid(&error))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Self { factory: Arc::new(factory) })
    }

    /// Compiles a grammar. What is not supported is an error, with its place in the schema where it is one.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        match grammar {
            Grammar::JsonSchema(schema) => {
                schema::compile(schema, &|schema| self.build(TopLevelGrammar::from_json_schema(schema)))
            }
            Grammar::JsonObject => self.compile(&Grammar::JsonSchema(json!({"type": "object"}))),
            Grammar::Regex(regex) => self.build(TopLevelGrammar::from_regex(regex)),
            Grammar::Lark(lark) => self.build(TopLevelGrammar::from_lark(lark.clone())),
            Grammar::LarkWithJson(lark, schemas) => {
                let mut whole = lark.clone();
                for (name, schema) in schemas {
                    self.compile(&Grammar::JsonSchema(schema.clone()))?;
                    whole.push_str(&format!("\n{name}: %json {}\n", schema::prepared(schema)));
                }
                self.build(TopLevelGrammar::from_lark(whole))
            }
            Grammar::Gbnf(gbnf) => self.build(TopLevelGrammar::from_lark(gbnf::to_lark(gbnf)?)),
        }
    }

    fn build(&self, grammar: TopLevelGrammar) -> Result<Constraint, Error> {
        let mut fresh = Inner::new(self.factory.create_parser(grammar));
        if let Some(error) = fresh.get_error() {
            return Err(invalid(&error));
        }
        // A warning says that something is not obeyed to the letter.
        match fresh.grammar_warnings().first() {
            Some(warning) => Err(invalid(warning)),
            None => {
                let constraint = Constraint { fresh: Arc::new(fresh) };
                // What allows nothing to begin with, such as a definition that is itself, shows only now.
                constraint.start().allowed()?;
                Ok(constraint)
            }
        }
    }
}

/// A compiled grammar.
#[derive(Clone)]
pub struct Constraint {
    fresh: Arc<Inner>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// What follows one sequence, from its first token on.
    pub fn start(&self) -> Matcher {
        Matcher { inner: self.fresh.deep_clone() }
    }
}

/// Follows the text of one sequence.
#[derive(Clone)]
pub struct Matcher {
    inner: Inner,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}

/// The tokens that may come next.
#[derive(Debug, Clone)]
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether a token may come; one outside of the vocabulary may not.
    pub fn contains(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }
}

impl Matcher {
    /// Which tokens may come now: all that leave a way to a complete text, and end tokens where it is complete.
    pub fn allowed(&mut self) -> Result<Allowed, Error> {
        self.inner.compute_mask_or_eos().map(Allowed).map_err(|error| invalid(&error))
    }

    /// Goes on by a token, which must be an allowed one.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        self.inner.consume_token(token).map_err(|error| invalid(&error))
    }

    /// Whether the text could end here.
    pub fn is_complete(&mut self) -> Result<bool, Error> {
        self.inner.is_accepting().map_err(|error| invalid(&error))
    }

    /// Whether nothing more can come.
    pub fn is_finished(&self) -> bool {
        self.inner.is_stopped()
    }
}

/// All tokens by their bytes.
fn trie(tokenizer: &Tokenizer, stop_ids: &[u32]) -> Result<TokTrie, Error> {
    let special = |id: u32| {
        let name = tokenizer.id_to_token(id).unwrap_or_default();
        [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
    };
    let word = |(id, bytes): (u32, Option<Vec<u8>>)| match bytes {
        _ if stop_ids.contains(&id) => special(id),
        // No text contains the byte that marks special tokens: it is not part of any character.
        Some(bytes) if bytes[0] != TokTrie::SPECIAL_TOKEN_MARKER => bytes,
        Some(_) => Vec::new(),
        None if tokenizer.is_special(id) => special(id),
        None => Vec::new(),
    };
    let words: Vec<Vec<u8>> = (0..).zip(tokenizer.token_bytes()?).map(word).collect();
    let ends: Vec<u32> = stop_ids.iter().copied().filter(|id| (*id as usize) < words.len()).collect();
    let info = TokRxInfo::new(words.len() as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
    let trie = TokTrie::from(&info, &words);
    Ok(if ends.is_empty() { trie } else { trie.with_eos_tokens(&ends) })
}

/// The first part of a message of the library, which goes on with its state.
fn invalid(error: &impl ToString) -> Error {
    let reason = error.to_string();
    Error::Grammar { reason: reason.split("\n<").next().unwrap_or_default().trim().to_owned() }
}
