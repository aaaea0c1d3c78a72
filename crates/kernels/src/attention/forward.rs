//! The forward pass: online softmax over tiles of keys.

use super::keys::{Keys, Page};
use super::tile::{BLOCK, KEYS, Operands, Product, Shared, SharedOut, as_pairs, narrow, with_scratch};
use super::{AttentionDims, Heads, KeyTile, Masking, Pair, Problem, StoredMut, may_meet};
use crate::math;
use crate::parallel::{for_pieces, for_uneven_pieces};
use crate::simd::{Kernel, MAX_LANES, Simd};
use std::ops::Range;

/// Most stacked rows per task: queries and running results of that many stay in L2 beside a tile of keys.
const MAX_ROWS: usize = 288;
/// Multiply-adds below which a call is not worth handing to other threads.
const SEQUENTIAL: usize = 1 << 17;
/// Sequences per thread from which on a whole one is a task.
const RUNS_PER_THREAD: usize = 4;

/// `out = softmax(scale * q k^T + bias) v` per head, and the log-sum-exp of each row of scores.
///
/// `out` is `[batch, q_len, heads, head_dim]`, `lse` is `[batch, heads, q_len]`. A row that sees no key gets zeros and
/// -infinity. A row's result depends on nothing but its own query, position and visible keys.
#[allow(clippy::too_many_arguments, reason = "the tensors of one operation")]
pub fn attention(out: StoredMut, lse: &mut [f32], q: Heads, k: Heads, v: Heads, dims: &AttentionDims, mask: &Masking) {
    compute(&Problem::new(q, k, v, dims, mask), out, lse);
}

/// [`attention`] with keys and values in the pages of a cache: `k` and `v` hold `dims.kv_len` positions.
pub fn attention_in_pages(
    out: StoredMut,
    lse: &mut [f32],
    q: Heads,
    [k, v]: [&[Page]; 2],
    dims: &AttentionDims,
    mask: &Masking,
) {
    compute(&Problem::with_keys(q, [Keys::Pages(k), Keys::Pages(v)], dims, mask), out, lse);
}

/// Attention of sequences that lie end to end in one row (`dims.batch` is 1): the same bits for each as in a call of its
/// own, wherever it lies.
///
/// `borders` counts from 0 to `dims.q_len`, which is `dims.kv_len`, and sequence i reaches from `borders[i]` to
/// `borders[i + 1]`. `lse` holds one `[heads, length]` after another. What the [`Masking`] of segments gives is the same
/// up to rounding, but its tiles of keys start where the row does, and hidden keys are computed, too.
pub fn attention_in_runs(
    out: StoredMut,
    lse: &mut [f32],
    [q, k, v]: [Heads; 3],
    dims: &AttentionDims,
    borders: &[usize],
) {
    let is_whole = borders.first() == Some(&0) && borders.last() == Some(&dims.q_len) && borders.is_sorted();
    let is_one_row = dims.batch == 1 && dims.q_len == dims.kv_len;
    assert!(is_whole && is_one_row, "attention: runs {borders:?} of {} queries and {} keys", dims.q_len, dims.kv_len);
    // Sizes are checked once, for the row: what follows stays inside of it.
    Problem::new(q, k, v, dims, &Masking::default());
    let (per_query, heads) = (dims.heads * dims.head_dim, dims.heads);
    assert_eq!(out.len(), dims.q_len * per_query, "attention: size of out");
    assert_eq!(lse.len(), dims.q_len * heads, "attention: size of lse");
    let (out, lse) = (SharedOut::new(out), Shared::new(lse));
    let run = |index: usize, work: &dyn Fn(&Problem, SharedOut, Shared)| {
        let (start, end) = (borders[index], borders[index + 1]);
        let own = AttentionDims { q_len: end - start, kv_len: end - start, ..*dims };
        let problem = Problem::new(from(q, start), from(k, start), from(v, start), &own, &Masking::default());
        if problem.is_empty() {
            return;
        }
        // SAFETY: runs do not overlap, and the outputs are borrowed for the whole call.
        let (out, lse) = unsafe {
            (out.part(start * per_query, (end - start) * per_query), lse.slice(start * heads, (end - start) * heads))
        };
        work(&problem, out, Shared::new(lse));
    };
    let runs = borders.len() - 1;
    if runs >= RUNS_PER_THREAD * rayon::current_num_threads() {
        // All heads of a sequence in one task: their features share cache lines.
        for_pieces(runs, |index| {
            run(index, &|problem, out, lse| {
                for pair in 0..problem.dims.kv_heads {
                    for first in (0..problem.rows()).step_by(MAX_ROWS) {
                        let rows = first..(first + MAX_ROWS).min(problem.rows());
                        run_task(problem, problem.pair(pair), rows, out, lse);
                    }
                }
            });
        });
    } else {
        (0..runs).for_each(|index| run(index, &compute_in));
    }
}

/// A view without its first positions.
fn from(x: Heads<'_>, position: usize) -> Heads<'_> {
    Heads { data: x.data.from((position * x.time_stride).min(x.data.len())), ..x }
}

pub(super) fn compute(problem: &Problem, out: StoredMut, lse: &mut [f32]) {
    let dims = &problem.dims;
    assert_eq!(out.len(), dims.batch * dims.q_len * dims.heads * dims.head_dim, "attention: size of out");
    assert_eq!(lse.len(), dims.batch * dims.q_len * dims.heads, "attention: size of lse");
    if !problem.is_empty() {
        compute_in(problem, SharedOut::new(out), Shared::new(lse));
    }
}

fn compute_in(problem: &Problem, out: SharedOut, lse: Shared) {
    let dims = &problem.dims;
    let pairs = dims.batch * dims.kv_heads;
    let per_task = rows_per_task(problem);
    let tasks_per_pair = problem.rows().div_ceil(per_task);
    let task = |index: usize| {
        let (pair, first) = (problem.pair(index / tasks_per_pair), index % tasks_per_pair * per_task);
        run_task(problem, pair, first..(first + per_task).min(problem.rows()), out, lse);
    };
    let work = 2 * dims.batch * dims.heads * dims.q_len * dims.kv_len * dims.head_dim;
    if work <= SEQUENTIAL {
        (0..pairs * tasks_per_pair).for_each(task);
    } else {
        for_uneven_pieces(pairs * tasks_per_pair, task);
    }
}

/// How many rows a task takes. Rows are independent, so the number of threads may decide.
fn rows_per_task(problem: &Problem) -> usize {
    let (rows, pairs) = (problem.rows(), problem.dims.batch * problem.dims.kv_heads);
    // Every piece walks the keys once more. A few rows (decoding) are split only where threads would idle; many are cut
    // finer, since under a causal mask the pieces differ in length.
    let wanted = match rayon::current_num_threads() {
        1 => 1,
        threads if rows <= 8 * BLOCK => threads.div_ceil(pairs),
        threads => (4 * threads).div_ceil(pairs),
    };
    let pieces = rows.div_ceil(MAX_ROWS).max(wanted.min(rows));
    let per_task = rows.div_ceil(pieces);
    if per_task > BLOCK { per_task.next_multiple_of(BLOCK) } else { per_task }
}

fn run_task(problem: &Problem, pair: Pair, rows: Range<usize>, out: SharedOut, lse: Shared) {
    let width = problem.dims.head_dim.next_multiple_of(MAX_LANES);
    let lanes_of_rows = rows.len().next_multiple_of(MAX_LANES);
    let lens = [
        rows.len() * width,
        rows.len() * width,
        width * KEYS,
        width * KEYS,
        BLOCK * KEYS,
        BLOCK * KEYS / 2,
        lanes_of_rows,
        lanes_of_rows,
    ];
    with_scratch(lens, |[q, o, kt, v, scores, pairs, max, sum]| {
        let task = Task { problem, pair, rows, q, o, kt, v, scores, pairs, max, sum, out, lse };
        problem.operands.dispatch(problem.isa, task);
    });
}

/// Some rows of one pair, against all keys that they see.
struct Task<'a> {
    problem: &'a Problem<'a>,
    pair: Pair,
    rows: Range<usize>,
    /// Scaled queries.
    q: &'a mut [f32],
    /// Running weighted sums of values.
    o: &'a mut [f32],
    /// Keys of a tile, transposed.
    kt: &'a mut [f32],
    /// Keys, then values, of a tile, where they are widened or need padding.
    v: &'a mut [f32],
    /// Scores, then probabilities, of a block of rows.
    scores: &'a mut [f32],
    /// Probabilities of a block of rows as pairs of bf16.
    pairs: &'a mut [f32],
    /// Running maximum of each row's scores.
    max: &'a mut [f32],
    /// Running sum of each row's probabilities, relative to the maximum.
    sum: &'a mut [f32],
    out: SharedOut,
    lse: Shared,
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let p = self.problem;
        let width = p.dims.head_dim.next_multiple_of(S::LANES);
        for (row, dst) in self.rows.clone().zip(self.q.chunks_exact_mut(width)) {
            p.pack_query(s, dst, self.pair, row);
        }
        self.o.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        let span = p.row_span(self.pair, &self.rows);
        let seen = p.visible_in(&self.rows, &(0..p.dims.kv_len));
        for start in (seen.start / KEYS * KEYS..seen.end).step_by(KEYS) {
            let tile = p.tile(self.pair, start);
            if may_meet(span, tile.span) {
                self.tile(s, &tile, width);
            }
        }
        self.finish(s, width);
    }
}

impl Task<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&mut self, s: S, tile: &KeyTile, width: usize) {
        let p = self.problem;
        let operands = p.operands;
        let (k, v) = (p.key_rows(&p.k, self.pair, &tile.keys), p.key_rows(&p.v, self.pair, &tile.keys));
        let (v, v_stride) = if operands == Operands::Pairs {
            k.transpose_pairs(s, self.kt);
            v.interleave(s, self.v);
            (&*self.v, width)
        } else {
            k.as_f32(s, self.v).transpose(s, self.kt);
            let v = v.whole_vectors(s, self.v);
            (v.data, v.stride)
        };
        for first in (0..self.rows.len()).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(self.rows.len());
            let rows = self.rows.start + block.start..self.rows.start + block.end;
            let seen = p.visible_in(&rows, &tile.keys);
            if seen.is_empty() || !may_meet(p.row_span(self.pair, &rows), tile.span) {
                continue;
            }
            let computed = seen.start / S::LANES * S::LANES..seen.end.next_multiple_of(S::LANES);
            Product {
                c: &mut self.scores[computed.start..],
                c_stride: KEYS,
                a: &self.q[block.start * width..],
                a_row: width,
                a_step: 1,
                b: &self.kt[computed.start..],
                b_stride: KEYS,
                rows: block.len(),
                steps: operands.steps(p.dims.head_dim),
                vectors: computed.len() / S::LANES,
                add: false,
            }
            .compute(s.isa(), operands);
            for (row, scores) in rows.zip(self.scores.chunks_exact_mut(KEYS)) {
                p.adjust(s, self.pair, row, tile, scores, computed.clone());
            }
            softmax_block(
                s,
                &mut *self.scores,
                computed.clone(),
                (&mut self.max[block.clone()], &mut self.sum[block.clone()]),
                self.o[block.start * width..].chunks_exact_mut(width),
            );
            let (probabilities, a_row) = if operands == Operands::Pairs {
                // No closure: one that is not inlined would be compiled without the instruction set.
                for (i, to) in as_pairs(self.pairs).chunks_exact_mut(KEYS).take(block.len()).enumerate() {
                    narrow(s, &mut to[computed.clone()], &self.scores[i * KEYS..][computed.clone()]);
                }
                (&*self.pairs, KEYS / 2)
            } else {
                (&*self.scores, KEYS)
            };
            let steps = operands.range(seen);
            Product {
                c: &mut self.o[block.start * width..],
                c_stride: width,
                a: &probabilities[steps.start..],
                a_row,
                a_step: 1,
                b: &v[steps.start * v_stride..],
                b_stride: v_stride,
                rows: block.len(),
                steps: steps.len(),
                vectors: width / S::LANES,
                add: true,
            }
            .compute(s.isa(), operands);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, s: S, width: usize) {
        let p = self.problem;
        for (i, row) in self.rows.clone().enumerate() {
            let sum = self.sum[i];
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // SAFETY: every row belongs to one task, and the outputs are borrowed for the whole call.
            unsafe {
                self.out.store(s, p.dense(self.pair, row), p.dims.head_dim, &self.o[i * width..][..width], inverse)
            };
        }
        for (sums, maxima) in self.sum.chunks_exact_mut(S::LANES).zip(self.max.chunks_exact(S::LANES)) {
            let lse = s.add(math::log(s, s.load(sums)), s.load(maxima));
            s.store(sums, lse);
        }
        for (row, lse) in self.rows.clone().zip(&*self.sum) {
            // SAFETY: as above.
            unsafe { self.lse.slice(p.lse_index(self.pair, row), 1)[0] = *lse };
        }
    }
}

/// Turns the scores of up to [`BLOCK`] rows into probabilities relative to the new running maximum; updates maximum and
/// sum, and rescales the running results of rows whose maximum rose.
#[inline(always)]
fn softmax_block<'a, S: Simd>(
    s: S,
    scores: &mut [f32],
    computed: Range<usize>,
    (max, sum): (&mut [f32], &mut [f32]),
    results: impl Iterator<Item = &'a mut [f32]>,
) {
    let rows = max.len();
    let mut new_max = [f32::NEG_INFINITY; MAX_LANES];
    for ((new, old), scores) in new_max.iter_mut().zip(&*max).zip(scores.chunks_exact(KEYS)) {
        let mut top = s.splat(*old);
        for x in scores[computed.clone()].chunks_exact(S::LANES) {
            top = s.max(top, s.load(x));
        }
        *new = s.reduce_max(top);
    }
    // Relative to 0 where nothing was seen yet: -infinity minus itself would be NaN.
    let base = new_max.map(|m| if m == f32::NEG_INFINITY { 0.0 } else { m });
    let mut factors = [1.0; MAX_LANES];
    let mut old = [0.0; MAX_LANES];
    old[..rows].copy_from_slice(max);
    s.store(&mut factors, math::exp(s, s.sub(s.load(&old), s.load(&base))));
    for (i, (scores, result)) in scores.chunks_exact_mut(KEYS).zip(results).take(rows).enumerate() {
        let row_base = s.splat(base[i]);
        let mut total = s.zero();
        for x in scores[computed.clone()].chunks_exact_mut(S::LANES) {
            let probability = math::exp(s, s.sub(s.load(x), row_base));
            s.store(x, probability);
            total = s.add(total, probability);
        }
        let factor = factors[i];
        if factor != 1.0 {
            let factor = s.splat(factor);
            for x in result.chunks_exact_mut(S::LANES) {
                s.store(x, s.mul(s.load(x), factor));
            }
        }
        sum[i] = sum[i] * factor + s.reduce_sum(total);
        max[i] = new_max[i];
    }
}
