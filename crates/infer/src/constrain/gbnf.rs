//! llama.cpp's grammars (GBNF), rewritten as Lark.
//!
//! Lark cuts a text into pieces, each matched by one regular expression as far as it goes, and parses the pieces. So
//! what does not refer to itself, directly or through others, becomes a piece as a whole; only recursion is left to rules.
//! Where a grammar leaves open whether a character belongs to a piece or to what follows it, it belongs to the piece:
//! never a text that the grammar does not have, but of an ambiguous grammar not always every text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::Error;

/// A part of a rule.
#[derive(Debug, Clone, PartialEq)]
enum Expr {
    /// Characters one after the other.
    Text(String),
    /// One character of some ranges, or of none of them.
    Class { ranges: Vec<(char, char)>, is_negated: bool },
    /// Another rule.
    Rule(String),
    /// One after the other.
    Sequence(Vec<Self>),
    /// One of several.
    Choice(Vec<Self>),
    /// So many times; without an upper bound any number.
    Repeat(Box<Self>, u32, Option<u32>),
}

/// Rewrites a grammar. Errors say in which line.
pub(super) fn to_lark(gbnf: &str) -> Result<String, Error> {
    let rules = Parser { text: gbnf, at: 0 }.rules()?;
    let problem = |reason: String| Error::Grammar { reason };
    if !rules.contains_key("root") {
        return Err(problem("there is no rule 'root' to begin with".into()));
    }
    for (name, expr) in &rules {
        if let Some(unknown) = references(expr).into_iter().find(|used| !rules.contains_key(used)) {
            return Err(problem(format!("rule '{name}' refers to '{unknown}', which is not defined")));
        }
    }
    let writer = Writer { recursive: recursive(&rules) };
    let mut lark = format!("start: {}\n", writer.name("root"));
    for (name, expr) in &rules {
        let body = if writer.recursive.contains(name) { writer.rule(expr) } else { writer.piece(expr) };
        let _ = writeln!(lark, "{}: {body}", writer.name(name));
    }
    Ok(lark)
}

fn references(expr: &Expr) -> BTreeSet<String> {
    match expr {
        Expr::Text(_) | Expr::Class { .. } => BTreeSet::new(),
        Expr::Rule(name) => BTreeSet::from([name.clone()]),
        Expr::Sequence(parts) | Expr::Choice(parts) => parts.iter().flat_map(references).collect(),
        Expr::Repeat(part, ..) => references(part),
    }
}

/// The rules from which a rule that refers to itself can be reached: what no regular expression stands for.
fn recursive(rules: &BTreeMap<String, Expr>) -> BTreeSet<String> {
    let direct: BTreeMap<&String, BTreeSet<String>> =
        rules.iter().map(|(name, expr)| (name, references(expr))).collect();
    let reach = |from: &String| {
        let (mut found, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(name) = open.pop() {
            open.extend(direct[name].iter().filter(|next| found.insert((*next).clone())));
        }
        found
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = rules.keys().map(|name| (name, reach(name))).collect();
    let circular = |name: &String| reached[name].contains(name);
    rules.keys().filter(|name| circular(name) || reached[name].iter().any(circular)).cloned().collect()
}

struct Writer {
    recursive: BTreeSet<String>,
}

impl Writer {
    /// Rules are written in small letters, pieces in capitals.
    fn name(&self, name: &str) -> String {
        // Names of both kinds may differ in their letters' case alone: the length of each run of capitals tells them apart.
        let mut plain = String::new();
        for c in name.chars() {
            match c {
                'A'..='Z' => plain.extend(['_', '0', '_', c.to_ascii_lowercase()]),
                '-' => plain.push_str("_1_"),
                other => plain.push(other),
            }
        }
        if self.recursive.contains(name) { format!("r_{plain}") } else { format!("P_{}", plain.to_ascii_uppercase()) }
    }

    fn is_piece(&self, expr: &Expr) -> bool {
        references(expr).is_disjoint(&self.recursive)
    }

    /// A part of a rule: its longest runs without recursion are pieces.
    fn rule(&self, expr: &Expr) -> String {
        match expr {
            _ if self.is_piece(expr) => self.piece(expr),
            Expr::Rule(name) => self.name(name),
            Expr::Sequence(parts) => parts.iter().map(|part| self.rule(part)).collect::<Vec<_>>().join(" "),
            Expr::Choice(parts) => choice(parts.iter().map(|part| self.rule(part))),
            Expr::Repeat(part, low, high) => repeat(&self.rule(part), *low, *high),
            Expr::Text(_) | Expr::Class { .. } => self.piece(expr),
        }
    }

    fn piece(&self, expr: &Expr) -> String {
        match expr {
            Expr::Text(text) if text.is_empty() => "\"\"".into(),
            Expr::Text(text) => format!("/{}/", text.chars().map(escape).collect::<String>()),
            Expr::Class { ranges, is_negated } => {
                let ranges: String = ranges.iter().map(|(a, b)| format!("{}-{}", escape(*a), escape(*b))).collect();
                format!("/[{}{ranges}]/", if *is_negated { "^" } else { "" })
            }
            Expr::Rule(name) => self.name(name),
            Expr::Sequence(parts) if parts.is_empty() => "\"\"".into(),
            Expr::Sequence(parts) => parts.iter().map(|part| self.piece(part)).collect::<Vec<_>>().join(" "),
            Expr::Choice(parts) => choice(parts.iter().map(|part| self.piece(part))),
            Expr::Repeat(part, low, high) => repeat(&self.piece(part), *low, *high),
        }
    }
}

fn choice(parts: impl Iterator<Item = String>) -> String {
    format!("({})", parts.collect::<Vec<_>>().join(" | "))
}

fn repeat(part: &str, low: u32, high: Option<u32>) -> String {
    match (low, high) {
        (0, None) => format!("({part})*"),
        (1, None) => format!("({part})+"),
        (0, Some(1)) => format!("({part})?"),
        (low, None) => format!("({part}){{{low},}}"),
        (low, Some(high)) => format!("({part}){{{low},{high}}}"),
    }
}

/// A character inside of a regular expression, so that neither it nor Lark reads anything into it.
fn escape(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rules(mut self) -> Result<BTreeMap<String, Expr>, Error> {
        let mut rules = BTreeMap::new();
        loop {
            self.skip(true);
            if self.rest().is_empty() {
                return Ok(rules);
            }
            let name = self.word().ok_or_else(|| self.error("expected the name of a rule"))?;
            self.skip(true);
            if !self.take("::=") {
                return Err(self.error(&format!("expected '::=' after '{name}'")));
            }
            let expr = self.choice(0)?;
            if !self.rest().is_empty() && !self.rest().starts_with(['\n', '\r']) {
                return Err(self.error("expected the end of the rule"));
            }
            if rules.insert(name.clone(), expr).is_some() {
                return Err(self.error(&format!("the rule '{name}' is defined twice")));
            }
        }
    }

    /// Inside of brackets a rule goes on over line breaks, and after `|` and `::=`, too.
    fn choice(&mut self, depth: usize) -> Result<Expr, Error> {
        if depth > 100 {
            return Err(self.error("more than 100 brackets in each other"));
        }
        let mut parts = Vec::new();
        loop {
            self.skip(true);
            parts.push(self.sequence(depth)?);
            self.skip(depth > 0);
            if !self.take("|") {
                return Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Choice(parts) });
            }
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Expr, Error> {
        let mut parts = Vec::new();
        loop {
            self.skip(depth > 0);
            let Some(part) = self.atom(depth)? else {
                return Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Sequence(parts) });
            };
            parts.push(self.repeated(part)?);
        }
    }

    fn atom(&mut self, depth: usize) -> Result<Option<Expr>, Error> {
        if self.take("\"") {
            let mut text = String::new();
            while !self.take("\"") {
                text.push(self.char()?);
            }
            return Ok(Some(Expr::Text(text)));
        }
        if self.take("[") {
            return self.class().map(Some);
        }
        if self.take(".") {
            return Ok(Some(Expr::Class { ranges: vec![('\0', char::MAX)], is_negated: false }));
        }
        if self.take("(") {
            let inner = self.choice(depth + 1)?;
            self.skip(true);
            return if self.take(")") { Ok(Some(inner)) } else { Err(self.error("expected ')'")) };
        }
        // A name that `::=` follows begins the next rule.
        let start = self.at;
        let Some(name) = self.word() else { return Ok(None) };
        let end = self.at;
        self.skip(true);
        if self.take("::=") {
            self.at = start;
            return Ok(None);
        }
        self.at = end;
        Ok(Some(Expr::Rule(name)))
    }

    fn class(&mut self) -> Result<Expr, Error> {
        let is_negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let low = self.char()?;
            // A hyphen at the end stands for itself.
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let high = if is_range && self.take("-") { self.char()? } else { low };
            if high < low {
                return Err(self.error("a range whose end comes before its start"));
            }
            ranges.push((low, high));
        }
        match ranges.is_empty() {
            true => Err(self.error("a class without characters")),
            false => Ok(Expr::Class { ranges, is_negated }),
        }
    }

    fn repeated(&mut self, mut part: Expr) -> Result<Expr, Error> {
        loop {
            let (low, high) = match self.rest().chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let end = self.rest().find('}').ok_or_else(|| self.error("expected '}'"))?;
                    let (low, high) =
                        bounds(&self.rest()[1..end]).ok_or_else(|| self.error("expected {m}, {m,} or {m,n}"))?;
                    self.at += end;
                    (low, high)
                }
                _ => return Ok(part),
            };
            self.at += 1;
            part = Expr::Repeat(Box::new(part), low, high);
        }
    }

    /// One character of a text or a class, which may be escaped.
    fn char(&mut self) -> Result<char, Error> {
        let c = self
            .next()
            .filter(|c| *c != '\n')
            .ok_or_else(|| self.error("the line ends inside of quotes or a class"))?;
        if c != '\\' {
            return Ok(c);
        }
        match self.next() {
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            Some('x') => self.hex(2),
            Some('u') => self.hex(4),
            Some('U') => self.hex(8),
            Some(
                c @ ('"' | '\\' | '[' | ']' | '-' | '^' | '/' | '.' | '*' | '+' | '?' | '(' | ')' | '{' | '}' | '|'),
            ) => Ok(c),
            _ => Err(self.error("an unknown escape")),
        }
    }

    fn hex(&mut self, digits: usize) -> Result<char, Error> {
        let code = self.rest().get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let found = code.and_then(char::from_u32).ok_or_else(|| self.error("not the code of a character"))?;
        self.at += digits;
        Ok(found)
    }

    fn word(&mut self) -> Option<String> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_').unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        self.at += end;
        (!word.is_empty()).then_some(word)
    }

    /// Skips spaces and comments; line breaks only where the rule goes on.
    fn skip(&mut self, lines: bool) {
        loop {
            match self.rest().chars().next() {
                Some(' ' | '\t') => self.at += 1,
                Some('\n' | '\r') if lines => self.at += 1,
                Some('#') => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn take(&mut self, text: &str) -> bool {
        let is_there = self.rest().starts_with(text);
        self.at += if is_there { text.len() } else { 0 };
        is_there
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn error(&self, reason: &str) -> Error {
        let line = self.text[..self.at].matches('\n').count() + 1;
        Error::Grammar { reason: format!("line {line}: {reason}") }
    }
}

fn bounds(text: &str) -> Option<(u32, Option<u32>)> {
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n <= 10_000);
    let Some((low, high)) = text.split_once(',') else { return number(text).map(|n| (n, Some(n))) };
    let high = if high.trim().is_empty() { None } else { Some(number(high)?) };
    let low = number(low)?;
    (high.is_none_or(|high| low <= high)).then_some((low, high))
}
