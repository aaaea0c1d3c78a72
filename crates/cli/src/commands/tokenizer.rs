//! `loam tokenizer`: train, encode, decode, show.

use crate::Outcome;
use crate::args::{AlgorithmArg, DecodeArgs, EncodeArgs, TokenizerShowArgs, TokenizerTrainArgs, TokenizerVerb};
use crate::failure::Failure;
use crate::locate::tokenizer_path;
use crate::output::{self, Colour, paint};
use crate::progress::Progress;
use crate::setup::Environment;
use crate::table::{bytes, grouped};
use loam_tokenizer::{
    ChatTemplate, DirectoryOptions, Piece, Special, Tokenizer, TrainConfig, TrainKind, save_directory,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

pub fn run(verb: TokenizerVerb, environment: &Environment) -> Result<Outcome, Failure> {
    match verb {
        TokenizerVerb::Train(args) => train(&args)?,
        TokenizerVerb::Encode(args) => encode(&args, environment)?,
        TokenizerVerb::Decode(args) => decode(&args, environment)?,
        TokenizerVerb::Show(args) => show(&args, environment)?,
    }
    Ok(Outcome::Done)
}

fn train(args: &TokenizerTrainArgs) -> Result<(), Failure> {
    let kind = match args.algorithm {
        AlgorithmArg::Bpe => TrainKind::ByteBpe,
        AlgorithmArg::Wordpiece => TrainKind::WordPiece,
        AlgorithmArg::Unigram => TrainKind::Unigram,
        AlgorithmArg::Char => TrainKind::Char,
    };
    let mut config = TrainConfig { vocab_size: args.vocab_size, ..TrainConfig::new(kind) };
    if !args.special.is_empty() {
        config.special_tokens.clone_from(&args.special);
    }
    let mut progress = Progress::new("tokens", args.vocab_size as u64);
    let texts = super::data::texts(&args.files, &args.column)?;
    let tokenizer = loam_tokenizer::train(texts, &config, &mut |news| match news {
        loam_tokenizer::Progress::Reading { bytes: read } => {
            progress.update(0, &format!("read {}", bytes(read as usize)))
        }
        loam_tokenizer::Progress::Learning { tokens, of } => {
            progress.set_total(of as u64);
            progress.update(tokens as u64, "learning");
        }
    })?;
    let time = progress.finish();
    if args.out.extension().is_some_and(|extension| extension == "json") {
        tokenizer.save(&args.out)?;
    } else {
        let chatml = ChatTemplate::chatml();
        let can_chat = ["<|im_start|>", "<|im_end|>"].iter().all(|token| tokenizer.token_to_id(token).is_some());
        save_directory(
            &args.out,
            &tokenizer,
            DirectoryOptions { template: can_chat.then_some(&chatml), model_max_length: None },
        )?;
    }
    output::say(&format!(
        "{}: {} tokens, learned in {:.1} s",
        args.out.display(),
        grouped(tokenizer.vocab_size()),
        time.as_secs_f64()
    ));
    Ok(())
}

fn cannot_open(path: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot open {}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::with_hint(
            format!("{what}: it does not exist"),
            format!("give a file with a line per text; looked in {}", here()),
        ),
        _ => Failure::io(&what, error),
    }
}

fn here() -> String {
    std::env::current_dir().map_or("the current directory".into(), |dir| dir.display().to_string())
}

/// Lines of a file or of standard input, without their line ends.
pub(super) fn lines(file: Option<&Path>) -> Result<impl Iterator<Item = Result<String, Failure>>, Failure> {
    let name = file.map_or("standard input".into(), |path| path.display().to_string());
    let reader: Box<dyn BufRead> = match file {
        Some(path) => Box::new(BufReader::new(File::open(path).map_err(|e| cannot_open(path, &e))?)),
        None => Box::new(io::stdin().lock()),
    };
    Ok(reader.lines().enumerate().map(move |(index, line)| {
        line.map_err(|e| Failure::io(&format!("cannot read line {} of {name}", index + 1), &e))
    }))
}

fn encode(args: &EncodeArgs, environment: &Environment) -> Result<(), Failure> {
    let tokenizer = Tokenizer::open(tokenizer_path(&args.tokenizer, environment)?)?;
    let special = if args.no_special { Special::Parse } else { Special::Add };
    for line in lines(args.file.as_deref())? {
        let ids = tokenizer.encode(&line?, special)?;
        if args.json {
            output::json(&ids)?;
        } else {
            output::line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?;
        }
    }
    Ok(())
}

fn decode(args: &DecodeArgs, environment: &Environment) -> Result<(), Failure> {
    let tokenizer = Tokenizer::open(tokenizer_path(&args.tokenizer, environment)?)?;
    for (index, line) in lines(args.file.as_deref())?.enumerate() {
        let line = line?;
        let ids = parse_ids(&line).ok_or_else(|| {
            Failure::with_hint(
                format!("line {} is not a list of ids: `{line}`", index + 1),
                "a line holds a JSON array of ids, or ids with spaces between them",
            )
        })?;
        let text = tokenizer.decode(&ids, args.no_special)?;
        if args.json {
            output::json(&text)?;
        } else {
            output::line(&text)?;
        }
    }
    Ok(())
}

/// `[1, 2, 3]`, `1 2 3` or `1,2,3`.
fn parse_ids(line: &str) -> Option<Vec<u32>> {
    let line = line.trim();
    if line.starts_with('[') {
        return serde_json::from_str(line).ok();
    }
    let parts = line.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().ok()).collect()
}

fn show(args: &TokenizerShowArgs, environment: &Environment) -> Result<(), Failure> {
    let tokenizer = Tokenizer::open(tokenizer_path(&args.tokenizer, environment)?)?;
    let vocabulary = tokenizer.vocabulary();
    let special: Vec<_> = vocabulary.iter().filter(|row| row.special).collect();
    let pieces = args.text.as_deref().map(|text| tokenizer.split(text)).transpose()?;
    if args.json {
        let token = |row: &&loam_tokenizer::VocabRow| json!({"id": row.id, "token": row.token});
        let piece = |p: &Piece| json!({"id": p.id, "token": p.token, "start": p.start, "end": p.end});
        return output::json(&json!({
            "kind": tokenizer.model_kind(), "vocab_size": tokenizer.vocab_size(), "merges": tokenizer.merges().len(),
            "special": special.iter().map(token).collect::<Vec<Value>>(),
            "hash": tokenizer.content_hash(),
            "split": pieces.map(|pieces| pieces.iter().map(piece).collect::<Vec<Value>>()),
        }));
    }
    if let (Some(text), Some(pieces)) = (&args.text, &pieces) {
        return show_split(text, pieces);
    }
    let merges = tokenizer.merges();
    let merged = if merges.is_empty() { String::new() } else { format!(", {} merges", grouped(merges.len())) };
    let heading = format!("{}, {} tokens{merged}", tokenizer.model_kind(), grouped(tokenizer.vocab_size()));
    output::line(&paint(Colour::Bold, &heading))?;
    for row in &special {
        output::line(&format!(
            "{:>8}  {}  {}",
            row.id,
            paint(Colour::Cyan, &row.token),
            paint(Colour::Dim, "special")
        ))?;
    }
    let learned = |row: &&&loam_tokenizer::VocabRow| row.merge.is_some() || row.score.is_some();
    let ordinary: Vec<_> = vocabulary.iter().filter(|row| !row.special).collect();
    // What was learned tells more than the alphabet that comes first.
    let told: Vec<_> = ordinary.iter().filter(learned).take(args.tokens).collect();
    let told = if told.is_empty() { ordinary.iter().take(args.tokens).collect() } else { told };
    for row in told {
        let how = match (row.merge, row.score) {
            (Some(rank), _) => format!("merge {} + {}", merges[rank].0, merges[rank].1),
            (None, Some(score)) => format!("log-probability {score:.2}"),
            (None, None) => String::new(),
        };
        output::line(&format!("{:>8}  {:?}  {}", row.id, row.text, paint(Colour::Dim, &how)))?;
    }
    Ok(())
}

/// Backgrounds that take turns, so that neighbours differ.
const BACKGROUNDS: [u8; 5] = [153, 157, 223, 217, 183];

/// The text with its pieces told apart: by colour, or by bars where there are no colours.
fn show_split(text: &str, pieces: &[Piece]) -> Result<(), Failure> {
    let colours = output::colours_on_stdout();
    let mut shown = String::new();
    let mut at = 0;
    for (index, piece) in pieces.iter().enumerate() {
        // Several tokens that share a character show it once; text that belongs to no token is shown as it is.
        let start = piece.start.max(at);
        let end = piece.end.max(start);
        shown.push_str(text.get(at..start).unwrap_or_default());
        let part = text.get(start..end).unwrap_or_default();
        if part.is_empty() {
            continue;
        }
        match colours {
            true => shown.push_str(&paint(Colour::Background(BACKGROUNDS[index % BACKGROUNDS.len()]), part)),
            false => shown.push_str(&format!("{}{part}", if shown.is_empty() { "" } else { "|" })),
        }
        at = end;
    }
    shown.push_str(text.get(at..).unwrap_or_default());
    output::line(&shown)?;
    let ids: Vec<String> = pieces.iter().map(|piece| piece.id.to_string()).collect();
    output::line(&paint(Colour::Dim, &format!("{} tokens: {}", pieces.len(), ids.join(" "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_json_or_as_plain_numbers() {
        for line in ["[1, 2, 3]", "1 2 3", " 1,2,3 "] {
            assert_eq!(parse_ids(line), Some(vec![1, 2, 3]), "{line}");
        }
        assert_eq!(parse_ids("[]"), Some(vec![]));
        assert_eq!(parse_ids("1 x"), None);
    }
}
