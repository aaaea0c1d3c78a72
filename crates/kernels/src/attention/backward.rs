//! The backward pass: probabilities are recomputed tile by tile from the log-sum-exp of each row.
//!
//! With P the probabilities, dP = dO V^T and delta = sum(dO * O) per row, the gradient of the scores is
//! dS = P * (dP - delta); then dV = P^T dO, dK = dS^T (scale Q), dQ = scale dS K.

use super::keys::Kept;
use super::tile::{
    BLOCK, KEYS, Operands, Product, Rows, Shared, StoredRows, add_scaled, as_pairs, clear, narrow, pack, pair_rows,
    with_scratch,
};
use super::{AttentionDims, Grads, Heads, KeyTile, Masking, Pair, Problem, Stored, may_meet};
use crate::math;
use crate::parallel::for_uneven_pieces;
use crate::simd::{Kernel, MAX_LANES, Simd};
use std::ops::Range;

/// Stacked rows per tile: long enough that the sums over rows amortise loading and storing them.
const QUERIES: usize = 16 * BLOCK;

/// Gradients of [`attention`](super::attention), from `dout`, the gradient of its output, and what it returned.
///
/// `dout` and `out` are `[batch, q_len, heads, head_dim]`, `lse` is `[batch, heads, q_len]`. `dq`, `dk` and `dv` are
/// overwritten whatever they contain, `dbias` is added to. One thread does all of a sequence and key head (of all
/// sequences where there is a bias gradient), in a fixed order.
#[allow(clippy::too_many_arguments, reason = "the tensors of one operation")]
pub fn attention_backward(
    grads: Grads,
    dout: &[f32],
    out: Stored,
    lse: &[f32],
    q: Heads,
    k: Heads,
    v: Heads,
    dims: &AttentionDims,
    mask: &Masking,
) {
    compute(&Problem::new(q, k, v, dims, mask), grads, Saved { dout, out, lse });
}

pub(super) fn compute(problem: &Problem, grads: Grads, saved: Saved) {
    let (dims, Saved { dout, out, lse }) = (&problem.dims, saved);
    let (queries, keys) = (
        dims.batch * dims.q_len * dims.heads * dims.head_dim,
        dims.batch * dims.kv_len * dims.kv_heads * dims.head_dim,
    );
    assert!([grads.dq.len(), dout.len(), out.len()] == [queries; 3], "attention: sizes of dq, dout and out");
    assert!([grads.dk.len(), grads.dv.len()] == [keys; 2], "attention: sizes of dk and dv");
    assert_eq!(lse.len(), dims.batch * dims.q_len * dims.heads, "attention: size of lse");
    if let Some(dbias) = &grads.dbias {
        assert_eq!(dbias.len(), dims.heads * dims.q_len * dims.kv_len, "attention: size of dbias");
    }
    if problem.is_empty() {
        grads.dk.fill(0.0);
        grads.dv.fill(0.0);
        return;
    }
    let shared = Gradients {
        dq: Shared::new(grads.dq),
        dk: Shared::new(grads.dk),
        dv: Shared::new(grads.dv),
        dbias: grads.dbias.map(Shared::new),
    };
    if shared.dbias.is_some() {
        for_uneven_pieces(dims.kv_heads, |kv_head| {
            (0..dims.batch).for_each(|batch| run_task(problem, Pair { batch, kv_head }, saved, shared));
        });
    } else {
        let pairs = dims.batch * dims.kv_heads;
        for_uneven_pieces(pairs, |i| run_task(problem, problem.pair(i), saved, shared));
    }
}

/// What forward left behind, and the gradient that comes in.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub dout: &'a [f32],
    pub out: Stored<'a>,
    pub lse: &'a [f32],
}

#[derive(Clone, Copy)]
struct Gradients {
    dq: Shared,
    dk: Shared,
    dv: Shared,
    dbias: Option<Shared>,
}

fn run_task(problem: &Problem, pair: Pair, saved: Saved, grads: Gradients) {
    let width = problem.dims.head_dim.next_multiple_of(MAX_LANES);
    let (by_key, by_query, scores) = (KEYS * width, QUERIES * width, QUERIES * KEYS);
    let lens = [by_key, by_key, by_key, by_key, by_key, by_query, by_query, scores, scores, BLOCK * width];
    // Pairs: of rows of queries and output gradients, of rows of probabilities and score gradients, and along keys.
    let lens_of_pairs = match problem.operands {
        Operands::Plain => [0; 5],
        Operands::Pairs => [by_query / 2, by_query / 2, scores / 2, scores / 2, BLOCK * KEYS / 2],
    };
    let rows = problem.rows();
    let total = lens.iter().chain(&lens_of_pairs).sum();
    with_scratch([rows, rows, total], |[delta, lse, rest]| {
        let mut rest = rest;
        let mut part = |len| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            head
        };
        let [kt, vt, k, dk, dv, q, dout, p, ds, dq] = lens.map(&mut part);
        let [q_pairs, dout_pairs, p_pairs, ds_pairs, ds_along] = lens_of_pairs.map(&mut part);
        let pairs = Pairs { q: q_pairs, dout: dout_pairs, p: p_pairs, ds: ds_pairs, ds_along };
        let task = Task { problem, pair, saved, grads, delta, lse, kt, vt, k, dk, dv, q, dout, p, ds, dq, pairs };
        problem.operands.dispatch(problem.isa, task);
    });
}

/// All queries and keys of one pair.
struct Task<'a> {
    problem: &'a Problem<'a>,
    pair: Pair,
    saved: Saved<'a>,
    grads: Gradients,
    /// `sum(dO * O)` of every row.
    delta: &'a mut [f32],
    /// Log-sum-exp of every row; 0 for rows that see nothing.
    lse: &'a mut [f32],
    /// Keys of a tile, transposed.
    kt: &'a mut [f32],
    /// Values of a tile, transposed.
    vt: &'a mut [f32],
    /// Keys of a tile, where they need padding.
    k: &'a mut [f32],
    /// Gradients of a tile's keys and values.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Scaled queries of a tile, and the gradients of their outputs.
    q: &'a mut [f32],
    dout: &'a mut [f32],
    /// Probabilities of a tile, and the gradients of its scores.
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// Gradients of a block of queries, from one tile of keys.
    dq: &'a mut [f32],
    pairs: Pairs<'a>,
}

/// Operands of products in bf16.
struct Pairs<'a> {
    /// Neighbouring rows of a tile of queries, and of the gradients of their outputs.
    q: &'a mut [f32],
    dout: &'a mut [f32],
    /// Neighbouring rows of the probabilities of a tile, and of the gradients of its scores.
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// Neighbouring keys in the rows of a block of gradients of scores.
    ds_along: &'a mut [f32],
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let problem = self.problem;
        let (head_dim, kv_len) = (problem.dims.head_dim, problem.dims.kv_len);
        let width = head_dim.next_multiple_of(S::LANES);
        self.prepare_rows(s);
        // Taken out of `self`, which is written while these rows are read.
        let k_copy = std::mem::take(&mut self.k);
        for start in (0..kv_len).step_by(KEYS) {
            let tile = problem.tile(self.pair, start);
            let (k, v) = (
                problem.key_rows(&problem.k, self.pair, &tile.keys),
                problem.key_rows(&problem.v, self.pair, &tile.keys),
            );
            let k = if problem.operands == Operands::Pairs {
                k.transpose_pairs(s, self.kt);
                v.transpose_pairs(s, self.vt);
                k.interleave(s, k_copy);
                Rows { data: &*k_copy, stride: width, count: k.count, width }
            } else {
                // Room for the widened values, before it holds their gradients.
                v.as_f32(s, self.dv).transpose(s, self.vt);
                let k = k.whole_vectors(s, k_copy);
                k.transpose(s, self.kt);
                k
            };
            self.dk[..tile.keys.len() * width].fill(0.0);
            self.dv[..tile.keys.len() * width].fill(0.0);
            let rows = problem.seers(tile.keys.clone());
            for first in rows.clone().step_by(QUERIES) {
                let queries = first..(first + QUERIES).min(rows.end);
                if may_meet(problem.row_span(self.pair, &queries), tile.span) {
                    self.tile(s, &tile, &k, queries, width);
                }
            }
            for (i, key) in tile.keys.clone().enumerate() {
                let at = ((self.pair.batch * kv_len + key) * problem.dims.kv_heads + self.pair.kv_head) * head_dim;
                // SAFETY: the rows of a pair are written by one task, and the outputs are borrowed for the whole call.
                unsafe {
                    let dk = self.grads.dk.slice(at, head_dim);
                    // Queries that are rounded were not scaled before.
                    dk.iter_mut().zip(&self.dk[i * width..]).for_each(|(to, from)| *to = from * problem.score_scale());
                    self.grads.dv.slice(at, head_dim).copy_from_slice(&self.dv[i * width..][..head_dim]);
                }
            }
        }
    }
}

impl Task<'_> {
    /// Fills `delta` and `lse`, and clears the gradients of the queries.
    #[inline(always)]
    fn prepare_rows<S: Simd>(&mut self, s: S) {
        let (problem, head_dim) = (self.problem, self.problem.dims.head_dim);
        for row in 0..problem.rows() {
            let at = problem.dense(self.pair, row);
            // SAFETY: see `run`.
            unsafe { self.grads.dq.slice(at, head_dim).fill(0.0) };
            let mut sum = s.zero();
            let dout = self.saved.dout[at..][..head_dim].chunks(S::LANES);
            match self.saved.out {
                Stored::F32(out) => {
                    for (a, b) in dout.zip(out[at..][..head_dim].chunks(S::LANES)) {
                        sum = s.fma(s.load_partial(a), s.load_partial(b), sum);
                    }
                }
                Stored::Bf16(out) => {
                    for (a, b) in dout.zip(out[at..][..head_dim].chunks(S::LANES)) {
                        sum = s.fma(s.load_partial(a), s.load_bf16_partial(b), sum);
                    }
                }
            }
            self.delta[row] = s.reduce_sum(sum);
            let lse = self.saved.lse[problem.lse_index(self.pair, row)];
            self.lse[row] = if lse == f32::NEG_INFINITY { 0.0 } else { lse };
        }
    }

    /// What some rows and a tile of keys add to each other's gradients.
    #[inline(always)]
    fn tile<S: Simd>(&mut self, s: S, tile: &KeyTile, k: &Rows, queries: Range<usize>, width: usize) {
        let problem = self.problem;
        let head_dim = problem.dims.head_dim;
        for (i, row) in queries.clone().enumerate() {
            problem.pack_query(s, &mut self.q[i * width..][..width], self.pair, row);
            let dout = &self.saved.dout[problem.dense(self.pair, row)..][..head_dim];
            let packed = &mut self.dout[i * width..][..width];
            match problem.operands {
                Operands::Plain => pack(s, packed, dout, 1.0),
                Operands::Pairs => narrow(s, &mut as_pairs(packed)[..width], dout),
            }
        }
        if problem.operands == Operands::Pairs {
            for (to, from) in [(&mut *self.pairs.q, &mut *self.q), (&mut *self.pairs.dout, &mut *self.dout)] {
                let data = Kept::Bf16(as_pairs(from));
                StoredRows { data, stride: 2 * width, count: queries.len(), width }.interleave(s, to);
            }
        }
        for first in (0..queries.len()).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(queries.len());
            let rows = queries.start + block.start..queries.start + block.end;
            let seen = problem.visible_in(&rows, &tile.keys);
            if seen.is_empty() || !may_meet(problem.row_span(self.pair, &rows), tile.span) {
                self.p[block.start * KEYS..block.end * KEYS].fill(0.0);
                self.ds[block.start * KEYS..block.end * KEYS].fill(0.0);
                continue;
            }
            self.score_block(s, tile, block.clone(), rows.clone(), seen.clone(), width);
            self.query_block(s, k, block, rows, seen, width);
        }
        self.key_gradients(s, tile, queries, width);
    }

    /// Probabilities of a block of rows (`block` within the tile, `rows` among all) and gradients of its scores.
    #[inline(always)]
    fn score_block<S: Simd>(
        &mut self,
        s: S,
        tile: &KeyTile,
        block: Range<usize>,
        rows: Range<usize>,
        seen: Range<usize>,
        width: usize,
    ) {
        let problem = self.problem;
        let computed = seen.start / S::LANES * S::LANES..seen.end.next_multiple_of(S::LANES);
        let end = tile.keys.len().next_multiple_of(S::LANES);
        let (p, ds) = (&mut self.p[block.start * KEYS..], &mut self.ds[block.start * KEYS..]);
        let operands = [(&*self.q, &*self.kt, &mut *p), (&*self.dout, &*self.vt, &mut *ds)];
        for (a, b, c) in operands {
            Product {
                c: &mut c[computed.start..],
                c_stride: KEYS,
                a: &a[block.start * width..],
                a_row: width,
                a_step: 1,
                b: &b[computed.start..],
                b_stride: KEYS,
                rows: block.len(),
                steps: problem.operands.steps(problem.dims.head_dim),
                vectors: computed.len() / S::LANES,
                add: false,
            }
            .compute(s.isa(), problem.operands);
        }
        for ((row, p), ds) in rows.zip(p.chunks_exact_mut(KEYS)).zip(ds.chunks_exact_mut(KEYS)) {
            problem.adjust(s, self.pair, row, tile, p, computed.clone());
            let (lse, delta) = (s.splat(self.lse[row]), s.splat(self.delta[row]));
            let vectors = p[computed.clone()].chunks_exact_mut(S::LANES);
            for (p, ds) in vectors.zip(ds[computed.clone()].chunks_exact_mut(S::LANES)) {
                let score = s.load(p);
                let probability = math::exp(s, s.sub(score, lse));
                s.store(p, probability);
                let slope = s.mul(probability, s.sub(s.load(ds), delta));
                s.store(ds, s.mul(slope, self.problem.cap_slope(s, score)));
            }
            // The sums over rows below take whole blocks of keys, computed here or not.
            for x in [p, &mut *ds] {
                clear(s, &mut x[..computed.start]);
                clear(s, &mut x[computed.end..end]);
            }
            if let Some(dbias) = self.grads.dbias {
                let at = problem.bias_index(self.pair, row) + tile.keys.start + seen.start;
                // SAFETY: with a bias gradient, a head is handled by one task.
                let dbias = unsafe { dbias.slice(at, seen.len()) };
                dbias.iter_mut().zip(&ds[seen.clone()]).for_each(|(sum, x)| *sum += x);
            }
        }
    }

    /// Adds `scale dS K` to the gradients of a block of queries.
    #[inline(always)]
    fn query_block<S: Simd>(
        &mut self,
        s: S,
        k: &Rows,
        block: Range<usize>,
        rows: Range<usize>,
        seen: Range<usize>,
        width: usize,
    ) {
        let problem = self.problem;
        let ds = &self.ds[block.start * KEYS..block.end * KEYS];
        let (ds, a_row) = if problem.operands == Operands::Pairs {
            narrow(s, &mut as_pairs(self.pairs.ds_along)[..ds.len()], ds);
            (&*self.pairs.ds_along, KEYS / 2)
        } else {
            (ds, KEYS)
        };
        let steps = problem.operands.range(seen);
        Product {
            c: &mut *self.dq,
            c_stride: width,
            a: &ds[steps.start..],
            a_row,
            a_step: 1,
            b: &k.data[steps.start * k.stride..],
            b_stride: k.stride,
            rows: block.len(),
            steps: steps.len(),
            vectors: width / S::LANES,
            add: false,
        }
        .compute(s.isa(), problem.operands);
        for (row, sum) in rows.zip(self.dq.chunks_exact(width)) {
            // SAFETY: see `run`.
            let dq = unsafe { self.grads.dq.slice(problem.dense(self.pair, row), problem.dims.head_dim) };
            add_scaled(s, dq, sum, problem.dims.scale);
        }
    }

    /// Adds `P^T dO` and `dS^T (scale Q)` to the gradients of the tile's values and keys.
    #[inline(always)]
    fn key_gradients<S: Simd>(&mut self, s: S, tile: &KeyTile, queries: Range<usize>, width: usize) {
        let problem = self.problem;
        let (p, dout, ds, q) = if problem.operands == Operands::Pairs {
            for (to, from) in [(&mut *self.pairs.p, &*self.p), (&mut *self.pairs.ds, &*self.ds)] {
                let from = &from[..queries.len() * KEYS];
                for (to, rows) in to.chunks_exact_mut(KEYS).zip(from.chunks(2 * KEYS)) {
                    let (low, high) = rows.split_at(KEYS);
                    // SAFETY: the task was started by `Operands::dispatch`.
                    unsafe { pair_rows(s, to, low, (!high.is_empty()).then_some(high)) };
                }
            }
            (&*self.pairs.p, &*self.pairs.dout, &*self.pairs.ds, &*self.pairs.q)
        } else {
            (&*self.p, &*self.dout, &*self.ds, &*self.q)
        };
        for first in (0..tile.keys.len()).step_by(BLOCK) {
            let end = (first + BLOCK).min(tile.keys.len());
            let seers = problem.seers(tile.keys.start + first..tile.keys.start + end);
            let seers = seers.start.max(queries.start)..seers.end.min(queries.end);
            if seers.is_empty() {
                continue;
            }
            let steps = problem.operands.range(seers.start - queries.start..seers.end - queries.start);
            for (c, a, b) in [(&mut *self.dv, p, dout), (&mut *self.dk, ds, q)] {
                Product {
                    c: &mut c[first * width..],
                    c_stride: width,
                    a: &a[steps.start * KEYS + first..],
                    a_row: 1,
                    a_step: KEYS,
                    b: &b[steps.start * width..],
                    b_stride: width,
                    rows: end - first,
                    steps: steps.len(),
                    vectors: width / S::LANES,
                    add: true,
                }
                .compute(s.isa(), problem.operands);
            }
        }
    }
}
