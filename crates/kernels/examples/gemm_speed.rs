//! Speed of matrix products on this machine: `cargo run --release -p loam-kernels --example gemm_speed`.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use half::bf16;
use loam_kernels::rng::Rng;
use loam_kernels::{Mat, MatMut, Start, gemm_bf16, gemm_f32};
use std::time::Instant;

/// Shortest of several runs, in seconds: the machine's other users only ever make a run longer.
fn best(mut work: impl FnMut()) -> f64 {
    work();
    (0..15)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn normal(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(1, "speed", n as u64).fill_normal(&mut x, 0.0, 1.0);
    x
}

fn memory_read() {
    let x = normal(64 << 20);
    let halves: Vec<&[f32]> = x.chunks(x.len() / rayon::current_num_threads()).collect();
    let seconds = best(|| {
        rayon::scope(|scope| {
            for half in &halves {
                scope.spawn(move |_| {
                    // Sixty-four partial sums leave the adds as vectors without dependence.
                    let mut sums = [0.0_f32; 64];
                    for piece in half.chunks_exact(64) {
                        sums.iter_mut().zip(piece).for_each(|(s, x)| *s += x);
                    }
                    std::hint::black_box(sums);
                });
            }
        });
    });
    println!("memory read: {:.1} GB/s", 4e-9 * x.len() as f64 / seconds);
}

fn thin() {
    for (n, k) in [(768, 3072), (3072, 768), (50304, 768)] {
        let w = normal(n * k);
        let w16: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
        for m in [1, 2, 4, 8] {
            let (x, mut c) = (normal(m * k), vec![0.0; m * n]);
            let x16: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
            let s = best(|| {
                gemm_f32(MatMut::rows(&mut c, m, n), Mat::rows(&x, m, k), Mat::rows(&w, n, k).t(), Start::Zero)
            });
            let s16 = best(|| {
                gemm_bf16(MatMut::rows(&mut c, m, n), Mat::rows(&x16, m, k), Mat::rows(&w16, n, k).t(), Start::Zero)
            });
            let bytes = (n * k) as f64 * 1e-9;
            println!("thin m {m} k {k} n {n}: f32 {:.1} GB/s, bf16 {:.1} GB/s", 4.0 * bytes / s, 2.0 * bytes / s16);
        }
    }
}

fn square() {
    for k in [128, 384, 768, 1536, 3072] {
        let (m, n) = (1024, 768);
        let (a, b, mut c) = (normal(m * k), normal(n * k), vec![0.0; m * n]);
        let mut one =
            |b: Mat<'_, f32>| best(|| gemm_f32(MatMut::rows(&mut c, m, n), Mat::rows(&a, m, k), b, Start::Zero));
        let (nn, nt) = (one(Mat::rows(&b, k, n)), one(Mat::rows(&b, n, k).t()));
        let work = 2e-9 * (m * n * k) as f64;
        println!("m {m} n {n} k {k}: nn {:.1}, nt {:.1} GFLOP/s", work / nn, work / nt);
    }
}

/// The products of a training step: forward, gradient of the input, gradient of the weight.
fn training() {
    for (tokens, inputs, outputs) in [
        (768, 128, 128),
        (768, 128, 512),
        (768, 512, 128),
        (4096, 384, 65),
        (4096, 384, 384),
        (4096, 384, 1536),
        (4096, 1536, 384),
        (1024, 768, 3072),
        (1024, 3072, 768),
    ] {
        let (x, w, dy) = (normal(tokens * inputs), normal(outputs * inputs), normal(tokens * outputs));
        let (mut y, mut dx, mut dw) =
            (vec![0.0; tokens * outputs], vec![0.0; tokens * inputs], vec![0.0; outputs * inputs]);
        let (mx, mw, mdy) =
            (Mat::rows(&x, tokens, inputs), Mat::rows(&w, outputs, inputs), Mat::rows(&dy, tokens, outputs));
        let forward = best(|| gemm_f32(MatMut::rows(&mut y, tokens, outputs), mx, mw.t(), Start::Zero));
        let input = best(|| gemm_f32(MatMut::rows(&mut dx, tokens, inputs), mdy, mw, Start::Zero));
        let weight = best(|| gemm_f32(MatMut::rows(&mut dw, outputs, inputs), mdy.t(), mx, Start::Zero));
        let work = 2e-9 * (tokens * inputs * outputs) as f64;
        println!(
            "{tokens} x {inputs} -> {outputs}: {:.1} forward, {:.1} input, {:.1} weight GFLOP/s",
            work / forward,
            work / input,
            work / weight
        );
    }
}

fn main() {
    rayon::ThreadPoolBuilder::new().build().expect("threads can be started").install(|| {
        memory_read();
        thin();
        square();
        training();
    });
}
