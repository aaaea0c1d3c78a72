//! Where keys and values lie: in a tensor, or in the pages of a cache.

use super::tile::{KEYS, StoredRows};
use super::{Heads, Stored, check_view};
use crate::quant::GgmlType;
use half::bf16;
use std::ops::Range;

/// Positions of a page: those of a tile of keys, which so lies within one.
pub const PAGE: usize = KEYS;

/// Some positions of keys or of values, `[batch, kv_heads, capacity, head_dim]` without gaps.
///
/// A list of pages holds positions from 0 on, [`PAGE`] in each, and what is left in the last, whose capacity may be less.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The numbers.
    pub data: Kept<'a>,
    /// Positions that there is room for.
    pub capacity: usize,
}

/// Numbers of keys and values as they are kept. The arithmetic is f32 for all; what is rounded is widened a tile at a time.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// In full.
    F32(&'a [f32]),
    /// As bf16.
    Bf16(&'a [bf16]),
    /// In a type of GGUF, of whose blocks a head's features are a whole number.
    Blocks(GgmlType, &'a [u8]),
}

impl<'a> Kept<'a> {
    /// Numbers, where they are `width` to a head.
    fn len(&self, width: usize) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::Blocks(ty, bytes) => bytes.len() / row_bytes(*ty, width) * width,
        }
    }

    /// `rows` rows of `width` numbers, which lie side by side.
    #[inline(always)]
    fn rows(self, rows: Range<usize>, width: usize) -> Self {
        match self {
            Self::F32(data) => Self::F32(&data[rows.start * width..rows.end * width]),
            Self::Bf16(data) => Self::Bf16(&data[rows.start * width..rows.end * width]),
            Self::Blocks(ty, bytes) => {
                let row = row_bytes(ty, width);
                Self::Blocks(ty, &bytes[rows.start * row..rows.end * row])
            }
        }
    }
}

impl<'a> From<Stored<'a>> for Kept<'a> {
    fn from(data: Stored<'a>) -> Self {
        match data {
            Stored::F32(data) => Self::F32(data),
            Stored::Bf16(data) => Self::Bf16(data),
        }
    }
}

/// Bytes of a head's features.
fn row_bytes(ty: GgmlType, width: usize) -> usize {
    ty.bytes(width).unwrap_or_else(|| panic!("attention: heads of {width} are no whole {} blocks", ty.name()))
}

/// The keys, or the values, of a call.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    View(Heads<'a>),
    Pages(&'a [Page<'a>]),
}

impl<'a> Keys<'a> {
    /// Whether neighbouring features are pairs of bf16 in memory.
    pub(super) fn are_pairs(&self) -> bool {
        match self {
            Self::View(heads) => heads.are_pairs(),
            Self::Pages(pages) => pages.iter().all(|page| matches!(page.data, Kept::Bf16(_))),
        }
    }

    pub(super) fn check(&self, name: &str, shape: [usize; 4]) {
        let [batch, time, heads, width] = shape;
        match self {
            Self::View(view) => check_view(name, view, shape),
            Self::Pages(pages) => {
                for (index, first) in (0..time).step_by(PAGE).enumerate() {
                    let page = &pages[index];
                    let (wanted, room) = (batch * heads * page.capacity * width, page.data.len(width));
                    assert!(
                        page.capacity >= PAGE.min(time - first) && room == wanted,
                        "attention: page {index} of {name} has {room} numbers and room for {} positions",
                        page.capacity
                    );
                }
            }
        }
    }

    /// Rows of a tile's keys of one head.
    #[inline(always)]
    pub(super) fn rows(
        &self,
        (batch, kv_head, kv_heads): (usize, usize, usize),
        keys: &Range<usize>,
        width: usize,
    ) -> StoredRows<'a> {
        match self {
            Self::View(heads) => {
                let at = batch * heads.batch_stride + keys.start * heads.time_stride + kv_head * heads.head_stride;
                let data = heads.data.from(at).into();
                StoredRows { data, stride: heads.time_stride, count: keys.len(), width }
            }
            Self::Pages(pages) => {
                let page = &pages[keys.start / PAGE];
                let start = (batch * kv_heads + kv_head) * page.capacity;
                let data = page.data.rows(start..start + keys.len(), width);
                StoredRows { data, stride: width, count: keys.len(), width }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::super::{AttentionDims, Masking, StoredMut, attention, attention_in_pages};
    use super::*;
    use crate::quant::{dequantise, quantise};
    use crate::rng::Rng;

    const DIMS: AttentionDims = AttentionDims {
        batch: 2,
        q_len: 3,
        kv_len: 300,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        scale: 0.3,
        causal: true,
        window: None,
        softcap: None,
    };

    /// `[batch, time, heads, head_dim]` without gaps.
    fn view(data: Stored<'_>, [_, time, heads, width]: [usize; 4]) -> Heads<'_> {
        Heads { data, batch_stride: time * heads * width, time_stride: heads * width, head_stride: width }
    }

    /// The numbers of each page, with room for more positions than the last one has.
    fn cut(x: &[f32], d: &AttentionDims) -> Vec<(usize, Vec<f32>)> {
        let page = |first: usize| {
            let count = PAGE.min(d.kv_len - first);
            let capacity = if count == PAGE { PAGE } else { count + 5 };
            let mut page = vec![f32::NAN; d.batch * d.kv_heads * capacity * d.head_dim];
            for (at, row) in page.chunks_exact_mut(d.head_dim).enumerate() {
                let (place, t) = (at / capacity, at % capacity);
                let from = (place / d.kv_heads * d.kv_len + first + t) * d.kv_heads + place % d.kv_heads;
                if t < count {
                    row.copy_from_slice(&x[from * d.head_dim..][..d.head_dim]);
                }
            }
            (capacity, page)
        };
        (0..d.kv_len).step_by(PAGE).map(page).collect()
    }

    fn normal(purpose: &str, count: usize) -> Vec<f32> {
        let rng = Rng::new(3, purpose, 0);
        (0..count).map(|i| rng.normal_f32(i as u64)).collect()
    }

    /// The bits of the output, of keys and values in pages where they are given as such.
    fn run(q: Stored<'_>, dims: &AttentionDims, kv: [Keys<'_>; 2]) -> Vec<u32> {
        let q = view(q, [dims.batch, dims.q_len, dims.heads, dims.head_dim]);
        let rows = dims.batch * dims.q_len * dims.heads;
        let (mut out, mut lse) = (vec![f32::NAN; rows * dims.head_dim], vec![f32::NAN; rows]);
        let (to, mask) = (StoredMut::F32(&mut out), Masking::default());
        match kv {
            [Keys::View(k), Keys::View(v)] => attention(to, &mut lse, q, k, v, dims, &mask),
            [Keys::Pages(k), Keys::Pages(v)] => attention_in_pages(to, &mut lse, q, [k, v], dims, &mask),
            _ => unreachable!("both are of one kind"),
        }
        out.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn keys_and_values_in_pages_give_the_bits_that_they_give_in_one_piece() {
        for dims in [
            DIMS,
            AttentionDims { kv_len: 128, window: Some(70), ..DIMS },
            AttentionDims { q_len: 260, kv_len: 260, head_dim: 20, ..DIMS },
            AttentionDims { kv_len: 5, causal: false, softcap: Some(3.0), ..DIMS },
        ] {
            let kv_shape = [dims.batch, dims.kv_len, dims.kv_heads, dims.head_dim];
            let q = normal("q", dims.batch * dims.q_len * dims.heads * dims.head_dim);
            let kv = ["k", "v"].map(|name| normal(name, kv_shape.iter().product()));
            let whole = [&kv[0], &kv[1]].map(|x| Keys::View(view(Stored::F32(x), kv_shape)));
            let cut = [&kv[0], &kv[1]].map(|x| cut(x, &dims));
            let views = [&cut[0], &cut[1]].map(|pages| {
                let page = |(capacity, data)| Page { data: Kept::F32(data), capacity };
                pages.iter().map(|(capacity, data)| page((*capacity, &data[..]))).collect::<Vec<_>>()
            });
            let paged = [Keys::Pages(&views[0]), Keys::Pages(&views[1])];
            assert_eq!(run(Stored::F32(&q), &dims, paged), run(Stored::F32(&q), &dims, whole), "{dims:?}");
        }
    }

    #[test]
    fn rounded_pages_are_widened_exactly() {
        let kv_shape = [DIMS.batch, DIMS.kv_len, DIMS.kv_heads, DIMS.head_dim];
        let q = normal("q", DIMS.batch * DIMS.q_len * DIMS.heads * DIMS.head_dim);
        for ty in [GgmlType::F16, GgmlType::Bf16, GgmlType::Q8_0, GgmlType::Q4_0] {
            let encode = |x: &[f32]| {
                let mut bytes = vec![0; ty.bytes(x.len()).unwrap()];
                let size = ty.bytes(DIMS.head_dim).unwrap();
                for (x, to) in x.chunks_exact(DIMS.head_dim).zip(bytes.chunks_exact_mut(size)) {
                    quantise(ty, x, None, to);
                }
                bytes
            };
            let kv = ["k", "v"].map(|name| normal(name, kv_shape.iter().product()));
            let wide = [&kv[0], &kv[1]].map(|x| {
                let mut wide = vec![0.0; x.len()];
                dequantise(ty, &encode(x), &mut wide);
                wide
            });
            let pages = [&kv[0], &kv[1]].map(|x| {
                let page = |(capacity, data): (usize, Vec<f32>)| {
                    // What nobody reads may be anything.
                    let data: Vec<f32> = data.into_iter().map(|x| if x.is_nan() { 0.0 } else { x }).collect();
                    (capacity, encode(&data))
                };
                cut(x, &DIMS).into_iter().map(page).collect::<Vec<_>>()
            });
            let views = [&pages[0], &pages[1]].map(|pages| {
                let page = |(capacity, bytes)| Page { data: Kept::Blocks(ty, bytes), capacity };
                pages.iter().map(|(capacity, bytes)| page((*capacity, &bytes[..]))).collect::<Vec<_>>()
            });
            let whole = [&wide[0], &wide[1]].map(|x| Keys::View(view(Stored::F32(x), kv_shape)));
            let paged = [Keys::Pages(&views[0]), Keys::Pages(&views[1])];
            assert_eq!(run(Stored::F32(&q), &DIMS, paged), run(Stored::F32(&q), &DIMS, whole), "{}", ty.name());
        }
    }

    #[test]
    #[should_panic(expected = "page 1 of k has 640 numbers and room for 5 positions")]
    fn a_page_with_too_little_room_is_refused() {
        let [page, short] = [128, 5].map(|capacity| vec![0.0; 4 * capacity * 32]);
        let pages = [(128, &page), (5, &short)].map(|(capacity, x)| Page { data: Kept::F32(x), capacity });
        Keys::Pages(&pages).check("k", [2, 200, 2, 32]);
    }
}
