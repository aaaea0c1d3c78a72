//! From files to labelled examples: what comes out, and what bad files are told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs;

use loam_data::labelled::classify::{self, ClassifyFields, Label, LabelKind, LabelSet};
use loam_data::labelled::contrastive::{self, ContrastiveFields};
use loam_data::labelled::qa::{self, AnswerSpan, Answers, QaFields, QaRow};
use loam_data::labelled::token_classify::{self, TagFields, TaggedWords};
use loam_data::loader::IGNORED;
use loam_data::seq2seq::{self, PairFields};
use loam_data::source::Source;
use loam_tokenizer::{Special, Tokenizer, TrainConfig, TrainKind, train};

/// A WordPiece vocabulary so small that most words have several pieces.
fn tokenizer() -> Tokenizer {
    let text = "Mia lives in the mill by the river and Tom bakes bread. Where does Mia live? 米娅住在磨坊。";
    // Every letter may go on with a word.
    let text = [format!("{text} abcdefghijklmnopqrstuvwxyz 米磨坊娅")];
    let config = TrainConfig { vocab_size: 75, ..TrainConfig::new(TrainKind::WordPiece) };
    train(text.into_iter().map(Ok::<_, loam_tokenizer::Error>), &config, &mut |_| {}).unwrap()
}

fn file(name: &str, text: &str) -> (tempfile::TempDir, Vec<Source>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    let source = Source::open(&path).unwrap();
    (dir, vec![source])
}

#[test]
fn classes_are_read_from_tables_and_encoded_with_their_numbers() {
    let tokenizer = tokenizer();
    for (name, text) in [
        (
            "a.jsonl",
            "{\"text\": \"Mia bakes.\", \"label\": \"good\"}\n\n{\"text\": \"the mill\", \"label\": \"bad\"}\n",
        ),
        ("a.csv", "text,label\nMia bakes.,good\nthe mill,bad\n"),
    ] {
        let (_dir, sources) = file(name, text);
        let rows = classify::read(&sources, &ClassifyFields::default(), LabelKind::Class).unwrap();
        let labels = LabelSet::of(rows.iter().flat_map(|row| &row.classes));
        let (examples, truncated) = classify::encode(&rows, &labels, LabelKind::Class, &tokenizer, 50).unwrap();
        assert_eq!(truncated, 0);
        let found: Vec<&Label> = examples.iter().map(|example| &example.label).collect();
        assert_eq!(found, [&Label::Class(1), &Label::Class(0)]);
        assert_eq!(examples[0].texts[0].tokens, tokenizer.encode("Mia bakes.", Special::Add).unwrap());
        let (_, truncated) = classify::encode(&rows, &labels, LabelKind::Class, &tokenizer, 4).unwrap();
        assert_eq!(truncated, 2);
    }
}

#[test]
fn pairs_numbers_and_several_classes_are_read() {
    let (_dir, sources) = file("a.jsonl", "{\"a\": \"Mia\", \"b\": \"Tom\", \"score\": 0.5, \"topics\": [\"x\", 3]}\n");
    let fields = |label: &str| ClassifyFields { text: "a".into(), text_pair: Some("b".into()), label: label.into() };
    let rows = classify::read(&sources, &fields("score"), LabelKind::Value).unwrap();
    assert_eq!((rows[0].text_pair.as_deref(), rows[0].value), (Some("Tom"), Some(0.5)));
    let rows = classify::read(&sources, &fields("topics"), LabelKind::Classes).unwrap();
    let labels = LabelSet::of(&rows[0].classes);
    let (examples, _) = classify::encode(&rows, &labels, LabelKind::Classes, &tokenizer(), 50).unwrap();
    assert_eq!(examples[0].label, Label::Classes(vec![0, 1]));
    assert!(examples[0].texts[0].token_types.is_sorted());
}

#[test]
fn a_bad_row_is_told_with_file_line_and_field() {
    let refusal = |name: &str, text: &str, kind| {
        let (_dir, sources) = file(name, text);
        let error = classify::read(&sources, &ClassifyFields::default(), kind).unwrap_err();
        (error.to_string(), error.hint())
    };
    let (error, hint) =
        refusal("a.jsonl", "{\"text\": \"x\", \"label\": 1}\n{\"text\": \"x\", \"lable\": 1}\n", LabelKind::Class);
    assert!(error.ends_with("a.jsonl: line 2 has no field 'label' (found: text, lable)"), "{error}");
    assert!(hint.unwrap().contains("'lable'"));
    let (error, _) = refusal("a.jsonl", "{\"text\": 3, \"label\": 1}\n", LabelKind::Class);
    assert!(error.ends_with("a.jsonl: line 1: 'text' should be a string but is a number"), "{error}");
    let (error, _) = refusal("a.csv", "text,label\nx,warm\n", LabelKind::Value);
    assert!(error.ends_with("a.csv: line 2: 'label' should be a number but is \"warm\""), "{error}");
    let (error, _) = refusal("a.jsonl", "{\"text\": \"x\", \"label\": 0.5}\n", LabelKind::Class);
    assert!(error.contains("line 1: 'label' should be a name or a whole number"), "{error}");
    let (error, _) = refusal("a.txt", "hello\n", LabelKind::Class);
    assert!(error.contains("a plain text has no fields"), "{error}");
    let (error, _) = refusal("a.csv", "text,label\n", LabelKind::Class);
    assert!(error.contains("has no text in it"), "{error}");
}

#[test]
fn the_first_token_of_each_word_has_its_label_in_both_languages() {
    let tokenizer = tokenizer();
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let rows = [
        TaggedWords { words: words(&["Mia", "lives", "riverward"]), tags: words(&["B-PER", "O", "B-LOC"]) },
        TaggedWords { words: words(&["米娅", "住", "在", "磨坊"]), tags: words(&["B-PER", "O", "O", "B-LOC"]) },
    ];
    let labels = LabelSet::of(rows.iter().flat_map(|row| &row.tags));
    let (examples, truncated) = token_classify::encode(&rows, &labels, &tokenizer, 60).unwrap();
    assert_eq!(truncated, 0);
    for (row, example) in rows.iter().zip(&examples) {
        let (text, _) = token_classify::join(&row.words);
        assert_eq!(example.texts[0].tokens, tokenizer.encode(&text, Special::Add).unwrap());
        let found: Vec<&String> =
            example.label.iter().filter(|&&l| l != IGNORED).map(|&l| &labels.names()[l as usize]).collect();
        assert!(found.into_iter().eq(&row.tags));
        assert_eq!(example.label.len(), example.texts[0].tokens.len());
        assert_eq!(example.label[0], IGNORED, "[CLS] has no label");
        assert!(example.texts[0].tokens.len() > row.words.len() + 2, "some words have several tokens");
    }
    assert_eq!(token_classify::join(&rows[1].words).0, "米娅住在磨坊");
}

#[test]
fn words_without_a_tag_each_are_refused() {
    let (_dir, sources) = file("a.jsonl", "{\"tokens\": [\"Mia\", \"lives\"], \"tags\": [\"O\"]}\n");
    let error = token_classify::read(&sources, &TagFields::default()).unwrap_err().to_string();
    assert!(error.ends_with("line 1: 2 words in 'tokens' but 1 in 'tags'"), "{error}");
}

#[test]
fn an_answer_is_found_in_every_window_that_holds_it_and_in_no_other() {
    let tokenizer = tokenizer();
    let context = "Tom bakes bread by the river. Mia lives in the mill. Tom bakes bread.".to_string();
    let start = context.find("the mill").unwrap();
    let row = QaRow {
        context: context.clone(),
        question: "Where?".into(),
        answers: Answers { text: vec!["the mill".into()], answer_start: vec![start] },
    };
    let nobody_says = QaRow { answers: Answers::default(), ..row.clone() };
    let (examples, windows) = qa::encode(&[row, nobody_says], &tokenizer, 24, 8).unwrap();
    let count = tokenizer.encode(&context, Special::Ignore).unwrap().len();
    let (mut answered, mut covered) = (0, vec![false; count]);
    let offsets = tokenizer.encode_with_offsets(&context, Special::Ignore).unwrap().offsets;
    for (example, window) in examples.iter().zip(&windows) {
        assert!(example.texts[0].tokens.len() <= 24);
        let AnswerSpan { start: first, end: last } = example.label;
        match window.bytes(first, last) {
            Some(bytes) => {
                assert_eq!((&context[bytes], window.row), ("the mill", 0));
                answered += 1;
            }
            None => assert_eq!(example.label, AnswerSpan::default()),
        }
        for offset in &window.offsets {
            covered[offsets.iter().position(|other| other == offset).unwrap()] = true;
        }
        let whole = window.offsets.first().is_some_and(|o| o.0 <= start)
            && window.offsets.last().is_some_and(|o| o.1 >= start + 8);
        assert_eq!(example.label != AnswerSpan::default(), whole && window.row == 0);
    }
    assert!(answered > 0 && examples.len() > 2, "{answered} of {}", examples.len());
    assert!(covered.into_iter().all(|covered| covered), "no token of the passage is lost");
    let error = qa::encode(
        &[QaRow { context: "x".into(), question: "Where?".into(), answers: Answers::default() }],
        &tokenizer,
        6,
        8,
    );
    assert!(error.unwrap_err().to_string().contains("tokens to its passage"));
}

#[test]
fn squad_rows_are_read_and_answers_that_are_not_there_refused() {
    let line = |start: usize| {
        format!(
            "{{\"context\": \"米娅住在磨坊。\", \"question\": \"哪里？\", \"answers\": {{\"text\": [\"磨坊\"], \"answer_start\": [{start}]}}}}\n"
        )
    };
    let (_dir, sources) = file("a.jsonl", &line(4));
    let rows = qa::read(&sources, &QaFields::default()).unwrap();
    assert_eq!(rows[0].answers, Answers { text: vec!["磨坊".into()], answer_start: vec![4] });
    let (_dir, sources) = file("a.jsonl", &line(3));
    let error = qa::read(&sources, &QaFields::default()).unwrap_err().to_string();
    assert!(error.ends_with("line 1: the answer '磨坊' does not stand at character 3 of the passage"), "{error}");
}

#[test]
fn pairs_and_triplets_are_read_and_encoded() {
    let tokenizer = tokenizer();
    let (_dir, sources) = file("a.csv", "anchor,positive,no\nMia bakes.,Tom bakes.,the river\n");
    let fields = ContrastiveFields { negative: Some("no".into()), ..ContrastiveFields::default() };
    let rows = contrastive::read(&sources, &fields).unwrap();
    let (examples, truncated) = contrastive::encode(&rows, &tokenizer, 90).unwrap();
    assert_eq!((examples[0].texts.len(), truncated), (3, 0));
    let (examples, truncated) = contrastive::encode(&rows, &tokenizer, 12).unwrap();
    assert!(truncated > 0 && examples[0].texts.iter().all(|text| text.tokens.len() <= 4));

    let (_dir, sources) = file("b.csv", "anchor,positive\nMia bakes.,Tom bakes.\n");
    let fields = PairFields { source: "anchor".into(), target: "positive".into() };
    let pairs = seq2seq::read(&sources, &fields).unwrap();
    assert_eq!(pairs, [("Mia bakes.".to_string(), "Tom bakes.".to_string())]);
    let examples = seq2seq::encode(&pairs, &tokenizer).unwrap();
    assert_eq!(examples[0].source, tokenizer.encode("Mia bakes.", Special::Add).unwrap());
    assert_eq!(examples[0].target, tokenizer.encode("Tom bakes.", Special::Add).unwrap());
    let (_dir, sources) = file("c.jsonl", "{\"source\": \"Mia\", \"target\": \"\"}\n");
    let error = seq2seq::read(&sources, &PairFields::default()).unwrap_err().to_string();
    assert!(error.ends_with("line 1: 'target' is empty"), "{error}");
}

#[test]
fn a_target_always_ends_with_the_end_token() {
    let config = TrainConfig::new(TrainKind::Char);
    let tokenizer = train([Ok::<_, loam_tokenizer::Error>("abc".into())], &config, &mut |_| {}).unwrap();
    let examples = seq2seq::encode(&[("ab".into(), "c".into())], &tokenizer).unwrap();
    assert_eq!(examples[0].target.last().copied(), tokenizer.eos_id());
    assert_eq!((examples[0].source.len(), examples[0].target.len()), (3, 2));
}

#[test]
fn rows_of_parquet_have_lists_numbers_and_structures() {
    // Written by pyarrow with zstd: two rows, lists of texts and numbers, and a structure of lists.
    let sources = [Source::open(std::path::Path::new("tests/data/rows-zstd.parquet")).unwrap()];
    let rows = token_classify::read(&sources, &TagFields::default()).unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.words.join(" "), row.tags.join(" "))).collect();
    assert_eq!(found, [("Mia lives".to_string(), "1 0".to_string()), ("Tom".to_string(), "1".to_string())]);
    let records: Vec<_> = sources[0].records().map(|record| record.unwrap()).collect();
    assert_eq!((records[1].name("label").unwrap(), records[0].number("score").unwrap()), ("2".to_string(), 0.5));
    let answers: Answers = serde_json::from_value(records[0].value("answers").unwrap().clone()).unwrap();
    assert_eq!(answers, Answers { text: vec!["a".into()], answer_start: vec![0] });
    let error = records[1].text("context").unwrap_err().to_string();
    assert!(error.contains("row 2 has no field 'context' (found: tokens, tags, label, score, answers)"), "{error}");
}
