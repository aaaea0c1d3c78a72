//! What forward and backward share below the level of attention: register-blocked products of small matrices, packing,
//! scratch memory.

use super::StoredMut;
use super::keys::Kept;
use crate::isa::Isa;
use crate::quant::{GgmlType, dequantise};
use crate::simd::{Kernel, Simd, dispatch_on, dispatch_pairs};
use crate::unit::{One, Two, Unit};
use half::bf16;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Keys per tile. Tiles start at multiples of it, counted from key 0, whatever the queries of a call.
pub(super) const KEYS: usize = 128;
/// Rows per register block: 6 rows by 2 vectors are 12 running sums, which hide the latency of two FMA units and leave
/// room for the operands in 16 registers.
pub(super) const BLOCK: usize = 6;

/// `C = A B`, or `C += A B`, for one tile.
///
/// Every element of C is one chain in ascending order of the inner index, of FMAs or of pairs of bf16 ([`Operands`]), so it does not depend on the shape
/// around it. Columns come in whole vectors; a row or column of A may be contiguous.
pub(super) struct Product<'a> {
    /// The result, `rows` rows of `vectors` vectors, `c_stride` apart.
    pub c: &'a mut [f32],
    pub c_stride: usize,
    /// Unit (row, step) lies at `row * a_row + step * a_step`.
    pub a: &'a [f32],
    pub a_row: usize,
    pub a_step: usize,
    /// Rows of `vectors` vectors, `b_stride` apart.
    pub b: &'a [f32],
    pub b_stride: usize,
    pub rows: usize,
    pub steps: usize,
    pub vectors: usize,
    /// Whether to add to C instead of overwriting it.
    pub add: bool,
}

/// What the operands of a product hold along its inner axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    /// f32.
    Plain,
    /// Pairs of neighbouring bf16.
    Pairs,
}

impl Operands {
    /// Steps of a product over `count` numbers.
    #[inline(always)]
    pub(super) fn steps(self, count: usize) -> usize {
        match self {
            Self::Plain => count,
            Self::Pairs => count.div_ceil(2),
        }
    }

    /// The steps that hold some of these numbers.
    #[inline(always)]
    pub(super) fn range(self, numbers: Range<usize>) -> Range<usize> {
        match self {
            Self::Plain => numbers,
            Self::Pairs => numbers.start / 2..numbers.end.div_ceil(2),
        }
    }

    /// Runs a kernel that makes and multiplies such operands.
    #[inline(always)]
    pub(super) fn dispatch<K: Kernel>(self, isa: Isa, kernel: K) -> K::Output {
        match self {
            Self::Plain => dispatch_on(isa, kernel),
            Self::Pairs => dispatch_pairs(isa, kernel),
        }
    }
}

impl Product<'_> {
    /// Computes it. A call, not generic: the blocks of all instruction sets are compiled once, not once per use.
    #[inline(never)]
    pub(super) fn compute(self, isa: Isa, operands: Operands) {
        match operands {
            Operands::Plain => One::dispatch(isa, Of::<One>(self, PhantomData)),
            Operands::Pairs => Two::dispatch(isa, Of::<Two>(self, PhantomData)),
        }
    }

    #[inline(always)]
    fn check(&self, lanes: usize) {
        let columns = self.vectors * lanes;
        assert!(self.c.len() >= (self.rows - 1) * self.c_stride + columns, "product: C is too short");
        if self.steps > 0 {
            assert!(
                self.a.len() > (self.rows - 1) * self.a_row + (self.steps - 1) * self.a_step,
                "product: A is too short"
            );
            assert!(self.b.len() >= (self.steps - 1) * self.b_stride + columns, "product: B is too short");
        }
    }

    /// `ROWS` rows from `row` on, all columns; returns their number.
    ///
    /// # Safety
    /// `check` passed, the rows exist, and the kernel was started by [`Unit::dispatch`].
    #[inline(always)]
    unsafe fn strip<S: Simd, U: Unit, const ROWS: usize>(&mut self, s: S, row: usize) -> usize {
        let mut vector = 0;
        // SAFETY: rows and columns stay below the checked sizes.
        unsafe {
            while vector + 2 <= self.vectors {
                self.block::<S, U, ROWS, 2>(s, row, vector * S::LANES);
                vector += 2;
            }
            if vector < self.vectors {
                self.block::<S, U, ROWS, 1>(s, row, vector * S::LANES);
            }
        }
        ROWS
    }

    /// # Safety
    /// As [`Product::strip`]; the block lies inside.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "constant bounds unroll into registers, iterators not always")]
    unsafe fn block<S: Simd, U: Unit, const ROWS: usize, const VECTORS: usize>(
        &mut self,
        s: S,
        row: usize,
        column: usize,
    ) {
        let at = |i: usize, v: usize| i.wrapping_mul(self.c_stride).wrapping_add(v * S::LANES);
        let c = self.c.as_mut_ptr().wrapping_add(row * self.c_stride + column);
        let mut a = self.a.as_ptr().wrapping_add(row * self.a_row);
        let mut b = self.b.as_ptr().wrapping_add(column);
        let mut sums = [[s.zero(); VECTORS]; ROWS];
        // SAFETY: all offsets are those that `check` compared with the lengths.
        unsafe {
            if self.add {
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        sums[i][v] = s.load_ptr(c.wrapping_add(at(i, v)));
                    }
                }
            }
            for _ in 0..self.steps {
                let mut bs = [s.zero(); VECTORS];
                for v in 0..VECTORS {
                    bs[v] = s.load_ptr(b.wrapping_add(v * S::LANES));
                }
                for i in 0..ROWS {
                    let x = s.splat(*a.wrapping_add(i.wrapping_mul(self.a_row)));
                    for v in 0..VECTORS {
                        sums[i][v] = U::add_product(s, x, bs[v], sums[i][v]);
                    }
                }
                // Wrapping, since the last step may leave the slice; and everywhere here, since the checks that a debug
                // build makes of `add` would dominate the loop.
                a = a.wrapping_add(self.a_step);
                b = b.wrapping_add(self.b_stride);
            }
            for i in 0..ROWS {
                for v in 0..VECTORS {
                    s.store_ptr(c.wrapping_add(at(i, v)), sums[i][v]);
                }
            }
        }
    }
}

/// A product of units of one kind.
struct Of<'a, U>(Product<'a>, PhantomData<U>);

impl<U: Unit> Kernel for Of<'_, U> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut product = self.0;
        if product.rows == 0 || product.vectors == 0 {
            return;
        }
        product.check(S::LANES);
        let mut row = 0;
        while row < product.rows {
            // SAFETY: sizes were checked above and each strip ends at or before the last row; started by `dispatch`.
            row += unsafe {
                match product.rows - row {
                    1 => product.strip::<S, U, 1>(s, row),
                    2 | 3 => product.strip::<S, U, 2>(s, row),
                    4 | 5 => product.strip::<S, U, 4>(s, row),
                    _ => product.strip::<S, U, BLOCK>(s, row),
                }
            };
        }
    }
}

/// Rows of equal width somewhere in memory, as they are kept.
#[derive(Clone, Copy)]
pub(super) struct StoredRows<'a> {
    pub data: Kept<'a>,
    pub stride: usize,
    pub count: usize,
    pub width: usize,
}

impl<'a> StoredRows<'a> {
    /// As f32: where they lie, or widened into `copy`, which has room for rows of whole vectors.
    #[inline(always)]
    pub(super) fn as_f32<'b, S: Simd>(self, s: S, copy: &'b mut [f32]) -> Rows<'b>
    where
        'a: 'b,
    {
        let Self { data, stride, count, width } = self;
        match data {
            Kept::F32(data) => return Rows { data, stride, count, width },
            Kept::Bf16(data) => {
                let wide = width.next_multiple_of(S::LANES);
                for (i, dst) in copy.chunks_exact_mut(wide).take(count).enumerate() {
                    pack_bf16(s, dst, &data[i * stride..][..width], 1.0);
                }
            }
            Kept::Blocks(ty, bytes) => widen_blocks(ty, bytes, copy, width, S::LANES),
        }
        let wide = width.next_multiple_of(S::LANES);
        Rows { data: copy, stride: wide, count, width: wide }
    }

    /// Their pairs along the width, transposed: `dst[p * KEYS + r]` is numbers 2p and 2p + 1 of row r, zero up to the next
    /// whole vector. Needs bf16 with an even stride and a width of a multiple of sixteen.
    #[inline(always)]
    pub(super) fn transpose_pairs<S: Simd>(self, s: S, dst: &mut [f32]) {
        let (data, pairs) = (self.bf16(), self.width / 2);
        assert!(data.len() >= (self.count - 1) * self.stride + self.width && self.stride.is_multiple_of(2));
        let dst = &mut dst[..pairs * KEYS];
        let whole = self.count / 8 * 8;
        for r in (0..whole).step_by(8) {
            for p in (0..pairs).step_by(8) {
                // SAFETY: eight rows and eight pairs are inside of both, whose sizes were checked; loads need no alignment.
                unsafe {
                    let src = data.as_ptr().add(r * self.stride + 2 * p).cast();
                    s.transpose_8x8(src, self.stride / 2, dst.as_mut_ptr().add(p * KEYS + r), KEYS);
                }
            }
        }
        for r in whole..self.count.next_multiple_of(S::LANES) {
            for p in 0..pairs {
                let at = |i: usize| u32::from(data[r * self.stride + 2 * p + i].to_bits());
                dst[p * KEYS + r] = if r < self.count { f32::from_bits(at(0) | at(1) << 16) } else { 0.0 };
            }
        }
    }

    /// Pairs of neighbouring rows: `dst[i * width + c]` is number c of rows 2i and 2i + 1, the latter zero where there is
    /// none. Needs what [`StoredRows::transpose_pairs`] does.
    #[inline(always)]
    pub(super) fn interleave<S: Simd>(self, s: S, dst: &mut [f32]) {
        let data = self.bf16();
        for (i, dst) in dst.chunks_exact_mut(self.width).take(self.count.div_ceil(2)).enumerate() {
            let low = &data[2 * i * self.stride..][..self.width];
            let high = (2 * i + 1 < self.count).then(|| &data[(2 * i + 1) * self.stride..][..self.width]);
            for (c, dst) in dst.chunks_exact_mut(S::LANES).enumerate() {
                let at = c * S::LANES;
                // SAFETY: the width is a multiple of the lanes, and both rows were checked to be as wide. No closure: one
                // that is not inlined would be compiled without the instruction set.
                #[allow(clippy::manual_map, reason = "see above")]
                unsafe {
                    let high = match high {
                        Some(high) => Some(high.as_ptr().add(at)),
                        None => None,
                    };
                    s.store(dst, s.interleave_bf16(low.as_ptr().add(at), high));
                }
            }
        }
    }

    #[inline(always)]
    fn bf16(self) -> &'a [bf16] {
        match self.data {
            Kept::Bf16(data) => data,
            Kept::F32(_) | Kept::Blocks(..) => unreachable!("pairs are made of bf16"),
        }
    }

    /// As f32 in whole vectors: where they lie, or in `copy`.
    #[inline(always)]
    pub(super) fn whole_vectors<'b, S: Simd>(self, s: S, copy: &'b mut [f32]) -> Rows<'b>
    where
        'a: 'b,
    {
        match self.data {
            Kept::F32(data) => {
                Rows { data, stride: self.stride, count: self.count, width: self.width }.whole_vectors(s, copy)
            }
            Kept::Bf16(_) | Kept::Blocks(..) => self.as_f32(s, copy),
        }
    }
}

/// Widens rows of blocks, which lie side by side, into rows of whole vectors. A call: it is long, and the same for all
/// instruction sets.
#[inline(never)]
fn widen_blocks(ty: GgmlType, bytes: &[u8], copy: &mut [f32], width: usize, lanes: usize) {
    let wide = width.next_multiple_of(lanes);
    let count = ty.bytes(width).map_or(0, |row| bytes.len() / row);
    if wide == width {
        return dequantise(ty, bytes, &mut copy[..count * width]);
    }
    for (row, dst) in bytes.chunks_exact(bytes.len() / count.max(1)).zip(copy.chunks_exact_mut(wide)) {
        dequantise(ty, row, &mut dst[..width]);
        dst[width..].fill(0.0);
    }
}

/// Rows of equal width somewhere in memory.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub count: usize,
    pub width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.width]
    }

    /// The transpose of up to [`KEYS`] rows: `dst[c * KEYS + r]`, with zeros up to the next whole vector.
    #[inline(always)]
    pub(super) fn transpose<S: Simd>(&self, s: S, dst: &mut [f32]) {
        let dst = &mut dst[..self.width * KEYS];
        let (whole_rows, whole_columns) = (self.count / 8 * 8, self.width / 8 * 8);
        for r in (0..whole_rows).step_by(8) {
            for c in (0..whole_columns).step_by(8) {
                let src = &self.data[r * self.stride + c..][..7 * self.stride + 8];
                let dst = &mut dst[c * KEYS + r..][..7 * KEYS + 8];
                // SAFETY: both slices span an 8 by 8 block of their stride.
                unsafe { s.transpose_8x8(src.as_ptr(), self.stride, dst.as_mut_ptr(), KEYS) };
            }
        }
        for r in 0..self.count {
            let skip = if r < whole_rows { whole_columns } else { 0 };
            for (c, x) in self.row(r).iter().enumerate().skip(skip) {
                dst[c * KEYS + r] = *x;
            }
        }
        let end = self.count.next_multiple_of(S::LANES);
        if self.count < end {
            dst.chunks_exact_mut(KEYS).for_each(|column| column[self.count..end].fill(0.0));
        }
    }

    /// These rows with a width of whole vectors: as they lie where the width is one already, else a padded copy.
    #[inline(always)]
    fn whole_vectors<'b, S: Simd>(self, s: S, copy: &'b mut [f32]) -> Rows<'b>
    where
        'a: 'b,
    {
        if self.width.is_multiple_of(S::LANES) {
            return self;
        }
        let width = self.width.next_multiple_of(S::LANES);
        for (i, dst) in copy.chunks_exact_mut(width).take(self.count).enumerate() {
            pack(s, dst, self.row(i), 1.0);
        }
        Rows { data: copy, stride: width, count: self.count, width }
    }
}

/// `dst = factor * src`, and zero in the rest of `dst`, which is made of whole vectors.
#[inline(always)]
pub(super) fn pack<S: Simd>(s: S, dst: &mut [f32], src: &[f32], factor: f32) {
    let factor = s.splat(factor);
    for (dst, src) in dst.chunks_exact_mut(S::LANES).zip(src.chunks(S::LANES)) {
        let x = if src.len() == S::LANES { s.load(src) } else { s.load_partial(src) };
        s.store(dst, s.mul(x, factor));
    }
}

/// The same of bf16.
#[inline(always)]
pub(super) fn pack_bf16<S: Simd>(s: S, dst: &mut [f32], src: &[bf16], factor: f32) {
    let factor = s.splat(factor);
    for (dst, src) in dst.chunks_exact_mut(S::LANES).zip(src.chunks(S::LANES)) {
        let x = if src.len() == S::LANES { s.load_bf16(src) } else { s.load_bf16_partial(src) };
        s.store(dst, s.mul(x, factor));
    }
}

/// Room for f32 as room for pairs of bf16, in memory order.
#[inline(always)]
pub(super) fn as_pairs(x: &mut [f32]) -> &mut [bf16] {
    bytemuck::cast_slice_mut(x)
}

/// Rounds whole vectors to bf16.
#[inline(always)]
pub(super) fn narrow<S: Simd>(s: S, dst: &mut [bf16], src: &[f32]) {
    for (dst, src) in dst.chunks_exact_mut(S::LANES).zip(src.chunks_exact(S::LANES)) {
        s.store_bf16(dst, s.load(src));
    }
}

/// Pairs of neighbouring rows of whole vectors, rounded to bf16: lane c of `dst` is `low[c]` and `high[c]`, which is zero
/// where there is none.
///
/// # Safety
/// The kernel was started by [`Operands::dispatch`].
#[inline(always)]
pub(super) unsafe fn pair_rows<S: Simd>(s: S, dst: &mut [f32], low: &[f32], high: Option<&[f32]>) {
    for (c, dst) in dst.chunks_exact_mut(S::LANES).enumerate() {
        let at = c * S::LANES;
        let high = match high {
            Some(high) => s.load(&high[at..]),
            None => s.zero(),
        };
        // SAFETY: passed on from the caller.
        s.store(dst, unsafe { s.pair_bf16(s.load(&low[at..]), high) });
    }
}

/// Sets the whole vectors of `x` to zero.
#[inline(always)]
pub(super) fn clear<S: Simd>(s: S, x: &mut [f32]) {
    for x in x.chunks_exact_mut(S::LANES) {
        s.store(x, s.zero());
    }
}

/// Sets `x[computed]`, whole vectors, to -infinity outside of `keep`, which is not empty and lies inside.
#[inline(always)]
pub(super) fn hide_outside<S: Simd>(s: S, x: &mut [f32], computed: Range<usize>, keep: Range<usize>) {
    // The smaller of score and bound, not a selection: compilers turn that into a masked store, which some machines run
    // slowly. A visible NaN becomes infinity here, and NaN again when the maximum is taken away from it.
    let (open, shut) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
    let mut at = computed.start;
    while at < keep.start {
        let x = &mut x[at..];
        s.store(x, s.min(s.load(x), s.select(s.first(keep.start - at), shut, open)));
        at += S::LANES;
    }
    let mut at = keep.end / S::LANES * S::LANES;
    while at < computed.end {
        let x = &mut x[at..];
        s.store(x, s.min(s.load(x), s.select(s.first(keep.end.saturating_sub(at)), open, shut)));
        at += S::LANES;
    }
}

/// `dst += factor * src`; `src` may be longer.
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(s: S, dst: &mut [f32], src: &[f32], factor: f32) {
    let factor = s.splat(factor);
    for (dst, src) in dst.chunks_mut(S::LANES).zip(src.chunks_exact(S::LANES)) {
        if dst.len() == S::LANES {
            s.store(dst, s.fma(factor, s.load(src), s.load(dst)));
        } else {
            s.store_partial(dst, s.fma(factor, s.load(src), s.load_partial(dst)));
        }
    }
}

/// Memory that tasks on different threads write disjoint parts of.
pub(super) struct Shared<T = f32> {
    start: *mut T,
    len: usize,
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: access goes through `slice`, whose callers promise that parts in use at the same time do not overlap.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(data: &mut [T]) -> Self {
        Shared { start: data.as_mut_ptr(), len: data.len() }
    }

    /// A part of it.
    ///
    /// # Safety
    /// The borrow that `self` was made of is still exclusive, and no other slice in use overlaps this one.
    #[inline(always)]
    pub(super) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "attention: output is too short");
        // SAFETY: inside the borrowed slice; the caller vouches for exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Results that are kept in either element type.
#[derive(Clone, Copy)]
pub(super) enum SharedOut {
    F32(Shared),
    Bf16(Shared<bf16>),
}

impl SharedOut {
    pub(super) fn new(data: StoredMut) -> Self {
        match data {
            StoredMut::F32(data) => Self::F32(Shared::new(data)),
            StoredMut::Bf16(data) => Self::Bf16(Shared::new(data)),
        }
    }

    /// A part of it.
    ///
    /// # Safety
    /// As [`Shared::slice`], also of the parts of what this returns.
    #[inline(always)]
    pub(super) unsafe fn part(self, start: usize, len: usize) -> Self {
        // SAFETY: passed on from the caller.
        unsafe {
            match self {
                Self::F32(data) => Self::F32(Shared::new(data.slice(start, len))),
                Self::Bf16(data) => Self::Bf16(Shared::new(data.slice(start, len))),
            }
        }
    }

    /// Stores `factor * src` from `start` on; `src` may be longer than the `len` values that are stored.
    ///
    /// # Safety
    /// As [`Shared::slice`].
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(self, s: S, start: usize, len: usize, src: &[f32], factor: f32) {
        let factor = s.splat(factor);
        // SAFETY: passed on from the caller.
        unsafe {
            match self {
                Self::F32(out) => {
                    for (dst, src) in out.slice(start, len).chunks_mut(S::LANES).zip(src.chunks_exact(S::LANES)) {
                        let x = scaled(s, src, factor);
                        // Masked stores are slow on some machines even where the mask is full.
                        if dst.len() == S::LANES { s.store(dst, x) } else { s.store_partial(dst, x) }
                    }
                }
                Self::Bf16(out) => {
                    for (dst, src) in out.slice(start, len).chunks_mut(S::LANES).zip(src.chunks_exact(S::LANES)) {
                        let x = scaled(s, src, factor);
                        if dst.len() == S::LANES { s.store_bf16(dst, x) } else { s.store_bf16_partial(dst, x) }
                    }
                }
            }
        }
    }
}

/// `factor * src`. Adding zero makes -0 and 0 one: hidden keys may turn one into the other on the way.
#[inline(always)]
fn scaled<S: Simd>(s: S, src: &[f32], factor: S::V) -> S::V {
    s.add(s.mul(s.load(src), factor), s.zero())
}

/// One cache line: scratch starts on one, so that no vector load crosses two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);
const LINE: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Lends `N` aligned buffers of this thread, with whatever they contain, to `work`, which must not ask again.
pub(super) fn with_scratch<const N: usize, R>(lens: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        let lines: usize = lens.iter().map(|n| n.div_ceil(LINE)).sum();
        if scratch.len() < lines {
            scratch.resize(lines, Line([0.0; LINE]));
        }
        let mut rest = scratch.as_mut_slice();
        work(lens.map(|len| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(len.div_ceil(LINE));
            rest = tail;
            // SAFETY: a `Line` is its sixteen f32, without padding.
            let floats = unsafe { std::slice::from_raw_parts_mut(head.as_mut_ptr().cast::<f32>(), head.len() * LINE) };
            &mut floats[..len]
        }))
    })
}
