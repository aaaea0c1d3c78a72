//! tmp
#![allow(clippy::unwrap_used, clippy::print_stdout)]
use loam_tokenizer::*;
use std::time::Instant;
fn main() {
    let path = std::env::args().nth(1).unwrap();
    let vocab: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let mb = std::fs::metadata(&path).unwrap().len() as f64 / 1e6;
    let config =
        TrainConfig { vocab_size: vocab, special_tokens: vec!["<|endoftext|>".into()], ..TrainConfig::default() };
    let t = Instant::now();
    let mut read = None;
    let tok = train_files(&[&path], &config, &mut |p| {
        if let Progress::Learning { .. } = p {
            read.get_or_insert_with(|| t.elapsed());
        }
    })
    .unwrap();
    let e = t.elapsed().as_secs_f64();
    println!("train {e:.2} s ({:.2?} to count) {:.1} MB/s hash {}", read, mb / e, tok.content_hash());
    tok.save("/tmp/tokbench/ours.json").unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.split('\n').collect();
    for _ in 0..2 {
        let t = Instant::now();
        let ids = tok.encode_batch(&lines, Special::Parse).unwrap();
        let e = t.elapsed().as_secs_f64();
        println!("encode_batch lines {e:.2} s {:.1} MB/s {} tokens", mb / e, ids.iter().map(Vec::len).sum::<usize>());
    }
    let t = Instant::now();
    let ids = tok.encode(&text, Special::Parse).unwrap();
    let e = t.elapsed().as_secs_f64();
    println!("encode whole {e:.2} s {:.1} MB/s {} tokens", mb / e, ids.len());
    if let Some(py) = std::env::args().nth(3) {
        let tok = Tokenizer::open(py).unwrap();
        println!("fast {}", tok.is_fast());
        let ids = tok.encode_batch(&lines, Special::Parse).unwrap();
        println!("their vocabulary: {} tokens", ids.iter().map(Vec::len).sum::<usize>());
    }
}
