//! A row of conversations, preferences or prompts, token by token, as a model is trained on it.

use crate::failure::Failure;
use crate::output::{self, Colour, paint};
use crate::table::grouped;
use loam_data::dialogue::{Format, Layout, Table, read_dialogues};
use loam_data::loader::Example;
use loam_data::preference::{Encoder, read_pairs, read_prompts, read_rated};
use loam_data::source::Source;
use loam_formats::HfDir;
use loam_tokenizer::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// The texts of a row, each under a name.
type Row = Vec<(&'static str, Example)>;

/// Every row of a table, encoded.
fn rows(table: &Table, encoder: &Encoder<'_>) -> Result<(&'static str, Vec<Row>), Failure> {
    let Some(first) = table.records().next().transpose()? else { return Ok(("nothing", Vec::new())) };
    let (layout, one) = (table.layout(), std::slice::from_ref(table));
    let has = |name: &str| first.has(layout.column(name));
    if has("chosen") && has("rejected") {
        let row = |(number, pair): (usize, loam_data::preference::Preference)| {
            let text = |answer| encoder.answer(&pair.prompt, answer, number);
            Ok(vec![("chosen", text(&pair.chosen)?), ("rejected", text(&pair.rejected)?)])
        };
        return Ok(("pairs", read_pairs(one)?.into_iter().enumerate().map(row).collect::<Result<_, Failure>>()?));
    }
    if has("label") {
        let row = |(number, rated): (usize, loam_data::preference::Rated)| {
            let name = if rated.wanted { "wanted" } else { "unwanted" };
            Ok(vec![(name, encoder.answer(&rated.prompt, &rated.completion, number)?)])
        };
        return Ok((
            "rated answers",
            read_rated(one)?.into_iter().enumerate().map(row).collect::<Result<_, Failure>>()?,
        ));
    }
    if layout.format == Some(Format::PromptCompletion) && !has("completion") {
        let row = |prompt: loam_data::preference::Prompt| {
            let ids = encoder.prompt(&prompt.prompt)?;
            let trained = vec![false; ids.len()];
            Ok(vec![("prompt", Example { ids, trained })])
        };
        return Ok(("prompts", read_prompts(one)?.into_iter().map(row).collect::<Result<_, Failure>>()?));
    }
    let row = |(number, dialogue): (usize, loam_data::dialogue::Dialogue)| {
        Ok(vec![("conversation", encoder.dialogue(&dialogue, number)?)])
    };
    Ok(("conversations", read_dialogues(one)?.into_iter().enumerate().map(row).collect::<Result<_, Failure>>()?))
}

/// Shows a row of a file of conversations, preferences or prompts, the first being 1. False where the file holds none.
pub fn answers(path: &str, model: &Path, tokenizer: &Tokenizer, record: usize, json: bool) -> Result<bool, Failure> {
    let Ok(source) = Source::open(Path::new(path)) else { return Ok(false) };
    let Some(Ok(first)) = source.records().next() else { return Ok(false) };
    if first.has("text") && Layout::default().detected(&first).is_err() {
        return Ok(false);
    }
    let table = Table::open(Path::new(path), &Layout::default())?;
    let template = template(model, tokenizer)?;
    let encoder = Encoder { tokenizer, template: template.as_ref(), max_len: usize::MAX };
    let (kind, rows) = rows(&table, &encoder)?;
    let Some(texts) = record.checked_sub(1).and_then(|index| rows.get(index)) else {
        return Err(Failure::with_hint(
            format!("{path} has no record {record}"),
            format!("records are counted from 1 to {}", rows.len()),
        ));
    };
    let format = table.layout().format.map_or("unknown", Format::name);
    let all = || rows.iter().flatten().map(|(_, example)| example);
    let (tokens, trained) = (all().map(|example| example.ids.len()).sum::<usize>(), all().map(count).sum::<usize>());
    let longest = all().map(|example| example.ids.len()).max().unwrap_or(0);
    if json {
        let token = |(&id, &trained): (&u32, &bool)| json!({"text": text(tokenizer, id), "id": id, "trained": trained});
        let entry = |(name, example): &(&str, Example)| {
            let tokens: Vec<Value> = example.ids.iter().zip(&example.trained).map(token).collect();
            json!({"part": name, "trained": count(example), "tokens": tokens})
        };
        output::json(&json!({
            "format": format, "records": rows.len(), "tokens": tokens, "trained": trained, "longest": longest,
            "record": record, "parts": texts.iter().map(entry).collect::<Vec<Value>>(),
        }))?;
        return Ok(true);
    }
    output::line(&format!(
        "{path}: {} {kind}, format {format}; {} tokens, {} of them trained, the longest text has {longest}",
        grouped(rows.len()),
        grouped(tokens),
        grouped(trained)
    ))?;
    output::line(&format!("record {record}, [trained] and (only read):"))?;
    for (name, example) in texts {
        output::line(&format!("{name}: {} tokens, {} of them trained", example.ids.len(), count(example)))?;
        let pieces = example.ids.iter().zip(&example.trained).map(|(&id, &trained)| {
            let piece = text(tokenizer, id).replace('\n', "\\n");
            match trained {
                true => paint(Colour::Green, &format!("[{piece}]")),
                false => paint(Colour::Dim, &format!("({piece})")),
            }
        });
        output::line(&pieces.collect::<String>())?;
    }
    Ok(true)
}

/// The model's chat template, or ChatML where its vocabulary has the marks.
fn template(model: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Failure> {
    let special = tokenizer.special();
    let compile = |text| ChatTemplate::new(text, special.bos.as_deref(), special.eos.as_deref());
    let own = match HfDir::open(model) {
        Ok(dir) => dir.chat_template()?.map(compile).transpose()?,
        Err(_) => None,
    };
    let knows_chatml = ["<|im_start|>", "<|im_end|>"].iter().all(|mark| tokenizer.token_to_id(mark).is_some());
    Ok(own.or_else(|| knows_chatml.then(ChatTemplate::chatml)))
}

fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id], false).unwrap_or_else(|_| format!("<{id}>"))
}

fn count(example: &Example) -> usize {
    example.trained.iter().filter(|&&is| is).count()
}
