//! From text and `--set` to a [`Recipe`], with errors that name the key.

use std::path::Path;

use loam_formats::nearest;
use serde_json::Value;
use toml::Table;

use super::reference::schema_keys;
use super::{Recipe, Stage};
use crate::error::Error;

impl Recipe {
    /// Reads a recipe; `path` is only used in messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        Self::parse_with(text, path, &[])
    }

    /// Reads a recipe and then applies `key=value` settings, so that a setting may supply what the text lacks.
    pub fn parse_with(text: &str, path: &Path, settings: &[String]) -> Result<Self, Error> {
        let mut table = parse_table(text, path)?;
        for setting in settings {
            apply(&mut table, setting, path)?;
        }
        from_table(table, path)
    }

    /// Reads a recipe file and applies `key=value` settings.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => Error::recipe(path, "the file is not UTF-8 text"),
            _ => Error::from(loam_formats::Error::io("read", path, source)),
        })?;
        Self::parse_with(&text, path, settings)
    }

    /// Changes one key, written `train.lr=1e-4` or `data.train=["a", "b"]`. A text needs no quotes.
    pub fn apply_set(&mut self, setting: &str) -> Result<(), Error> {
        let path = Path::new("--set");
        let mut table = self.to_table();
        apply(&mut table, setting, path)?;
        *self = from_table(table, path)?;
        Ok(())
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.to_table()).expect("a recipe is made of tables, texts and numbers")
    }

    pub(super) fn to_table(&self) -> Table {
        Table::try_from(self).expect("a recipe is made of tables, texts and numbers")
    }

    /// The default recipe of a stage; `loam config default` prints it with comments.
    pub fn default_of(stage: Stage) -> Self {
        let text = match stage {
            Stage::Pretrain => {
                "stage = \"pretrain\"\n[model]\ndepth = 4\n[tokenizer]\nkind = \"byte_bpe\"\n\
                 [data]\ntrain = [\"corpus/*.txt\"]\n"
            }
            Stage::Sft => {
                "stage = \"sft\"\n[model]\npath = \"runs/my-run/model\"\n[data]\ntrain = [\"chats.jsonl\"]\n\
                 [train]\nepochs = 2\n"
            }
            Stage::MaskedLm => {
                "stage = \"masked_lm\"\n[model]\nfamily = \"bert\"\n[tokenizer]\nkind = \"wordpiece\"\n\
                 [data]\ntrain = [\"corpus/*.txt\"]\n[train]\nepochs = 10\n"
            }
            Stage::Seq2seq => {
                "stage = \"seq2seq\"\n[model]\nfamily = \"t5\"\n[tokenizer]\nkind = \"unigram\"\n\
                 [data]\ntrain = [\"pairs.jsonl\"]\n[train]\nepochs = 10\n"
            }
            Stage::Distill => {
                "stage = \"distill\"\n[model]\npath = \"runs/my-run/model\"\n[data]\ntrain = [\"chats.jsonl\"]\n\
                 [distill]\nteacher = \"runs/large/model\"\n[train]\nepochs = 2\n"
            }
            Stage::Reward | Stage::Dpo | Stage::Kto | Stage::Orpo | Stage::Simpo | Stage::Cpo => {
                return Self { stage, ..Self::alignment("pairs.jsonl", "") };
            }
            Stage::Grpo | Stage::Rloo | Stage::Reinforce | Stage::Ppo => {
                return Self { stage, ..Self::alignment("prompts.jsonl", "[rl]\nreward = { kind = \"match\" }\n") };
            }
            Stage::Classify | Stage::TokenClassify | Stage::Qa | Stage::Contrastive => {
                return Self { stage, ..Self::fine_tuning() };
            }
        };
        Self::parse(text, Path::new("default")).expect("the defaults are a valid recipe")
    }

    /// A model from a run of `sft`.
    fn alignment(file: &str, more: &str) -> Self {
        let text = format!(
            "stage = \"grpo\"\n[model]\npath = \"runs/my-chat/model\"\n[data]\ntrain = [\"{file}\"]\n\
             [train]\nepochs = 1\n{more}"
        );
        Self::parse(&text, Path::new("default")).expect("the defaults are a valid recipe")
    }

    /// An encoder from a run of `masked_lm`, with a new head.
    fn fine_tuning() -> Self {
        let text = "stage = \"classify\"\n[model]\npath = \"runs/my-encoder/model\"\nnew_head = true\n\
                    [data]\ntrain = [\"examples.jsonl\"]\n[train]\nepochs = 3\n";
        Self::parse(text, Path::new("default")).expect("the defaults are a valid recipe")
    }
}

fn parse_table(text: &str, path: &Path) -> Result<Table, Error> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Error::recipe(path, format!("line {line}: {}", error.message().replace('\n', ", ")))
    })
}

fn from_table(table: Table, path: &Path) -> Result<Recipe, Error> {
    refuse_unknown_keys(&table, path)?;
    serde_path_to_error::deserialize(table).map_err(|error| {
        let key = error.path().to_string();
        let message = error.inner().message().trim().replace('\n', ", ");
        let place = if key == "." { String::new() } else { format!("`{key}`: ") };
        Error::recipe(path, format!("{place}{message}"))
    })
}

/// Applies one `key=value`. The value is TOML; what is no TOML, or does not fit the key's type, is taken as text.
fn apply(table: &mut Table, setting: &str, path: &Path) -> Result<(), Error> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(Error::recipe(path, format!("`{setting}` is not of the form key=value")));
    };
    let (key, value) = (key.trim(), value.trim());
    let typed = format!("value = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
    let text = toml::Value::String(value.to_string());
    let candidates = typed.into_iter().chain([text]);
    let mut first_error = None;
    for candidate in candidates {
        let mut changed = table.clone();
        insert(&mut changed, key, candidate, path)?;
        match from_table(changed.clone(), path) {
            Ok(_) => {
                *table = changed;
                return Ok(());
            }
            // A key that another setting or the recipe must still supply is found missing at the end.
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.expect("there is at least one candidate"))
}

fn insert(table: &mut Table, key: &str, value: toml::Value, path: &Path) -> Result<(), Error> {
    let mut at = table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(Error::recipe(path, format!("`{key}` is not a key")));
        }
        if parts.peek().is_none() {
            at.insert(part.to_string(), value);
            return Ok(());
        }
        let next = at.entry(part).or_insert_with(|| toml::Value::Table(Table::new()));
        at = next
            .as_table_mut()
            .ok_or_else(|| Error::recipe(path, format!("`{key}`: `{part}` is a value, not a section")))?;
    }
    Ok(())
}

/// Complains about every key that is nowhere in the schema, with the nearest one that is.
fn refuse_unknown_keys(table: &Table, path: &Path) -> Result<(), Error> {
    let known = schema_keys();
    let mut problems = Vec::new();
    let mut hint = None;
    for (name, value) in flat_keys(table) {
        // Which of these there are depends on family and stage: validation knows.
        let open = ["model.", "data.fields.", "peft.rank_pattern.", "peft.alpha_pattern."];
        let is_open = open.iter().any(|section| name.starts_with(section));
        let is_section = value.is_table() && known.iter().any(|key| key.starts_with(&format!("{name}.")));
        if is_open || is_section || known.contains(&name) {
            continue;
        }
        let leaf = name.rsplit('.').next().unwrap_or(&name);
        let same_leaf = known.iter().find(|key| key.rsplit('.').next() == Some(leaf));
        // Swapped letters count as two mistakes, which leaves many keys equally near.
        let swapped = known.iter().find(|key| letters(key) == letters(&name));
        let close = same_leaf.or(swapped).cloned();
        let close = close.or_else(|| nearest(&name, known.iter().map(String::as_str)));
        hint = hint.or(close.map(|key| format!("did you mean `{key}`?")));
        problems.push(format!("unknown key `{name}`"));
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::Recipe { path: path.into(), problems, hint }) }
}

fn letters(name: &str) -> Vec<u8> {
    let mut letters = name.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// Dotted names of all keys, sections before what they hold.
fn flat_keys(table: &Table) -> Vec<(String, &toml::Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        found.push((key.clone(), value));
        if let Some(inner) = value.as_table() {
            found.extend(flat_keys(inner).into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
        }
    }
    found
}

/// Keys of one recipe whose values another one does not share.
pub(crate) fn changed_keys(a: &Recipe, b: &Recipe) -> Vec<String> {
    let flat = |recipe: &Recipe| -> Vec<(String, Value)> {
        let table = recipe.to_table();
        let keys = flat_keys(&table).into_iter().filter(|(_, value)| !value.is_table());
        keys.map(|(name, value)| (name, serde_json::to_value(value).unwrap_or(Value::Null))).collect()
    };
    let (a, b) = (flat(a), flat(b));
    let differs = |x: &[(String, Value)], entry: &(String, Value)| {
        x.iter().find(|other| other.0 == entry.0).map(|other| &other.1) != Some(&entry.1)
    };
    let mut changed: Vec<String> = a.iter().filter(|entry| differs(&b, entry)).map(|entry| entry.0.clone()).collect();
    changed.extend(b.iter().filter(|entry| differs(&a, entry)).map(|entry| entry.0.clone()));
    changed.sort();
    changed.dedup();
    changed
}
