//! Keys and values of the positions already seen.

use loam_tensor::{DType, Device, Raw, Tensor};

/// Positions that a fresh or grown cache has room for, at least.
const MIN_CAPACITY: usize = 64;

/// The cache of one attention layer: `[batch, kv_heads, capacity, head_dim]`, of which the first positions are filled.
/// A head's keys lie one after the other, so that decoding streams them: side by side with those of other heads they
/// come at a sixth of the speed.
#[derive(Default)]
pub struct LayerCache {
    keys: Option<Raw>,
    values: Option<Raw>,
    len: usize,
    /// Keys and values of the memory, for cross-attention.
    pub(crate) memory: Option<(Tensor, Tensor)>,
}

impl LayerCache {
    /// Stores keys and values of new positions `[batch, time, kv_heads, head_dim]`; returns those of all positions.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let start = self.len;
        self.len += k.size(1);
        (store(&mut self.keys, k, start), store(&mut self.values, v, start))
    }

    /// Keys and values of the positions stored, `[batch, time, kv_heads, head_dim]` each.
    pub fn contents(&self) -> Option<(Tensor, Tensor)> {
        let filled = |raw: &Raw| Tensor::constant(raw.narrowed(TIME, 0, self.len).transposed(1, TIME));
        Some((filled(self.keys.as_ref()?), filled(self.values.as_ref()?)))
    }

    /// Rows `rows` of the batch, in that order, instead of all. The memory stays: it is the same for all rows.
    fn select(&mut self, rows: &[u32]) {
        for slot in [&mut self.keys, &mut self.values].into_iter().flatten() {
            let mut picked = Raw::empty(DType::F32, slot.shape().with(0, rows.len()));
            for (place, &row) in rows.iter().enumerate() {
                Device::Cpu.backend().write_region(&mut picked, 0, place, &slot.narrowed(0, row as usize, 1));
            }
            *slot = picked;
        }
    }
}

/// Axis of the positions in a cache.
const TIME: usize = 2;

fn store(slot: &mut Option<Raw>, new: &Tensor, start: usize) -> Tensor {
    let backend = Device::Cpu.backend();
    let new = new.raw().transposed(1, TIME);
    let len = start + new.shape()[TIME];
    let capacity = slot.as_ref().map_or(0, |raw| raw.shape()[TIME]);
    if capacity < len {
        let mut grown = Raw::empty(DType::F32, new.shape().with(TIME, (2 * capacity).max(len).max(MIN_CAPACITY)));
        if let Some(old) = slot.take() {
            backend.write_region(&mut grown, TIME, 0, &old.narrowed(TIME, 0, start));
        }
        *slot = Some(grown);
    }
    let buffer = slot.as_mut().expect("room was just made");
    backend.write_region(buffer, TIME, start, &new);
    Tensor::constant(buffer.narrowed(TIME, 0, len).transposed(1, TIME))
}

/// One [`LayerCache`] per layer.
pub struct KvCache {
    /// In layer order.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(num_layers: usize) -> Self {
        Self { layers: (0..num_layers).map(|_| LayerCache::default()).collect() }
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
