//! Filling `{key}` holes in sentence templates.

/// Replaces each `{key}` by what `value` says and starts the result with a capital letter.
///
/// A key that `value` does not know is a mistake in a template of ours, so it panics with the template.
pub fn fill<'a>(template: &str, value: impl Fn(&str) -> Option<std::borrow::Cow<'a, str>>) -> String {
    let mut out = String::with_capacity(template.len() + 16);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let close = open + rest[open..].find('}').expect("every brace in a garden template is closed");
        let key = &rest[open + 1..close];
        match value(key) {
            Some(text) => out.push_str(&text),
            None => panic!("garden template {template:?} asks for {key:?}, which nothing here provides"),
        }
        rest = &rest[close + 1..];
    }
    out.push_str(rest);
    capitalise(out)
}

/// Fills `{s}` and `{o}`.
pub fn fill_fact(template: &str, subject: &str, object: &str) -> String {
    fill(template, |key| match key {
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
