//! Every type against gguf-py's values, the products against decoding first, and against their plain version.

use super::product::{feed_forward_on, matmul_quantised_on};
use super::*;
use crate::elementwise::{Unary, gated_on};
use crate::gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
use crate::isa::{Isa, testable};
use crate::parallel::with_threads;
use crate::rng::Rng;
use half::{bf16, f16};

/// `scripts/goldens_quant.py` says how it is laid out.
const GOLDENS: &[u8] = include_bytes!("../../../testkit/goldens/quant.bin");
/// Types that are written and multiplied without widening.
const WRITTEN: [GgmlType; 15] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Iq4Nl,
    GgmlType::Mxfp4,
    GgmlType::Tq2_0,
    GgmlType::Iq4Xs,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Tq1_0,
];
/// Those that gguf-py writes, too.
const WRITTEN_THERE: [GgmlType; 8] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Mxfp4,
    GgmlType::Tq1_0,
    GgmlType::Tq2_0,
];

fn words(bytes: &[u8], count: usize) -> Vec<u32> {
    bytes[..4 * count].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn normal(name: &'static str, count: usize) -> Vec<f32> {
    let mut x = vec![0.0; count];
    Rng::new(3, name, count as u64).fill_normal(&mut x, 0.0, 1.0);
    x
}

fn quantised(ty: GgmlType, x: &[f32], width: usize, importance: Option<&[f32]>) -> Vec<u8> {
    let mut bytes = vec![0xaa; ty.bytes(width).unwrap() * (x.len() / width)];
    quantise_rows(ty, x, width, importance, &mut bytes);
    bytes
}

fn dequantised(ty: GgmlType, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut x = vec![f32::NAN; count];
    dequantise_rows(ty, bytes, &mut x);
    x
}

#[test]
fn blocks_of_every_type_are_read_and_written_as_gguf_py_does_to_the_bit() {
    let (mut rest, mut seen) = (GOLDENS, 0);
    loop {
        let head = words(rest, 2);
        rest = &rest[8..];
        let count = head[1] as usize;
        let Some(ty) = GgmlType::from_id(head[0]) else {
            let x: Vec<f32> = words(rest, count).into_iter().map(f32::from_bits).collect();
            rest = &rest[4 * count..];
            for ty in WRITTEN_THERE {
                let (theirs, more) = rest.split_at(ty.bytes(count).unwrap());
                let own = quantised(ty, &x, count, None);
                let other = own.iter().zip(theirs).position(|(own, theirs)| own != theirs);
                assert_eq!(other, None, "{} is written otherwise", ty.name());
                rest = more;
            }
            break;
        };
        let (bytes, more) = rest.split_at(ty.bytes(count).unwrap());
        let theirs = words(more, count);
        rest = &more[4 * count..];
        let own: Vec<u32> = dequantised(ty, bytes, count).into_iter().map(f32::to_bits).collect();
        let other = own.iter().zip(&theirs).position(|(own, theirs)| own != theirs);
        assert_eq!(other, None, "{} is read otherwise", ty.name());
        seen += 1;
    }
    assert!(seen >= 25 && rest.is_empty(), "{seen} types");
}

#[test]
fn types_that_gguf_py_does_not_decode_are_read_as_llama_cpp_does() {
    // A scale of two in half precision.
    let block = |bytes: &[u8]| [&[0x00, 0x40], bytes].concat();
    let ones = dequantised(GgmlType::Q1_0, &block(&[[0b1000_0110].as_slice(), &[0; 15]].concat()), 128);
    assert_eq!(ones[..8], [-2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0, 2.0]);
    assert!(ones[8..].iter().all(|&x| x == -2.0));
    let twos = dequantised(GgmlType::Q2_0, &block(&[[0b1110_0100].as_slice(), &[0b0101_0101; 15]].concat()), 64);
    assert_eq!(twos[..4], [-2.0, 0.0, 2.0, 4.0]);
    assert!(twos[4..].iter().all(|&x| x == 0.0));
}

/// Root mean square error, each column weighted, over the root mean square.
fn error(x: &[f32], y: &[f32], importance: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(usize) -> f32| {
        (0..x.len()).map(|i| f64::from(f(i)).powi(2) * f64::from(importance[i % importance.len()])).sum::<f64>()
    };
    (sum(&|i| x[i] - y[i]) / sum(&|i| x[i])).sqrt()
}

#[test]
fn more_bits_lose_less_and_importance_helps_where_it_lies() {
    let x = normal("weights", 16 * 512);
    let importance: Vec<f32> = (0..512).map(|i| if i % 7 == 0 { 50.0 } else { 1.0 }).collect();
    // Relative errors on normal numbers, a little above what was measured.
    let bounds = [
        (GgmlType::Q8_0, 0.007),
        (GgmlType::Q6K, 0.019),
        (GgmlType::Q5K, 0.038),
        (GgmlType::Q5_1, 0.042),
        (GgmlType::Q5_0, 0.045),
        (GgmlType::Q4K, 0.075),
        (GgmlType::Iq4Xs, 0.082),
        (GgmlType::Iq4Nl, 0.082),
        (GgmlType::Q4_1, 0.085),
        (GgmlType::Q4_0, 0.096),
        (GgmlType::Mxfp4, 0.13),
        (GgmlType::Q3K, 0.17),
        (GgmlType::Q2K, 0.31),
    ];
    for (ty, bound) in bounds {
        let plain = error(&x, &dequantised(ty, &quantised(ty, &x, 512, None), x.len()), &[1.0]);
        assert!(plain < bound && plain > bound / 2.0, "{}: {plain}", ty.name());
        let weighted = |importance: Option<&[f32]>| dequantised(ty, &quantised(ty, &x, 512, importance), x.len());
        let (blind, knowing) =
            (error(&x, &weighted(None), &importance), error(&x, &weighted(Some(&importance)), &importance));
        let searches = !matches!(ty, GgmlType::Q8_0 | GgmlType::Mxfp4);
        assert!(if searches { knowing < 0.97 * blind } else { knowing == blind }, "{}: {knowing} {blind}", ty.name());
    }
}

#[test]
fn zeros_and_what_is_not_finite_do_no_harm() {
    for ty in WRITTEN {
        for fill in [0.0, 1e-30, f32::NAN, f32::INFINITY, 3e38] {
            let bytes = quantised(ty, &vec![fill; 512], 256, None);
            let x = dequantised(ty, &bytes, 512);
            assert!(fill != 0.0 || x.iter().all(|&x| x == 0.0), "{}", ty.name());
        }
    }
}

#[test]
fn products_agree_with_decoding_first_up_to_the_rounding_of_activations() {
    for ty in WRITTEN {
        let (n, k) = (37, if ty.block_len() == 32 { 352 } else { 768 });
        let (w, bias) = (quantised(ty, &normal("w", n * k), k, None), normal("bias", n));
        let wide = dequantised(ty, &w, n * k);
        let x = normal("x", 11 * k);
        for isa in testable() {
            let mut out = vec![f32::NAN; 11 * n];
            matmul_quantised_on(isa, &mut out, &x, Quantised::new(ty, &w, n, k), Some(&bias));
            let (mut off, mut size) = (0.0_f64, 0.0_f64);
            for (i, y) in out.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &wide[i % n * k..][..k]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                off += (f64::from(*y) - exact - f64::from(bias[i % n])).powi(2);
                size += exact.powi(2);
            }
            // Rounding to 127 levels of the largest of 32 or 256 normal numbers.
            let bound = if ty.block_len() == 32 || ty == GgmlType::Iq4Xs { 0.006 } else { 0.009 };
            assert!((off / size).sqrt() < bound, "{} {}: {}", ty.name(), isa.name(), (off / size).sqrt());
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_in_every_batch_on_every_instruction_set_and_thread_count() {
    for ty in WRITTEN.into_iter().chain([GgmlType::F16, GgmlType::Bf16, GgmlType::F32, GgmlType::Q1_0]) {
        let (n, k) = (45, if ty.block_len() > 32 { 512 } else { 352 });
        let source = normal("w", n * k);
        let w = if can_quantise(ty) {
            quantised(ty, &source, k, None)
        } else {
            source
                .iter()
                .flat_map(|x| x.to_bits().to_le_bytes())
                .take(ty.bytes(n * k).unwrap())
                .map(|b| b & 0x3f)
                .collect()
        };
        let x = normal("x", 70 * k);
        let run = |isa: Isa, rows: std::ops::Range<usize>, threads| {
            let mut out = vec![f32::NAN; rows.len() * n];
            let x = &x[rows.start * k..rows.end * k];
            with_threads(threads, || matmul_quantised_on(isa, &mut out, x, Quantised::new(ty, &w, n, k), None));
            out
        };
        let all = run(Isa::Scalar, 0..70, 1);
        assert!(all.iter().all(|y| y.is_finite()), "{}", ty.name());
        for isa in testable() {
            // What is widened goes through the f32 product, which has one instruction set per process.
            let all = if ty.is_quantised() { all.clone() } else { run(isa, 0..70, 1) };
            for rows in [0..70, 0..1, 5..7, 9..12, 20..24, 3..8, 30..47] {
                for threads in [1, 2] {
                    let part = run(isa, rows.clone(), threads);
                    assert!(part == all[rows.start * n..rows.end * n], "{} {} {rows:?}", ty.name(), isa.name());
                }
            }
        }
    }
}

#[test]
fn many_strips_and_long_rows_give_the_same_bits_on_every_instruction_set() {
    for ty in WRITTEN {
        // Several pieces of k, the last one shorter; more strips than are multiplied together, the last one not whole.
        let (n, k) = (16 * 21 + 5, if ty.block_len() > 32 { 1280 } else { 1184 });
        let w = quantised(ty, &normal("w", n * k), k, None);
        let x = normal("x", 61 * k);
        for rows in [16, 31, 48, 61] {
            let run = |isa| {
                let mut out = vec![f32::NAN; rows * n];
                let w = Quantised::new(ty, &w, n, k);
                with_threads(1, || matmul_quantised_on(isa, &mut out, &x[..rows * k], w, None));
                out
            };
            let plain = run(Isa::Scalar);
            for isa in testable() {
                assert!(run(isa) == plain, "{} {} {rows} rows", ty.name(), isa.name());
            }
        }
    }
}

#[test]
fn a_feed_forward_is_to_the_bit_its_products_and_what_lies_between_them() {
    assert!(!can_feed_forward([GgmlType::Q4K, GgmlType::Q6K, GgmlType::Q6K]) && !can_feed_forward([GgmlType::F16; 3]));
    let mixes = [[GgmlType::Q8_0, GgmlType::Iq4Nl, GgmlType::Q5_1], [GgmlType::Q4K, GgmlType::Q4K, GgmlType::Q6K]];
    for types in WRITTEN.map(|ty| [ty; 3]).into_iter().chain(mixes) {
        assert!(can_feed_forward(types), "{}", types[0].name());
        // More than a panel and than its rows for many of them; panel, strip and group are not whole at the end.
        let (out, wide, k) = (37, if types[2].block_len() > 32 { 1280 } else { 352 }, 512);
        let sizes = [(wide, k), (wide, k), (out, wide)];
        let data = [0, 1, 2].map(|i| {
            let (rows, cols) = sizes[i];
            quantised(types[i], &normal(["gate", "up", "down"][i], rows * cols), cols, None)
        });
        let weights = [0, 1, 2].map(|i| Quantised::new(types[i], &data[i], sizes[i].0, sizes[i].1));
        let bias = normal("bias", wide);
        let biases = [Some(&bias[..]), (types[0] != GgmlType::Q4_0).then_some(&bias[..]), Some(&bias[..out])];
        let x = normal("x", 497 * k);
        for isa in testable() {
            for (rows, threads) in [(1, 2), (3, 1), (17, 2), (497, 2)] {
                let product = |x: &[f32], i: usize| {
                    let mut out = vec![f32::NAN; rows * weights[i].rows];
                    matmul_quantised_on(isa, &mut out, x, weights[i], biases[i]);
                    out
                };
                let (x, mut between) = (&x[..rows * k], vec![f32::NAN; rows * wide]);
                gated_on(isa, Unary::Silu, &mut between, &product(x, 0), &product(x, 1));
                let apart = product(&between, 2);
                let mut together = vec![f32::NAN; rows * out];
                with_threads(threads, || feed_forward_on(isa, Unary::Silu, &mut together, x, weights, biases));
                assert!(together == apart, "{:?} {} {rows}", types.map(GgmlType::name), isa.name());
            }
        }
    }
}

#[test]
#[should_panic(expected = "feed_forward: gate [32, 32], up [64, 32], down [32, 32]")]
fn a_feed_forward_of_sizes_that_do_not_agree_is_refused() {
    let w = quantised(GgmlType::Q8_0, &normal("w", 64 * 32), 32, None);
    let half = &w[..w.len() / 2];
    let weights = [(half, 32), (&w, 64), (half, 32)].map(|(w, rows)| Quantised::new(GgmlType::Q8_0, w, rows, 32));
    feed_forward(Unary::Silu, &mut [0.0; 32], &[0.0; 32], weights, [None; 3]);
}

fn rounded(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

#[test]
fn bf16_products_are_the_same_whatever_the_batch_and_wherever_the_weights_lie() {
    let (n, k) = (45, 352);
    let w: Vec<u8> = normal("w", n * k).iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let (x, bias) = (rounded(&normal("x", 70 * k)), normal("bias", n));
    let run = |w: &[u8], rows: std::ops::Range<usize>, threads| {
        let mut out = vec![f32::NAN; rows.len() * n];
        let (x, w) = (&x[rows.start * k..rows.end * k], Quantised::new(GgmlType::Bf16, w, n, k));
        with_threads(threads, || matmul_bf16(&mut out, x, w, Some(&bias)));
        out
    };
    let all = run(&w, 0..70, 1);
    // Both factors have eight bits: products are exact, and sums as exact as f32 has them.
    let wide = dequantised(GgmlType::Bf16, &w, n * k);
    for (i, y) in all.iter().enumerate() {
        let pairs = x[i / n * k..][..k].iter().zip(&wide[i % n * k..][..k]);
        let exact: f64 = pairs.map(|(x, w)| x.to_f64() * f64::from(*w)).sum();
        assert!((f64::from(*y) - exact - f64::from(bias[i % n])).abs() < 1e-4, "{y} for {exact}");
    }
    let shifted: Vec<u8> = std::iter::once(0).chain(w.iter().copied()).collect();
    for rows in [0..70, 0..1, 5..7, 20..24, 3..8, 30..47] {
        for (w, threads) in [(&w[..], 1), (&w[..], 2), (&shifted[1..], 2)] {
            assert!(run(w, rows.clone(), threads) == all[rows.start * n..rows.end * n], "{rows:?}");
        }
    }
    matmul_bf16(&mut [], &[], Quantised::new(GgmlType::Bf16, &w, n, k), None);
}

#[test]
fn halves_are_multiplied_in_bf16_as_if_they_had_been_rounded_before() {
    for (n, k) in [(45, 352), (45, 346), (37, 1024), (40, 35), (33, 31)] {
        let mut halves: Vec<u8> = normal("w", n * k).iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        // Subnormal ones, the largest, and numbers that are ties.
        for (i, bits) in [0x0001, 0x83ff, 0x7bff, 0xfbff, 0x3c04, 0x3c0c, 0x8000].into_iter().enumerate() {
            halves[2 * (n * k / 9 * i + 5)..][..2].copy_from_slice(&u16::to_le_bytes(bits));
        }
        let mut rounded = vec![bf16::ZERO; n * k];
        halves_to_bf16(&mut rounded, &halves);
        let (x, shifted) = (self::rounded(&normal("x", 70 * k)), [&[0], &halves[..]].concat());
        for rows in [1, 2, 7, 70] {
            let run = |ty, w: &[u8]| {
                let mut out = vec![f32::NAN; rows * n];
                matmul_bf16(&mut out, &x[..rows * k], Quantised::new(ty, w, n, k), None);
                out
            };
            let wanted = run(GgmlType::Bf16, bytemuck::cast_slice(&rounded));
            assert!(run(GgmlType::F16, &halves) == wanted, "{rows} rows of {k}");
            assert!(run(GgmlType::F16, &shifted[1..]) == wanted, "{rows} rows of {k}, odd address");
        }
    }
}

#[test]
fn halves_become_the_nearest_bf16() {
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut out = vec![bf16::ZERO; 1 << 16];
    halves_to_bf16(&mut out, &halves);
    for (bits, own) in (0..=u16::MAX).zip(out) {
        let half = f16::from_bits(bits);
        assert!(own == bf16::from_f32(half.to_f32()) || own.is_nan() && half.is_nan(), "{bits:#06x}");
    }
}

#[test]
fn gradients_flow_back_through_weights_of_a_file_as_through_what_they_decode_to() {
    // More rows than are decoded at a time, and no whole number of pieces.
    let (n, k) = (1100, 2048);
    for rows in [1, 70] {
        let (dy, before) = (normal("dy", rows * n), normal("before", rows * k));
        for ty in [GgmlType::F16, GgmlType::Bf16, GgmlType::Q4_0, GgmlType::Q4K] {
            let w = quantised(ty, &normal("w", n * k), k, None);
            let wide = dequantised(ty, &w, n * k);
            let (a, b) = (Mat::rows(&dy, rows, n), Mat::rows(&wide, n, k));
            let mut wanted = [before.clone(), before.clone()];
            gemm_f32(MatMut::rows(&mut wanted[0], rows, k), a, b, Start::Sum);
            gemm_bf16(MatMut::rows(&mut wanted[1], rows, k), Operand::F32(a), Operand::F32(b), Start::Sum);
            let shifted = [&[0], &w[..]].concat();
            for (in_bf16, wanted) in [false, true].into_iter().zip(&wanted) {
                for (w, threads) in [(&w[..], 1), (&w[..], 2), (&shifted[1..], 2)] {
                    let mut out = before.clone();
                    let w = Quantised::new(ty, w, n, k);
                    with_threads(threads, || matmul_quantised_backward(&mut out, &dy, w, Start::Sum, in_bf16));
                    assert!(out == *wanted, "{} {rows} rows, bf16 {in_bf16}, {threads} threads", ty.name());
                }
            }
        }
    }
}

#[test]
fn nf4_is_multiplied_forward_and_backward_as_what_it_decodes_to() {
    // More numbers than are decoded at a time; rows that begin within blocks, and within bytes.
    for (n, k) in [(1100, 2000), (37, 51)] {
        let w = Nf4::encode(&normal("w", n * k), true);
        let mut wide = vec![0.0; n * k];
        w.decode_all(&mut wide);
        let (narrow, bias) = (rounded(&wide), normal("bias", n));
        for rows in [1, 5, 70] {
            let (x, dy) = (normal("x", rows * k), normal("dy", rows * n));
            let (half, mut out) = (rounded(&x), vec![f32::NAN; rows * n]);
            let (b, b_half) = (Mat::rows(&wide, n, k), Mat::rows(&narrow, n, k));
            let mut wanted = vec![0.0; rows * n];
            gemm_f32(MatMut::rows(&mut wanted, rows, n), Mat::rows(&x, rows, k), b.t(), Start::Bias(&bias));
            with_threads(2, || matmul_nf4(&mut out, &x, &w, k, Some(&bias)));
            assert!(out == wanted, "{rows} rows of {n} x {k}");
            let (a, c) = (Operand::Bf16(Mat::rows(&half, rows, k)), MatMut::rows(&mut wanted, rows, n));
            gemm_bf16(c, a, Operand::Bf16(b_half.t()), Start::Zero);
            with_threads(2, || matmul_nf4_bf16(&mut out, &half, &w, k, None));
            assert!(out == wanted, "{rows} rows of {n} x {k} in bf16");
            let (mut out, mut wanted) = (normal("before", rows * k), normal("before", rows * k));
            gemm_f32(MatMut::rows(&mut wanted, rows, k), Mat::rows(&dy, rows, n), b, Start::Sum);
            matmul_nf4_backward(&mut out, &dy, &w, k, Start::Sum, false);
            assert!(out == wanted, "back through {rows} rows of {n} x {k}");
            let (a, c) = (Operand::F32(Mat::rows(&dy, rows, n)), MatMut::rows(&mut wanted, rows, k));
            gemm_bf16(c, a, Operand::Bf16(b_half), Start::Zero);
            matmul_nf4_backward(&mut out, &dy, &w, k, Start::Zero, true);
            assert!(out == wanted, "back through {rows} rows of {n} x {k} in bf16");
        }
    }
}

#[test]
#[should_panic(expected = "matmul_quantised_backward: 3 gradients for weights [2, 32] into 32")]
fn gradients_of_another_size_are_refused() {
    let w = Quantised::new(GgmlType::Q8_0, &[0; 68], 2, 32);
    matmul_quantised_backward(&mut [0.0; 32], &[0.0; 3], w, Start::Zero, false);
}

#[test]
fn what_is_not_finite_in_an_activation_stays_visible() {
    for ty in [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4K, GgmlType::Q6K] {
        let w = quantised(ty, &normal("w", 2 * 512), 512, None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal("x", 512);
            x[300] = bad;
            let mut out = [0.0; 2];
            matmul_quantised(&mut out, &x, Quantised::new(ty, &w, 2, 512), None);
            assert!(out.iter().all(|y| !y.is_finite()), "{} {bad}: {out:?}", ty.name());
        }
    }
}

#[test]
fn activations_too_small_for_levels_count_as_zero() {
    for ty in WRITTEN {
        let w = quantised(ty, &normal("w", 2 * 512), 512, None);
        let mut x = vec![0.0_f32; 512];
        (x[3], x[300]) = (1e-38, f32::from_bits(1));
        for isa in testable() {
            let mut out = vec![f32::NAN; 2];
            matmul_quantised_on(isa, &mut out, &x, Quantised::new(ty, &w, 2, 512), None);
            assert!(out.iter().all(|y| y.abs() < 1e-30), "{} {}: {out:?}", ty.name(), isa.name());
        }
    }
}

#[test]
fn an_empty_product_is_no_product() {
    matmul_quantised(&mut [], &[], Quantised::new(GgmlType::Q8_0, &[], 0, 32), None);
    matmul_quantised(&mut [], &[], Quantised::new(GgmlType::Q8_0, &[0; 34], 1, 32), None);
}

#[test]
#[should_panic(expected = "bytes of a [2, 32] Q8_0 matrix")]
fn weights_of_another_size_are_refused() {
    Quantised::new(GgmlType::Q8_0, &[0; 34], 2, 32);
}
