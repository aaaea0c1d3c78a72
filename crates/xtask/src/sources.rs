//! What a source file may be: short, finished, and free of what its layer must not do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Longest file, in lines before its tests.
const FILE_LINES: usize = 600;

/// Directories whose files are kept shorter still: (path below the root, lines, what to do).
const SHORTER: &[(&str, usize, &str)] = &[
    (
        "crates/models/src/family/",
        150,
        "a family is data, not arithmetic: move code into the stacks or the weight maps",
    ),
    (
        "crates/train/src/objective/",
        200,
        "an objective is a loss and its metrics: move the rest into the trainer or a module beside it",
    ),
];

/// Words that stand for unfinished or left-over work. Spelled in two parts, or this file would break its own rule.
const UNFINISHED: &[&str] = &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!(")];

/// What code outside some crates may not use: (word, crates that may, what to do instead).
const RESERVED: &[(&str, &[&str], &str)] = &[
    ("env::var", &["cli", "xtask"], "only the cli reads the environment: take the value as an argument"),
    ("process::exit", &["cli", "xtask"], "only the cli ends the process: return an error"),
];

/// What the code of a crate may not use at all: (crate, word, what to do instead).
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("kernels", "std::fs", "kernels never open a file: take a slice"),
    ("kernels", "std::io", "kernels never open a file: take a slice"),
    ("tensor", "std::fs", "tensors never open a file: take a slice"),
];

/// Lines of a source before its tests. A `#[cfg(test)] mod name;` that points to another file does not end the count.
pub fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starts_tests = |index: &usize| {
        lines[*index] == "#[cfg(test)]" && !lines.get(index + 1).is_some_and(|next| next.ends_with(';'))
    };
    (0..lines.len()).find(starts_tests).unwrap_or(lines.len())
}

/// Complaints about one source file; `path` is relative to the root, with forward slashes.
pub fn check_source(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = lines_before_tests(text);
    let shorter = SHORTER.iter().find(|(directory, ..)| path.starts_with(directory));
    let (limit, advice) =
        shorter.map_or((FILE_LINES, "split it along its topics into modules"), |rule| (rule.1, rule.2));
    if lines > limit {
        complaints.push(format!("{path}: {lines} lines before its tests, at most {limit} allowed: {advice}"));
    }
    for (index, line) in text.lines().enumerate() {
        let here = format!("{path}:{}", index + 1);
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            complaints.push(format!("{here}: contains `{word}..)`: finish it, or remove it"));
        }
        if index < lines {
            complaints.extend(reserved(path, line).map(|(word, advice)| format!("{here}: uses `{word}`: {advice}")));
        }
    }
    complaints
}

/// Words in a line of code that the file's crate may not use. Comments and integration tests may say anything.
fn reserved<'a>(path: &'a str, line: &'a str) -> impl Iterator<Item = (&'static str, &'static str)> + 'a {
    let code = line.split("//").next().unwrap_or_default();
    let mut parts = path.split('/').skip(1);
    let name = parts.next().unwrap_or_default();
    let is_source = parts.next() == Some("src");
    let reserved = RESERVED.iter().filter(move |(_, may, _)| !may.contains(&name)).map(|(word, _, why)| (*word, *why));
    let forbidden = FORBIDDEN.iter().filter(move |(owner, ..)| *owner == name).map(|(_, word, why)| (*word, *why));
    reserved.chain(forbidden).filter(move |(word, _)| is_source && code.contains(word))
}

/// Complaints about one recipe.
pub fn check_recipe(path: &str, text: &str) -> Vec<String> {
    let error = toml::from_str::<toml::Table>(text).err();
    error.map(|error| format!("{path}: is not TOML: {error}")).into_iter().collect()
}

/// Every file below `directory` with that extension, sorted; nothing where there is no such directory.
pub fn files(directory: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop().filter(|path| path.is_dir()) {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                pending.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
