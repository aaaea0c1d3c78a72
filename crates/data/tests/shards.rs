//! From files to shards to batches.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loam_data::dedup::Dedup;
use loam_data::loader::IGNORED;
use loam_data::shard::Meta;
use loam_data::source::{ReadOptions, TextSplit};
use loam_data::{Example, Holdout, Loader, LoaderConfig, Mode, Part, PrepareConfig, Prepared, TokenSet, prepare};
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};

fn char_tokenizer(text: &str) -> Tokenizer {
    let config = TrainConfig::new(TrainKind::Char);
    train([Ok::<_, loam_tokenizer::Error>(text.to_string())], &config, &mut |_| {}).unwrap()
}

fn letters() -> Tokenizer {
    char_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789 \n.é中")
}

fn config(path: &Path, text_split: TextSplit, holdout: Holdout) -> PrepareConfig {
    PrepareConfig {
        sources: vec![path.to_str().unwrap().to_string()],
        read: ReadOptions { text_split, ..ReadOptions::default() },
        holdout,
        ..PrepareConfig::default()
    }
}

fn run(config: &PrepareConfig, tokenizer: &Tokenizer, out: &Path) -> Prepared {
    prepare(config, tokenizer, out, &mut |_| {}).unwrap()
}

fn tokens(dir: &Path, part: Part) -> Vec<u32> {
    let set = TokenSet::open(dir, part, None).unwrap();
    let mut tokens = Vec::new();
    set.read(0..set.counts().tokens, &mut tokens);
    tokens
}

fn documents(count: usize) -> String {
    (0..count).map(|i| format!("document {i} {}\n\n", "word ".repeat(i * 7 % 23))).collect()
}

#[test]
fn the_last_tenth_of_the_characters_is_held_out_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let text: String = (0..30_007).map(|i| ['a', 'é', '中', '\n', 'z'][i * i % 5]).collect();
    fs::write(&path, &text).unwrap();
    let config = PrepareConfig { end_of_document: false, ..config(&path, TextSplit::File, Holdout::Tail(0.1)) };
    let tokenizer = letters();
    let prepared = run(&config, &tokenizer, dir.path());
    assert_eq!(prepared.meta.train.tokens, (30_007.0_f64 * 0.9) as u64);
    let all = [tokens(&prepared.dir, Part::Train), tokens(&prepared.dir, Part::Validation)].concat();
    assert_eq!(tokenizer.decode(&all, false).unwrap(), text);
    assert_eq!(prepared.meta.train.bytes + prepared.meta.validation.bytes, text.len() as u64);
}

#[test]
fn documents_are_held_out_by_content_and_every_one_is_in_one_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, documents(2000)).unwrap();
    let tokenizer = letters();
    let prepared = run(&config(&path, TextSplit::EmptyLine, Holdout::Documents(0.1)), &tokenizer, dir.path());
    let (train, validation) = (prepared.meta.train, prepared.meta.validation);
    assert_eq!(train.documents + validation.documents, 2000);
    assert!((150..250).contains(&validation.documents), "{}", validation.documents);
    let eos = tokenizer.eos_id().unwrap();
    let ends = |part| tokens(&prepared.dir, part).iter().filter(|&&token| token == eos).count() as u64;
    assert_eq!((ends(Part::Train), ends(Part::Validation)), (train.documents, validation.documents));
}

#[test]
fn a_second_run_finds_the_same_dataset_and_any_change_makes_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, documents(50)).unwrap();
    let tokenizer = letters();
    let base = config(&path, TextSplit::EmptyLine, Holdout::Documents(0.1));
    let first = run(&base, &tokenizer, dir.path());
    let second = run(&base, &tokenizer, dir.path());
    assert!(!first.reused && second.reused);
    assert_eq!((&first.dir, &first.meta), (&second.dir, &second.meta));

    let moved = dir.path().join("moved.txt");
    fs::copy(&path, &moved).unwrap();
    assert!(run(&config(&moved, TextSplit::EmptyLine, Holdout::Documents(0.1)), &tokenizer, dir.path()).reused);
    assert!(!run(&PrepareConfig { dedup: Dedup::Exact, ..base.clone() }, &tokenizer, dir.path()).reused);
    assert!(!run(&base, &char_tokenizer(&documents(50)), dir.path()).reused);
    fs::write(&path, documents(51)).unwrap();
    assert!(!run(&base, &tokenizer, dir.path()).reused);
}

#[test]
fn repeated_documents_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, "one\n\ntwo\n\none\n\nthree\n").unwrap();
    let config = PrepareConfig { dedup: Dedup::Exact, ..config(&path, TextSplit::EmptyLine, Holdout::None) };
    let prepared = run(&config, &letters(), dir.path());
    assert_eq!((prepared.meta.train.documents, prepared.meta.dedup.exact), (3, 1));
}

#[test]
fn shards_are_the_same_for_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, documents(5000)).unwrap();
    let tokenizer = letters();
    let config = config(&path, TextSplit::EmptyLine, Holdout::Documents(0.1));
    let shards = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let out = dir.path().join(threads.to_string());
        let prepared = pool.install(|| run(&config, &tokenizer, &out));
        let read = |file: &str| fs::read(prepared.dir.join(file)).unwrap();
        [read("train/shard-00000.bin"), read("train/documents.bin"), read("validation/shard-00000.bin")]
    });
    assert_eq!(shards[0], shards[1]);
}

#[test]
fn shards_of_another_tokenizer_are_refused_with_both_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, documents(50)).unwrap();
    let (ours, other) = (letters(), char_tokenizer("xyz"));
    let prepared = run(&config(&path, TextSplit::EmptyLine, Holdout::None), &ours, dir.path());
    assert!(TokenSet::open(&prepared.dir, Part::Train, Some(ours.content_hash())).is_ok());
    let error = TokenSet::open(&prepared.dir, Part::Train, Some(other.content_hash())).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(ours.content_hash()) && message.contains(other.content_hash()), "{message}");
    assert!(error.hint().unwrap().contains("prepare the data again"));
}

#[test]
fn a_failed_preparation_leaves_nothing_under_the_final_name() {
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("a.txt"), dir.path().join("out"));
    let mut bytes = documents(200).into_bytes();
    bytes.push(0xff);
    fs::write(&path, bytes).unwrap();
    let error = prepare(&config(&path, TextSplit::EmptyLine, Holdout::None), &letters(), &out, &mut |_| {});
    assert!(error.unwrap_err().to_string().contains("not valid UTF-8"));
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    let error = prepare(&PrepareConfig::default(), &letters(), &out, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("sources = []"), "{error}");
}

fn set(dir: &Path, text: &str, text_split: TextSplit) -> Arc<TokenSet> {
    let path = dir.join("set.txt");
    fs::write(&path, text).unwrap();
    let prepared = run(&config(&path, text_split, Holdout::None), &letters(), dir);
    assert_eq!(Meta::read(&prepared.dir).unwrap(), prepared.meta);
    Arc::new(TokenSet::open(&prepared.dir, Part::Train, None).unwrap())
}

fn loader_config(mode: Mode, batch: usize, seq_len: usize) -> LoaderConfig {
    LoaderConfig { batch, seq_len, seed: 5, mode }
}

#[test]
fn a_batch_depends_on_seed_and_step_alone() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), &documents(300), TextSplit::EmptyLine);
    for mode in [Mode::Contiguous, Mode::Packed] {
        let loader = Loader::new(set.clone(), loader_config(mode, 4, 32)).unwrap();
        let straight: Vec<_> = (0..200).map(|step| loader.batch(step)).collect();
        let resumed = Loader::new(set.clone(), loader_config(mode, 4, 32)).unwrap();
        assert_eq!(resumed.batch(137), straight[137]);
        assert_eq!(resumed.batch(1), straight[1]);
        let other = Loader::new(set.clone(), LoaderConfig { seed: 6, ..loader_config(mode, 4, 32) }).unwrap();
        assert_ne!(other.batch(0), straight[0]);
        // A row of a batch is the same row of a batch of another size.
        let single = Loader::new(set.clone(), loader_config(mode, 1, 32)).unwrap();
        assert_eq!(single.batch(5).tokens, straight[1].tokens[32..64]);
    }
}

#[test]
fn an_epoch_of_windows_sees_every_window_once_and_the_next_shifts_them() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = (0..1000).map(|i| format!("{i} ")).collect();
    let set = set(dir.path(), &text, TextSplit::File);
    let loader = Loader::new(set.clone(), loader_config(Mode::Contiguous, 1, 16)).unwrap();
    let mut all = Vec::new();
    set.read(0..set.counts().tokens, &mut all);
    let epoch = |number: u64| -> Vec<usize> {
        let steps = number * loader.rows_per_epoch()..(number + 1) * loader.rows_per_epoch();
        let mut starts: Vec<usize> = steps
            .map(|step| {
                let batch = loader.batch(step);
                let start = all.windows(16).position(|window| window == batch.tokens).unwrap();
                assert!(batch.targets.iter().zip(&all[start + 1..]).all(|(&target, &token)| target == token as i32));
                start
            })
            .collect();
        starts.sort_unstable();
        starts
    };
    let (first, second) = (epoch(0), epoch(1));
    assert!(first.windows(2).all(|pair| pair[1] == pair[0] + 16));
    assert_ne!(first[0], second[0]);
}

#[test]
fn in_order_every_token_with_a_predecessor_is_a_target_once() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), &documents(100), TextSplit::EmptyLine);
    for (mode, expected) in [(Mode::Contiguous, set.counts().tokens - 1), (Mode::Packed, set.counts().tokens - 100)] {
        let loader = Loader::new(set.clone(), loader_config(mode, 3, 40)).unwrap();
        let trained: usize = loader.in_order().map(|batch| batch.trained()).sum();
        assert_eq!(trained as u64, expected, "{mode:?}");
        let tokens: usize = loader.in_order().flat_map(|batch| batch.lengths).sum();
        assert!(tokens as u64 >= expected);
        assert_eq!(loader.batch_in_order(0), loader.batch_in_order(0));
    }
}

#[test]
fn a_packed_target_never_comes_from_another_document() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), &documents(200), TextSplit::EmptyLine);
    let loader = Loader::new(set.clone(), loader_config(Mode::Packed, 2, 64)).unwrap();
    let mut originals = Vec::new();
    for i in 0..set.counts().documents {
        let mut document = Vec::new();
        set.read(set.document(i), &mut document);
        originals.push(document);
    }
    let eos = *originals[0].last().unwrap();
    let mut ends = 0;
    for batch in loader.in_order() {
        let segments = batch.segments.as_ref().unwrap();
        for row in 0..batch.rows {
            let range = row * 64..(row + 1) * 64;
            for at in range.clone().take(batch.lengths[row]) {
                let starts = at == range.start || segments[at] != segments[at - 1];
                assert_eq!(batch.positions[at], if starts { 0 } else { batch.positions[at - 1] + 1 });
                let last = at + 1 == range.end || segments[at + 1] != segments[at];
                if !last {
                    assert_eq!(batch.targets[at], batch.tokens[at + 1] as i32);
                } else if batch.tokens[at] == eos {
                    assert_eq!(batch.targets[at], IGNORED);
                    ends += 1;
                } else {
                    assert_ne!(batch.targets[at], IGNORED, "a cut document knows its next token");
                }
            }
            let padding = range.start + batch.lengths[row]..range.end;
            assert!(padding.clone().all(|at| batch.targets[at] == IGNORED));
            assert!(padding.clone().all(|at| segments[at] > segments[padding.start - 1]));
        }
    }
    assert_eq!(ends, 200);
}

#[test]
fn fine_tuning_trains_exactly_the_marked_tokens() {
    let examples: Vec<Example> = (0..40_u32)
        .map(|i| {
            let len = 3 + i % 9;
            Example { ids: (i * 100..i * 100 + len).collect(), trained: (0..len).map(|t| t % 3 == 2).collect() }
        })
        .collect();
    let mut expected: Vec<i32> = examples
        .iter()
        .flat_map(|example| example.ids.iter().zip(&example.trained).filter(|(_, trained)| **trained))
        .map(|(&id, _)| id as i32)
        .collect();
    let loader = Loader::for_examples(examples, loader_config(Mode::Packed, 2, 16)).unwrap();
    let mut trained: Vec<i32> =
        loader.in_order().flat_map(|batch| batch.targets).filter(|&target| target != IGNORED).collect();
    expected.sort_unstable();
    trained.sort_unstable();
    assert_eq!(trained, expected);
    assert_eq!(loader.shortened(), 0);
    let silent = vec![Example { ids: vec![1, 2], trained: vec![false, false] }];
    assert!(Loader::for_examples(silent, loader_config(Mode::Packed, 1, 4)).is_err());
}

#[test]
fn too_little_text_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = set(dir.path(), "abc", TextSplit::File);
    let error = Loader::new(set.clone(), loader_config(Mode::Contiguous, 1, 64)).unwrap_err();
    assert!(error.to_string().contains("has 4 tokens, but at least 65"), "{error}");
    assert!(Loader::new(set, loader_config(Mode::Contiguous, 0, 1)).unwrap_err().to_string().contains("batch = 0"));
}

/// Counts the bytes that are allocated, so that a test can see the peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[allow(unsafe_code, reason = "a counting allocator is the only way to see the peak of one function")]
// SAFETY: both calls are passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn memory_stays_bounded_however_large_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let line = "some words in a line that is repeated until the file is large\n".repeat(1 << 14);
    let tokenizer = letters();
    let peak = |megabytes: usize| {
        let path = dir.path().join(format!("{megabytes}.txt"));
        let mut file = fs::File::create(&path).unwrap();
        for _ in 0..megabytes {
            std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
        }
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let prepared = run(&config(&path, TextSplit::File, Holdout::Tail(0.1)), &tokenizer, dir.path());
        assert!(prepared.meta.train.tokens > 900_000 * megabytes as u64);
        PEAK.load(Ordering::Relaxed) - before
    };
    let (small, large) = (peak(16), peak(48));
    // Other tests of this file allocate at the same time, hence the slack; 32 MB more text would not fit into it.
    assert!(large < small + (24 << 20), "16 MB took {small} bytes at peak, 48 MB took {large}");
}
