//! `loam chat`: a conversation, typed or piped.

use crate::Outcome;
use crate::args::ChatArgs;
use crate::commands::merge::attach;
use crate::commands::sampling::{constraint, sampling};
use crate::commands::{quantise, set_precision};
use crate::failure::Failure;
use crate::locate::model_path;
use crate::output::{self, Colour, paint, paint_talk};
use crate::setup::Environment;
use crate::signals::Signals;
use loam_chat::{Message, Sampling};
use loam_infer::{Generator, OpenModel};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{self, BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};

pub fn run(args: &ChatArgs, environment: &Environment) -> Result<Outcome, Failure> {
    set_precision(args.compute.precision)?;
    let open = OpenModel::open(model_path(&args.model, environment)?)?;
    quantise(&open.model, args.quant)?;
    attach(&open.model, args.adapter.as_deref())?;
    let recommended = open.recommended.clone().unwrap_or_else(usual);
    let sampling = sampling(&args.sampling, &recommended);
    sampling.validate()?;
    let signals = Signals::listen()?;
    signals.talk();
    let interrupt = signals.stop_flag();
    let constraint = constraint(&args.grammar, &open)?;
    let mut generator = open.generator();
    if let Some(constraint) = &constraint {
        generator = generator.with_constraint(constraint);
    }
    let mut session = Session::new(generator, sampling, args.system.clone(), &interrupt);
    // A model without a template is refused before anyone types.
    session.generator.encode_messages(&[Message::user("?")])?;
    output::say(&paint_talk(
        Colour::Dim,
        &format!("{}. /help shows what else you can type.", open.model.spec().summary()),
    ));
    session.converse()?;
    Ok(Outcome::Done)
}

/// Settings for a model that recommends none: less adventurous than its plain distribution.
fn usual() -> Sampling {
    Sampling { temperature: 0.7, top_p: 0.95, ..Sampling::default() }
}

/// A conversation and its settings.
pub struct Session<'a> {
    generator: Generator<'a>,
    sampling: Sampling,
    system: Option<String>,
    messages: Vec<Message>,
    /// Raised by Ctrl-C: ends the answer that is being written.
    interrupt: &'a AtomicBool,
}

/// What to do after a line.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Quit,
}

const HELP: &str = "\
/help                 this list
/reset                forget the conversation
/system TEXT          instructions for the whole conversation (nothing: none)
/seed N               another seed gives other answers
/temperature T        0: always the most likely answer; 1: varied
/max-tokens N         longest answer
/regenerate           answer the last question once more, with the next seed
/quit                 the end (also Ctrl-D)";

impl<'a> Session<'a> {
    /// A conversation that has not begun.
    pub fn new(
        generator: Generator<'a>,
        sampling: Sampling,
        system: Option<String>,
        interrupt: &'a AtomicBool,
    ) -> Self {
        let generator = generator.with_interrupt(interrupt);
        Self { generator, sampling, system, messages: Vec::new(), interrupt }
    }

    /// Reads and answers until the input ends.
    pub fn converse(&mut self) -> Result<(), Failure> {
        if io::stdin().is_terminal() && output::stdout_is_terminal() {
            return self.converse_typed();
        }
        for line in io::stdin().lock().lines() {
            // Nobody can press Ctrl-C at a pipe but to end it all.
            if self.interrupt.load(Ordering::Relaxed) {
                break;
            }
            let line = line.map_err(|e| Failure::io("cannot read the conversation", &e))?;
            if self.line(&line)? == Next::Quit {
                break;
            }
        }
        Ok(())
    }

    fn converse_typed(&mut self) -> Result<(), Failure> {
        let failed = |e: ReadlineError| Failure::new(format!("cannot read the line: {e}"));
        let mut editor = DefaultEditor::new().map_err(failed)?;
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    // Only this session's arrow keys need it.
                    let _ = editor.add_history_entry(line.as_str());
                    if self.line(&line)? == Next::Quit {
                        return Ok(());
                    }
                }
                // Ctrl-C drops the line, as in a shell.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(other) => return Err(failed(other)),
            }
        }
    }

    /// Deals with one line: a command, or something to answer.
    fn line(&mut self, line: &str) -> Result<Next, Failure> {
        let line = line.trim();
        match line.strip_prefix('/') {
            _ if line.is_empty() => Ok(Next::Continue),
            Some(command) => self.command(command),
            None => {
                self.messages.push(Message::user(line));
                self.answer()
            }
        }
    }

    fn command(&mut self, command: &str) -> Result<Next, Failure> {
        let (name, value) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let value = value.trim();
        match name {
            "help" => output::say(HELP),
            "reset" => {
                self.messages.clear();
                output::say("the conversation is forgotten");
            }
            "system" => {
                self.system = Some(value.to_owned()).filter(|text| !text.is_empty());
                self.messages.clear();
                output::say("a new conversation begins");
            }
            "seed" => self.set(value, |sampling, seed| sampling.seed = seed),
            "temperature" => self.set(value, |sampling, temperature| sampling.temperature = temperature),
            "max-tokens" => self.set(value, |sampling, count| sampling.max_tokens = count),
            "regenerate" => {
                if self.messages.pop().is_none() {
                    output::say("there is nothing to answer yet");
                    return Ok(Next::Continue);
                }
                self.sampling.seed = self.sampling.seed.wrapping_add(1);
                return self.answer();
            }
            "quit" | "exit" => return Ok(Next::Quit),
            other => output::say(&format!("there is no command /{other}; /help lists those there are")),
        }
        Ok(Next::Continue)
    }

    /// Changes a setting if the value makes sense.
    fn set<T: std::str::FromStr>(&mut self, value: &str, change: impl FnOnce(&mut Sampling, T)) {
        let Ok(parsed) = value.parse() else {
            return output::say(&format!("`{value}` is not a number of the right kind"));
        };
        let mut changed = self.sampling.clone();
        change(&mut changed, parsed);
        match changed.validate() {
            Ok(()) => self.sampling = changed,
            Err(error) => output::say(&error.to_string()),
        }
    }

    /// Answers the last message. The oldest turns are left out where the context is too short for all of them.
    fn answer(&mut self) -> Result<Next, Failure> {
        let Some(prompt) = self.prompt()? else {
            self.messages.pop();
            output::say(&format!("that is too long for the model's context of {} tokens", self.generator.context()));
            return Ok(Next::Continue);
        };
        self.interrupt.store(false, Ordering::Relaxed);
        let mut shown = Ok(());
        let written = self.generator.write(&prompt, &self.sampling, &mut |piece| {
            if shown.is_ok() {
                shown = output::print(&paint(Colour::Cyan, piece));
            }
        })?;
        shown?;
        output::line("")?;
        self.interrupt.store(false, Ordering::Relaxed);
        self.messages.push(Message::assistant(written.completion.text));
        Ok(Next::Continue)
    }

    /// The ids of as many of the last turns as leave room for an answer; `None` where not even the last one does.
    fn prompt(&self) -> Result<Option<Vec<u32>>, Failure> {
        let wanted = self.sampling.max_tokens.min(self.generator.context() / 4);
        for first in 0..self.messages.len() {
            let system = self.system.iter().map(Message::system);
            let messages: Vec<Message> = system.chain(self.messages[first..].iter().cloned()).collect();
            // A conversation begins with the user.
            if messages
                .iter()
                .find(|m| m.role != loam_chat::Role::System)
                .is_some_and(|m| m.role != loam_chat::Role::User)
            {
                continue;
            }
            let prompt = self.generator.encode_messages(&messages)?;
            if prompt.len() + wanted <= self.generator.context() {
                return Ok(Some(prompt));
            }
        }
        Ok(None)
    }
}
