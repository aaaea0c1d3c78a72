//! `loam quickstart`: garden, tokenizer, pretraining, questions, instruction tuning, questions again; then a reward model and
//! PPO, DPO and GRPO from the same tuned model, a LoRA for a second task; a table, a picture, a chat with the best.
//!
//! With `--text` tokenizer and pretraining are on the user's text, and what the model learned shows as continuations of
//! it. The conversations are the garden's all the same (so its texts take part in the vocabulary): they teach the manner
//! of answering, which is what makes a chat possible at all. Of the user's text no questions are known, so nothing is
//! scored, and the road ends after tuning.

mod align;
mod align_plan;
pub mod exam;
mod finish;
mod grow;
mod plan;

use crate::Outcome;
use crate::args::QuickstartArgs;
use crate::commands::data::texts;
use crate::failure::Failure;
use crate::output::{self, Colour, paint_talk};
use crate::progress::{Progress, duration};
use crate::signals::Signals;
use crate::table::{bytes, grouped};
use crate::view::View;
use exam::{Form, Score};
use grow::Grown;
use loam_data::garden::Question;
use loam_tokenizer::{ChatTemplate, DirectoryOptions, Special, Tokenizer, TrainConfig, TrainKind, save_directory};
use loam_train::{Ending, EvalRow, Options, Recipe, RunDir};
use plan::{FAST, FULL, Places, Plan};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One stage of the road and what it came to.
pub struct Stage {
    /// What was done.
    pub name: &'static str,
    /// Loss on held-out text or conversations.
    pub evaluation: Option<EvalRow>,
    /// Held-out questions answered right.
    pub score: Option<Score>,
    /// Share of held-out pairs that a reward model ranks right.
    pub pairs: Option<f64>,
    /// Share of the second task's questions answered right, before and after.
    pub topics: Option<(f64, f64)>,
}

impl Stage {
    /// A row without numbers.
    fn named(name: &'static str) -> Self {
        Self { name, evaluation: None, score: None, pairs: None, topics: None }
    }
}

/// Where the road ends.
struct Arrival {
    stages: Vec<Stage>,
    questions: Vec<Question>,
    /// The directory of the model to talk to.
    model: PathBuf,
}

/// A quickstart on its way.
struct Road<'a> {
    args: &'a QuickstartArgs,
    threads: Option<usize>,
    plan: Plan,
    dir: PathBuf,
    signals: Signals,
    step: usize,
}

pub fn run(args: &QuickstartArgs, threads: Option<usize>) -> Result<Outcome, Failure> {
    let start = Instant::now();
    if let Some(text) = &args.text {
        check_text(text)?;
    }
    let name = if args.text.is_some() { "text" } else { "garden" };
    let plan = if args.fast { FAST } else { FULL };
    let dir = RunDir::fresh_path(&args.dir, "quickstart", name);
    let mut road = Road { args, threads, plan, dir, signals: Signals::listen()?, step: 0 };
    let Some(Arrival { stages, questions, model }) = road.walk()? else {
        output::say("stopped; what was trained so far is kept");
        return Ok(Outcome::Negative);
    };
    output::say("");
    finish::table(&stages)?;
    let picture = finish::picture(&stages, &road.dir)?;
    output::say(&format!("\nDone in {}. Everything is in {}", duration(start.elapsed()), road.dir.display()));
    if let Some(picture) = picture {
        output::say(&format!("The table as a picture: {}", picture.display()));
    }
    finish::talk(&model, &questions, args.text.as_deref(), &road.signals)?;
    Ok(Outcome::Done)
}

/// Refuses a text that cannot be used before any work is done.
fn check_text(path: &Path) -> Result<(), Failure> {
    let mut length = 0;
    for text in texts(&[path.to_string_lossy().into_owned()], "text")? {
        length += text?.len();
    }
    if length < SHORTEST_TEXT {
        return Err(Failure::with_hint(
            format!("{} has {length} bytes of text, too little to learn from", path.display()),
            format!("give a text of at least {}; a megabyte is better", bytes(SHORTEST_TEXT)),
        ));
    }
    Ok(())
}

/// Less text than this does not even fill a few batches.
const SHORTEST_TEXT: usize = 16 << 10;

impl Road<'_> {
    /// All stages. `None` where a signal ended the walk.
    fn walk(&mut self) -> Result<Option<Arrival>, Failure> {
        let grown = self.grow()?;
        let text = self.args.text.as_deref();
        // The conversations are the garden's in any case, so its words are part of the vocabulary, too.
        let tokenizer = self.tokenizer(&text.into_iter().chain([grown.train.as_path()]).collect::<Vec<_>>())?;
        let chats = grow::chats(self.args.seed, &self.plan, &self.dir.join("garden"), &Tokenizer::open(&tokenizer)?)?;
        let (base_run, chat_run) = (self.dir.join("pretrain"), self.dir.join("sft"));
        let (base, model) = (base_run.join("model"), chat_run.join("model"));
        let places = Places {
            text: text.unwrap_or(&grown.train),
            valid: text.is_none().then_some(grown.valid.as_path()),
            tokenizer: &tokenizer,
            chats: &chats.train,
            valid_chats: &chats.valid,
            base: &base,
        };
        self.heading("Pretraining: a fresh model reads the text and learns to guess the next token");
        let recipe = self.plan.pretrain_recipe(self.args.seed, &places)?;
        let Some(pretrained) = self.train(&recipe, &base_run, "pretraining")? else { return Ok(None) };
        let before = self.exam(
            &base,
            &grown.questions,
            Form::Text,
            "Before tuning: held-out questions put to the pretrained model",
        )?;
        self.heading("Instruction tuning: it reads conversations and learns to write the assistant's part");
        let recipe = self.plan.sft_recipe(self.args.seed, &places)?;
        let Some(tuned) = self.train(&recipe, &chat_run, "tuning")? else { return Ok(None) };
        let after =
            self.exam(&model, &grown.questions, Form::Chat, "After tuning: the same questions as a user's messages")?;
        let mut stages = vec![
            Stage { evaluation: pretrained.evaluation, score: before, ..Stage::named("pretrained") },
            Stage { evaluation: tuned.evaluation, score: after.clone(), ..Stage::named("tuned (SFT)") },
        ];
        let mut talker = model.clone();
        if let Some(after) = &after {
            let lessons = grow::lessons(self.args.seed, &self.plan, &self.dir.join("garden"))?;
            let Some(aligned) = self.align(&model, &lessons, &grown.questions)? else { return Ok(None) };
            talker = align::best((model.as_path(), after), &aligned.models).to_owned();
            let mut others = aligned.others.into_iter();
            stages.extend(others.next());
            stages.extend(aligned.models.into_iter().map(|aligned| aligned.stage));
            stages.extend(others);
        }
        Ok(Some(Arrival { stages, questions: grown.questions, model: talker }))
    }

    fn heading(&mut self, text: &str) {
        self.step += 1;
        output::say(&format!("\n{}", paint_talk(Colour::Bold, &format!("{}. {text}", self.step))));
    }

    fn grow(&mut self) -> Result<Grown, Failure> {
        self.heading("The garden: a small world is made up, with stories, facts, sums and conversations about it");
        let grown = grow::grow(self.args.seed, &self.plan, &self.dir.join("garden"))?;
        let (text, chats) = (bytes(self.plan.train_bytes), grouped(self.plan.chats));
        output::say(&format!("{text} of text and {chats} conversations. It begins:"));
        output::say(&paint_talk(Colour::Dim, &first_words(&grown.first, 30)));
        Ok(grown)
    }

    /// Learns a vocabulary from the texts and saves it.
    fn tokenizer(&mut self, files: &[&Path]) -> Result<PathBuf, Failure> {
        self.heading("The tokenizer: frequent pieces of the text become tokens");
        let dir = self.dir.join("tokenizer");
        let config = TrainConfig { vocab_size: self.plan.vocab_size, ..TrainConfig::new(TrainKind::ByteBpe) };
        let mut progress = Progress::new("tokens", self.plan.vocab_size as u64);
        let files: Vec<String> = files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        let texts = texts(&files, "text")?;
        let mut first = None;
        // The first piece is shown afterwards.
        let texts = texts.inspect(|text| first = first.take().or_else(|| Some(first_words(text.as_ref().ok()?, 12))));
        let tokenizer = loam_tokenizer::train(texts, &config, &mut |news| {
            if let loam_tokenizer::Progress::Learning { tokens, .. } = news {
                progress.update(tokens as u64, "");
            }
        })?;
        progress.finish();
        let template = ChatTemplate::chatml();
        save_directory(
            &dir,
            &tokenizer,
            DirectoryOptions { template: Some(&template), model_max_length: Some(self.plan.context) },
        )?;
        let sample = first.unwrap_or_default();
        let per_token = sample.len() as f64 / tokenizer.encode(&sample, Special::Parse)?.len().max(1) as f64;
        output::say(&format!(
            "{} tokens, {per_token:.1} bytes each on average. A text is cut like this:",
            grouped(tokenizer.vocab_size())
        ));
        output::say(&paint_talk(Colour::Dim, &cut(&tokenizer, &sample)?));
        Ok(dir)
    }

    /// Runs a recipe; `None` where a signal ended it.
    fn train(&self, recipe: &Recipe, dir: &Path, name: &str) -> Result<Option<loam_train::Summary>, Failure> {
        let mut recipe = recipe.clone();
        recipe.train.threads = self.threads;
        let mut view = View::new(name, false);
        let options = Options {
            dir: Some(dir.to_owned()),
            runs: self.dir.clone(),
            name: name.to_owned(),
            resume: false,
            cache_dir: self.dir.join("cache"),
            stop: self.signals.stop_flag(),
            observer: &mut view,
        };
        let outcome = loam_train::train(&recipe, Path::new("quickstart"), options)?;
        Ok(Some(outcome.summary).filter(|summary| summary.ending != Ending::Interrupted))
    }

    /// Scores on the garden's questions; nothing for a text of the user's, about which no questions are known.
    fn exam(
        &mut self,
        model: &Path,
        questions: &[Question],
        form: Form,
        heading: &str,
    ) -> Result<Option<Score>, Failure> {
        if self.args.text.is_some() {
            return Ok(None);
        }
        self.heading(heading);
        let score = exam::sit(model, questions, form, "questions")?;
        output::say(&score.summary(questions.len()));
        Ok(Some(score))
    }
}

/// The first words of a text, on one line.
fn first_words(text: &str, count: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().take(count).collect();
    // Chinese has no spaces, so a "word" may be a whole paragraph.
    words.join(" ").chars().take(8 * count).collect()
}

/// The pieces of a text with bars between them.
fn cut(tokenizer: &Tokenizer, text: &str) -> Result<String, Failure> {
    let pieces = tokenizer.split(text)?;
    let parts: Vec<&str> = pieces.iter().filter_map(|piece| text.get(piece.start..piece.end)).collect();
    Ok(parts.join("|"))
}
