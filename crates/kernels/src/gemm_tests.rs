//! Matrix products against f64, and their contract: one chain per element, whatever surrounds it.

use crate::gemm::blocked::{DEPTH, product};
use crate::gemm::units::{Pairs, Plain, Rounded};
use crate::gemm::{Mat, MatMut, Operand, Start, gemm_bf16, gemm_f32};
use crate::gemv::gemv_on;
use crate::isa::{has_fast_bf16, has_tiles, testable};
use crate::parallel::with_threads;
use crate::rng::Rng;
use crate::{Isa, isa, naive};
use half::bf16;

const SIZES: [usize; 12] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100];

fn normal(n: usize, purpose: &str) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(1, purpose, n as u64).fill_normal(&mut x, 0.0, 1.0);
    x
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| bf16::from_f32(x)).collect()
}

fn widen(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// The same matrix in another element type.
fn with_data<'a>(mat: Mat<'_, bf16>, data: &'a [f32]) -> Mat<'a, f32> {
    Mat { data, rows: mat.rows, cols: mat.cols, row_stride: mat.row_stride, col_stride: mat.col_stride }
}

/// The chain that the contract promises.
fn chain(isa: Isa, start: f32, a: impl Iterator<Item = (f32, f32)>) -> f32 {
    let fused = isa != Isa::Scalar;
    a.fold(start, |acc, (a, b)| if fused { a.mul_add(b, acc) } else { a * b + acc })
}

/// The sum of a product whose `a` is transposed: panels of k by themselves, added to what is there.
fn apart(isa: Isa, start: Start<'_>, first: f32, factors: &[(f32, f32)]) -> f32 {
    let depth = factors.len().div_ceil(factors.len().div_ceil(DEPTH));
    let mut panels = factors.chunks(depth).map(|panel| panel.iter().copied());
    // A bias, or zero, is where the first panel starts; what `c` held is added to.
    let sum = match start {
        Start::Sum => first,
        _ => chain(isa, first, panels.next().unwrap()),
    };
    panels.fold(sum, |sum, panel| sum + chain(isa, 0.0, panel))
}

fn close(got: &[f32], exact: &[f64], k: usize, what: &str) {
    // k roundings, each relative to a partial sum that seldom exceeds 3 sqrt(k).
    let tolerance = 1e-6 * (k as f64 + 1.0).sqrt() * 3.0;
    for (i, (&g, &e)) in got.iter().zip(exact).enumerate() {
        assert!((f64::from(g) - e).abs() <= tolerance, "{what} [{i}]: {g} != {e}");
    }
}

#[test]
fn products_of_odd_sizes_equal_the_naive_ones_in_all_four_layouts() {
    for (round, &m) in SIZES.iter().enumerate() {
        for &n in &SIZES {
            let k = SIZES[(round * 5 + n) % SIZES.len()];
            let (a, b) = (normal(m * k, "a"), normal(k * n, "b"));
            for layout in 0..4 {
                let mat_a = if layout & 1 == 0 { Mat::rows(&a, m, k) } else { Mat::rows(&a, k, m).t() };
                let mat_b = if layout & 2 == 0 { Mat::rows(&b, k, n) } else { Mat::rows(&b, n, k).t() };
                let at = |m: Mat<'_, f32>, i, j| f64::from(m.data[i * m.row_stride + j * m.col_stride]);
                let exact = naive::gemm(m, k, n, |i, p| at(mat_a, i, p), |p, j| at(mat_b, p, j));
                let mut c = vec![f32::NAN; m * n];
                gemm_f32(MatMut::rows(&mut c, m, n), mat_a, mat_b, Start::Zero);
                close(&c, &exact, k, &format!("{m}x{k}x{n} layout {layout}"));
                let before: Vec<f32> = (0..m * n).map(|i| i as f32 * 0.01).collect();
                let mut added = before.clone();
                gemm_f32(MatMut::rows(&mut added, m, n), mat_a, mat_b, Start::Sum);
                let exact: Vec<f64> = exact.iter().zip(&before).map(|(e, b)| e + f64::from(*b)).collect();
                close(&added, &exact, k + 1000, "added to what is there");
                let mut transposed = vec![f32::NAN; m * n];
                gemm_f32(MatMut::rows(&mut transposed, n, m).t(), mat_a, mat_b, Start::Zero);
                assert!((0..m * n).all(|i| transposed[i % n * m + i / n] == c[i]), "a transposed result is the same");
            }
        }
    }
}

#[test]
fn strided_views_leave_the_gaps_alone() {
    let (m, k, n) = (5, 9, 11);
    let (a, b) = (normal(m * 20, "a"), normal(n * 30, "b"));
    let (mat_a, mat_b) = (Mat::strided(&a, m, k, 20, 1), Mat::strided(&b, n, k, 30, 1).t());
    let exact = naive::gemm(m, k, n, |i, p| f64::from(a[i * 20 + p]), |p, j| f64::from(b[j * 30 + p]));
    for m_used in [m, 1] {
        let mut c = vec![7.0_f32; m * 13];
        let mat_a = Mat { rows: m_used, ..mat_a };
        gemm_f32(MatMut::strided(&mut c, m_used, n, 13, 1), mat_a, mat_b, Start::Zero);
        for i in 0..m {
            let (row, gap) = c[i * 13..][..13].split_at(n);
            if i < m_used {
                close(row, &exact[i * n..][..n], k, "strided");
            }
            assert!(gap.iter().all(|&x| x == 7.0));
        }
    }
}

#[test]
fn every_element_is_one_chain_whatever_the_rows_and_threads() {
    // 1100 needs several panels of k, or several blocks of n.
    for (k, n) in [(1, 33), (9, 70), (300, 70), (1100, 70), (64, 1100)] {
        let (w, all) = (normal(n * k, "w"), normal(97 * k, "x"));
        let expected = |i: usize, j: usize| {
            chain(isa(), 0.0, all[i * k..][..k].iter().copied().zip(w[j * k..][..k].iter().copied()))
        };
        let transposed: Vec<f32> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
        for m in [1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 97] {
            for threads in [1, 2] {
                for weights in [Mat::rows(&w, n, k).t(), Mat::rows(&transposed, k, n)] {
                    let mut c = vec![f32::NAN; m * n];
                    let x = Mat::rows(&all[..m * k], m, k);
                    with_threads(threads, || gemm_f32(MatMut::rows(&mut c, m, n), x, weights, Start::Zero));
                    for i in [0, m / 2, m - 1] {
                        for j in 0..n {
                            assert_eq!(
                                c[i * n + j].to_bits(),
                                expected(i, j).to_bits(),
                                "m {m} k {k} n {n} [{i}, {j}]"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_blocked_product_adds_in_its_stated_order_on_every_instruction_set_in_every_layout() {
    for isa in testable() {
        // 800 needs several panels of k, 1100 several tasks of columns, 900 several of rows.
        for (m, k, n) in [(1, 1, 1), (13, 800, 40), (900, 5, 33), (9, 20, 1100), (25, 385, 97)] {
            let (x, w, bias) = (normal(m * k, "x"), normal(n * k, "w"), normal(n, "bias"));
            let flipped = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (xt, wt) = (flipped(&x, m, k), flipped(&w, n, k));
            let before = normal(m * n, "before");
            for (a, b) in [
                (Mat::rows(&x, m, k), Mat::rows(&w, n, k).t()),
                (Mat::rows(&x, m, k), Mat::rows(&wt, k, n)),
                (Mat::rows(&xt, k, m).t(), Mat::rows(&wt, k, n)),
                (Mat::rows(&xt, k, m).t(), Mat::rows(&w, n, k).t()),
            ] {
                for start in [Start::Zero, Start::Sum, Start::Bias(&bias)] {
                    let mut c = before.clone();
                    product::<Plain, Plain>(isa, MatMut::rows(&mut c, m, n), a, b, start);
                    for i in (0..m * n).step_by(if m * n > 5000 { 7 } else { 1 }) {
                        let first = match start {
                            Start::Zero => 0.0,
                            Start::Sum => before[i],
                            Start::Bias(bias) => bias[i % n],
                        };
                        let factors: Vec<(f32, f32)> =
                            x[i / n * k..][..k].iter().copied().zip(w[i % n * k..][..k].iter().copied()).collect();
                        let expected = if a.col_stride > 1 {
                            apart(isa, start, first, &factors)
                        } else {
                            chain(isa, first, factors.into_iter())
                        };
                        assert_eq!(c[i].to_bits(), expected.to_bits(), "{isa:?} {m}x{k}x{n} [{i}]");
                    }
                }
            }
        }
    }
}

#[test]
fn the_thin_product_keeps_the_chain_on_every_instruction_set() {
    for isa in testable() {
        for k in SIZES {
            for n in SIZES {
                for m in 1..=8 {
                    let (x, w) = (normal(m * k, "x"), normal(n * k, "w"));
                    let (w16, x16) = (narrow(&w), narrow(&x));
                    let wide: Vec<f32> = x16.iter().map(|x| x.to_f32()).collect();
                    let (mut c, mut c16) = (vec![f32::NAN; m * n], vec![1.0; m * n]);
                    gemv_on(isa, MatMut::rows(&mut c, m, n), Mat::rows(&x, m, k), Mat::rows(&w, n, k).t(), Start::Zero);
                    gemv_on(
                        isa,
                        MatMut::rows(&mut c16, m, n),
                        Mat::rows(&wide, m, k),
                        Mat::rows(&w16, n, k).t(),
                        Start::Sum,
                    );
                    for i in 0..m * n {
                        let (x, wide, w, w16) = (
                            &x[i / n * k..][..k],
                            &wide[i / n * k..][..k],
                            &w[i % n * k..][..k],
                            &w16[i % n * k..][..k],
                        );
                        assert_eq!(
                            c[i],
                            chain(isa, 0.0, x.iter().copied().zip(w.iter().copied())),
                            "{isa:?} {m}x{k}x{n}"
                        );
                        let sum = chain(isa, 1.0, wide.iter().copied().zip(w16.iter().map(|w| w.to_f32())));
                        assert_eq!(c16[i], sum, "{isa:?} bf16 {m}x{k}x{n}");
                    }
                }
            }
        }
    }
}

#[test]
fn bf16_products_are_those_of_the_widened_operands() {
    for (m, k, n) in [(1, 100, 33), (8, 17, 100), (9, 33, 31), (100, 16, 17), (33, 100, 9)] {
        let (x, w) = (narrow(&normal(m * k, "x")), narrow(&normal(n * k, "w")));
        let exact = naive::gemm(m, k, n, |i, p| x[i * k + p].to_f64(), |p, j| w[j * k + p].to_f64());
        let (wide_x, wide_w) = (widen(&x), widen(&w));
        for start in [Start::Zero, Start::Sum] {
            let (mut c, mut reference) = (vec![0.25; m * n], vec![0.25; m * n]);
            let (a, b) = (Mat::rows(&x, m, k), Mat::rows(&w, n, k).t());
            gemm_bf16(MatMut::rows(&mut c, m, n), Operand::Bf16(a), Operand::Bf16(b), start);
            let (a, b) = (Mat::rows(&wide_x, m, k), Mat::rows(&wide_w, n, k).t());
            gemm_f32(MatMut::rows(&mut reference, m, n), a, b, start);
            for i in 0..m * n {
                let exact = exact[i] + if matches!(start, Start::Sum) { 0.25 } else { 0.0 };
                if has_fast_bf16() {
                    // The instruction rounds as f32 does; at most 100 products of order one.
                    assert!((f64::from(c[i]) - exact).abs() <= 3e-5, "{m}x{k}x{n}: {} for {exact}", c[i]);
                } else {
                    assert_eq!(c[i], reference[i], "{m}x{k}x{n}");
                }
            }
            let mut transposed = vec![0.25; m * n];
            let (a, b) = (Mat::rows(&x, m, k), Mat::rows(&w, n, k).t());
            gemm_bf16(MatMut::rows(&mut transposed, n, m).t(), Operand::Bf16(a), Operand::Bf16(b), start);
            assert!((0..m * n).all(|i| transposed[i % n * m + i / n] == c[i]), "a transposed result is the same");
        }
    }
}

#[test]
fn bf16_products_are_the_same_chain_on_every_instruction_set_in_every_layout() {
    for isa in testable() {
        if isa == Isa::Avx512 && !has_fast_bf16() {
            println!("SKIPPED: this machine multiplies no bf16");
            continue;
        }
        // 1700 needs several panels of k, 1100 several tasks of columns, 900 several of rows.
        for (m, k, n) in [(1, 1, 1), (13, 1700, 40), (900, 5, 33), (9, 20, 1100), (26, 771, 97)] {
            let (x, w) = (narrow(&normal(m * k, "x")), narrow(&normal(n * k, "w")));
            let flipped = |x: &[bf16], rows: usize, cols: usize| -> Vec<bf16> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (xt, wt) = (flipped(&x, m, k), flipped(&w, n, k));
            let exact = naive::gemm(m, k, n, |i, p| x[i * k + p].to_f64(), |p, j| w[j * k + p].to_f64());
            let mut first: Option<Vec<f32>> = None;
            for (a, b) in [
                (Mat::rows(&x, m, k), Mat::rows(&w, n, k).t()),
                (Mat::rows(&x, m, k), Mat::rows(&wt, k, n)),
                (Mat::rows(&xt, k, m).t(), Mat::rows(&wt, k, n)),
                (Mat::rows(&xt, k, m).t(), Mat::rows(&w, n, k).t()),
            ] {
                let mut c = vec![f32::NAN; m * n];
                product::<Pairs, Pairs>(isa, MatMut::rows(&mut c, m, n), a, b, Start::Zero);
                close(&c, &exact, k, &format!("{isa:?} {m}x{k}x{n}"));
                // The same numbers kept as f32 and rounded on the way.
                let (wide_a, wide_b) = (widen(a.data), widen(b.data));
                let (f32_a, f32_b) = (with_data(a, &wide_a), with_data(b, &wide_b));
                let mut rounded = vec![f32::NAN; m * n];
                product::<Rounded, Rounded>(isa, MatMut::rows(&mut rounded, m, n), f32_a, f32_b, Start::Zero);
                assert_eq!(rounded, c, "{isa:?}: rounding on the way changed a sum");
                product::<Rounded, Pairs>(isa, MatMut::rows(&mut rounded, m, n), f32_a, b, Start::Zero);
                assert_eq!(rounded, c, "{isa:?}: rounding a on the way changed a sum");
                if a.col_stride == 1 {
                    assert_eq!(*first.get_or_insert_with(|| c.clone()), c, "{isa:?}: the layout of b changed a sum");
                }
            }
        }
    }
}

/// What tiles add to a sum, from 32 neighbours in k at a time: the even ones in one chain, the odd ones in another.
fn chain_of_tiles(start: f32, factors: &[(f32, f32)]) -> f32 {
    factors.chunks(32).fold(start, |sum, factors| {
        let chain = |first| factors.iter().skip(first).step_by(2).fold(0.0_f32, |sum, &(a, b)| a.mul_add(b, sum));
        sum + (chain(0) + chain(1))
    })
}

#[test]
fn on_tiles_every_element_is_one_chain_whatever_the_rows() {
    if !has_tiles() {
        println!("SKIPPED: this machine multiplies no tiles");
        return;
    }
    // Thin and blocked, whole steps of k and not, one panel of k and several, fewer columns than a strip and more.
    for (m, k, n) in [(1, 64, 32), (16, 1024, 101), (7, 96, 70), (3, 30, 50), (40, 1000, 65), (17, 64, 20)] {
        let (x, w) = (narrow(&normal(m * k, "x")), narrow(&normal(n * k, "w")));
        let (wide_x, bias) = (widen(&x), normal(n, "bias"));
        let (a, b) = (Mat::rows(&x, m, k), Mat::rows(&w, n, k).t());
        for start in [Start::Zero, Start::Sum, Start::Bias(&bias)] {
            let (mut c, mut rounded) = (vec![0.5; m * n], vec![0.5; m * n]);
            gemm_bf16(MatMut::rows(&mut c, m, n), Operand::Bf16(a), Operand::Bf16(b), start);
            let wide_a = Operand::F32(Mat::rows(&wide_x, m, k));
            gemm_bf16(MatMut::rows(&mut rounded, m, n), wide_a, Operand::Bf16(b), start);
            assert_eq!(c, rounded, "{m}x{k}x{n}: rounding on the way changed a sum");
            for (at, &sum) in c.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let first = match start {
                    Start::Zero => 0.0,
                    Start::Sum => 0.5,
                    Start::Bias(bias) => bias[j],
                };
                let factors: Vec<_> = (0..k).map(|p| (x[i * k + p].to_f32(), w[j * k + p].to_f32())).collect();
                assert_eq!(sum, chain_of_tiles(first, &factors), "{m}x{k}x{n} at {i}, {j}");
            }
        }
    }
}

#[test]
fn f32_operands_of_bf16_products_are_rounded_to_nearest_even() {
    for (m, k, n) in [(1, 100, 33), (20, 33, 40), (100, 770, 17)] {
        let (x, w) = (normal(m * k, "x"), normal(n * k, "w"));
        let (x16, w16) = (narrow(&x), narrow(&w));
        let (mut rounded, mut reference) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
        let (a, b) = (Mat::rows(&x16, m, k), Mat::rows(&w16, n, k).t());
        gemm_bf16(MatMut::rows(&mut reference, m, n), Operand::Bf16(a), Operand::Bf16(b), Start::Zero);
        for (a, b) in [
            (Operand::F32(Mat::rows(&x, m, k)), Operand::F32(Mat::rows(&w, n, k).t())),
            (Operand::F32(Mat::rows(&x, m, k)), Operand::Bf16(b)),
            (Operand::Bf16(a), Operand::F32(Mat::rows(&w, n, k).t())),
        ] {
            gemm_bf16(MatMut::rows(&mut rounded, m, n), a, b, Start::Zero);
            assert_eq!(rounded, reference, "{m}x{k}x{n}");
        }
    }
}

#[test]
fn a_row_of_a_bf16_product_is_the_same_alone_as_among_others() {
    for (k, n) in [(2, 33), (9, 70), (300, 70), (1700, 40)] {
        let (w, all) = (narrow(&normal(n * k, "w")), narrow(&normal(40 * k, "x")));
        let product = |rows: usize| {
            let mut c = vec![f32::NAN; rows * n];
            let (a, b) = (Mat::rows(&all[..rows * k], rows, k), Mat::rows(&w, n, k).t());
            gemm_bf16(MatMut::rows(&mut c, rows, n), Operand::Bf16(a), Operand::Bf16(b), Start::Zero);
            c
        };
        let whole = product(40);
        for rows in [1, 2, 7, 8, 9, 25] {
            assert_eq!(product(rows), whole[..rows * n], "{rows} of 40 rows, k {k}, n {n}");
        }
    }
}

#[test]
fn bf16_operands_with_gaps_are_read_right() {
    let (m, k, n) = (19, 12, 21);
    let (x, w) = (narrow(&normal(m * 15, "x")), narrow(&normal(k * 30, "w")));
    let exact = naive::gemm(m, k, n, |i, p| x[i * 15 + p].to_f64(), |p, j| w[p * 30 + j].to_f64());
    let mut c = vec![f32::NAN; m * n];
    let (a, b) = (Mat::strided(&x, m, k, 15, 1), Mat::strided(&w, k, n, 30, 1));
    gemm_bf16(MatMut::rows(&mut c, m, n), Operand::Bf16(a), Operand::Bf16(b), Start::Zero);
    for (c, e) in c.iter().zip(&exact) {
        assert!((f64::from(*c) - e).abs() <= 1e-5);
    }
}

#[test]
fn an_empty_contraction_gives_zero_or_what_was_there() {
    let mut c = vec![3.0; 6];
    gemm_f32(MatMut::rows(&mut c, 2, 3), Mat::rows(&[], 2, 0), Mat::rows(&[], 0, 3), Start::Sum);
    assert_eq!(c, [3.0; 6]);
    gemm_f32(MatMut::rows(&mut c, 2, 3), Mat::rows(&[], 2, 0), Mat::rows(&[], 0, 3), Start::Zero);
    assert_eq!(c, [0.0; 6]);
    gemm_f32(MatMut::rows(&mut [], 0, 3), Mat::rows(&[], 0, 2), Mat::rows(&[1.0; 6], 2, 3), Start::Zero);
    let (a, b) = (Operand::F32(Mat::rows(&[], 0, 2)), Operand::Bf16(Mat::rows(&[bf16::ONE; 6], 2, 3)));
    gemm_bf16(MatMut::rows(&mut [], 0, 3), a, b, Start::Zero);
}

#[test]
#[should_panic(expected = "gemm_f32: [2, 3] = [2, 2] * [1, 3] does not fit")]
fn shapes_that_do_not_fit_panic() {
    gemm_f32(MatMut::rows(&mut [0.0; 6], 2, 3), Mat::rows(&[0.0; 4], 2, 2), Mat::rows(&[0.0; 3], 1, 3), Start::Zero);
}

#[test]
#[should_panic(expected = "needs 6 of 5")]
fn a_matrix_larger_than_its_slice_panics() {
    Mat::rows(&[0.0; 5], 2, 3);
}

#[test]
fn a_sum_over_many_rows_equals_the_naive_one_and_adds_to_what_is_there() {
    let (m, k, n) = (17, 777, 33);
    let (a, b) = (normal(k * m, "a"), normal(k * n, "b"));
    let exact = naive::gemm(m, k, n, |i, p| f64::from(a[p * m + i]), |p, j| f64::from(b[p * n + j]));
    let mut c = vec![f32::NAN; m * n];
    gemm_f32(MatMut::rows(&mut c, m, n), Mat::rows(&a, k, m).t(), Mat::rows(&b, k, n), Start::Zero);
    close(&c, &exact, k, "sum over rows");
    gemm_f32(MatMut::rows(&mut c, m, n), Mat::rows(&a, k, m).t(), Mat::rows(&b, k, n), Start::Sum);
    let twice: Vec<f64> = exact.iter().map(|e| 2.0 * e).collect();
    close(&c, &twice, 2 * k, "added once more");
}
