//! Texts to vectors.
//!
//! Texts are sorted by length and packed into rows without padding, a few thousand tokens at a time; attention treats
//! each as a sequence of its own. What else is in a row does not change a bit of an embedding.

mod description;
mod pooling;

pub use pooling::Pooling;

use crate::Error;
use description::{Dense, Description};
use loam_chat::Embed;
use loam_formats::HfDir;
use loam_models::{Forward, Input, LanguageModel, Position};
use loam_tensor::{Tensor, no_grad};
use loam_tokenizer::{Special, Tokenizer};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// Tokens per pass: enough for the weights to be read and packed once for many, few enough for the activations to stay in
/// a last-level cache.
const TOKENS_PER_PASS: usize = 2048;

/// How texts become vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedSettings {
    /// How the tokens' vectors become one; several stand side by side.
    pub pooling: Vec<Pooling>,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Tokens of a text that are read, those added around it counted; the rest is cut off.
    pub max_tokens: usize,
}

/// A model that turns texts into vectors.
#[derive(Debug)]
pub struct Embedder {
    model: Arc<LanguageModel>,
    tokenizer: Arc<Tokenizer>,
    dense: Vec<Dense>,
    settings: EmbedSettings,
    is_described: bool,
    lower_case: bool,
    /// How many of the tokens that the tokenizer puts around a text come after it, and how many there are.
    added: (usize, usize),
}

/// Some texts that are computed together.
struct Pass<'a> {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    borders: Vec<usize>,
    /// Which texts.
    texts: &'a [usize],
}

impl Embedder {
    /// Opens a Hugging Face directory with weights and `tokenizer.json`, or a GGUF file. Where the files of sentence-transformers say
    /// how (`modules.json` and what it names), it embeds as they say; else it takes the mean and scales it to length 1.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let described = Description::read(path)?;
        let place = described.as_ref().map_or(path, |d| &d.model).to_owned();
        let tokenizer = Arc::new(Tokenizer::open(&place)?);
        let model = Arc::new(LanguageModel::open_to_run(&place)?);
        Self::over(&place, described, model, tokenizer)
    }

    /// The same with weights that are in memory already: those of the directory or file.
    pub fn share(path: impl AsRef<Path>, model: Arc<LanguageModel>, tokenizer: Arc<Tokenizer>) -> Result<Self, Error> {
        let path = path.as_ref();
        let described = Description::read(path)?;
        let place = described.as_ref().map_or(path, |d| &d.model).to_owned();
        Self::over(&place, described, model, tokenizer)
    }

    fn over(
        place: &Path,
        described: Option<Description>,
        model: Arc<LanguageModel>,
        tokenizer: Arc<Tokenizer>,
    ) -> Result<Self, Error> {
        let spec = model.spec();
        if tokenizer.vocab_size() > spec.vocab_size {
            let token = tokenizer.vocab_size() as u32 - 1;
            return Err(Error::VocabularyMismatch { token, vocab_size: spec.vocab_size });
        }
        if spec.encoder.is_some() {
            let reason = format!("a {} model of two stacks has no hidden states of one text", spec.family);
            return Err(Error::Sentence { path: place.into(), reason });
        }
        let config = if place.is_dir() { HfDir::open(place)?.json("tokenizer_config.json")? } else { None };
        let stated = config.and_then(|config| config["model_max_length"].as_f64());
        // Tokenizers without a limit state a huge one.
        let longest = spec.max_position_embeddings.min(stated.map_or(usize::MAX, |n| n as usize)).max(1);
        let is_described = described.is_some();
        let (pooling, normalize, max_tokens, dense, lower_case) = match described {
            Some(d) => (d.pooling, d.normalize, d.max_tokens.unwrap_or(longest), d.dense, d.lower_case),
            None => (vec![Pooling::Mean], true, longest, Vec::new(), false),
        };
        let added = added_around(&tokenizer)?;
        let settings = EmbedSettings { pooling, normalize, max_tokens: max_tokens.min(Self::context_of(&model)) };
        let mut embedder =
            Self { model, tokenizer, dense, settings: settings.clone(), is_described, lower_case, added };
        embedder.set(settings)?;
        Ok(embedder)
    }

    /// The settings in force.
    pub fn settings(&self) -> &EmbedSettings {
        &self.settings
    }

    /// Whether the model's own files say how it embeds.
    pub fn is_described(&self) -> bool {
        self.is_described
    }

    /// The model.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of features of an embedding.
    pub fn width(&self) -> usize {
        let pooled = self.settings.pooling.len() * self.model.spec().hidden_size;
        self.dense.last().map_or(pooled, Dense::outputs)
    }

    /// Changes the settings.
    pub fn set(&mut self, settings: EmbedSettings) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::EmbedSetting(reason));
        let (around, longest) = (self.added.1, Self::context_of(&self.model));
        if settings.max_tokens <= around || settings.max_tokens > longest {
            let most = if longest == usize::MAX { String::new() } else { format!(" to {longest}") };
            let found = settings.max_tokens;
            return fail(format!("the longest text must be from {}{most} tokens, found {found}", around + 1));
        }
        let mut width = settings.pooling.len() * self.model.spec().hidden_size;
        for dense in &self.dense {
            if dense.width != width {
                return fail(format!("the model's Dense layer takes {} features, pooling gives {width}", dense.width));
            }
            width = dense.outputs();
        }
        if settings.pooling.is_empty() {
            return fail("at least one pooling is needed".into());
        }
        self.settings = settings;
        Ok(())
    }

    /// Where positions come from a table, the table ends; else any length is computed.
    fn context_of(model: &LanguageModel) -> usize {
        match model.spec().stack.position {
            Position::Learned { .. } => model.spec().max_position_embeddings,
            Position::Sinusoidal { .. } | Position::InAttention => usize::MAX,
        }
    }

    /// The ids that a text is read as: with the tokens that the tokenizer adds, and cut such that they stay.
    pub fn tokens<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, Error> {
        let (after, _) = self.added;
        let most = self.settings.max_tokens;
        let encode = |text: &S| {
            let text = text.as_ref();
            let mut ids = match self.lower_case {
                true => self.tokenizer.encode(&text.to_lowercase(), Special::Add)?,
                false => self.tokenizer.encode(text, Special::Add)?,
            };
            if ids.len() > most {
                ids.drain(most - after..ids.len() - after);
            }
            Ok(ids)
        };
        texts.par_iter().map(encode).collect()
    }

    /// One vector per text.
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, Error> {
        self.embed_watched(texts, &mut |_| {})
    }

    /// The same; `watch` is told how many texts are done.
    pub fn embed_watched<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        watch: &mut dyn FnMut(usize),
    ) -> Result<Vec<Vec<f32>>, Error> {
        self.embed_tokens(&self.tokens(texts)?, watch)
    }

    /// The same of texts whose tokens are given, as [`tokens`](Self::tokens) makes them.
    pub fn embed_tokens(&self, tokens: &[Vec<u32>], watch: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>, Error> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        // The longest first, so that progress errs on the side of haste.
        order.sort_by_key(|&text| std::cmp::Reverse(tokens[text].len()));
        let mut vectors = vec![Vec::new(); tokens.len()];
        let mut done = 0;
        for pass in self.passes(tokens, &order) {
            for (&text, vector) in pass.texts.iter().zip(self.vectors(&pass)?) {
                vectors[text] = vector;
            }
            done += pass.texts.len();
            watch(done);
        }
        Ok(vectors)
    }

    fn passes<'a>(&self, tokens: &'a [Vec<u32>], order: &'a [usize]) -> impl Iterator<Item = Pass<'a>> {
        // A bias over distances belongs to one sequence.
        let is_single = self.model.spec().stack.relative_bias.is_some();
        let mut rest = order;
        std::iter::from_fn(move || {
            let mut pass = Pass { tokens: Vec::new(), positions: Vec::new(), borders: vec![0], texts: &[] };
            let mut count = 0;
            for &text in rest {
                let own = &tokens[text];
                if count > 0 && (is_single || pass.tokens.len() + own.len() > TOKENS_PER_PASS) {
                    break;
                }
                pass.tokens.extend(own);
                pass.positions.extend(0..own.len() as u32);
                pass.borders.push(pass.tokens.len());
                count += 1;
            }
            (pass.texts, rest) = rest.split_at(count);
            (count > 0).then_some(pass)
        })
    }

    fn vectors(&self, pass: &Pass<'_>) -> Result<Vec<Vec<f32>>, Error> {
        let width = self.model.spec().hidden_size;
        let hidden = match pass.tokens.is_empty() {
            true => None,
            false => Some(self.hidden(pass)?),
        };
        let hidden = hidden.map_or(Vec::new(), |hidden| hidden.to_vec());
        let of = |border: &[usize]| self.finished(&hidden[border[0] * width..border[1] * width]);
        Ok(pass.borders.par_windows(2).map(of).collect())
    }

    fn hidden(&self, pass: &Pass<'_>) -> Result<Tensor, Error> {
        let is_alone = pass.texts.len() == 1;
        let input = Input {
            positions: (!is_alone).then_some(&pass.positions),
            runs: (!is_alone).then(|| Arc::from(&pass.borders[..])),
            ..Input::rows(&pass.tokens, 1)
        };
        Ok(no_grad(|| self.model.hidden(&input, Forward::default()))?)
    }

    /// The embedding of a text with these hidden states.
    fn finished(&self, hidden: &[f32]) -> Vec<f32> {
        let mut vector = Vec::with_capacity(self.width());
        for pooling in &self.settings.pooling {
            pooling.pool(hidden, self.model.spec().hidden_size, &mut vector);
        }
        for dense in &self.dense {
            vector = dense.forward(&vector);
        }
        if self.settings.normalize {
            let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm.max(1e-12)) as f32);
        }
        vector
    }
}

impl Embed for Embedder {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, loam_chat::Error> {
        Ok(Embedder::embed(self, texts)?)
    }
}

/// How many tokens the tokenizer puts after a text, and how many around it.
fn added_around(tokenizer: &Tokenizer) -> Result<(usize, usize), Error> {
    // A letter that every vocabulary reads as something, if only as the unknown.
    let (bare, full) = (tokenizer.encode("a", Special::Parse)?, tokenizer.encode("a", Special::Add)?);
    let around = full.len().saturating_sub(bare.len());
    let at = (0..=around).find(|&at| !bare.is_empty() && full[at..].starts_with(&bare));
    Ok((at.map_or(0, |before| around - before), around))
}
