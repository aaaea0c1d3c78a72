//! `loam data prepare`, and looking into what it made.

use super::data::{dedup_choice, text_split};
use crate::Outcome;
use crate::args::PrepareArgs;
use crate::failure::Failure;
use crate::locate::tokenizer_path;
use crate::output;
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::{Table, bytes, grouped, short};
use loam_data::shard::Meta;
use loam_data::source::ReadOptions;
use loam_data::{Holdout, Part, PrepareConfig, TokenSet, prepare};
use loam_tokenizer::Tokenizer;
use serde_json::json;
use std::path::Path;
use std::time::Instant;

pub fn run(args: &PrepareArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let tokenizer = Tokenizer::open(tokenizer_path(&args.tokenizer, environment)?)?;
    let config = PrepareConfig {
        sources: args.files.clone(),
        read: ReadOptions { text_column: args.column.clone(), text_split: text_split(args.split) },
        holdout: if args.validation > 0.0 { Holdout::Documents(args.validation) } else { Holdout::None },
        dedup: dedup_choice(args.dedup),
        end_of_document: true,
    };
    let start = Instant::now();
    let mut view = Progress::new("bytes", 0);
    let prepared = prepare(&config, &tokenizer, &args.out, &mut |news| {
        // Of a compressed file more text comes out than bytes go in: then the total says nothing.
        view.set_total(if news.text_bytes <= news.source_bytes { news.source_bytes } else { 0 });
        let rate = news.text_bytes as f64 / start.elapsed().as_secs_f64().max(1e-9);
        view.update(news.text_bytes, &format!("{} tokens, {}", grouped(news.tokens as usize), short(rate, "B/s")));
    })?;
    let time = view.finish();
    let how = if prepared.reused { "was there already".into() } else { format!("took {:.1} s", time.as_secs_f64()) };
    output::say(&how);
    if args.json {
        output::json(&json!({"dir": prepared.dir, "reused": prepared.reused, "meta": prepared.meta}))?;
        return Ok(Outcome::Done);
    }
    counts(&prepared.meta)?;
    output::line(&prepared.dir.display().to_string())?;
    Ok(Outcome::Done)
}

/// Looks into a directory of shards.
pub fn inspect(dir: &Path, tokenizer: Option<&Tokenizer>, json: bool) -> Result<Outcome, Failure> {
    let meta = Meta::read(dir)?;
    let begins = beginning(dir, &meta, tokenizer)?;
    if json {
        output::json(&json!({"dir": dir, "meta": meta, "begins": begins}))?;
        return Ok(Outcome::Done);
    }
    counts(&meta)?;
    output::line(&format!("vocabulary of {}, tokenizer {}", grouped(meta.vocab_size), meta.tokenizer))?;
    for source in &meta.sources {
        output::line(&format!("from {} ({})", source.path.display(), bytes(source.bytes as usize)))?;
    }
    output::line(&format!("begins: {begins}"))?;
    Ok(Outcome::Done)
}

/// Tokens of the first document that are shown.
const SHOWN: u64 = 40;

/// The beginning of the first training document: as text where there is a tokenizer, else as ids.
fn beginning(dir: &Path, meta: &Meta, tokenizer: Option<&Tokenizer>) -> Result<String, Failure> {
    let set = TokenSet::open(dir, Part::Train, tokenizer.map(Tokenizer::content_hash))?;
    let document = set.document(0);
    let mut ids = Vec::new();
    set.read(document.start..document.end.min(document.start + SHOWN), &mut ids);
    let rest = if meta.train.tokens > SHOWN { " …" } else { "" };
    Ok(match tokenizer {
        Some(tokenizer) => format!("{:?}{rest}", tokenizer.decode(&ids, false)?),
        None => format!("{}{rest}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
    })
}

fn counts(meta: &Meta) -> Result<(), Failure> {
    let mut table = Table::new(&["part", "documents", "tokens", "text", "bytes/token"]);
    for (name, counts) in [("train", meta.train), ("validation", meta.validation)] {
        table.row(vec![
            name.into(),
            grouped(counts.documents as usize),
            grouped(counts.tokens as usize),
            bytes(counts.bytes as usize),
            format!("{:.2}", counts.bytes as f64 / counts.tokens.max(1) as f64),
        ]);
    }
    table.lines().iter().try_for_each(|line| output::line(line))?;
    let removed = meta.dedup.exact + meta.dedup.near;
    if removed > 0 {
        output::line(&format!("{} of {} documents were repeated and left out", removed, meta.dedup.documents))?;
    }
    Ok(())
}
