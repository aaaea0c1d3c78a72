//! Keys and values of the positions already seen.

use std::ops::Range;

use loam_tensor::{AttentionSpec, Device, Raw, Tensor};
use rayon::prelude::*;

/// Positions that a fresh or grown cache has room for, at least.
const MIN_CAPACITY: usize = 64;

/// The cache of one attention layer: `[batch, kv_heads, capacity, head_dim]` in the precision of activations, of which
/// the first positions are filled. A head's keys lie one after the other, so that decoding streams them: side by side
/// with those of other heads they come at a sixth of the speed.
#[derive(Default)]
pub struct LayerCache {
    keys: Option<Raw>,
    values: Option<Raw>,
    len: usize,
    /// Positions that are never exceeded, where that is known: room grows up to there at most.
    most: Option<usize>,
    /// Positions that room is made for at once.
    reserved: usize,
    /// Keys and values of the memory, for cross-attention.
    pub(crate) memory: Option<(Tensor, Tensor)>,
    /// Where several sequences run in one row: the cache of each, instead of all the above.
    sequences: Vec<LayerCache>,
}

impl LayerCache {
    /// Stores keys and values of new positions `[batch, time, kv_heads, head_dim]`; returns those of all positions.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let start = self.len;
        self.len += k.size(1);
        let room = Room { most: self.most, reserved: self.reserved };
        (store(&mut self.keys, k, start, room), store(&mut self.values, v, start, room))
    }

    /// Whether this is the cache of several sequences; then [`LayerCache::attend`] takes the place of
    /// [`LayerCache::append`].
    pub(crate) fn is_joined(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Attention of several sequences that lie end to end in one row, `borders` apart. Each sees its own earlier positions
    /// and gets the bits that it would get alone.
    pub(crate) fn attend(&mut self, [q, k, v]: [&Tensor; 3], borders: &[usize], spec: &AttentionSpec) -> Tensor {
        assert_eq!(borders.len(), self.sequences.len() + 1, "attention: borders of the cached sequences");
        let one = |(cache, border): (&mut LayerCache, &[usize])| {
            let own = |x: &Tensor| x.narrow(1, border[0], border[1] - border[0]);
            let (k, v) = cache.append(&own(k), &own(v));
            own(q).attention(&k, &v, spec)
        };
        let parts: Vec<Tensor> = self.sequences.par_iter_mut().zip(borders.par_windows(2)).map(one).collect();
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1)
    }

    /// A copy of the keys and values of some positions.
    fn copy(&self, positions: &Range<usize>) -> (Tensor, Tensor) {
        let copy = |slot: &Option<Raw>| {
            let raw = slot.as_ref().expect("the positions are stored");
            let part = Device::Cpu.backend().copy(&raw.narrowed(TIME, positions.start, positions.len()));
            Tensor::constant(part.transposed(1, TIME))
        };
        (copy(&self.keys), copy(&self.values))
    }

    /// Keys and values of the positions stored, `[batch, time, kv_heads, head_dim]` each.
    pub fn contents(&self) -> Option<(Tensor, Tensor)> {
        let filled = |raw: &Raw| Tensor::constant(raw.narrowed(TIME, 0, self.len).transposed(1, TIME));
        Some((filled(self.keys.as_ref()?), filled(self.values.as_ref()?)))
    }

    /// Rows `rows` of the batch, in that order, instead of all. The memory stays: it is the same for all rows.
    fn select(&mut self, rows: &[u32]) {
        for slot in [&mut self.keys, &mut self.values].into_iter().flatten() {
            let mut picked = Raw::empty(slot.dtype(), slot.shape().with(0, rows.len()));
            for (place, &row) in rows.iter().enumerate() {
                Device::Cpu.backend().write_region(&mut picked, 0, place, &slot.narrowed(0, row as usize, 1));
            }
            *slot = picked;
        }
    }
}

/// Axis of the positions in a cache.
const TIME: usize = 2;

/// How much room is made when there is too little.
#[derive(Clone, Copy)]
struct Room {
    most: Option<usize>,
    reserved: usize,
}

fn store(slot: &mut Option<Raw>, new: &Tensor, start: usize, wanted: Room) -> Tensor {
    let backend = Device::Cpu.backend();
    let new = new.raw().transposed(1, TIME);
    let len = start + new.shape()[TIME];
    let capacity = slot.as_ref().map_or(0, |raw| raw.shape()[TIME]);
    if capacity < len {
        let room = (2 * capacity).max(MIN_CAPACITY).max(wanted.reserved);
        let room = room.min(wanted.most.unwrap_or(usize::MAX)).max(len);
        let mut grown = Raw::empty(new.dtype(), new.shape().with(TIME, room));
        if let Some(old) = slot.take() {
            backend.write_region(&mut grown, TIME, 0, &old.narrowed(TIME, 0, start));
        }
        *slot = Some(grown);
    }
    let buffer = slot.as_mut().expect("room was just made");
    backend.write_region(buffer, TIME, start, &new);
    Tensor::constant(buffer.narrowed(TIME, 0, len).transposed(1, TIME))
}

/// Keys and values of consecutive positions of a sequence, in all layers: what sequences with a common beginning need not
/// compute again.
#[derive(Clone)]
pub struct KvBlock {
    layers: Vec<(Tensor, Tensor)>,
}

/// One [`LayerCache`] per layer.
#[derive(Default)]
pub struct KvCache {
    /// In layer order.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: (0..num_layers).map(|_| LayerCache::default()).collect() }
    }

    /// Promises that no more than `most` positions are stored, so that room is made for no more.
    pub fn limit(&mut self, most: usize) {
        self.layers.iter_mut().for_each(|layer| layer.most = Some(most));
    }

    /// Makes room for so many positions at once with the first that is stored, and for no more.
    pub fn reserve(&mut self, positions: usize) {
        self.limit(positions);
        self.layers.iter_mut().for_each(|layer| layer.reserved = positions);
    }

    /// The caches of several sequences as one, for a pass over new tokens of all of them end to end in one row, whose
    /// borders are the pass's runs. [`KvCache::split`] gives them back.
    pub fn join(sequences: Vec<Self>) -> Self {
        let mut layers: Vec<LayerCache> = Vec::new();
        for sequence in sequences {
            layers.resize_with(sequence.layers.len().max(layers.len()), LayerCache::default);
            layers.iter_mut().zip(sequence.layers).for_each(|(all, own)| all.sequences.push(own));
        }
        Self { layers }
    }

    /// The caches that were joined, in their order.
    pub fn split(self) -> Vec<Self> {
        let mut sequences: Vec<Self> = Vec::new();
        for layer in self.layers {
            sequences.resize_with(layer.sequences.len().max(sequences.len()), Self::default);
            sequences.iter_mut().zip(layer.sequences).for_each(|(own, layer)| own.layers.push(layer));
        }
        sequences
    }

    /// A copy of some positions, which must be stored.
    pub fn block(&self, positions: Range<usize>) -> KvBlock {
        KvBlock { layers: self.layers.iter().map(|layer| layer.copy(&positions)).collect() }
    }

    /// Stores the positions of a block after those that are there.
    pub fn append_block(&mut self, block: &KvBlock) {
        for (layer, (k, v)) in self.layers.iter_mut().zip(&block.layers) {
            layer.append(k, v);
        }
    }

    /// Positions stored so far.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes row n of the batch what row `rows[n]` was (beam search).
    pub fn select_rows(&mut self, rows: &[u32]) {
        self.layers.iter_mut().for_each(|layer| layer.select(rows));
    }

    /// Forgets the keys and values of the memory, which the next step makes again.
    pub fn forget_memory(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.memory = None);
    }

    /// Forgets every position from `len` on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
        }
    }
}
