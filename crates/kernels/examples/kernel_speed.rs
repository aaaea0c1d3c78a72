//! Memory traffic of the kernels on this machine, beside a plain copy:
//! `cargo run --release -p loam-kernels --example kernel_speed`.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use loam_kernels::elementwise::{self, Binary, Unary};
use loam_kernels::optim::{AdamW, adamw_step};
use loam_kernels::rng::Rng;
use loam_kernels::{convert, cross_entropy, norm, softmax};
use std::time::Instant;

const ROWS: usize = 4096;
const WIDTH: usize = 2048;
const N: usize = ROWS * WIDTH;

/// Prints the rate of `work`, which moves `floats` f32 values: shortest of several runs, since the machine's other
/// users only ever make a run longer.
fn report(name: &str, floats: usize, mut work: impl FnMut()) {
    work();
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let best = (0..9).map(|_| time(&mut work)).fold(f64::INFINITY, f64::min);
    println!("{name:24} {:6.1} GB/s {:6.2} ns per element", 4e-9 * floats as f64 / best, best * 1e9 / N as f64);
}

fn normal(purpose: &str) -> Vec<f32> {
    let mut x = vec![0.0; N];
    Rng::new(1, purpose, 0).fill_normal(&mut x, 0.0, 1.0);
    x
}

fn elementwise(x: &[f32], dy: &[f32], out: &mut [f32]) {
    report("affine (a plain copy)", 2 * N, || elementwise::affine(out, x, 1.0, 0.0));
    for op in Unary::ALL {
        report(&format!("{op:?}"), 2 * N, || elementwise::unary(op, out, x));
    }
    report("Gelu backward", 3 * N, || elementwise::unary_backward(Unary::Gelu, out, x, dy));
    report("Silu backward", 3 * N, || elementwise::unary_backward(Unary::Silu, out, x, dy));
    report("gated Silu", 3 * N, || elementwise::gated(Unary::Silu, out, x, dy));
    report("add", 3 * N, || elementwise::binary(Binary::Add, out, x, dy));
    report("add bias", 2 * N, || elementwise::binary(Binary::Add, out, x, &dy[..WIDTH]));
    report("dropout", 2 * N, || elementwise::dropout(out, x, 0.1, 1, 1));
    report("sum of squares", N, || {
        std::hint::black_box(elementwise::sum_of_squares(x));
    });
    report("max abs", N, || {
        std::hint::black_box(elementwise::max_abs(x));
    });
    let mut sums = vec![0.0; WIDTH];
    report("column sums", N, || elementwise::column_sums(&mut sums, x, WIDTH));
}

fn rows(x: &[f32], dy: &[f32], out: &mut [f32]) {
    let (weight, mut stats) = (vec![1.0; WIDTH], vec![0.0; 2 * ROWS]);
    let (mut dweight, mut dbias) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
    report("layer norm", 2 * N, || norm::layer_norm(out, &mut stats, x, &weight, Some(&weight), 1e-5));
    report("layer norm backward", 3 * N, || {
        norm::layer_norm_backward(out, &mut dweight, Some(&mut dbias), dy, x, &weight, &stats);
    });
    report("rms norm", 2 * N, || norm::rms_norm(out, &mut stats[..ROWS], x, &weight, 1e-5));
    report("softmax", 2 * N, || softmax::softmax(out, x, WIDTH));
    let (targets, mut losses) = (vec![1_i32; ROWS], vec![0.0; ROWS]);
    report("cross-entropy backward", 2 * N, || {
        cross_entropy::cross_entropy_backward_in_place(&mut losses, out, &targets, WIDTH, 1.0);
    });
    let mut narrow = vec![half::bf16::ZERO; N];
    report("to bf16", N + N / 2, || convert::f32_to_bf16(&mut narrow, x));
    report("from bf16", N + N / 2, || convert::bf16_to_f32(out, &narrow));
}

fn main() {
    rayon::ThreadPoolBuilder::new().build().expect("threads can be started").install(|| {
        let (x, dy, mut out) = (normal("x"), normal("dy"), vec![0.0; N]);
        elementwise(&x, &dy, &mut out);
        rows(&x, &dy, &mut out);
        let (mut m, mut v) = (vec![0.0; N], vec![0.0; N]);
        let settings =
            AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 1.0 };
        report("adamw", 7 * N, || adamw_step(&mut out, &x, &mut m, &mut v, &settings));
    });
}
