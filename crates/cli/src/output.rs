//! Writing to the user: data on standard output, talk on standard error.

use crate::failure::Failure;
use serde::Serialize;
use std::env;
use std::io::{self, IsTerminal, Write};

/// Writes text to standard output as it is, at once.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::io("cannot write the output", &e))
}

/// Writes a line to standard output.
pub fn line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes one JSON value on a line of its own.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(&serde_json::to_string(value)?)
}

/// Says something on standard error.
pub fn say(text: &str) {
    // There is nowhere left to report that standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Says `label: text` on standard error, the label coloured where colours are wanted.
pub fn complain(label: &str, text: &str) {
    let colour = if label == "error" { Colour::Red } else { Colour::Cyan };
    let label = paint_if(colours_on_stderr(), colour, label);
    say(&format!("{label}: {text}"));
}

/// Whether a person reads standard output.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether a person reads standard error.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Colours of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Errors.
    Red,
    /// What went well.
    Green,
    /// Names, and hints.
    Cyan,
    /// What matters less.
    Dim,
    /// Headings.
    Bold,
    /// A background, by number: for showing where pieces begin and end.
    Background(u8),
}

impl Colour {
    fn code(self) -> String {
        match self {
            Self::Red => "31;1".into(),
            Self::Green => "32".into(),
            Self::Cyan => "36".into(),
            Self::Dim => "2".into(),
            Self::Bold => "1".into(),
            Self::Background(number) => format!("30;48;5;{number}"),
        }
    }
}

/// Text in a colour, for standard output.
pub fn paint(colour: Colour, text: &str) -> String {
    paint_if(colours_on_stdout(), colour, text)
}

/// Text in a colour, for standard error.
pub fn paint_talk(colour: Colour, text: &str) -> String {
    paint_if(colours_on_stderr(), colour, text)
}

fn paint_if(wanted: bool, colour: Colour, text: &str) -> String {
    if wanted { format!("\x1b[{}m{text}\x1b[0m", colour.code()) } else { text.to_owned() }
}

/// Whether standard output takes colours.
pub fn colours_on_stdout() -> bool {
    stdout_is_terminal() && colours_allowed()
}

fn colours_on_stderr() -> bool {
    stderr_is_terminal() && colours_allowed()
}

/// The convention of no-color.org: any value but an empty one forbids colours.
fn colours_allowed() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
