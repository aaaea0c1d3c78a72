//! Preferences: the garden's own, and rows of files in every layout.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use loam_chat::Message;
use loam_data::Garden;
use loam_data::dialogue::{Layout, Table};
use loam_data::garden::preferences::{Flaw, quality};
use loam_data::garden::{Question, Split};
use loam_data::preference::{Encoder, Turns, implicit_prompt, read_pairs, read_prompts, read_rated, unpaired};
use loam_tokenizer::{ChatTemplate, TrainConfig, TrainKind, train};

fn text(text: &str) -> Turns {
    Turns::Text(text.into())
}

fn written(name: &str, content: &str) -> (tempfile::TempDir, loam_data::Result<Vec<Table>>) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let table = Table::open(&path, &Layout::default());
    (dir, table.map(|table| vec![table]))
}

#[test]
fn the_gardens_pairs_are_better_by_its_scorer_and_no_held_out_question_is_in_training() {
    let garden = Garden::new(42);
    let (trained, held_out) = (garden.preferences(Split::Train, 400), garden.preferences(Split::HeldOut, 100));
    assert_eq!((trained.len(), held_out.len()), (400, 100));
    let prompts: HashSet<String> = trained.iter().map(|pair| pair.prompt[0].text()).collect();
    assert!(held_out.iter().all(|pair| !prompts.contains(&pair.prompt[0].text())));
    let flaws: HashSet<Flaw> = trained.iter().map(|pair| pair.flaw).collect();
    assert_eq!(flaws.len(), 4);
    assert!(trained.iter().all(|pair| pair.chosen != pair.rejected));
    assert_eq!(garden.preferences(Split::Train, 400), trained, "a seed has one list");
}

#[test]
fn quality_wants_the_answer_and_nothing_further() {
    let question: Question = serde_json::from_str(
        r#"{"prompt": "What is 3 + 4?", "answer": "7", "category": "arithmetic", "lang": "En", "rivals": []}"#,
    )
    .or_else(|_| {
        serde_json::from_str(
            r#"{"prompt": "What is 3 + 4?", "answer": "7", "category": "arithmetic", "lang": "en", "rivals": []}"#,
        )
    })
    .unwrap();
    for (reply, score) in [("7.", 1.0), ("3 + 4 = 7.", 1.0), ("7. 8.", 0.5), ("8.", 0.0), ("I do not know.", 0.0)] {
        assert_eq!(quality(&question, reply), score, "{reply}");
    }
}

#[test]
fn what_two_answers_begin_with_is_their_prompt() {
    let (prompt, chosen, rejected) = implicit_prompt(&text("The sky is blue."), &text("The sky is green.")).unwrap();
    assert_eq!([prompt, chosen, rejected], [text("The sky is"), text(" blue."), text(" green.")]);
    let turns = |answer: &str| Turns::Messages(vec![Message::user("a?"), Message::assistant(answer)]);
    let (prompt, chosen, _) = implicit_prompt(&turns("b"), &turns("c")).unwrap();
    assert_eq!(prompt, Turns::Messages(vec![Message::user("a?")]));
    assert_eq!(chosen, Turns::Messages(vec![Message::assistant("b")]));
    assert!(implicit_prompt(&text("a"), &turns("a")).is_none());
    let (prompt, chosen, _) = implicit_prompt(&text("天是蓝的"), &text("天是绿的")).unwrap();
    assert_eq!((prompt, chosen), (text("天是"), text("蓝的")));
}

#[test]
fn pairs_are_read_from_lines_lists_and_tables_alike() {
    let row = r#"{"prompt": "a?", "chosen": "b", "rejected": "c", "margin": 0.5}"#;
    let (_a, lines) = written("a.jsonl", row);
    let (_b, list) = written("a.json", &format!("[{row}]"));
    let (_c, table) = written("a.csv", "prompt,chosen,rejected,margin\na?,b,c,0.5\n");
    let read = |tables: &loam_data::Result<Vec<Table>>| read_pairs(tables.as_ref().unwrap()).unwrap();
    assert_eq!(read(&lines), read(&list));
    assert_eq!(read(&lines), read(&table));
    assert_eq!((read(&lines)[0].margin, &read(&lines)[0].chosen), (0.5, &text("b")));
    let messages = r#"[{""role"": ""user"", ""content"": ""a?""}]"#;
    let (_d, table) = written("a.csv", &format!("prompt,chosen,rejected\n\"{messages}\",b,c\n"));
    assert_eq!(read(&table)[0].prompt, Turns::Messages(vec![Message::user("a?")]));
    let rated = unpaired(&read(&lines));
    assert_eq!(rated.iter().map(|one| one.wanted).collect::<Vec<_>>(), [true, false]);
    let (_e, single) = written("b.jsonl", r#"{"prompt": "a?", "completion": "b", "label": false}"#);
    assert_eq!(read_rated(&single.unwrap()).unwrap()[0].completion, text("b"));
    let (_f, prompts) = written("c.jsonl", r#"{"question": "a?", "answer": 7}"#);
    let prompt = read_prompts(&prompts.unwrap()).unwrap().remove(0);
    assert_eq!((&prompt.prompt, &prompt.row["answer"]), (&text("a?"), &7.into()));
}

#[test]
fn rows_that_cannot_be_used_are_named() {
    for (content, problem) in [
        (r#"{"prompt": "a?", "chosen": "b", "rejected": "b"}"#, "line 1: chosen and rejected are the same"),
        (r#"{"prompt": "a?", "chosen": 3, "rejected": "b"}"#, "'chosen' should be a text or a list of messages"),
        (r#"{"chosen": [{"role": "x"}], "rejected": "b"}"#, "'chosen' is no list of messages"),
        (r#"{"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}"#, "one answer is a text"),
    ] {
        let (_dir, tables) = written("a.jsonl", content);
        let error = read_pairs(&tables.unwrap()).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    let (_dir, tables) = written("a.jsonl", r#"{"prompt": "a?", "completion": "b", "label": "maybe"}"#);
    assert!(read_rated(&tables.unwrap()).unwrap_err().to_string().contains("true or false"));
    let (_dir, tables) = written("a.json", r#"{"chosen": "a"}"#);
    assert!(tables.unwrap_err().to_string().contains("one object per line is .jsonl"));
}

#[test]
fn only_the_answer_is_trained_up_to_its_end_token() {
    let corpus = ["abcdefghijklmnopqrstuvwxyz ?\n".to_string()];
    let config = TrainConfig::new(TrainKind::ByteBpe);
    let tokenizer = train(corpus.iter().cloned().map(Ok::<_, loam_tokenizer::Error>), &config, &mut |_| {}).unwrap();
    let template = ChatTemplate::chatml();
    let encoder = Encoder { tokenizer: &tokenizer, template: Some(&template), max_len: 200 };
    let prompt = Turns::Messages(vec![Message::user("a?"), Message::assistant("early"), Message::user("b?")]);
    let answer = encoder.answer(&prompt, &Turns::Messages(vec![Message::assistant("late")]), 0).unwrap();
    let trained: Vec<u32> = answer.ids.iter().zip(&answer.trained).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "late<|im_end|>");
    assert_eq!(answer.trained.last(), Some(&true));
    // What a rollout writes comes after the very same prompt.
    let ids = encoder.prompt(&prompt).unwrap();
    assert_eq!(answer.ids[..ids.len()], ids);
    assert!(answer.trained[..ids.len()].iter().all(|t| !t) && answer.trained[ids.len()..].iter().all(|t| *t));
    // A text is what a user says, where the model talks.
    let said = encoder.answer(&text("b?"), &text("late"), 0).unwrap();
    assert!(tokenizer.decode(&said.ids, false).unwrap().starts_with("<|im_start|>user\nb?<|im_end|>"));
    let plain = Encoder { template: None, ..encoder };
    let said = plain.answer(&text("b?"), &text(" late"), 0).unwrap();
    assert_eq!(said.ids.last().copied(), tokenizer.eos_id());
    let error = plain.answer(&prompt, &Turns::Messages(vec![Message::assistant("late")]), 0).unwrap_err();
    assert!(error.to_string().contains("no chat template") && error.hint().is_some());
    let short = Encoder { max_len: 8, ..encoder };
    let error = short.answer(&prompt, &text("late"), 4).unwrap_err();
    assert!(error.to_string().starts_with("row 5: ") && error.to_string().contains("would be cut off"), "{error}");
}
