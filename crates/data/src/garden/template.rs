//! Filling `{key}` holes in sentence templates.

use std::borrow::Cow;

/// A part of a filled template.
pub struct Piece<'a> {
    /// The hole it fills; `None` for the template's own words.
    pub key: Option<&'a str>,
    /// Its text.
    pub text: Cow<'a, str>,
}

/// Replaces each `{key}` by what `value` says, leaving the parts apart.
///
/// A key that `value` does not know is a mistake in a template of ours, so it panics with the template.
pub fn pieces<'a>(template: &'a str, value: impl Fn(&str) -> Option<Cow<'a, str>>) -> Vec<Piece<'a>> {
    let mut out = Vec::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        if open > 0 {
            out.push(Piece { key: None, text: rest[..open].into() });
        }
        let close = open + rest[open..].find('}').expect("every brace in a garden template is closed");
        let key = &rest[open + 1..close];
        match value(key) {
            Some(text) => out.push(Piece { key: Some(key), text }),
            None => panic!("garden template {template:?} asks for {key:?}, which nothing here provides"),
        }
        rest = &rest[close + 1..];
    }
    out.push(Piece { key: None, text: rest.into() });
    out
}

/// The text of the parts of a sentence, which starts with a capital letter.
pub fn join(pieces: &[Piece]) -> String {
    capitalise(pieces.iter().map(|piece| piece.text.as_ref()).collect())
}

/// Replaces each `{key}` by what `value` says and starts the result with a capital letter.
pub fn fill<'a>(template: &'a str, value: impl Fn(&str) -> Option<Cow<'a, str>>) -> String {
    join(&pieces(template, value))
}

/// Fills `{s}` and `{o}`.
pub fn fill_fact(template: &str, subject: &str, object: &str) -> String {
    join(&fact_pieces(template, subject, object))
}

/// Fills `{s}` and `{o}`, leaving the parts apart.
pub fn fact_pieces<'a>(template: &'a str, subject: &'a str, object: &'a str) -> Vec<Piece<'a>> {
    pieces(template, |key| match key {
        "s" => Some(subject.into()),
        "o" => Some(object.into()),
        _ => None,
    })
}

/// Upper-cases the first letter (only ASCII letters occur at the start of our sentences).
pub fn capitalise(mut text: String) -> String {
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}
