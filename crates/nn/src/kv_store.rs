//! Where a layer's keys, or its values, lie: as they are, or rounded to fewer bits.

use std::ops::Range;
use std::str::FromStr;

use loam_kernels::parallel::for_chunks;
use loam_kernels::quant::{GgmlType, dequantise_rows, quantise};
use loam_tensor::{DType, Device, Raw, Tensor};

/// Positions that a fresh or grown store has room for, at least.
const MIN_CAPACITY: usize = 64;
/// Axis of the positions in a store.
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
#[derive(Default)]
pub(crate) enum Store {
    #[default]
    Empty,
    Full(Raw),
    Packed(Packed),
}

/// Rows of blocks.
pub(crate) struct Packed {
    ty: GgmlType,
    /// Batch, heads, capacity, head_dim.
    shape: [usize; 4],
    bytes: Vec<u8>,
}

/// Some positions of a store, to be put into others.
#[derive(Clone)]
pub(crate) enum Part {
    /// `[batch, time, heads, head_dim]`.
    Full(Tensor),
    Packed {
        ty: GgmlType,
        shape: [usize; 4],
        bytes: Vec<u8>,
    },
}

impl Part {
    fn time(&self) -> usize {
        match self {
            Self::Full(x) => x.size(1),
            Self::Packed { shape, .. } => shape[TIME],
        }
    }
}

/// Bytes of a head's features.
fn row_bytes(ty: GgmlType, head_dim: usize) -> usize {
    ty.bytes(head_dim).unwrap_or_else(|| panic!("cache: heads of {head_dim} are no whole {} blocks", ty.name()))
}

/// How much room is made where there is too little.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// Positions at once.
    pub least: usize,
    /// Positions that are never exceeded, where that is known.
    pub most: Option<usize>,
}

impl Room {
    /// Room for `len` positions where there is some for `capacity`: it doubles, but to no more than is ever needed.
    fn grown(self, capacity: usize, len: usize) -> usize {
        let wanted = (2 * capacity).max(MIN_CAPACITY).max(self.least);
        if capacity >= len { capacity } else { wanted.min(self.most.unwrap_or(usize::MAX)).max(len) }
    }
}

impl Packed {
    fn empty(ty: GgmlType, shape: [usize; 4]) -> Self {
        Self { ty, shape, bytes: vec![0; shape[0] * shape[1] * shape[2] * row_bytes(ty, shape[3])] }
    }

    fn row(&self) -> usize {
        row_bytes(self.ty, self.shape[3])
    }

    /// The bytes of some positions of a head of the batch.
    fn range(&self, head: usize, positions: &Range<usize>) -> Range<usize> {
        let start = head * self.shape[TIME];
        (start + positions.start) * self.row()..(start + positions.end) * self.row()
    }

    fn heads(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    fn grow(&mut self, len: usize, room: Room) {
        let capacity = room.grown(self.shape[TIME], len);
        if capacity > self.shape[TIME] {
            let [batch, heads, old, head_dim] = self.shape;
            let mut grown = Self::empty(self.ty, [batch, heads, capacity, head_dim]);
            for head in 0..self.heads() {
                let to = grown.range(head, &(0..old));
                grown.bytes[to].copy_from_slice(&self.bytes[self.range(head, &(0..old))]);
            }
            *self = grown;
        }
    }

    /// Rounds `[batch, time, heads, head_dim]` into the positions from `start` on.
    fn write(&mut self, values: &[f32], time: usize, start: usize) {
        let [_, heads, _, head_dim] = self.shape;
        let (row, ty) = (self.row(), self.ty);
        let capacity = self.shape[TIME];
        let of_head = capacity * row;
        for_chunks(&mut self.bytes, of_head, |offset, bytes| {
            let place = offset / of_head;
            let (batch, head) = (place / heads, place % heads);
            for t in 0..time {
                let x = &values[((batch * time + t) * heads + head) * head_dim..][..head_dim];
                quantise(ty, x, None, &mut bytes[(start + t) * row..][..row]);
            }
        });
    }
}

impl Store {
    /// Stores `[batch, time, heads, head_dim]` from position `start` on.
    pub(crate) fn write(&mut self, new: &Tensor, start: usize, room: Room, kind: KvType) {
        let shape = new.shape();
        let len = start + shape[1];
        match kind.packed() {
            None => self.write_full(&new.raw().transposed(1, TIME), start, room),
            Some(ty) => {
                let packed = self.packed(ty, [shape[0], shape[2], 0, shape[3]]);
                packed.grow(len, room);
                packed.write(&new.to_vec(), shape[1], start);
            }
        }
    }

    fn packed(&mut self, ty: GgmlType, shape: [usize; 4]) -> &mut Packed {
        if !matches!(self, Self::Packed(_)) {
            *self = Self::Packed(Packed::empty(ty, shape));
        }
        match self {
            Self::Packed(packed) => packed,
            _ => unreachable!("it was just made so"),
        }
    }

    /// Stores `[batch, heads, time, head_dim]`.
    fn write_full(&mut self, new: &Raw, start: usize, room: Room) {
        let backend = Device::Cpu.backend();
        let len = start + new.shape()[TIME];
        let capacity = if let Self::Full(raw) = self { raw.shape()[TIME] } else { 0 };
        if capacity < len {
            let mut grown = Raw::empty(new.dtype(), new.shape().with(TIME, room.grown(capacity, len)));
            if let Self::Full(old) = self {
                backend.write_region(&mut grown, TIME, 0, &old.narrowed(TIME, 0, start));
            }
            *self = Self::Full(grown);
        }
        if let Self::Full(raw) = self {
            backend.write_region(raw, TIME, start, new);
        }
    }

    /// The first positions, `[batch, len, heads, head_dim]`, in an activation's element type.
    pub(crate) fn read(&self, len: usize, dtype: DType) -> Tensor {
        match self {
            Self::Empty => panic!("cache: nothing is stored"),
            Self::Full(raw) => Tensor::constant(raw.narrowed(TIME, 0, len).transposed(1, TIME)),
            Self::Packed(packed) => {
                let [batch, heads, _, head_dim] = packed.shape;
                let mut out = Raw::empty(DType::F32, [batch, heads, len, head_dim]);
                for (head, out) in out.f32_mut().chunks_exact_mut((len * head_dim).max(1)).enumerate() {
                    dequantise_rows(packed.ty, &packed.bytes[packed.range(head, &(0..len))], out);
                }
                let out = if dtype == DType::F32 { out } else { Device::Cpu.backend().cast(&out, dtype) };
                Tensor::constant(out.transposed(1, TIME))
            }
        }
    }

    /// A copy of some positions.
    pub(crate) fn part(&self, positions: &Range<usize>) -> Part {
        match self {
            Self::Empty => panic!("cache: nothing is stored"),
            Self::Full(raw) => {
                let copy = Device::Cpu.backend().copy(&raw.narrowed(TIME, positions.start, positions.len()));
                Part::Full(Tensor::constant(copy.transposed(1, TIME)))
            }
            Self::Packed(packed) => {
                let heads = 0..packed.heads();
                let bytes = heads.flat_map(|head| &packed.bytes[packed.range(head, positions)]).copied().collect();
                let [batch, heads, _, head_dim] = packed.shape;
                Part::Packed { ty: packed.ty, shape: [batch, heads, positions.len(), head_dim], bytes }
            }
        }
    }

    /// Stores a copy's positions from its `skip`th on, to bit the same, from position `start` on.
    pub(crate) fn put(&mut self, part: &Part, skip: usize, start: usize, room: Room) {
        let time = part.time() - skip;
        match part {
            Part::Full(x) => self.write_full(&x.narrow(1, skip, time).raw().transposed(1, TIME), start, room),
            Part::Packed { ty, shape, bytes } => {
                let [batch, heads, whole, head_dim] = *shape;
                let packed = self.packed(*ty, [batch, heads, 0, head_dim]);
                packed.grow(start + time, room);
                let row = packed.row();
                for head in 0..packed.heads() {
                    let to = packed.range(head, &(start..start + time));
                    packed.bytes[to].copy_from_slice(&bytes[(head * whole + skip) * row..(head + 1) * whole * row]);
                }
            }
        }
    }

    /// Forgets the first positions of `len`: the others move to the front.
    pub(crate) fn forget_first(&mut self, count: usize, len: usize) {
        match self {
            Self::Empty => {}
            Self::Full(raw) => {
                let backend = Device::Cpu.backend();
                let kept = backend.copy(&raw.narrowed(TIME, count, len - count));
                backend.write_region(raw, TIME, 0, &kept);
            }
            Self::Packed(packed) => {
                for head in 0..packed.heads() {
                    let (from, to) = (packed.range(head, &(count..len)), packed.range(head, &(0..len - count)));
                    packed.bytes.copy_within(from, to.start);
                }
            }
        }
    }

    /// Rows `rows` of the batch, in that order, instead of all.
    pub(crate) fn select(&mut self, rows: &[u32]) {
        match self {
            Self::Empty => {}
            Self::Full(raw) => {
                let mut picked = Raw::empty(raw.dtype(), raw.shape().with(0, rows.len()));
                for (place, &row) in rows.iter().enumerate() {
                    Device::Cpu.backend().write_region(&mut picked, 0, place, &raw.narrowed(0, row as usize, 1));
                }
                *raw = picked;
            }
            Self::Packed(packed) => {
                let size = packed.bytes.len() / packed.shape[0];
                packed.bytes =
                    rows.iter().flat_map(|&row| &packed.bytes[row as usize * size..][..size]).copied().collect();
                packed.shape[0] = rows.len();
            }
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Full(raw) => raw.dtype().bytes(raw.count()),
            Self::Packed(packed) => packed.bytes.len(),
        }
    }

    /// Whether something is stored.
    pub(crate) fn is_some(&self) -> bool {
        !matches!(self, Self::Empty)
    }
}
