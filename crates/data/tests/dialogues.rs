//! Conversations in every layout, in every kind of file.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use loam_chat::{Message, Role, ToolCall};
use loam_data::dialogue::{DatasetInfo, Dialogue, Format, Layout, Table, read_dialogues};
use loam_data::preference::{Encoder, Turns, read_pairs, read_prompts, read_rated};
use loam_tokenizer::{ChatTemplate, Tokenizer, TrainConfig, TrainKind, train};
use serde_json::{Value, json};
use tempfile::TempDir;

fn written(name: &str, content: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

/// The first conversation of a row, and what its format was found to be.
fn first(row: &Value, layout: &Layout) -> (Format, Dialogue) {
    let (_dir, path) = written("a.jsonl", &row.to_string());
    let table = Table::open(&path, layout).unwrap();
    (table.layout().format.unwrap(), read_dialogues(&[table]).unwrap().remove(0))
}

fn talk() -> Vec<Message> {
    vec![Message::user("2 + 2?"), Message::assistant("4.")]
}

fn messages(dialogue: &Dialogue) -> &[Message] {
    assert_eq!(dialogue.prompt, Turns::Messages(Vec::new()));
    let Turns::Messages(messages) = &dialogue.answer else { panic!("no messages: {dialogue:?}") };
    messages
}

#[test]
fn every_layout_is_found_out_and_says_the_same() {
    for (row, format) in [
        (
            json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}]}),
            Format::Sharegpt,
        ),
        (
            json!({"messages": [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "4."}]}),
            Format::Sharegpt,
        ),
        (json!({"instruction": "2 + 2?", "input": "", "output": "4."}), Format::Alpaca),
        (json!({"instruction": "2 + 2?", "output": "4.", "history": null, "system": ""}), Format::Alpaca),
    ] {
        let (found, dialogue) = first(&row, &Layout::default());
        assert_eq!((found, messages(&dialogue)), (format, &talk()[..]), "{row}");
    }
    let text = |text: &str| Turns::Text(text.into());
    for row in [json!({"prompt": "2 + 2?", "completion": "4."}), json!({"question": "2 + 2?", "answer": "4."})] {
        let (found, dialogue) = first(&row, &Layout::default());
        assert_eq!(found, Format::PromptCompletion);
        assert_eq!((dialogue.prompt, dialogue.answer), (text("2 + 2?"), text("4.")));
    }
    let row = json!({"prompt": [{"role": "user", "content": "2 + 2?"}], "completion": [{"role": "assistant", "content": "4."}]});
    let dialogue = first(&row, &Layout::default()).1;
    assert_eq!(
        [dialogue.prompt, dialogue.answer],
        [Turns::Messages(vec![talk().remove(0)]), Turns::Messages(vec![talk().remove(1)])]
    );
}

#[test]
fn systems_histories_inputs_and_tools_find_their_place() {
    let row = json!({
        "instruction": "And", "input": "3 + 3?", "output": "6.", "system": "Reckon.", "history": [["2 + 2?", "4."]],
    });
    let dialogue = first(&row, &Layout::default()).1;
    let expected =
        [&[Message::system("Reckon.")], &talk()[..], &[Message::user("And\n3 + 3?"), Message::assistant("6.")]]
            .concat();
    assert_eq!(messages(&dialogue), expected);
    let row = json!({
        "system": "Reckon.", "tools": "[{\"name\": \"add\"}]",
        "conversations": [
            {"from": "human", "value": "2 + 2?"}, {"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"a\": 2}}"},
            {"from": "observation", "value": "4"}, {"from": "gpt", "value": "4."},
        ],
    });
    let dialogue = first(&row, &Layout::default()).1;
    let found = messages(&dialogue);
    assert_eq!(
        found.iter().map(|m| m.role).collect::<Vec<_>>(),
        [Role::System, Role::User, Role::Assistant, Role::Tool, Role::Assistant]
    );
    assert_eq!(found[2].tool_calls, [ToolCall::new("call_0", "add", json!({"a": 2}))]);
    assert_eq!(dialogue.tools, [json!({"name": "add"})]);
}

#[test]
fn tables_and_lists_say_the_same_as_lines() {
    let row = json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]});
    let (_a, list) = written("a.json", &format!("[{row}]"));
    let quoted = row["messages"].to_string().replace('"', "\"\"");
    let (_b, table) = written("a.csv", &format!("messages\n\"{quoted}\"\n"));
    for path in [list, table] {
        let table = Table::open(&path, &Layout::default()).unwrap();
        assert_eq!(messages(&read_dialogues(&[table]).unwrap()[0]), talk());
    }
}

#[test]
fn fields_of_other_names_are_mapped() {
    let layout = Layout::default().with("instruction", "q").with("output", "a");
    let (format, dialogue) = first(&json!({"q": "2 + 2?", "a": "4."}), &layout);
    assert_eq!((format, messages(&dialogue)), (Format::Alpaca, &talk()[..]));
    // A format that is named is not looked for.
    let layout = Layout { format: Some(Format::PromptCompletion), ..Layout::default() };
    let row = json!({"messages": [{"role": "user", "content": "?"}], "prompt": "2 + 2?", "completion": "4."});
    assert_eq!(first(&row, &layout).1.answer, Turns::Text("4.".into()));
}

#[test]
fn preferences_labels_and_prompts_are_read_in_every_layout() {
    let (_a, path) = written(
        "a.jsonl",
        &format!(
            "{}\n",
            json!({"conversations": [{"from": "human", "value": "2 + 2?"}], "chosen": {"from": "gpt", "value": "4."},
                   "rejected": {"from": "gpt", "value": "5."}})
        ),
    );
    let (_b, alpaca) = written(
        "b.jsonl",
        &json!({"instruction": "2 + 2?", "input": "", "chosen": "4.", "rejected": "5."}).to_string(),
    );
    // A prompt of its own beside answers that begin with it.
    let whole = |answer: &str| json!([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": answer}]);
    let (_c, both) =
        written("c.jsonl", &json!({"prompt": "2 + 2?", "chosen": whole("4."), "rejected": whole("5.")}).to_string());
    for path in [path, alpaca, both] {
        let pair = read_pairs(&[Table::open(&path, &Layout::default()).unwrap()]).unwrap().remove(0);
        let answer = |text: &str| Turns::Messages(vec![Message::assistant(text)]);
        assert_eq!(pair.prompt, Turns::Messages(vec![Message::user("2 + 2?")]), "{path:?}");
        assert_eq!([pair.chosen, pair.rejected], [answer("4."), answer("5.")], "{path:?}");
    }
    let row = json!({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}], "label": true});
    let (_d, path) = written("d.jsonl", &row.to_string());
    let table = [Table::open(&path, &Layout::default()).unwrap()];
    let rated = read_rated(&table).unwrap().remove(0);
    assert_eq!((rated.prompt, rated.wanted), (Turns::Messages(vec![Message::user("2 + 2?")]), true));
    assert_eq!(rated.completion, Turns::Messages(vec![Message::assistant("4.")]));
    assert_eq!(read_prompts(&table).unwrap()[0].prompt, Turns::Messages(vec![Message::user("2 + 2?")]));
}

#[test]
fn rows_that_fit_no_layout_are_refused_with_their_place_and_a_way_out() {
    for (row, problem) in [
        (json!({"a": 1, "b": 2}), "line 1: the fields a, b fit no known format"),
        (
            json!({"conversations": [{"from": "robot", "value": "?"}]}),
            "turn 1: no one is called 'robot' (known are human, gpt",
        ),
        (json!({"conversations": [{"from": "human"}]}), "turn 1: there is no 'value'"),
        (json!({"messages": [{"role": "robot", "content": "?"}]}), "'messages' is no list of {role, content}"),
        (json!({"instruction": "?", "input": ""}), "no field 'output'"),
        (json!({"instruction": "?", "output": "!", "history": "x"}), "'history' should be a list of pairs"),
        (
            json!({"messages": [{"role": "user", "content": "?"}], "tools": "x"}),
            "'tools' should be a list of functions",
        ),
    ] {
        let (_dir, path) = written("a.jsonl", &row.to_string());
        let read = Table::open(&path, &Layout::default()).and_then(|table| read_dialogues(&[table]));
        let error = read.unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_dataset_info_of_llama_factory_is_understood() {
    let (dir, path) = written(
        "dataset_info.json",
        &json!({
            "qa": {"file_name": "qa.json", "columns": {"prompt": "q", "response": "a"}},
            "talk": {
                "file_name": "talk.jsonl", "formatting": "sharegpt", "columns": {"messages": "turns", "system": "rule"},
                "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"},
            },
            "better": {"file_name": "better.jsonl", "ranking": true, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
            "far": {"hf_hub_url": "someone/somewhat"},
            "odd": {"file_name": "qa.json", "formatting": "xml"},
        })
        .to_string(),
    );
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    write("qa.json", json!([{"q": "2 + 2?", "a": "4."}]).to_string());
    let row = json!({"rule": "Reckon.", "turns": [{"who": "me", "what": "2 + 2?"}, {"who": "you", "what": "4."}]});
    write("talk.jsonl", row.to_string());
    write("better.jsonl", json!({"q": "2 + 2?", "good": "4.", "bad": "5."}).to_string());
    let info = DatasetInfo::open(&path).unwrap();
    let tables = |name: &str| info.tables(name, &BTreeMap::new());
    assert_eq!(messages(&read_dialogues(&tables("qa").unwrap()).unwrap()[0]), talk());
    let found = read_dialogues(&tables("talk").unwrap()).unwrap();
    assert_eq!(messages(&found[0]), [&[Message::system("Reckon.")], &talk()[..]].concat());
    let pair = read_pairs(&tables("better").unwrap()).unwrap().remove(0);
    assert_eq!(pair.rejected, Turns::Messages(vec![Message::assistant("5.")]));
    for (name, problem) in [
        ("far", "`far`: it names no `file_name`; a data set of a hub has to be downloaded first"),
        ("odd", "`odd`: its formatting is `xml`"),
        ("qb", "has no field 'qb' (found: qa, talk, better, far, odd)"),
    ] {
        let error = tables(name).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

fn tokenizer() -> Tokenizer {
    let corpus = ["abcdefghijklmnopqrstuvwxyz 0123456789+.?\n".to_string()];
    let texts = corpus.iter().cloned().map(Ok::<_, loam_tokenizer::Error>);
    train(texts, &TrainConfig::new(TrainKind::ByteBpe), &mut |_| {}).unwrap()
}

#[test]
fn all_that_the_assistant_says_is_trained_with_its_end_tokens_also_where_padding_is_the_same_token() {
    let (tokenizer, template) = (tokenizer(), ChatTemplate::chatml());
    let encoder = Encoder { tokenizer: &tokenizer, template: Some(&template), max_len: 200 };
    let more = [Message::user("3 + 3?"), Message::assistant("6.")];
    let dialogue = Dialogue {
        prompt: Turns::Messages(Vec::new()),
        answer: Turns::Messages([&talk()[..], &more].concat()),
        tools: Vec::new(),
    };
    let example = encoder.dialogue(&dialogue, 0).unwrap();
    let trained: Vec<u32> =
        example.ids.iter().zip(&example.trained).filter(|(_, is)| **is).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "4.<|im_end|>6.<|im_end|>");
    // The mask knows positions, not ids: rows are padded with a token that occurs in the text, and it counts there.
    let config = loam_data::LoaderConfig { batch: 1, seq_len: 128, seed: 0, mode: loam_data::Mode::Packed };
    let mut ids = example.ids.clone();
    let end = *ids.last().unwrap();
    ids.iter_mut().filter(|id| **id == end).for_each(|id| *id = 0);
    let padded = loam_data::Example { ids, ..example };
    let batch = loam_data::Loader::for_examples(vec![padded], config).unwrap().batch(0);
    assert_eq!(batch.targets.iter().filter(|&&target| target == 0).count(), 2, "both end tokens are targets");
}
