//! `loam data`: inspect, dedup, garden; the other verbs have files of their own.

use crate::Outcome;
use crate::args::{DataVerb, DedupArg, DedupArgs, GardenArgs, SplitArg};
use crate::failure::Failure;
use crate::locate::tokenizer_path;
use crate::output;
use crate::setup::Environment;
use crate::table::{Table, bytes, grouped};
use loam_data::dedup::{Dedup, MinHash, find_repeated};
use loam_data::garden::{Garden, Sizes};
use loam_data::source::{Chunk, ReadOptions, Source, TextSplit, find};
use loam_formats::atomic;
use loam_tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

pub fn run(verb: DataVerb, environment: &Environment) -> Result<Outcome, Failure> {
    match verb {
        DataVerb::Prepare(args) => super::prepare::run(&args, environment),
        DataVerb::Inspect { paths, tokenizer, record, json } => {
            let path = tokenizer.map(|name| tokenizer_path(&name, environment)).transpose()?;
            let opened = path.as_ref().map(Tokenizer::open).transpose()?;
            if let ([one], Some(path), Some(tokenizer)) = (&paths[..], &path, &opened)
                && Path::new(one).is_file()
                && super::inspect::answers(one, path, tokenizer, record, json)?
            {
                return Ok(Outcome::Done);
            }
            inspect(&paths, opened.as_ref(), json)
        }
        DataVerb::Dedup(args) => dedup(&args),
        DataVerb::Prefer(args) => super::prefer::run(&args, environment),
        DataVerb::Garden(args) => garden(&args),
    }
}

/// The texts of some files, piece by piece, for training a tokenizer.
pub fn texts(
    files: &[String],
    column: &str,
) -> Result<impl Iterator<Item = Result<String, loam_data::Error>> + use<>, Failure> {
    let options = ReadOptions { text_column: column.to_owned(), text_split: TextSplit::File };
    let sources = find(files)?;
    Ok(sources.into_iter().flat_map(move |source| {
        // A file that cannot be opened is one error in the place of its texts.
        let (chunks, error) = match source.chunks(&options) {
            Ok(chunks) => (Some(chunks), None),
            Err(error) => (None, Some(Err(error))),
        };
        chunks.into_iter().flatten().map(|chunk| chunk.map(|chunk| chunk.text)).chain(error)
    }))
}

/// How the command line names the splits.
pub fn text_split(split: SplitArg) -> TextSplit {
    match split {
        SplitArg::File => TextSplit::File,
        SplitArg::EmptyLine => TextSplit::EmptyLine,
        SplitArg::EndOfText => TextSplit::EndOfText,
    }
}

/// How the command line names what counts as repeated.
pub fn dedup_choice(dedup: DedupArg) -> Dedup {
    match dedup {
        DedupArg::None => Dedup::Off,
        DedupArg::Exact => Dedup::Exact,
        DedupArg::Near => Dedup::Near(MinHash::default()),
    }
}

fn inspect(paths: &[String], tokenizer: Option<&Tokenizer>, json: bool) -> Result<Outcome, Failure> {
    if let [one] = paths
        && Path::new(one).is_dir()
    {
        return super::prepare::inspect(Path::new(one), tokenizer, json);
    }
    let mut rows = Vec::new();
    for source in find(paths)? {
        let (mut documents, mut text_bytes, mut characters, mut first) = (0_usize, 0, 0, None);
        for chunk in source.chunks(&ReadOptions { text_split: TextSplit::EmptyLine, ..ReadOptions::default() })? {
            let chunk = chunk?;
            documents += usize::from(chunk.ends_document);
            text_bytes += chunk.text.len();
            characters += chunk.text.chars().count();
            first.get_or_insert_with(|| chunk.text.chars().take(80).collect::<String>());
        }
        rows.push((source.path().display().to_string(), documents, text_bytes, characters, first.unwrap_or_default()));
    }
    if json {
        let row = |(path, documents, bytes, characters, first): &(String, usize, usize, usize, String)| json!({"path": path, "documents": documents, "bytes": bytes, "characters": characters, "begins": first});
        output::json(&rows.iter().map(row).collect::<Vec<Value>>())?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["file", "documents", "text", "characters"]);
    for (path, documents, text_bytes, characters, _) in &rows {
        table.row(vec![path.clone(), grouped(*documents), bytes(*text_bytes), grouped(*characters)]);
    }
    table.lines().iter().try_for_each(|line| output::line(line))?;
    for (path, .., first) in &rows {
        output::line(&format!("{path} begins: {first:?}"))?;
    }
    Ok(Outcome::Done)
}

fn dedup(args: &DedupArgs) -> Result<Outcome, Failure> {
    let sources = find(&args.files)?;
    let options = ReadOptions { text_column: args.column.clone(), text_split: text_split(args.split) };
    let kept = find_repeated(&sources, &options, dedup_choice(args.dedup))?;
    let report = kept.report;
    let stays = report.documents - report.exact - report.near;
    if let Some(out) = &args.out {
        atomic::try_write_with(out, |file| write_kept(&sources, &options, &|index| kept.keeps(index), file))?;
    }
    if args.json {
        output::json(&json!({
            "documents": report.documents, "exact": report.exact, "near": report.near, "kept": stays, "out": args.out,
        }))?;
    } else {
        output::line(&format!(
            "{} documents: {} equal to an earlier one, {} nearly so, {} stay",
            grouped(report.documents as usize),
            grouped(report.exact as usize),
            grouped(report.near as usize),
            grouped(stays as usize)
        ))?;
    }
    Ok(Outcome::Done)
}

/// Writes the documents that stay, one `{"text": …}` per line.
fn write_kept(
    sources: &[Source],
    options: &ReadOptions,
    keeps: &dyn Fn(usize) -> bool,
    out: &mut dyn Write,
) -> Result<(), loam_data::Error> {
    let mut index = 0;
    let mut document = String::new();
    for source in sources {
        for chunk in source.chunks(options)? {
            let Chunk { text, ends_document } = chunk?;
            document.push_str(&text);
            if !ends_document {
                continue;
            }
            if keeps(index) {
                let line = format!("{}\n", json!({ "text": document }));
                out.write_all(line.as_bytes())
                    .map_err(|e| loam_formats::Error::io("write the documents of", source.path(), e))?;
            }
            document.clear();
            index += 1;
        }
    }
    Ok(())
}

fn garden(args: &GardenArgs) -> Result<Outcome, Failure> {
    let default = Sizes::default();
    let sizes = Sizes {
        train_bytes: args.train_bytes.unwrap_or(default.train_bytes),
        chats: args.chats.unwrap_or(default.chats),
        questions: args.questions.unwrap_or(default.questions),
        tasks: args.examples.unwrap_or(default.tasks),
        ..default
    };
    let written = Garden::new(args.seed).write(&args.dir, sizes)?;
    let mut files = vec![
        ("train".to_string(), &written.train, "documents to train on, with empty lines between them"),
        ("valid".to_string(), &written.valid, "documents held out"),
        ("chats".to_string(), &written.chats, "conversations to tune on"),
        ("questions".to_string(), &written.questions, "questions held out, with their answers"),
    ];
    for (task, train, held_out) in &written.tasks {
        files.push((format!("{task}_train"), train, "labelled examples to train on"));
        files.push((format!("{task}_valid"), held_out, "labelled examples held out"));
    }
    if args.json {
        let entries = files.iter().map(|(name, path, _)| (name.clone(), json!(path)));
        output::json(&Value::Object(entries.collect()))?;
    } else {
        for (_, path, what) in files {
            output::line(&format!("{}  {what}", path.display()))?;
        }
    }
    Ok(Outcome::Done)
}
