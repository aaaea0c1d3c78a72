//! Attention against its f64 twin, and the promises about bits.

use super::backward::{self, Saved};
use super::oracle::{Exact, dense, exact};
use super::*;
use crate::isa::testable;
use crate::parallel::with_threads;
use crate::rng::Rng;
use std::sync::LazyLock;

/// A call with random operands, cut out of larger buffers.
struct Case {
    dims: AttentionDims,
    q: Vec<f32>,
    kv: Vec<f32>,
    /// Places between the heads, so that views have gaps.
    gap: usize,
    dout: Vec<f32>,
    bias: Option<Vec<f32>>,
    segments: Option<Vec<u32>>,
    query_segments: Option<Vec<u32>>,
}

struct Result {
    out: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dbias: Option<Vec<f32>>,
}

/// The instruction sets to test; what is missing is said once.
fn instruction_sets() -> &'static [Isa] {
    static SETS: LazyLock<Vec<Isa>> = LazyLock::new(testable);
    &SETS
}

fn random(n: usize, seed: u64, purpose: &str) -> Vec<f32> {
    let rng = Rng::new(seed, purpose, 0);
    (0..n as u64).map(|i| f32::from(rng.u32(i) as u16) / 16384.0 - 2.0).collect()
}

const BASE: AttentionDims = AttentionDims {
    batch: 1,
    q_len: 1,
    kv_len: 1,
    heads: 1,
    kv_heads: 1,
    head_dim: 8,
    scale: 0.35,
    causal: true,
    window: None,
    softcap: None,
};

impl Case {
    fn new(dims: AttentionDims, seed: u64) -> Self {
        let d = dims;
        let gap = (seed % 3) as usize;
        let row = d.head_dim + gap;
        Case {
            dims,
            q: random(d.batch * d.q_len * d.heads * row, seed, "q"),
            // K and V side by side in one buffer, as a fused projection leaves them.
            kv: random(d.batch * d.kv_len * 2 * d.kv_heads * row, seed, "kv"),
            gap,
            dout: random(d.batch * d.q_len * d.heads * d.head_dim, seed, "dout"),
            bias: None,
            segments: None,
            query_segments: None,
        }
    }

    fn with_bias(mut self) -> Self {
        let d = &self.dims;
        self.bias = Some(random(d.heads * d.q_len * d.kv_len, 5, "bias"));
        self
    }

    /// Documents of uneven length, another cut in each sequence.
    fn with_segments(mut self) -> Self {
        let d = &self.dims;
        let id = |i: usize| ((i % d.kv_len + 7 * (i / d.kv_len)) / 29) as u32 * 3;
        self.segments = Some((0..d.batch * d.kv_len).map(id).collect());
        self
    }

    /// Keys as in `with_segments`, queries of another sequence whose documents have other lengths.
    fn with_query_segments(mut self) -> Self {
        self = self.with_segments();
        let d = &self.dims;
        let id = |i: usize| ((i % d.q_len + 3 * (i / d.q_len)) / 17) as u32 * 3;
        self.query_segments = Some((0..d.batch * d.q_len).map(id).collect());
        self
    }

    fn copy(&self) -> Self {
        Case {
            q: self.q.clone(),
            kv: self.kv.clone(),
            dout: self.dout.clone(),
            bias: self.bias.clone(),
            segments: self.segments.clone(),
            query_segments: self.query_segments.clone(),
            ..*self
        }
    }

    fn mask(&self) -> Masking<'_> {
        Masking {
            segments: self.segments.as_deref(),
            query_segments: self.query_segments.as_deref(),
            bias: self.bias.as_deref(),
        }
    }

    fn views(&self) -> [Heads<'_>; 3] {
        let (d, row) = (&self.dims, self.dims.head_dim + self.gap);
        let q = Heads {
            data: Stored::F32(&self.q),
            batch_stride: d.q_len * d.heads * row,
            time_stride: d.heads * row,
            head_stride: row,
        };
        let kv = |skip: usize| Heads {
            data: Stored::F32(&self.kv[skip.min(self.kv.len())..]),
            batch_stride: d.kv_len * 2 * d.kv_heads * row,
            time_stride: 2 * d.kv_heads * row,
            head_stride: row,
        };
        [q, kv(0), kv(d.kv_heads * row)]
    }

    fn problem(&self, isa: Isa) -> Problem<'_> {
        let [q, k, v] = self.views();
        Problem { isa, ..Problem::new(q, k, v, &self.dims, &self.mask()) }
    }

    /// Only the forward pass.
    fn forward(&self, isa: Isa) -> (Vec<f32>, Vec<f32>) {
        let d = &self.dims;
        let mut out = vec![f32::NAN; d.batch * d.q_len * d.heads * d.head_dim];
        let mut lse = vec![f32::NAN; d.batch * d.q_len * d.heads];
        super::forward::compute(&self.problem(isa), StoredMut::F32(&mut out), &mut lse);
        (out, lse)
    }

    fn run(&self, isa: Isa) -> Result {
        let d = &self.dims;
        let (out, lse) = self.forward(isa);
        let keys = d.batch * d.kv_len * d.kv_heads * d.head_dim;
        let (mut dq, mut dk, mut dv) = (vec![f32::NAN; out.len()], vec![f32::NAN; keys], vec![f32::NAN; keys]);
        let mut dbias = self.bias.as_ref().map(|b| vec![1.0; b.len()]);
        backward::compute(
            &self.problem(isa),
            Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: dbias.as_deref_mut() },
            Saved { dout: &self.dout, out: Stored::F32(&out), lse: &lse },
        );
        Result { out, lse, dq, dk, dv, dbias }
    }

    fn dense(&self) -> [Vec<f64>; 3] {
        let (d, [q, k, v]) = (&self.dims, self.views());
        let keys = [d.batch, d.kv_len, d.kv_heads, d.head_dim];
        [dense(&q, [d.batch, d.q_len, d.heads, d.head_dim]), dense(&k, keys), dense(&v, keys)]
    }

    fn exact(&self) -> Exact {
        let [q, k, v] = self.dense();
        let bias = self.bias.as_ref().map(|b| widen(b));
        exact(&q, &k, &v, &widen(&self.dout), bias.as_deref(), &self.dims, &self.mask())
    }

    /// Compares all results with the twin's, on every instruction set.
    ///
    /// Tolerance: operands lie in [-2, 2). A score is a sum of head_dim products of up to 4, so its absolute rounding
    /// error is about head_dim^0.5 * 4 * 2^-24 in the mean and is the relative error of a probability; sums over keys
    /// and rows add terms of mixed sign with the same relative error. 2e-5 of the largest value of the array covers
    /// all cases here by a factor of five or more, while a single wrong key shows as 1e-2.
    fn check(&self) {
        let want = self.exact();
        for &isa in instruction_sets() {
            let got = self.run(isa);
            let what = format!("{isa:?} {:?} gap {}", self.dims, self.gap);
            close("out", &got.out, &want.out, &what);
            close("lse", &got.lse, &want.lse, &what);
            close("dq", &got.dq, &want.dq, &what);
            close("dk", &got.dk, &want.dk, &what);
            close("dv", &got.dv, &want.dv, &what);
            if let Some(dbias) = got.dbias {
                let added: Vec<f64> = want.dbias.iter().map(|x| x + 1.0).collect();
                close("dbias", &dbias, &added, &what);
            }
        }
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn close(name: &str, got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len());
    let size = want.iter().filter(|x| x.is_finite()).fold(1.0_f64, |m, x| m.max(x.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let g = f64::from(g);
        assert!(g == w || (g - w).abs() <= 2e-5 * size, "{name}[{i}] = {g}, exact {w} (size {size}): {what}");
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn odd_sizes_agree_with_the_twin() {
    let mut seed = 0;
    for (q_len, kv_len) in [(1, 1), (7, 7), (5, 23), (64, 64), (67, 131), (1, 300), (270, 270)] {
        for head_dim in [1, 5, 8, 17, 32, 40] {
            for causal in [true, false] {
                seed += 1;
                Case::new(AttentionDims { q_len, kv_len, head_dim, causal, ..BASE }, seed).check();
            }
        }
    }
}

#[test]
fn heads_that_share_keys_agree_with_the_twin() {
    for (heads, kv_heads) in [(3, 3), (4, 2), (7, 1), (6, 2)] {
        for (q_len, kv_len) in [(9, 9), (70, 70), (1, 177), (33, 290)] {
            for causal in [true, false] {
                let dims = AttentionDims { batch: 2, heads, kv_heads, q_len, kv_len, head_dim: 16, causal, ..BASE };
                Case::new(dims, (heads + q_len) as u64).check();
            }
        }
    }
}

#[test]
fn windows_and_segments_and_biases_and_soft_caps_agree_with_the_twin() {
    for (q_len, kv_len) in [(13, 13), (200, 200), (40, 300)] {
        for causal in [true, false] {
            for window in [None, Some(1), Some(20), Some(135), Some(1000)] {
                let dims = AttentionDims { batch: 2, heads: 2, q_len, kv_len, head_dim: 12, causal, window, ..BASE };
                let case = || Case::new(AttentionDims { kv_heads: 1, ..dims }, q_len as u64);
                case().check();
                case().with_segments().check();
                case().with_bias().check();
                case().with_segments().with_bias().check();
                case().with_query_segments().check();
                // Scores here go up to about 10.
                let capped = AttentionDims { kv_heads: 1, softcap: Some(2.5), ..dims };
                Case::new(capped, q_len as u64).with_segments().check();
            }
        }
    }
}

#[test]
fn sequences_end_to_end_have_the_bits_that_they_have_alone() {
    let lengths = |count: usize| (0..count).map(move |i| [1, 20, 0, 7, 133, 3][i % 6]);
    // Few sequences are handed out head by head, many as a whole.
    for (count, window) in [(1, None), (6, None), (60, Some(5)), (60, None)] {
        for causal in [true, false] {
            let borders: Vec<usize> = std::iter::once(0)
                .chain(lengths(count).scan(0, |end, length| {
                    *end += length;
                    Some(*end)
                }))
                .collect();
            let time = borders[count];
            let dims = AttentionDims { q_len: time, kv_len: time, heads: 4, kv_heads: 2, causal, window, ..BASE };
            let case = Case::new(dims, count as u64);
            let n = dims.heads * dims.head_dim;
            let together = |threads| {
                let (mut out, mut lse) = (vec![f32::NAN; time * n], vec![f32::NAN; time * dims.heads]);
                with_threads(threads, || {
                    attention_in_runs(StoredMut::F32(&mut out), &mut lse, case.views(), &dims, &borders)
                });
                (out, lse)
            };
            let (out, lse) = together(2);
            assert_eq!((bits(&out), bits(&lse)), (bits(&together(1).0), bits(&together(1).1)));
            for border in borders.windows(2) {
                let (start, end) = (border[0], border[1]);
                let mut own =
                    Case { dims: AttentionDims { q_len: end - start, kv_len: end - start, ..dims }, ..case.copy() };
                own.q.drain(..start * dims.heads * (dims.head_dim + case.gap));
                own.kv.drain(..start * 2 * dims.kv_heads * (dims.head_dim + case.gap));
                let (alone, alone_lse) = own.forward(isa());
                assert_eq!(bits(&out[start * n..end * n]), bits(&alone), "{start}..{end} of {borders:?}");
                assert_eq!(bits(&lse[start * dims.heads..end * dims.heads]), bits(&alone_lse));
            }
        }
    }
}

#[test]
fn more_queries_than_keys_are_allowed() {
    for causal in [true, false] {
        for window in [None, Some(3)] {
            let dims = AttentionDims { q_len: 90, kv_len: 20, heads: 2, kv_heads: 2, causal, window, ..BASE };
            Case::new(dims, 3).with_bias().check();
            Case::new(dims, 3).with_query_segments().check();
        }
    }
}

#[test]
fn rows_that_see_nothing_give_zeros_and_no_nan() {
    // Under the causal rule the first 70 of 90 queries come before every key.
    let case = Case::new(AttentionDims { q_len: 90, kv_len: 20, ..BASE }, 3);
    let got = case.run(isa());
    let n = case.dims.head_dim;
    assert!(got.out[..70 * n].iter().chain(&got.dq[..70 * n]).all(|x| x.to_bits() == 0));
    assert!(got.lse[..70].iter().all(|x| *x == f32::NEG_INFINITY));
    assert!(got.lse[70..].iter().all(|x| x.is_finite()));
    // No keys at all.
    let case = Case::new(AttentionDims { q_len: 3, kv_len: 0, causal: false, ..BASE }, 3);
    let (out, lse) = case.forward(isa());
    assert!(out.iter().all(|x| *x == 0.0) && lse.iter().all(|x| *x == f32::NEG_INFINITY));
    // No queries: the gradients of keys are zero, whatever was there.
    let got = Case::new(AttentionDims { q_len: 0, kv_len: 4, causal: false, ..BASE }, 3).run(isa());
    assert!(got.dk.iter().chain(&got.dv).all(|x| *x == 0.0));
}

#[test]
fn extreme_scores_do_not_overflow() {
    let mut case = Case::new(AttentionDims { q_len: 70, kv_len: 70, scale: 300.0, ..BASE }, 4);
    case.q.iter_mut().for_each(|x| *x *= 10.0);
    let want = case.exact();
    let got = case.run(isa());
    assert!(got.out.iter().chain(&got.dq).chain(&got.dk).chain(&got.dv).all(|x| x.is_finite()));
    // With one key far ahead of all others in nearly every row, the rest is a matter of rounding; the logarithm of the
    // sum is the largest score, known to f32 precision.
    for (g, w) in got.lse.iter().zip(&want.lse) {
        assert!((f64::from(*g) - w).abs() <= 1e-6 * w.abs(), "{g} {w}");
    }
}

#[test]
fn the_gradients_of_the_twin_are_those_of_its_output() {
    let dims = AttentionDims { q_len: 5, kv_len: 7, heads: 2, kv_heads: 1, head_dim: 3, window: Some(4), ..BASE };
    let case = Case::new(dims, 8).with_bias();
    let [q, k, v] = case.dense();
    let (dout, bias) = (widen(&case.dout), widen(case.bias.as_ref().unwrap()));
    let value = |q: &[f64], k: &[f64], v: &[f64], bias: &[f64]| -> f64 {
        let out = exact(q, k, v, &dout, Some(bias), &dims, &case.mask()).out;
        out.iter().zip(&dout).map(|(a, b)| a * b).sum()
    };
    let e = case.exact();
    let operands = [(&q, &e.dq), (&k, &e.dk), (&v, &e.dv), (&bias, &e.dbias)];
    for (which, (operand, gradient)) in operands.into_iter().enumerate() {
        for i in 0..operand.len() {
            let moved = |h: f64| {
                let mut all = [q.clone(), k.clone(), v.clone(), bias.clone()];
                all[which][i] += h;
                value(&all[0], &all[1], &all[2], &all[3])
            };
            // Central differences: error h^2, rounding 1e-16 / h.
            let numeric = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((numeric - gradient[i]).abs() < 1e-8, "operand {which} [{i}]: {numeric} {}", gradient[i]);
        }
    }
}

#[test]
fn a_nan_spoils_the_rows_that_see_it_and_no_other() {
    for &isa in instruction_sets() {
        let mut case = Case::new(AttentionDims { q_len: 40, kv_len: 40, window: Some(9), ..BASE }, 3);
        let n = case.dims.head_dim;
        case.kv[21 * 2 * n] = f32::NAN;
        let (out, lse) = case.forward(isa);
        for (i, row) in out.chunks(n).enumerate() {
            let sees_it = (21..30).contains(&i);
            assert!(
                row.iter().all(|x| x.is_nan() == sees_it) && lse[i].is_nan() == sees_it,
                "{isa:?} row {i}: {row:?}"
            );
        }
    }
}

/// The first `kv_len` keys and the queries `queries` of a dense causal case, as a case of its own.
fn part(case: &Case, batch: usize, queries: Range<usize>) -> Case {
    let (d, row) = (case.dims, case.dims.head_dim + case.gap);
    let (q_row, kv_row, kv_len) = (d.heads * row, 2 * d.kv_heads * row, queries.end);
    let first = batch * d.q_len;
    Case {
        dims: AttentionDims { batch: 1, q_len: queries.len(), kv_len, ..d },
        q: case.q[(first + queries.start) * q_row..(first + queries.end) * q_row].to_vec(),
        kv: case.kv[batch * d.kv_len * kv_row..][..kv_len * kv_row].to_vec(),
        gap: case.gap,
        dout: Vec::new(),
        bias: None,
        segments: case.segments.as_ref().map(|s| s[batch * d.kv_len..][..kv_len].to_vec()),
        query_segments: None,
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    let t = 290;
    let kinds = [(None, false), (Some(50), false), (None, true), (Some(140), true)];
    for &isa in instruction_sets() {
        for (head_dim, heads, kv_heads) in [(16, 2, 2), (13, 6, 2), (64, 7, 1)] {
            for (window, packed) in kinds {
                let dims = AttentionDims { batch: 2, q_len: t, kv_len: t, heads, kv_heads, head_dim, window, ..BASE };
                let mut case = Case::new(dims, head_dim as u64);
                if packed {
                    case = case.with_segments();
                }
                let (whole, whole_lse) = case.forward(isa);
                let row = heads * head_dim;
                for length in [1, 3, 61] {
                    for start in (0..t - length + 1).step_by(length) {
                        let (out, lse) = part(&case, 1, start..start + length).forward(isa);
                        let same = bits(&out) == bits(&whole[(t + start) * row..][..length * row]);
                        assert!(same, "{isa:?} {dims:?}: queries {start}.. by {length}");
                        for (h, lse) in lse.chunks(length).enumerate() {
                            assert_eq!(bits(lse), bits(&whole_lse[(heads + h) * t + start..][..length]));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (heads, kv_heads, q_len, bias) in [(6, 2, 300, false), (4, 4, 100, true), (1, 1, 700, false)] {
        let dims = AttentionDims { batch: 2, heads, kv_heads, q_len, kv_len: q_len, head_dim: 20, ..BASE };
        let mut case = Case::new(dims, 9);
        if bias {
            case = case.with_bias();
        }
        let one = with_threads(1, || case.run(isa()));
        for threads in [2, 5] {
            let more = with_threads(threads, || case.run(isa()));
            for (a, b) in [(&one.out, &more.out), (&one.lse, &more.lse), (&one.dq, &more.dq)] {
                assert_eq!(bits(a), bits(b));
            }
            assert_eq!((bits(&one.dk), bits(&one.dv)), (bits(&more.dk), bits(&more.dv)));
            assert_eq!(one.dbias.as_deref().map(bits), more.dbias.as_deref().map(bits));
        }
    }
}

/// The values of an array of `ops.safetensors`, which torch wrote.
fn golden(file: &[u8], name: &str) -> Vec<f32> {
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&file[8..header]).unwrap();
    let entry = &text[text.find(&format!("\"{name}\":")).unwrap()..];
    let offsets = entry.split("\"data_offsets\":[").nth(1).unwrap().split(']').next().unwrap();
    let (start, end) = offsets.split_once(',').unwrap();
    let bytes = &file[header + start.trim().parse::<usize>().unwrap()..header + end.trim().parse::<usize>().unwrap()];
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn what_is_kept_in_bf16_gives_what_its_widened_values_give() {
    let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    // A head of 16 is whole vectors on every instruction set, one of 5 on none; 300 keys are several tiles.
    for dims in [
        AttentionDims { batch: 2, q_len: 7, kv_len: 7, heads: 4, kv_heads: 2, head_dim: 5, ..BASE },
        AttentionDims { q_len: 300, kv_len: 300, heads: 2, kv_heads: 2, head_dim: 16, ..BASE },
    ] {
        let mut case = Case::new(dims, 3);
        let (q, kv) = (narrow(&case.q), narrow(&case.kv));
        (case.q, case.kv) = (wide(&q), wide(&kv));
        for &isa in instruction_sets() {
            let (want, mut problem) = (case.run(isa), case.problem(isa));
            problem.q.data = Stored::Bf16(&q);
            let [_, k, v] = case.views();
            let narrow_v = Stored::Bf16(&kv[dims.kv_heads * (dims.head_dim + case.gap)..]);
            problem.k = Keys::View(Heads { data: Stored::Bf16(&kv), ..k });
            problem.v = Keys::View(Heads { data: narrow_v, ..v });
            let (mut out, mut lse) = (vec![bf16::ZERO; want.out.len()], vec![f32::NAN; want.lse.len()]);
            super::forward::compute(&problem, StoredMut::Bf16(&mut out), &mut lse);
            assert_eq!(out, narrow(&want.out), "{isa:?} {dims:?}");
            assert_eq!(bits(&lse), bits(&want.lse));
            // The outputs that backward is given are the rounded ones, in either form.
            let run = |problem: &Problem, out: Stored| {
                let (mut dq, mut dk, mut dv) = (want.dq.clone(), want.dk.clone(), want.dv.clone());
                let grads = Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: None };
                backward::compute(problem, grads, Saved { dout: &case.dout, out, lse: &lse });
                [bits(&dq), bits(&dk), bits(&dv)]
            };
            assert_eq!(run(&problem, Stored::Bf16(&out)), run(&case.problem(isa), Stored::F32(&wide(&out))));
        }
    }
}

/// A case whose operands are bf16, multiplied as they are.
fn check_pairs(dims: AttentionDims) {
    let mut case = Case::new(dims, 17);
    let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let (q, kv, dout) = (narrow(&case.q), narrow(&case.kv), narrow(&case.dout));
    let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    (case.q, case.kv, case.dout) = (wide(&q), wide(&kv), wide(&dout));
    let want = case.exact();
    let [q_view, k_view, v_view] = case.views();
    let skip = dims.kv_heads * (dims.head_dim + case.gap);
    let (q_view, k_view) = (Heads { data: Stored::Bf16(&q), ..q_view }, Heads { data: Stored::Bf16(&kv), ..k_view });
    let v_view = Heads { data: Stored::Bf16(&kv[skip..]), ..v_view };
    let problem = Problem::new(q_view, k_view, v_view, &dims, &case.mask());
    assert!(problem.operands == Operands::Pairs);
    let mut lse = vec![f32::NAN; want.lse.len()];
    let mut out = vec![f32::NAN; want.out.len()];
    super::forward::compute(&problem, StoredMut::F32(&mut out), &mut lse);
    let (mut dq, mut dk) = (vec![f32::NAN; want.dq.len()], vec![f32::NAN; want.dk.len()]);
    let mut dv = dk.clone();
    let grads = Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: None };
    backward::compute(&problem, grads, Saved { dout: &case.dout, out: Stored::F32(&out), lse: &lse });
    // Scores are exact up to f32; probabilities and their gradients are rounded to 8 bits: 2^-9 of each term, and the
    // terms of a sum are at most as large as the largest value here, or a few times that in backward.
    let close = |name: &str, got: &[f32], want: &[f64], tolerance: f64| {
        let top = want.iter().fold(0.0_f64, |top, x| top.max(x.abs()));
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(got) - want).abs();
            assert!(error <= tolerance * top, "{name}[{i}]: {got} for {want}, largest {top}, {dims:?}");
        }
    };
    close("lse", &lse, &want.lse, 2e-6);
    close("out", &out, &want.out, 4e-3);
    close("dq", &dq, &want.dq, 1e-2);
    close("dk", &dk, &want.dk, 1e-2);
    close("dv", &dv, &want.dv, 1e-2);
    // The last query alone, as in decoding, has the bits that it has among all.
    let last = AttentionDims { q_len: 1, ..dims };
    let start = (dims.q_len - 1) * q_view.time_stride;
    for b in 0..dims.batch {
        let alone = AttentionDims { batch: 1, ..last };
        let q_last = Heads { data: q_view.data.from(b * q_view.batch_stride + start), ..q_view };
        let (k, v) = (
            Heads { data: k_view.data.from(b * k_view.batch_stride), ..k_view },
            Heads { data: v_view.data.from(b * v_view.batch_stride), ..v_view },
        );
        let (mut row, mut row_lse) = (vec![f32::NAN; dims.heads * dims.head_dim], vec![f32::NAN; dims.heads]);
        attention(StoredMut::F32(&mut row), &mut row_lse, q_last, k, v, &alone, &Masking::default());
        let whole = &out[((b + 1) * dims.q_len - 1) * row.len()..][..row.len()];
        assert_eq!(bits(&row), bits(whole), "sequence {b} of {dims:?}");
    }
}

#[test]
fn bf16_is_multiplied_as_it_is_where_the_processor_does_so() {
    if !crate::isa::has_bf16_dot() {
        println!("SKIPPED: this machine has no bf16 dot instruction");
        return;
    }
    let base = AttentionDims { head_dim: 16, scale: 0.3, ..BASE };
    check_pairs(AttentionDims { batch: 2, q_len: 7, kv_len: 7, heads: 4, kv_heads: 2, ..base });
    check_pairs(AttentionDims { batch: 2, q_len: 1, kv_len: 6, heads: 2, kv_heads: 2, ..base });
    check_pairs(AttentionDims { q_len: 301, kv_len: 301, heads: 2, kv_heads: 2, head_dim: 64, scale: 0.125, ..base });
    check_pairs(AttentionDims { q_len: 150, kv_len: 150, heads: 2, kv_heads: 1, window: Some(9), ..base });
    check_pairs(AttentionDims { q_len: 5, kv_len: 131, heads: 2, kv_heads: 2, causal: false, ..base });
}

#[test]
fn torch_gets_the_same_numbers() {
    let file: &[u8] = include_bytes!("../../../testkit/goldens/ops.safetensors");
    let gqa = AttentionDims { batch: 2, q_len: 7, kv_len: 7, heads: 4, kv_heads: 2, head_dim: 5, ..BASE };
    let both = AttentionDims { q_len: 4, kv_len: 9, heads: 2, kv_heads: 2, causal: false, ..BASE };
    for (name, dims) in [("attention-causal-gqa", gqa), ("attention-bidirectional", both)] {
        let dims = AttentionDims { scale: 1.0 / (dims.head_dim as f32).sqrt(), ..dims };
        let array = |part: &str| golden(file, &format!("{name}.{part}"));
        let (q, k, v, dout) = (array("q"), array("k"), array("v"), array("weight"));
        let view = |data, time, heads| Heads {
            data: Stored::F32(data),
            batch_stride: time * heads * dims.head_dim,
            time_stride: heads * dims.head_dim,
            head_stride: dims.head_dim,
        };
        let q_view = view(&q, dims.q_len, dims.heads);
        let (k_view, v_view) = (view(&k, dims.kv_len, dims.kv_heads), view(&v, dims.kv_len, dims.kv_heads));
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; dims.batch * dims.heads * dims.q_len]);
        attention(StoredMut::F32(&mut out), &mut lse, q_view, k_view, v_view, &dims, &Masking::default());
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]);
        let grads = Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: None };
        attention_backward(grads, &dout, Stored::F32(&out), &lse, q_view, k_view, v_view, &dims, &Masking::default());
        close("out", &out, &widen(&array("output")), name);
        close("dq", &dq, &widen(&array("gradient.q")), name);
        close("dk", &dk, &widen(&array("gradient.k")), name);
        close("dv", &dv, &widen(&array("gradient.v")), name);
    }
}

#[test]
#[should_panic(expected = "attention: k holds 15 values")]
fn a_view_that_leaves_its_memory_is_refused() {
    let case = Case::new(AttentionDims { q_len: 2, kv_len: 2, ..BASE }, 0);
    let [q, k, v] = case.views();
    let short = Heads { data: Stored::F32(&[0.0; 15]), time_stride: 8, ..k };
    attention(StoredMut::F32(&mut [0.0; 16]), &mut [0.0; 2], q, short, v, &case.dims, &case.mask());
}
