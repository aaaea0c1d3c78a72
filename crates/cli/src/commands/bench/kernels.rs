//! `loam bench kernels`: single operations beside what the machine could do.

use super::{Roof, round};
use crate::failure::Failure;
use crate::output;
use crate::table::Table;

use loam_kernels::attention::{AttentionDims, Grads, Heads, Masking, Stored, StoredMut, attention, attention_backward};
use loam_kernels::elementwise::{self, Binary, Unary};
use loam_kernels::optim::{AdamW, adamw_step};
use loam_kernels::quant::{GgmlType, Quantised, matmul_quantised, quantise_rows};
use loam_kernels::rng::Rng;
use loam_kernels::{Mat, MatMut, Operand, Start, bf16, convert, cross_entropy, gemm_bf16, gemm_f32, norm, softmax};
use loam_tensor::Precision;
use serde_json::{Value, json};
use std::time::Instant;

/// Each operation is repeated for this long; the fastest run counts.
const SECONDS: f64 = 0.25;
/// Tokens, inputs and outputs of the matrix products in a training step of `small`, `baby` and `gpt2`.
const PRODUCTS: [(usize, usize, usize); 9] = [
    (768, 128, 128),
    (768, 128, 512),
    (768, 512, 128),
    (4096, 384, 65),
    (4096, 384, 384),
    (4096, 384, 1536),
    (4096, 1536, 384),
    (1024, 768, 3072),
    (1024, 3072, 768),
];
/// Inputs and outputs of decoding's products in `gpt2`.
const THIN: [(usize, usize); 3] = [(768, 3072), (3072, 768), (768, 50_304)];
/// Inputs and outputs of the quantised products: 16 million weights.
const QUANTISED: (usize, usize) = (2048, 8192);
const QUANTISED_TYPES: [GgmlType; 12] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::Bf16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q5_0,
    GgmlType::Iq4Nl,
    GgmlType::Iq4Xs,
    GgmlType::Q2K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
];
/// Rows and width of the operations that are bound by memory.
const ROWS: usize = 4096;
const WIDTH: usize = 2048;

pub fn run(only: String, json: bool) -> Result<(), Failure> {
    let mut sheet = Sheet { roof: Roof::measured(), only, rows: Vec::new() };
    products(&mut sheet);
    thin(&mut sheet);
    quantised(&mut sheet);
    attentions(&mut sheet);
    streams(&mut sheet);
    sheet.print(json)
}

/// What was measured so far.
struct Sheet {
    roof: Roof,
    /// Part of the names of what is measured.
    only: String,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    seconds: f64,
    flop: f64,
    bytes: f64,
    precision: Precision,
}

impl Sheet {
    fn measure(&mut self, name: String, flop: f64, bytes: f64, work: impl FnMut()) {
        if !name.contains(&self.only) {
            return;
        }
        let precision = if name.contains("bf16") { Precision::Bf16 } else { Precision::F32 };
        self.rows.push(Row { name, precision, seconds: fastest(work), flop, bytes });
    }

    fn print(&self, json: bool) -> Result<(), Failure> {
        let mut table = Table::new(&["operation", "us", "GFLOP/s", "GB/s", "of roof"]);
        let mut rows = Vec::new();
        for row in &self.rows {
            let share = self.roof.of(row.precision).share(row.flop, row.bytes, row.seconds);
            let (gflop, gb) = (row.flop / row.seconds / 1e9, row.bytes / row.seconds / 1e9);
            rows.push(json!({
                "operation": row.name, "us": round(row.seconds * 1e6, 1), "gflop_per_s": round(gflop, 1),
                "gb_per_s": round(gb, 1), "of_roof": round(share, 3),
            }));
            table.row(vec![
                row.name.clone(),
                format!("{:.1}", row.seconds * 1e6),
                if row.flop > 0.0 { format!("{gflop:.1}") } else { "-".into() },
                format!("{gb:.1}"),
                format!("{:.0} %", 100.0 * share),
            ]);
        }
        let peaks = json!({
            "peak_gflop_per_s": round(self.roof.flop_per_s / 1e9, 1),
            "peak_bf16_gflop_per_s": round(self.roof.of(Precision::Bf16).flop_per_s / 1e9, 1),
            "read_gb_per_s": round(self.roof.bytes_per_s / 1e9, 1),
        });
        if json {
            let mut report = peaks;
            report["operations"] = Value::Array(rows);
            return output::json(&report);
        }
        output::line(&format!(
            "roof: f32 {}, bf16 {} GFLOP/s; {} GB/s read from memory (more from a cache)",
            peaks["peak_gflop_per_s"], peaks["peak_bf16_gflop_per_s"], peaks["read_gb_per_s"]
        ))?;
        table.lines().iter().try_for_each(|line| output::line(line))
    }
}

/// The fastest run: the machine's other users only ever make one longer.
fn fastest(mut work: impl FnMut()) -> f64 {
    work();
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn normal(count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Rng::new(1, "bench kernels", count as u64).fill_normal(&mut values, 0.0, 1.0);
    values
}

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Forward, gradient of the input, gradient of the weight.
fn products(sheet: &mut Sheet) {
    for (tokens, inputs, outputs) in PRODUCTS {
        let (x, w, dy) = (normal(tokens * inputs), normal(outputs * inputs), normal(tokens * outputs));
        let (mx, mw) = (Mat::rows(&x, tokens, inputs), Mat::rows(&w, outputs, inputs));
        let mdy = Mat::rows(&dy, tokens, outputs);
        let flop = 2.0 * (tokens * inputs * outputs) as f64;
        let bytes = 4.0 * (x.len() + w.len() + dy.len()) as f64;
        let name = |what: &str| format!("{what} {tokens} x {inputs} -> {outputs}");
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        sheet.measure(name("linear"), flop, bytes, || {
            gemm_f32(MatMut::rows(&mut y, tokens, outputs), mx, mw.t(), Start::Zero);
        });
        sheet.measure(name("  gradient of x"), flop, bytes, || {
            gemm_f32(MatMut::rows(&mut dx, tokens, inputs), mdy, mw, Start::Zero);
        });
        sheet.measure(name("  gradient of w"), flop, bytes, || {
            gemm_f32(MatMut::rows(&mut dw, outputs, inputs), mdy.t(), mx, Start::Zero);
        });
        let wide_w = mw;
        let (x, w) = (narrow(&x), narrow(&w));
        let (mx, mw) = (Mat::rows(&x, tokens, inputs), Mat::rows(&w, outputs, inputs));
        sheet.measure(name("  bf16"), flop, bytes / 2.0, || {
            gemm_bf16(MatMut::rows(&mut y, tokens, outputs), Operand::Bf16(mx), Operand::Bf16(mw.t()), Start::Zero);
        });
        sheet.measure(name("  bf16 gradient of x"), flop, bytes, || {
            gemm_bf16(MatMut::rows(&mut dx, tokens, inputs), Operand::F32(mdy), Operand::F32(wide_w), Start::Zero);
        });
        sheet.measure(name("  bf16 gradient of w"), flop, bytes, || {
            gemm_bf16(MatMut::rows(&mut dw, outputs, inputs), Operand::F32(mdy.t()), Operand::Bf16(mx), Start::Zero);
        });
    }
}

/// One token, and a few, against a weight.
fn thin(sheet: &mut Sheet) {
    for (inputs, outputs) in THIN {
        let w = normal(inputs * outputs);
        let w16 = narrow(&w);
        for rows in [1, 4] {
            let (x, mut y) = (normal(rows * inputs), vec![0.0; rows * outputs]);
            let x16 = narrow(&x);
            let flop = 2.0 * (rows * inputs * outputs) as f64;
            let bytes = (w.len() * 4) as f64;
            let name = |what: &str| format!("{what}{rows} x {inputs} -> {outputs}");
            let (mx, mw) = (Mat::rows(&x, rows, inputs), Mat::rows(&w, outputs, inputs).t());
            sheet.measure(name("decode "), flop, bytes, || {
                gemm_f32(MatMut::rows(&mut y, rows, outputs), mx, mw, Start::Zero);
            });
            let (mx, mw) = (Mat::rows(&x16, rows, inputs), Mat::rows(&w16, outputs, inputs).t());
            sheet.measure(name("decode bf16 "), flop, bytes / 2.0, || {
                gemm_bf16(MatMut::rows(&mut y, rows, outputs), Operand::Bf16(mx), Operand::Bf16(mw), Start::Zero);
            });
        }
    }
}

/// One token, a few, and a prompt against a quantised weight that no cache holds.
fn quantised(sheet: &mut Sheet) {
    let (inputs, outputs) = QUANTISED;
    let w = normal(inputs * outputs);
    for ty in QUANTISED_TYPES {
        let mut bytes = vec![0; ty.bytes(w.len()).unwrap_or(0)];
        quantise_rows(ty, &w, inputs, None, &mut bytes);
        let weights = Quantised::new(ty, &bytes, outputs, inputs);
        for rows in [1, 4, 8, 512] {
            let (x, mut y) = (normal(rows * inputs), vec![0.0; rows * outputs]);
            let flop = 2.0 * (rows * inputs * outputs) as f64;
            let name = format!("{} {rows} x {inputs} -> {outputs}", ty.name());
            sheet.measure(name, flop, bytes.len() as f64, || matmul_quantised(&mut y, &x, weights, None));
        }
    }
}

/// Attention of `small`, `baby` and a long context with grouped queries; and of one new token.
fn attentions(sheet: &mut Sheet) {
    let base = AttentionDims {
        batch: 1,
        q_len: 1,
        kv_len: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        scale: 0.125,
        causal: true,
        window: None,
        softcap: None,
    };
    for dims in [
        AttentionDims { batch: 12, q_len: 64, kv_len: 64, heads: 4, kv_heads: 4, head_dim: 32, ..base },
        AttentionDims { batch: 16, q_len: 256, kv_len: 256, heads: 6, kv_heads: 6, ..base },
        AttentionDims { q_len: 2048, kv_len: 2048, heads: 14, kv_heads: 2, ..base },
        AttentionDims { kv_len: 8192, heads: 14, kv_heads: 2, ..base },
    ] {
        let queries = dims.batch * dims.q_len * dims.heads * dims.head_dim;
        let keys = dims.batch * dims.kv_len * dims.kv_heads * dims.head_dim;
        let (q, k, v, dout) = (normal(queries), normal(keys), normal(keys), normal(queries));
        let (mut out, mut lse) = (vec![0.0; queries], vec![0.0; dims.batch * dims.heads * dims.q_len]);
        let view = |data, time, heads| dense(data, time, heads, dims.head_dim);
        let (q, k, v) = (
            view(&q, dims.q_len, dims.heads),
            view(&k, dims.kv_len, dims.kv_heads),
            view(&v, dims.kv_len, dims.kv_heads),
        );
        let seen = if dims.q_len == dims.kv_len { 0.5 } else { 1.0 };
        let product = seen * 2.0 * (queries * dims.kv_len) as f64;
        let name = format!(
            "attention {} x {} on {}, {}/{} heads of {}",
            dims.batch, dims.q_len, dims.kv_len, dims.heads, dims.kv_heads, dims.head_dim
        );
        let none = Masking::default();
        let bytes = 4.0 * (2 * queries + 2 * keys) as f64;
        sheet.measure(name, 2.0 * product, bytes, || {
            attention(StoredMut::F32(&mut out), &mut lse, q, k, v, &dims, &none)
        });
        if dims.q_len > 1 {
            let (mut dq, mut dk, mut dv) = (vec![0.0; queries], vec![0.0; keys], vec![0.0; keys]);
            sheet.measure("  backward".into(), 5.0 * product, 2.0 * bytes, || {
                let grads = Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: None };
                attention_backward(grads, &dout, Stored::F32(&out), &lse, q, k, v, &dims, &none);
            });
        }
    }
}

fn dense(data: &[f32], time: usize, heads: usize, head_dim: usize) -> Heads<'_> {
    let time_stride = heads * head_dim;
    Heads { data: Stored::F32(data), batch_stride: time * time_stride, time_stride, head_stride: head_dim }
}

/// What reads and writes everything once.
fn streams(sheet: &mut Sheet) {
    let count = ROWS * WIDTH;
    let (x, dy) = (normal(count), normal(count));
    let (mut out, mut m, mut v) = (vec![0.0; count], vec![0.0; count], vec![0.0; count]);
    let moved = |floats: usize| 4.0 * (floats * count) as f64;
    let mut stream = |name: &str, floats: usize, work: &mut dyn FnMut()| {
        sheet.measure(name.to_owned(), 0.0, moved(floats), work);
    };
    stream("copy", 2, &mut || elementwise::affine(&mut out, &x, 1.0, 0.0));
    stream("add", 3, &mut || elementwise::binary(Binary::Add, &mut out, &x, &dy));
    stream("gelu", 2, &mut || elementwise::unary(Unary::GeluTanh, &mut out, &x));
    stream("gelu backward", 3, &mut || elementwise::unary_backward(Unary::GeluTanh, &mut out, &x, &dy));
    stream("gated silu", 3, &mut || elementwise::gated(Unary::Silu, &mut out, &x, &dy));
    let (weight, mut stats, mut dweight) = (vec![1.0; WIDTH], vec![0.0; 2 * ROWS], vec![0.0; WIDTH]);
    stream("layer norm", 2, &mut || norm::layer_norm(&mut out, &mut stats, &x, &weight, None, 1e-5));
    stream("layer norm backward", 3, &mut || {
        norm::layer_norm_backward(&mut out, &mut dweight, None, &dy, &x, &weight, &stats);
    });
    stream("rms norm", 2, &mut || norm::rms_norm(&mut out, &mut stats[..ROWS], &x, &weight, 1e-5));
    stream("softmax", 2, &mut || softmax::softmax(&mut out, &x, WIDTH));
    let (targets, mut losses) = (vec![1_i32; ROWS], vec![0.0; ROWS]);
    stream("cross-entropy with gradient", 2, &mut || {
        cross_entropy::cross_entropy_backward_in_place(&mut losses, &mut out, &targets, WIDTH, 1.0, Default::default());
    });
    let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 1.0 };
    stream("adamw", 7, &mut || adamw_step(&mut out, &x, &mut m, &mut v, &settings));
    let mut narrow = vec![bf16::ZERO; count];
    sheet.measure("to bf16".into(), 0.0, 6.0 * count as f64, || convert::f32_to_bf16(&mut narrow, &x));
}
