//! Where a layer's keys, or its values, lie: in pages of a tile of keys each, as they are or rounded to fewer bits.
//!
//! Caches with a common beginning share its pages; whoever writes into one that is shared gets a copy of its own.

use std::str::FromStr;
use std::sync::Arc;

use loam_kernels::attention::{self, Kept, PAGE};
use loam_kernels::parallel::for_chunks;
use loam_kernels::quant::{GgmlType, dequantise_rows, quantise};
use loam_tensor::{DType, Device, Raw, Tensor};

/// Axis of the positions in a page.
const TIME: usize = 2;

/// How keys and values are kept. Whatever it is, a position is rounded once, when it is stored, and every later query,
/// that of its own pass included, sees the rounded one: so results depend neither on neighbours nor on how a text was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// In the precision of activations.
    #[default]
    Full,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits, a scale per 32: 8.5 bits a number.
    Q8_0,
    /// 4 bits, a scale per 32: 4.5 bits a number.
    Q4_0,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Full, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Bytes of a number, blocks' scales included, where activations are f32.
    pub fn bytes(self) -> f64 {
        let packed = |ty: GgmlType| ty.bytes(ty.block_len()).map_or(4.0, |bytes| bytes as f64 / ty.block_len() as f64);
        self.packed().map_or(4.0, packed)
    }

    /// Whether heads of so many features are whole blocks.
    pub fn fits(self, head_dim: usize) -> bool {
        self.packed().is_none_or(|ty| head_dim.is_multiple_of(ty.block_len()))
    }

    /// The type of blocks that numbers become; bf16 are numbers that attention takes.
    fn blocks(self) -> Option<GgmlType> {
        self.packed().filter(|_| self != Self::Bf16)
    }

    fn packed(self) -> Option<GgmlType> {
        match self {
            Self::Full => None,
            Self::F16 => Some(GgmlType::F16),
            Self::Bf16 => Some(GgmlType::Bf16),
            Self::Q8_0 => Some(GgmlType::Q8_0),
            Self::Q4_0 => Some(GgmlType::Q4_0),
        }
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("unknown type of keys and values `{text}`: expected one of {names}"))
    }
}

/// `[batch, heads, capacity, head_dim]`, of which the first positions are filled. A head's keys lie one after the other,
/// so that decoding streams them: side by side with those of other heads they come at a sixth of the speed.
pub(crate) struct Page {
    shape: [usize; 4],
    data: Data,
}

enum Data {
    Full(Raw),
    Packed(GgmlType, Vec<u8>),
}

/// Bytes of a head's features.
fn row_bytes(ty: GgmlType, head_dim: usize) -> usize {
    ty.bytes(head_dim).unwrap_or_else(|| panic!("cache: heads of {head_dim} are no whole {} blocks", ty.name()))
}

impl Page {
    /// Room for positions of which none is filled.
    fn empty(shape: [usize; 4], kind: KvType, dtype: DType) -> Self {
        let [batch, heads, capacity, head_dim] = shape;
        let data = match kind.blocks() {
            None => Data::Full(Raw::empty(dtype, shape)),
            Some(ty) => Data::Packed(ty, vec![0; batch * heads * capacity * row_bytes(ty, head_dim)]),
        };
        Self { shape, data }
    }

    fn capacity(&self) -> usize {
        self.shape[TIME]
    }

    /// A copy of the first positions, with room for `capacity`.
    pub(crate) fn copied(&self, filled: usize, capacity: usize) -> Self {
        let [batch, heads, old, head_dim] = self.shape;
        let shape = [batch, heads, capacity, head_dim];
        let data = match &self.data {
            Data::Full(raw) => {
                let mut copy = Raw::empty(raw.dtype(), shape);
                if filled > 0 {
                    Device::Cpu.backend().write_region(&mut copy, TIME, 0, &raw.narrowed(TIME, 0, filled));
                }
                Data::Full(copy)
            }
            Data::Packed(ty, bytes) => {
                let row = row_bytes(*ty, head_dim);
                let mut copy = vec![0; batch * heads * capacity * row];
                for (to, from) in copy.chunks_exact_mut(capacity * row).zip(bytes.chunks_exact(old * row)) {
                    to[..filled * row].copy_from_slice(&from[..filled * row]);
                }
                Data::Packed(*ty, copy)
            }
        };
        Self { shape, data }
    }

    /// Rows `rows` of the batch, in that order, instead of all.
    fn selected(&self, rows: &[u32]) -> Self {
        let [batch, heads, capacity, head_dim] = self.shape;
        let data = match &self.data {
            Data::Full(raw) => {
                let mut picked = Raw::empty(raw.dtype(), raw.shape().with(0, rows.len()));
                for (place, &row) in rows.iter().enumerate() {
                    Device::Cpu.backend().write_region(&mut picked, 0, place, &raw.narrowed(0, row as usize, 1));
                }
                Data::Full(picked)
            }
            Data::Packed(ty, bytes) => {
                let size = bytes.len() / batch;
                let own = rows.iter().flat_map(|&row| &bytes[row as usize * size..][..size]).copied();
                Data::Packed(*ty, own.collect())
            }
        };
        Self { shape: [rows.len(), heads, capacity, head_dim], data }
    }

    /// Stores some positions of what is new from position `at` on.
    fn write(&mut self, new: &New, skip: usize, time: usize, at: usize) {
        let [_, heads, capacity, head_dim] = self.shape;
        match &mut self.data {
            Data::Full(raw) => {
                let own = new.raw.narrowed(1, skip, time).transposed(1, TIME);
                Device::Cpu.backend().write_region(raw, TIME, at, &own);
            }
            Data::Packed(ty, bytes) => {
                let (ty, row) = (*ty, row_bytes(*ty, head_dim));
                let of_head = capacity * row;
                for_chunks(bytes, of_head, |offset, bytes| {
                    let place = offset / of_head;
                    let (batch, head) = (place / heads, place % heads);
                    for t in 0..time {
                        let x = ((batch * new.time + skip + t) * heads + head) * head_dim;
                        let to = &mut bytes[(at + t) * row..][..row];
                        quantise(ty, &new.values[x..x + head_dim], None, to);
                    }
                });
            }
        }
    }

    fn view(&self) -> attention::Page<'_> {
        let data = match &self.data {
            Data::Full(raw) if raw.dtype() == DType::Bf16 => Kept::Bf16(raw.bf16()),
            Data::Full(raw) => Kept::F32(raw.f32()),
            Data::Packed(ty, bytes) => Kept::Blocks(*ty, bytes),
        };
        attention::Page { data, capacity: self.capacity() }
    }

    /// All of it in f32.
    fn widened(&self) -> Raw {
        match &self.data {
            Data::Full(raw) if raw.dtype() == DType::F32 => raw.clone(),
            Data::Full(raw) => Device::Cpu.backend().cast(raw, DType::F32),
            Data::Packed(ty, bytes) => {
                let mut out = Raw::empty(DType::F32, self.shape);
                dequantise_rows(*ty, bytes, out.f32_mut());
                out
            }
        }
    }

    fn bytes(&self) -> usize {
        match &self.data {
            Data::Full(raw) => raw.dtype().bytes(raw.count()),
            Data::Packed(_, bytes) => bytes.len(),
        }
    }
}

/// Keys or values `[batch, time, heads, head_dim]` that are stored, with their numbers where they are rounded.
struct New {
    raw: Raw,
    values: Vec<f32>,
    time: usize,
}

/// The pages of a layer's keys or values, the first positions in the first. A clone shares them.
#[derive(Clone, Default)]
pub(crate) struct Store {
    pages: Vec<Arc<Page>>,
}

impl Store {
    /// Stores `[batch, time, heads, head_dim]` from position `start` on; no more than `most` positions will ever be stored,
    /// where that is known.
    pub(crate) fn write(&mut self, new: &Tensor, start: usize, most: Option<usize>, kind: KvType) {
        let [batch, time, heads, head_dim] = [0, 1, 2, 3].map(|axis| new.size(axis));
        let values = if kind.blocks().is_some() { new.to_vec() } else { Vec::new() };
        let raw = match kind {
            KvType::Bf16 if new.raw().dtype() != DType::Bf16 => {
                let backend = Device::Cpu.backend();
                backend.cast(&backend.copy(new.raw()), DType::Bf16)
            }
            _ => new.raw().clone(),
        };
        let new = New { raw, values, time };
        let end = start + time;
        let most = most.unwrap_or(usize::MAX).max(end);
        let mut at = start;
        while at < end {
            let (index, within) = (at / PAGE, at % PAGE);
            let count = (PAGE - within).min(end - at);
            let capacity = PAGE.min(most - index * PAGE);
            if index == self.pages.len() {
                let page = Page::empty([batch, heads, capacity, head_dim], kind, new.raw.dtype());
                self.pages.push(Arc::new(page));
            }
            own(&mut self.pages[index], within, within + count, capacity).write(&new, at - start, count, within);
            at += count;
        }
    }

    /// The first positions, as attention takes them.
    pub(crate) fn views(&self, len: usize) -> Vec<attention::Page<'_>> {
        self.pages[..len.div_ceil(PAGE)].iter().map(|page| page.view()).collect()
    }

    /// The first positions in f32, `[batch, len, heads, head_dim]`.
    pub(crate) fn read(&self, len: usize) -> Tensor {
        let part = |(index, page): (usize, &Arc<Page>)| {
            let own = page.widened().narrowed(TIME, 0, PAGE.min(len - index * PAGE));
            Tensor::constant(own.transposed(1, TIME))
        };
        let parts: Vec<Tensor> = self.pages[..len.div_ceil(PAGE)].iter().enumerate().map(part).collect();
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1)
    }

    /// The page of a position, if it is there.
    pub(crate) fn page(&self, position: usize) -> Option<&Arc<Page>> {
        self.pages.get(position / PAGE)
    }

    /// A store that begins with pages of another.
    pub(crate) fn of(pages: Vec<Arc<Page>>) -> Self {
        Self { pages }
    }

    /// Forgets the first pages.
    pub(crate) fn forget_first(&mut self, positions: usize) {
        self.pages.drain(..positions / PAGE);
    }

    /// Rows `rows` of the batch, in that order, instead of all.
    pub(crate) fn select(&mut self, rows: &[u32]) {
        self.pages.iter_mut().for_each(|page| *page = Arc::new(page.selected(rows)));
    }

    /// Bytes that its pages take, those that are shared, too.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.bytes()).sum()
    }

    /// Whether something is stored.
    pub(crate) fn is_some(&self) -> bool {
        !self.pages.is_empty()
    }
}

/// A page to write into, of which `filled` positions are there and `end` will be: a copy where others see it as well, or where
/// there is too little room.
fn own(page: &mut Arc<Page>, filled: usize, end: usize, capacity: usize) -> &mut Page {
    if page.capacity() < end || Arc::get_mut(page).is_none() {
        *page = Arc::new(page.copied(filled, capacity));
    }
    match Arc::get_mut(page) {
        Some(page) => page,
        None => unreachable!("it is a copy that nobody else has seen"),
    }
}
