//! `loam doctor`: what this machine offers.

use crate::Outcome;
use crate::args::JsonArgs;
use crate::failure::Failure;
use crate::machine;
use crate::output::{self, Colour, paint};
use crate::setup::Environment;
use crate::table::bytes;
use loam_kernels::isa::{self, Isa};
use rayon::prelude::*;
use serde_json::json;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// Less free memory than this is too little for anything but the smallest models.
const LITTLE_MEMORY: u64 = 2 << 30;
/// Less free disk than this is soon filled by checkpoints.
const LITTLE_DISK: u64 = 2 << 30;

pub fn run(args: &JsonArgs, environment: &Environment) -> Result<Outcome, Failure> {
    let memory = machine::memory();
    let (total, available) = memory.unzip();
    let disk = machine::free_disk(Path::new("."));
    let bandwidth = read_bandwidth();
    let supported: Vec<&str> = Isa::ALL.into_iter().filter(|i| i.is_supported()).map(Isa::name).collect();
    let warnings = warnings(available, disk);
    if args.json {
        output::json(&json!({
            "version": env!("CARGO_PKG_VERSION"), "processor": machine::processor(), "isa": isa::isa().name(),
            "supported_isas": supported, "bf16": isa::has_fast_bf16(), "amx": isa::has_tiles(),
            "threads": rayon::current_num_threads(),
            "memory_bytes": total, "available_memory_bytes": available, "memory_read_gb_per_s": bandwidth,
            "free_disk_bytes": disk, "home": environment.home, "warnings": warnings,
        }))?;
        return Ok(Outcome::Done);
    }
    let bf16 = match (isa::has_tiles(), isa::has_fast_bf16()) {
        (true, _) => "tiles of bf16 and of bytes (AMX)",
        (false, true) => "fast bf16",
        (false, false) => "bf16 is no faster than f32: training uses f32",
    };
    let home = environment.home.as_ref().map_or("none: set LOAM_HOME".into(), |home| home.display().to_string());
    for (name, value) in [
        ("loam", env!("CARGO_PKG_VERSION").to_owned()),
        ("processor", machine::processor()),
        ("instructions", format!("{} (of {}), {bf16}", isa::isa().name(), supported.join(", "))),
        ("threads", rayon::current_num_threads().to_string()),
        ("memory", memory.map_or("unknown".into(), |(all, free)| format!("{} free of {}", size(free), size(all)))),
        ("memory read", format!("{bandwidth:.1} GB/s")),
        ("free disk here", disk.map_or("unknown".into(), size)),
        ("local store", home),
    ] {
        output::line(&format!("{}{value}", paint(Colour::Bold, &format!("{name:<16}"))))?;
    }
    for warning in &warnings {
        output::complain("warning", warning);
    }
    if warnings.is_empty() {
        output::line(&paint(Colour::Green, "all is well"))?;
    }
    Ok(Outcome::Done)
}

fn size(number: u64) -> String {
    bytes(number as usize)
}

fn warnings(available: Option<u64>, disk: Option<u64>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(free) = available.filter(|free| *free < LITTLE_MEMORY) {
        warnings.push(format!("only {} of memory are free: train small models", size(free)));
    }
    if let Some(free) = disk.filter(|free| *free < LITTLE_DISK) {
        warnings.push(format!("only {} of disk are free: checkpoints may not fit", size(free)));
    }
    if !isa::isa().is_supported() || isa::isa() == Isa::Scalar {
        warnings.push("no vector instructions in use: everything will be slow".into());
    }
    warnings
}

/// Bytes read at a time: far more than any cache holds.
const PROBE_BYTES: usize = 256 << 20;

/// Reads memory with all threads and returns GB/s, the better of two rounds.
fn read_bandwidth() -> f64 {
    let data = vec![1_u64; PROBE_BYTES / 8];
    let round = || {
        let start = Instant::now();
        let sum: u64 = data.par_chunks(1 << 16).map(|piece| piece.iter().sum::<u64>()).sum();
        black_box(sum);
        PROBE_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let best = round().max(round());
    (best * 10.0).round() / 10.0
}
