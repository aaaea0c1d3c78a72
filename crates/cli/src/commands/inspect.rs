//! A row of conversations, preferences or prompts, token by token, as a model is trained on it.

use crate::failure::Failure;
use crate::output::{self, Colour, paint};
use loam_data::loader::Example;
use loam_data::preference::{Encoder, PreferenceFields, read_pairs, read_prompts, read_rated};
use loam_data::source::Source;
use loam_formats::HfDir;
use loam_tokenizer::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;

/// The texts of the first row of a table that holds answers, each under a name; `None` where it holds none.
fn first_row(source: &Source, encoder: &Encoder<'_>) -> Result<Option<Vec<(&'static str, Example)>>, Failure> {
    let Some(Ok(row)) = source.records().next() else { return Ok(None) };
    let (fields, one) = (PreferenceFields::default(), std::slice::from_ref(source));
    if row.has(&fields.chosen) && row.has(&fields.rejected) {
        let pair = read_pairs(one, &fields)?.swap_remove(0);
        let text = |answer| encoder.answer(&pair.prompt, answer, 0);
        return Ok(Some(vec![("chosen", text(&pair.chosen)?), ("rejected", text(&pair.rejected)?)]));
    }
    if row.has(&fields.prompt) && row.has(&fields.completion) && row.has(&fields.label) {
        let rated = read_rated(one, &fields)?.swap_remove(0);
        let name = if rated.wanted { "wanted" } else { "unwanted" };
        return Ok(Some(vec![(name, encoder.answer(&rated.prompt, &rated.completion, 0)?)]));
    }
    if row.has(&fields.prompt) {
        let ids = encoder.prompt(&read_prompts(one, &fields)?.swap_remove(0).prompt)?;
        let trained = vec![false; ids.len()];
        return Ok(Some(vec![("prompt", Example { ids, trained })]));
    }
    Ok(None)
}

/// Shows the first row of a file of answers. False where the file holds none.
pub fn answers(path: &str, model: &Path, tokenizer: &Tokenizer, json: bool) -> Result<bool, Failure> {
    let Ok(source) = Source::open(Path::new(path)) else { return Ok(false) };
    let special = tokenizer.special();
    let compile = |text| ChatTemplate::new(text, special.bos.as_deref(), special.eos.as_deref());
    let template = match HfDir::open(model) {
        Ok(dir) => dir.chat_template()?.map(compile).transpose()?,
        Err(_) => None,
    };
    let encoder = Encoder { tokenizer, template: template.as_ref(), max_len: usize::MAX };
    let Some(texts) = first_row(&source, &encoder)? else { return Ok(false) };
    let text = |id: u32| tokenizer.decode(&[id], false).unwrap_or_else(|_| format!("<{id}>"));
    if json {
        let token = |(id, trained): (&u32, &bool)| json!({"text": text(*id), "id": id, "trained": trained});
        let entry = |(name, example): &(&str, Example)| {
            let tokens: Vec<Value> = example.ids.iter().zip(&example.trained).map(token).collect();
            json!({"part": name, "trained": count(example), "tokens": tokens})
        };
        output::json(&texts.iter().map(entry).collect::<Vec<Value>>())?;
        return Ok(true);
    }
    for (name, example) in &texts {
        output::line(&format!("{name}: {} tokens, {} of them trained", example.ids.len(), count(example)))?;
        let pieces = example.ids.iter().zip(&example.trained).map(|(&id, &trained)| {
            let piece = format!("[{}]", text(id).replace('\n', "\\n"));
            if trained { paint(Colour::Bold, &piece) } else { paint(Colour::Dim, &piece) }
        });
        output::line(&pieces.collect::<String>())?;
    }
    Ok(true)
}

fn count(example: &Example) -> usize {
    example.trained.iter().filter(|&&is| is).count()
}
