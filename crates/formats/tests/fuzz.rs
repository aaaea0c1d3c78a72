//! Damaged files: whatever the bytes, a reader gives a value or an error, and takes no more memory than the file is worth.
//!
//! The damage is drawn from a seed, so that a failure can be had again. A moment each time; longer, say ten minutes, with
//! `LOAM_FUZZ_SECONDS=600 cargo test --release -p loam-formats --test fuzz`.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![allow(unsafe_code, reason = "an allocator that counts")]

use loam_formats::gguf::{GgmlType, write};
use loam_formats::{Dtype, Gguf, GgufArray, GgufOut, GgufValue, SafeTensors, TensorOut};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Most bytes that reading a file of some kilobytes may take at a time.
const MOST_BYTES: usize = 4 << 20;

struct Counting;

thread_local! {
    /// Bytes that the thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Numbers from a seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

/// Numbers at which sums and products overflow, and kinds end.
const EDGES: [u64; 12] = [0, 1, 2, 7, 13, 255, 1 << 16, 1 << 31, u32::MAX as u64, 1 << 40, 1 << 63, u64::MAX];

fn damage(dice: &mut Dice, bytes: &mut Vec<u8>, header: usize) {
    // Most of it where it hurts.
    let within = if dice.below(4) > 0 { header.min(bytes.len()) } else { bytes.len() };
    if within == 0 {
        return bytes.push(dice.next() as u8);
    }
    let at = dice.below(within);
    match dice.below(8) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = dice.next() as u8,
        2 | 3 => {
            let edge = EDGES[dice.below(EDGES.len())].to_le_bytes();
            let width = [1, 4, 8][dice.below(3)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&edge[..width]);
        }
        4 => bytes.truncate(at),
        5 => {
            let end = (at + 1 + dice.below(40)).min(bytes.len());
            drop(bytes.drain(at..end));
        }
        6 => {
            let end = (at + 1 + dice.below(40)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = dice.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let text = [&b"\"shape\":["[..], b"-1", b"1e400", b"[[[[[[[[", b"18446744073709551615", b"\xff\xfe", b"{}"];
            let piece = text[dice.below(text.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
    }
}

/// Damaged files where no time is given.
const CASES: usize = 3000;

/// Reads damaged copies of `seeds` until the time is over; `header` bytes of each say what the rest is. Returns how many
/// were read, and how many of them without an error.
fn storm(name: &str, seeds: &[(Vec<u8>, usize)], read: &dyn Fn(Vec<u8>) -> bool) -> (usize, usize) {
    let seconds = std::env::var("LOAM_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let (mut tried, mut good) = (0, 0);
    while end.map_or(tried < CASES, |end| Instant::now() < end) {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ (tried as u64 + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let (seed, header) = &seeds[dice.below(seeds.len())];
        let mut bytes = seed.clone();
        for _ in 0..1 + dice.below(4) {
            damage(&mut dice, &mut bytes, *header);
        }
        let before = HELD.get().0;
        HELD.set((before, before));
        let result = catch_unwind(AssertUnwindSafe(|| read(bytes)));
        let taken = HELD.get().1 - before;
        assert!(taken < MOST_BYTES as isize, "{name}, case {tried}: {taken} bytes were taken");
        good += usize::from(result.unwrap_or_else(|_| panic!("{name}, case {tried} panics")));
        tried += 1;
    }
    (tried, good)
}

fn report(name: &str, (tried, good): (usize, usize)) {
    assert!(tried > 100 && good < tried, "{name}: {tried} tried, {good} read");
    // Only for those who look (`--nocapture`).
    print(&format!("{name}: {tried} damaged files, {good} still read, no panic, below {MOST_BYTES} bytes each"));
}

#[allow(clippy::print_stdout, reason = "figures of a long run")]
fn print(line: &str) {
    println!("{line}");
}

fn gguf() -> Vec<u8> {
    let text = |key: &str, value: &str| (key.to_owned(), GgufValue::from(value));
    let words: Vec<String> = (0..40).map(|n| format!("word{n}")).collect();
    let metadata = vec![
        text("general.architecture", "llama"),
        ("general.alignment".to_owned(), GgufValue::U32(32)),
        ("llama.block_count".to_owned(), GgufValue::U32(2)),
        ("tokenizer.ggml.tokens".to_owned(), GgufValue::Array(GgufArray::Text(words))),
        ("tokenizer.ggml.scores".to_owned(), GgufValue::Array(GgufArray::F32(vec![0.5; 40]))),
        (
            "nested".to_owned(),
            GgufValue::Array(GgufArray::Array(vec![GgufArray::I32(vec![1, 2]), GgufArray::Bool(vec![true])])),
        ),
    ];
    let floats: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let blocks: Vec<u8> = (0..136).collect();
    let tensors = [
        GgufOut::new("a", GgmlType::F32, &[3, 1], &floats),
        GgufOut::new("b.weight", GgmlType::Q8_0, &[2, 2, 32], &blocks),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.gguf");
    write(&path, &metadata, &tensors).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn damaged_gguf_files_are_errors() {
    let seed = gguf();
    let header = seed.len() - 200;
    let read = |bytes: Vec<u8>| {
        let Ok(gguf) = Gguf::from_bytes("damaged.gguf", bytes) else { return false };
        for (key, value) in gguf.metadata() {
            let _ = (gguf.size(key), gguf.number(key), gguf.text(key), gguf.texts(key), gguf.numbers(key));
            let _ = (value.as_array().map(|array| (array.len(), array.to_f64())), value.as_f64());
        }
        gguf.tensors().iter().for_each(|tensor| assert_eq!(gguf.bytes(tensor).len(), tensor.byte_len()));
        true
    };
    report("GGUF", storm("GGUF", &[(seed, header)], &read));
}

#[test]
fn damaged_safetensors_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.safetensors");
    let values = [1.0_f32, -2.0, 3.5, 0.0, 5.0, 6.0];
    let tensors = [
        TensorOut::from_f32("model.a", Dtype::F32, &[2, 3], &values),
        TensorOut::from_f32("model.b", Dtype::BF16, &[6], &values),
        TensorOut::from_f32("c", Dtype::F16, &[3, 1, 2], &values),
    ];
    let metadata = [("format".to_owned(), "pt".to_owned())];
    loam_formats::safetensors::write(&path, &metadata, tensors).unwrap();
    let seed = std::fs::read(path).unwrap();
    let header = seed.len() - 48;
    let read = |bytes: Vec<u8>| {
        let Ok(file) = SafeTensors::from_bytes("damaged.safetensors", bytes) else { return false };
        for name in file.names() {
            let view = file.get(name).unwrap();
            assert_eq!(view.elements(), view.shape.iter().product::<usize>());
            let _ = view.to_f32();
        }
        true
    };
    report("safetensors", storm("safetensors", &[(seed, header)], &read));
}
