//! Softmax attention, forward and backward, without ever holding a whole matrix of scores.
//!
//! Keys are walked in tiles of fixed borders. Forward keeps a running maximum and sum per query row (online softmax);
//! backward recomputes the probabilities of a tile from the log-sum-exp that forward left behind. All products are the
//! register-blocked tile products of `tile`.
//!
//! **Rows do not depend on each other.** Tiles are counted from key 0, every sum of a row runs in ascending order, and
//! a key that is hidden from a row is an exact no-op for it (probability 0, rescaling factor 1). So a query row has the
//! same bits alone, as the next step of a cache, and in a whole prompt, and the cutting of the work into tasks is free
//! to follow the machine. Backward cuts at (batch, key head), so that its sums have one order too.
//!
//! The query rows of the heads that share a key head are stacked, position by position, into one matrix: with grouped
//! queries a tile of keys is read once for the whole group, in decoding as well.

mod backward;
mod forward;
mod keys;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
mod tile;

pub use backward::attention_backward;
pub use forward::{attention, attention_in_pages, attention_in_runs};
pub use keys::{Kept, PAGE, Page};

use crate::isa::{Isa, has_bf16_dot, isa};
use crate::math;
use crate::simd::{MAX_LANES, Simd};
use half::bf16;
use keys::Keys;
use std::ops::Range;
use tile::{KEYS, Operands, StoredRows, as_pairs, hide_outside, pack, pack_bf16};

/// Sizes and rules of an attention call.
///
/// Query i sits at position `kv_len - q_len + i`; head h uses key head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDims {
    /// Number of independent sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub q_len: usize,
    /// Keys and values per sequence.
    pub kv_len: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// Sliding window w: a query at position p sees only keys j with p - j < w and, where it is not causal, j - p < w.
    pub window: Option<usize>,
    /// Soft cap c of the scaled scores: `c tanh(score / c)` instead of the score, before bias and mask (Gemma 2).
    pub softcap: Option<f32>,
}

/// Numbers as activations are kept. The arithmetic is f32 for both.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// In full.
    F32(&'a [f32]),
    /// Rounded; they are widened, which is exact.
    Bf16(&'a [bf16]),
}

impl Stored<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }

    /// Without the first values.
    fn from(self, start: usize) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[start..]),
            Self::Bf16(data) => Self::Bf16(&data[start..]),
        }
    }
}

/// Where results are kept. See [`Stored`].
#[derive(Debug)]
pub enum StoredMut<'a> {
    /// In full.
    F32(&'a mut [f32]),
    /// Rounded to nearest, ties to even.
    Bf16(&'a mut [bf16]),
}

impl StoredMut<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
        }
    }
}

/// A view of `[batch, time, heads, head_dim]`; the features of a head lie side by side.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The memory, starting at the first feature of the first head.
    pub data: Stored<'a>,
    /// Distance between sequences.
    pub batch_stride: usize,
    /// Distance between positions.
    pub time_stride: usize,
    /// Distance between heads.
    pub head_stride: usize,
}

impl Heads<'_> {
    /// Whether neighbouring features are pairs of bf16 in memory.
    fn are_pairs(&self) -> bool {
        let strides = [self.batch_stride, self.time_stride, self.head_stride];
        matches!(self.data, Stored::Bf16(_)) && strides.iter().all(|stride| stride.is_multiple_of(2))
    }
}

/// What hides keys or shifts scores besides the rules of [`AttentionDims`].
#[derive(Clone, Copy, Default)]
pub struct Masking<'a> {
    /// `[batch, kv_len]`: a query sees only keys whose entry equals that of its own position, which needs
    /// `q_len <= kv_len`, or its entry in `query_segments`.
    pub segments: Option<&'a [u32]>,
    /// `[batch, q_len]`, where queries and keys are of different sequences. Needs `segments`.
    pub query_segments: Option<&'a [u32]>,
    /// `[heads, q_len, kv_len]`, added to the scaled scores.
    pub bias: Option<&'a [f32]>,
}

/// Where backward puts the gradients.
pub struct Grads<'a> {
    /// `[batch, q_len, heads, head_dim]`, overwritten.
    pub dq: &'a mut [f32],
    /// `[batch, kv_len, kv_heads, head_dim]`, overwritten.
    pub dk: &'a mut [f32],
    /// `[batch, kv_len, kv_heads, head_dim]`, overwritten.
    pub dv: &'a mut [f32],
    /// `[heads, q_len, kv_len]`, added to.
    pub dbias: Option<&'a mut [f32]>,
}

/// The inputs of a call, and where things lie in them.
struct Problem<'a> {
    isa: Isa,
    dims: AttentionDims,
    /// Query heads per key head.
    group: usize,
    q: Heads<'a>,
    k: Keys<'a>,
    v: Keys<'a>,
    mask: Masking<'a>,
    /// bf16 is multiplied as it is where the CPU does so; else it is widened.
    operands: Operands,
}

/// The stacked query rows and the keys that belong together: one sequence, one key head.
#[derive(Clone, Copy)]
struct Pair {
    batch: usize,
    kv_head: usize,
}

/// Smallest and largest segment of some positions; `None` where there are no segments.
type Span = Option<(u32, u32)>;

/// Whether positions of these spans may share a segment.
fn may_meet(a: Span, b: Span) -> bool {
    match (a, b) {
        (Some((a_low, a_high)), Some((b_low, b_high))) => a_low <= b_high && b_low <= a_high,
        _ => true,
    }
}

/// Consecutive keys that are handled together; `start` is a multiple of [`KEYS`].
#[derive(Clone)]
struct KeyTile {
    keys: Range<usize>,
    span: Span,
}

impl<'a> Problem<'a> {
    fn new(q: Heads<'a>, k: Heads<'a>, v: Heads<'a>, dims: &AttentionDims, mask: &Masking<'a>) -> Self {
        Self::with_keys(q, [Keys::View(k), Keys::View(v)], dims, mask)
    }

    fn with_keys(q: Heads<'a>, [k, v]: [Keys<'a>; 2], dims: &AttentionDims, mask: &Masking<'a>) -> Self {
        let d = *dims;
        assert!(
            d.kv_heads > 0 && d.heads.is_multiple_of(d.kv_heads),
            "attention: {} query heads are no multiple of {} key heads",
            d.heads,
            d.kv_heads
        );
        check_view("q", &q, [d.batch, d.q_len, d.heads, d.head_dim]);
        k.check("k", [d.batch, d.kv_len, d.kv_heads, d.head_dim]);
        v.check("v", [d.batch, d.kv_len, d.kv_heads, d.head_dim]);
        if let Some(segments) = mask.segments {
            assert_eq!(segments.len(), d.batch * d.kv_len, "attention: segments must be [batch, kv_len]");
            let is_placed = d.q_len <= d.kv_len || mask.query_segments.is_some();
            assert!(is_placed, "attention: with segments every query needs a position among the keys");
        }
        if let Some(segments) = mask.query_segments {
            assert!(mask.segments.is_some(), "attention: segments of queries without those of keys");
            assert_eq!(segments.len(), d.batch * d.q_len, "attention: segments of queries must be [batch, q_len]");
        }
        if let Some(bias) = mask.bias {
            assert_eq!(bias.len(), d.heads * d.q_len * d.kv_len, "attention: bias must be [heads, q_len, kv_len]");
        }
        assert!(d.softcap.is_none() || mask.bias.is_none(), "attention: a soft cap beside a bias");
        let operands = Operands::Plain;
        let problem = Problem { isa: isa(), dims: d, group: d.heads / d.kv_heads, q, k, v, mask: *mask, operands };
        let is_narrow = q.are_pairs() && k.are_pairs() && v.are_pairs() && d.head_dim.is_multiple_of(MAX_LANES);
        match is_narrow && has_bf16_dot() {
            true => Problem { operands: Operands::Pairs, ..problem },
            false => problem,
        }
    }

    /// What the scores still have to be multiplied with: queries that are rounded are not scaled before.
    fn score_scale(&self) -> f32 {
        if self.operands == Operands::Pairs { self.dims.scale } else { 1.0 }
    }

    fn is_empty(&self) -> bool {
        let d = &self.dims;
        d.batch * d.q_len * d.heads * d.head_dim == 0
    }

    /// Stacked rows of a pair.
    fn rows(&self) -> usize {
        self.dims.q_len * self.group
    }

    /// Pairs are numbered sequence by sequence.
    fn pair(&self, index: usize) -> Pair {
        Pair { batch: index / self.dims.kv_heads, kv_head: index % self.dims.kv_heads }
    }

    /// Query of a stacked row. The plain case is worth its own branch: divisions are slow beside a short row.
    #[inline(always)]
    fn query_of(&self, row: usize) -> usize {
        if self.group == 1 { row } else { row / self.group }
    }

    /// (query, head) of a stacked row.
    #[inline(always)]
    fn place(&self, pair: Pair, row: usize) -> (usize, usize) {
        let query = self.query_of(row);
        (query, pair.kv_head * self.group + row - query * self.group)
    }

    /// Start of a row in a dense `[batch, q_len, heads, head_dim]` array.
    #[inline(always)]
    fn dense(&self, pair: Pair, row: usize) -> usize {
        let (query, head) = self.place(pair, row);
        ((pair.batch * self.dims.q_len + query) * self.dims.heads + head) * self.dims.head_dim
    }

    /// Place of a row in `[batch, heads, q_len]`.
    #[inline(always)]
    fn lse_index(&self, pair: Pair, row: usize) -> usize {
        let (query, head) = self.place(pair, row);
        (pair.batch * self.dims.heads + head) * self.dims.q_len + query
    }

    /// Start of a row in `[heads, q_len, kv_len]`.
    #[inline(always)]
    fn bias_index(&self, pair: Pair, row: usize) -> usize {
        let (query, head) = self.place(pair, row);
        (head * self.dims.q_len + query) * self.dims.kv_len
    }

    /// Copies a query: scaled and padded with zeros to whole vectors, or pairs as they are.
    #[inline(always)]
    fn pack_query<S: Simd>(&self, s: S, dst: &mut [f32], pair: Pair, row: usize) {
        let (query, head) = self.place(pair, row);
        let start = pair.batch * self.q.batch_stride + query * self.q.time_stride + head * self.q.head_stride;
        let (width, scale) = (self.dims.head_dim, self.dims.scale);
        match self.q.data {
            Stored::Bf16(data) if self.operands == Operands::Pairs => {
                as_pairs(dst)[..width].copy_from_slice(&data[start..][..width]);
            }
            Stored::F32(data) => pack(s, dst, &data[start..][..width], scale),
            Stored::Bf16(data) => pack_bf16(s, dst, &data[start..][..width], scale),
        }
    }

    /// Rows of K or V for the keys of a tile.
    #[inline(always)]
    fn key_rows(&self, of: &Keys<'a>, pair: Pair, keys: &Range<usize>) -> StoredRows<'a> {
        of.rows((pair.batch, pair.kv_head, self.dims.kv_heads), keys, self.dims.head_dim)
    }

    /// Position of the first query; negative where there are more queries than keys.
    #[inline(always)]
    fn first_position(&self) -> isize {
        self.dims.kv_len as isize - self.dims.q_len as isize
    }

    /// The keys that a row may see, segments aside. Neither border falls from one row to the next.
    #[inline(always)]
    fn visible(&self, row: usize) -> Range<usize> {
        let position = self.first_position() + self.query_of(row) as isize;
        let clamp = |key: isize| key.clamp(0, self.dims.kv_len as isize) as usize;
        let end = match self.dims.window {
            _ if self.dims.causal => clamp(position + 1),
            Some(w) => clamp(position.saturating_add_unsigned(w)),
            None => self.dims.kv_len,
        };
        let start = match self.dims.window {
            Some(w) => clamp(position.saturating_sub_unsigned(w) + 1),
            None => 0,
        };
        start.min(end)..end
    }

    /// The keys of `tile` that some of `rows` may see, counted from the start of the tile.
    #[inline(always)]
    fn visible_in(&self, rows: &Range<usize>, tile: &Range<usize>) -> Range<usize> {
        let (start, end) = (self.visible(rows.start).start, self.visible(rows.end - 1).end);
        let start = start.max(tile.start);
        start - tile.start..end.min(tile.end).max(start) - tile.start
    }

    /// The rows that may see some of `keys` (which are not empty): the inverse of `visible`.
    #[inline(always)]
    fn seers(&self, keys: Range<usize>) -> Range<usize> {
        let row = |position: isize| (position - self.first_position()).clamp(0, self.dims.q_len as isize) as usize;
        let start = match self.dims.window {
            _ if self.dims.causal => row(keys.start as isize),
            Some(w) => row((keys.start as isize).saturating_sub_unsigned(w) + 1),
            None => 0,
        };
        let end = match self.dims.window {
            Some(w) => row((keys.end as isize - 1).saturating_add_unsigned(w)),
            None => self.dims.q_len,
        };
        start * self.group..end.max(start) * self.group
    }

    /// The tile that begins at `start`.
    #[inline(always)]
    fn tile(&self, pair: Pair, start: usize) -> KeyTile {
        let keys = start..(start + KEYS).min(self.dims.kv_len);
        let segments = self.mask.segments.map(|all| &all[pair.batch * self.dims.kv_len..][keys.clone()]);
        KeyTile { span: segments.map(span), keys }
    }

    /// Segments of a sequence's queries.
    #[inline(always)]
    fn query_segments(&self, pair: Pair) -> Option<&'a [u32]> {
        let d = &self.dims;
        match self.mask.query_segments {
            Some(segments) => Some(&segments[pair.batch * d.q_len..][..d.q_len]),
            None => self.mask.segments.map(|all| &all[pair.batch * d.kv_len + d.kv_len - d.q_len..][..d.q_len]),
        }
    }

    /// Span of the positions of some rows.
    #[inline(always)]
    fn row_span(&self, pair: Pair, rows: &Range<usize>) -> Span {
        let queries = self.query_of(rows.start)..self.query_of(rows.end - 1) + 1;
        self.query_segments(pair).map(|segments| span(&segments[queries]))
    }

    /// Derivative of the soft cap where it gave `score`: `1 - tanh^2`. Hidden scores are -infinity, and count as -cap.
    #[inline(always)]
    fn cap_slope<S: Simd>(&self, s: S, score: S::V) -> S::V {
        match self.dims.softcap {
            None => s.splat(1.0),
            Some(cap) => {
                let t = s.mul(s.max(score, s.splat(-cap)), s.splat(1.0 / cap));
                s.sub(s.splat(1.0), s.mul(t, t))
            }
        }
    }

    /// Finishes the scores of one row: bias added, and -infinity for hidden keys. `scores` begins with the tile; the
    /// keys `computed` hold products.
    #[inline(always)]
    fn adjust<S: Simd>(
        &self,
        s: S,
        pair: Pair,
        row: usize,
        tile: &KeyTile,
        scores: &mut [f32],
        computed: Range<usize>,
    ) {
        let scale = self.score_scale();
        if scale != 1.0 {
            for x in scores[computed.clone()].chunks_exact_mut(S::LANES) {
                s.store(x, s.mul(s.load(x), s.splat(scale)));
            }
        }
        if let Some(cap) = self.dims.softcap {
            let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
            for x in scores[computed.clone()].chunks_exact_mut(S::LANES) {
                s.store(x, s.mul(cap, math::tanh(s, s.mul(s.load(x), inverse))));
            }
        }
        let own = self.visible_in(&(row..row + 1), &tile.keys);
        let own = own.start.max(computed.start)..own.end.min(computed.end);
        if own.is_empty() {
            scores[computed].fill(f32::NEG_INFINITY);
            return;
        }
        if let Some(bias) = self.mask.bias {
            let bias = &bias[self.bias_index(pair, row) + tile.keys.start..][own.clone()];
            scores[own.clone()].iter_mut().zip(bias).for_each(|(score, b)| *score += b);
        }
        hide_outside(s, scores, computed, own.clone());
        if let (Some((low, high)), Some(segments)) = (tile.span, self.mask.segments) {
            let segments = &segments[pair.batch * self.dims.kv_len..];
            let mine = self.query_segments(pair).map_or(low, |queries| queries[self.query_of(row)]);
            if low != mine || high != mine {
                let keys = &segments[tile.keys.start..][own.clone()];
                for (score, key) in scores[own].iter_mut().zip(keys) {
                    *score = if *key == mine { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

fn span(segments: &[u32]) -> (u32, u32) {
    segments.iter().fold((u32::MAX, 0), |(low, high), &x| (low.min(x), high.max(x)))
}

fn check_view(name: &str, x: &Heads, [batch, time, heads, width]: [usize; 4]) {
    if batch * time * heads * width == 0 {
        return;
    }
    let last = (batch - 1) * x.batch_stride + (time - 1) * x.time_stride + (heads - 1) * x.head_stride + width;
    assert!(
        x.data.len() >= last,
        "attention: {name} holds {} values, a [{batch}, {time}, {heads}, {width}] view needs {last}",
        x.data.len()
    );
}
