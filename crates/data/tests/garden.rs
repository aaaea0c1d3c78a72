//! The promises of the built-in corpus.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::collections::{HashMap, HashSet};

use loam_chat::Role;
use loam_data::garden::arithmetic::{Operation, Sum};
use loam_data::garden::settings::MAX_NUMBER;
use loam_data::garden::world::World;
use loam_data::garden::{Category, Garden, Lang, Part, Sizes, Split, TOPICS};
use loam_data::labelled::classify::{self, LabelKind};
use loam_data::labelled::contrastive::{self, ContrastiveFields};
use loam_data::labelled::{entities, qa, squad, token_classify};
use loam_data::seq2seq;
use loam_data::source::Source;

const SEED: u64 = 42;

fn training_texts(garden: &Garden) -> Vec<String> {
    let documents = garden.documents(Split::Train, 1_500_000).map(|document| document.text);
    let chats = garden.chats(Split::Train, 6_000);
    documents.chain(chats.iter().flatten().map(|message| message.text())).collect()
}

#[test]
fn equal_seeds_give_equal_texts_and_other_seeds_other_worlds() {
    let texts = |seed| {
        let garden = Garden::new(seed);
        let documents: Vec<_> = garden.documents(Split::Train, 20_000).collect();
        (documents, garden.chats(Split::Train, 50), garden.questions(Split::HeldOut, 50))
    };
    assert_eq!(texts(1), texts(1));
    assert_ne!(texts(1).0, texts(2).0);
    let homes = |seed| Garden::new(seed).world().people.iter().map(|person| person.home).collect::<Vec<_>>();
    assert_ne!(homes(1), homes(2));
}

#[test]
fn no_held_out_question_occurs_in_any_training_text() {
    for seed in [SEED, 7] {
        let garden = Garden::new(seed);
        let text = training_texts(&garden).join("\n");
        let questions = garden.questions(Split::HeldOut, 400);
        let leaked: Vec<_> = questions.iter().filter(|question| text.contains(&question.prompt)).collect();
        assert!(leaked.is_empty(), "{:?}", leaked.first());
    }
}

#[test]
fn held_out_pairs_of_numbers_occur_nowhere_in_training() {
    let garden = Garden::new(SEED);
    let texts = training_texts(&garden);
    let mut shown = HashSet::new();
    for text in &texts {
        let words: Vec<&str> = text.split([' ', '\n', ':', ',', '.', '?', '，', '。', '？']).collect();
        for window in words.windows(3) {
            let operation = match window[1] {
                "+" => Operation::Add,
                "-" => Operation::Subtract,
                _ => continue,
            };
            if let (Ok(a), Ok(b)) = (window[0].parse(), window[2].parse()) {
                shown.insert(Sum { operation, a, b });
            }
        }
    }
    assert!(shown.len() > 300, "{}", shown.len());
    assert!(shown.iter().all(|sum| !sum.is_held_out(SEED)));
    let mut held_out = 0;
    for a in 0..=MAX_NUMBER {
        for b in 0..=MAX_NUMBER - a {
            let sum = Sum { operation: Operation::Add, a, b };
            if sum.is_held_out(SEED) {
                held_out += 1;
                assert!(!Sum { a: b, b: a, ..sum }.is_held_out(SEED), "the twin of {} is held out too", sum.equation());
            }
        }
    }
    assert!((8..40).contains(&held_out), "{held_out}");
}

#[test]
fn every_held_out_fact_is_stated_in_training_text() {
    let garden = Garden::new(SEED);
    let text: String = garden.documents(Split::Train, 1_500_000).map(|document| document.text + "\n").collect();
    let exercises = garden.exercises();
    for fact in &garden.world().facts {
        for lang in [Lang::En, Lang::Zh] {
            if fact.relation().questions(lang).is_empty() {
                continue;
            }
            let stated = fact.relation().statements(lang).iter().any(|statement| {
                let sentence = statement.replace("{s}", fact.name.say(lang)).replace("{o}", fact.answer(lang));
                // The first letter may have become a capital.
                text.contains(&sentence[sentence.chars().next().map_or(0, char::len_utf8)..])
            });
            assert!(stated, "{}", exercises.ask(fact, lang, 0).prompt);
        }
    }
}

#[test]
fn the_splits_share_no_text() {
    let garden = Garden::new(SEED);
    let train: HashSet<String> = garden.documents(Split::Train, 1_000_000).map(|document| document.text).collect();
    assert!(garden.documents(Split::HeldOut, 100_000).all(|document| !train.contains(&document.text)));
    let said = |split| -> HashSet<String> {
        garden.questions(split, 300).into_iter().map(|question| question.prompt).collect()
    };
    assert!(said(Split::Train).is_disjoint(&said(Split::HeldOut)));
}

#[test]
fn every_fact_has_one_answer_that_the_world_confirms() {
    let world = World::new(SEED);
    let mut asked = HashSet::new();
    for fact in &world.facts {
        assert!(asked.insert((fact.relation, fact.subject)));
    }
    for (index, person) in world.people.iter().enumerate() {
        assert_eq!(world.people[person.friend].friend, index, "friendship goes both ways");
        assert_ne!(person.friend, index);
    }
    assert!((150..=300).contains(&world.facts.len()));
}

#[test]
fn a_story_never_contradicts_the_world() {
    let garden = Garden::new(SEED);
    let world = garden.world();
    let mut checked = 0;
    for document in garden.documents(Split::Train, 400_000).filter(|document| document.part == Part::Story) {
        for fact in &world.facts {
            let relation = fact.relation();
            let (subject, pattern) = match (relation.name, document.lang) {
                ("job", Lang::En) => (fact.name.en, "{s} the {o}"),
                ("home", Lang::En) => (fact.name.en, "{s} lives in the {o}"),
                ("job", Lang::Zh) => (fact.name.zh, "{s}是一名{o}"),
                _ => continue,
            };
            for rival in world.facts.iter().filter(|other| other.relation == fact.relation) {
                let claim = pattern.replace("{s}", subject).replace("{o}", rival.answer(document.lang));
                if document.text.contains(&claim) {
                    checked += 1;
                    assert_eq!(rival.answer(document.lang), fact.answer(document.lang), "{}", document.text);
                }
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn a_fifth_is_chinese_and_every_part_and_category_is_there() {
    let garden = Garden::new(SEED);
    let documents: Vec<_> = garden.documents(Split::Train, 300_000).collect();
    let chinese = documents.iter().filter(|document| document.lang == Lang::Zh).count() as f64;
    assert!((0.15..0.25).contains(&(chinese / documents.len() as f64)));
    for part in [Part::Story, Part::Fact, Part::Arithmetic] {
        assert!(documents.iter().any(|document| document.part == part));
    }
    let questions = garden.questions(Split::HeldOut, 400);
    assert_eq!(questions.len(), 400);
    for category in Category::ALL {
        assert!(questions.iter().any(|question| question.category == category), "{category:?}");
    }
}

#[test]
fn the_right_reply_scores_and_that_of_another_question_does_not() {
    let garden = Garden::new(SEED);
    let questions = garden.questions(Split::HeldOut, 300);
    assert!(questions.iter().all(|question| question.is_right(&question.answer)));
    let wrong = |question: &&loam_data::garden::Question| question.rivals.iter().all(|rival| !question.is_right(rival));
    assert!(questions.iter().all(|question| wrong(&question)));
    // The replies that training teaches are the ones that score.
    for chat in garden.chats(Split::HeldOut, 300) {
        for pair in chat.windows(2).filter(|pair| pair[0].role == Role::User) {
            if let Some(question) = questions.iter().find(|question| question.prompt == pair[0].text()) {
                assert!(question.is_right(&pair[1].text()), "{question:?} {}", pair[1].text());
            }
        }
    }
}

#[test]
fn the_files_are_written_and_the_same_for_the_same_seed() {
    let dir = tempfile::tempdir().unwrap();
    let sizes =
        Sizes { train_bytes: 50_000, valid_bytes: 5_000, chats: 40, questions: 30, tasks: 60, tasks_held_out: 8 };
    let first = Garden::new(3).write(&dir.path().join("a"), sizes).unwrap();
    let second = Garden::new(3).write(&dir.path().join("b"), sizes).unwrap();
    let read = |path| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(&first.train), read(&second.train));
    let documents = read(&first.train).split("\n\n").filter(|text| !text.is_empty()).count();
    assert_eq!(documents, Garden::new(3).documents(Split::Train, 50_000).count());
    assert_eq!(read(&first.chats).lines().count(), 40);
    for ((task, train, held_out), (_, again, _)) in first.tasks.iter().zip(&second.tasks) {
        assert_eq!(read(train), read(again));
        assert_eq!((read(train).lines().count(), read(held_out).lines().count()), (60, 8), "{task}");
    }
    // What is written can be read back as training examples.
    let source = |path| [Source::open(path).unwrap()];
    let files = |task: usize| source(&first.tasks[task].1);
    assert_eq!(qa::read(&files(0), &Default::default()).unwrap(), Garden::new(3).readings(Split::Train, 60));
    assert_eq!(seq2seq::read(&files(0), &Default::default()).unwrap().len(), 60);
    assert_eq!(classify::read(&files(1), &Default::default(), LabelKind::Class).unwrap().len(), 60);
    assert_eq!(token_classify::read(&files(2), &Default::default()).unwrap(), Garden::new(3).tagged(Split::Train, 60));
    let fields = ContrastiveFields { negative: Some("negative".into()), ..Default::default() };
    assert_eq!(contrastive::read(&files(3), &fields).unwrap(), Garden::new(3).paraphrases(Split::Train, 60));
    for line in read(&first.questions).lines() {
        let question: loam_data::garden::Question = serde_json::from_str(line).unwrap();
        assert!(question.is_right(&question.answer));
    }
}

#[test]
fn every_answer_of_a_reading_stands_in_its_passage_where_it_says() {
    let garden = Garden::new(SEED);
    for split in [Split::Train, Split::HeldOut] {
        let rows = garden.readings(split, 200);
        assert_eq!(rows.len(), 200);
        for row in &rows {
            let (answer, start) = (&row.answers.text[0], row.answers.answer_start[0]);
            let found: String = row.context.chars().skip(start).take(answer.chars().count()).collect();
            assert_eq!(&found, answer, "{row:?}");
            assert_eq!(squad::exact_match(answer, &row.answers.text), 1.0);
        }
        assert!(rows.iter().any(|row| !row.context.is_ascii()), "some are Chinese");
    }
    let train = garden.readings(Split::Train, 600);
    let asked: HashSet<&String> = train.iter().map(|row| &row.question).collect();
    assert!(garden.readings(Split::HeldOut, 200).iter().all(|row| !asked.contains(&row.question)));
}

#[test]
fn readings_are_told_of_many_worlds_so_that_remembering_an_answer_does_not_help() {
    let mut answers: HashMap<String, Vec<String>> = HashMap::new();
    for row in Garden::new(SEED).readings(Split::Train, 3000) {
        answers.entry(row.question).or_default().push(row.answers.text[0].clone());
    }
    let often: Vec<_> = answers.values().filter(|all| all.len() >= 4).collect();
    let differ = often.iter().filter(|all| all.iter().any(|answer| *answer != all[0])).count();
    // Opposites are the same in every world.
    assert!(often.len() > 50 && 2 * differ > often.len(), "{differ} of {}", often.len());
}

#[test]
fn the_answer_of_a_reading_is_what_one_of_the_worlds_says() {
    let worlds: Vec<Garden> = (1..=256).map(|other| Garden::new(SEED + other)).collect();
    for row in Garden::new(SEED).readings(Split::Train, 8) {
        let lang = if row.question.is_ascii() { Lang::En } else { Lang::Zh };
        let says = |garden: &Garden| {
            garden.world().facts.iter().filter(|fact| fact.answer(lang) == row.answers.text[0]).any(|fact| {
                let mut phrasings = 0..fact.relation().questions(lang).len();
                phrasings.any(|i| garden.exercises().ask(fact, lang, i).prompt == row.question)
            })
        };
        assert!(worlds.iter().any(says), "{row:?}");
    }
}

#[test]
fn tagged_sentences_have_the_entities_of_the_world() {
    let garden = Garden::new(SEED);
    let (train, held_out) = (garden.tagged(Split::Train, 500), garden.tagged(Split::HeldOut, 60));
    assert_eq!((train.len(), held_out.len()), (500, 60));
    let mut kinds = HashSet::new();
    for sentence in train.iter().chain(&held_out) {
        assert_eq!(sentence.words.len(), sentence.tags.len());
        for entity in entities::entities(&sentence.tags) {
            let name = sentence.words[entity.start..entity.end].concat();
            let people = garden.world().people.iter().any(|person| person.name.en == name || person.name.zh == name);
            assert_eq!(entity.kind == "PER", people, "{sentence:?}");
            kinds.insert(entity.kind);
        }
    }
    assert_eq!(kinds, ["PER", "ANIMAL", "LOC", "THING"].map(String::from).into());
    assert!(held_out.iter().all(|sentence| !train.contains(sentence)));
}

#[test]
fn topics_and_paraphrases_are_split_by_what_they_say() {
    let garden = Garden::new(SEED);
    let (train, held_out) = (garden.topics(Split::Train, 400), garden.topics(Split::HeldOut, 60));
    assert_eq!((train.len(), held_out.len()), (400, 60));
    assert!(held_out.iter().all(|sentence| !train.contains(sentence)));
    for topic in TOPICS {
        assert!(train.iter().any(|sentence| sentence.label == topic), "{topic}");
    }
    let train = garden.paraphrases(Split::Train, 500);
    let said: HashSet<&String> = train.iter().flat_map(|row| [&row.anchor, &row.positive]).collect();
    let held_out = garden.paraphrases(Split::HeldOut, 60);
    assert_eq!((train.len(), held_out.len()), (500, 60));
    for row in train.iter().chain(&held_out) {
        assert!(row.anchor != row.positive && row.negative.as_ref().is_some_and(|negative| *negative != row.anchor));
    }
    for row in &held_out {
        assert!(!said.contains(&row.anchor) && !said.contains(&row.positive), "{row:?}");
    }
}
