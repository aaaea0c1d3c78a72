//! Keys and values of the positions already seen.

use std::ops::Range;

use loam_kernels::parallel::map_mut;
use loam_tensor::{AttentionSpec, DType, Tensor};

use crate::kv_store::{KvType, Part, Room, Store};

/// What is forgotten of a sliding window is whole pieces of this length, a multiple of the tiles of keys that attention
/// walks: so the bits of what is left do not change.
const PIECE: usize = 128;

/// The cache of one attention layer.
#[derive(Default)]
pub struct LayerCache {
    keys: Store,
    values: Store,
    kind: KvType,
    /// Positions seen so far.
    len: usize,
    /// Positions at the beginning that are forgotten, since no query sees them any more.
    first: usize,
    /// The first position that is what was computed for it: those before it only fill a place.
    real: usize,
    /// How many positions a query sees, where that is limited.
    window: Option<usize>,
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
    /// Stores keys and values of new positions `[batch, time, kv_heads, head_dim]`; returns those of all positions that may
    /// still be seen.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        self.forget_unseen();
        let (start, room) = (self.len - self.first, self.room());
        self.len += k.size(1);
        self.keys.write(k, start, room, self.kind);
        self.values.write(v, start, room, self.kind);
        let len = self.len - self.first;
        (self.keys.read(len, k.raw().dtype()), self.values.read(len, v.raw().dtype()))
    }

    fn room(&self) -> Room {
        Room { least: self.reserved.saturating_sub(self.first), most: self.most.map(|most| most - self.first) }
    }

    /// The first position that must be there for the query at `position`, at a border.
    fn needed(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window) / PIECE * PIECE)
    }

    /// Forgets what lies before the window of the next query, now and then, so that little is moved.
    fn forget_unseen(&mut self) {
        let needed = self.needed(self.len);
        if let Some(window) = self.window
            && needed >= self.first + window.max(PIECE)
        {
            for store in [&mut self.keys, &mut self.values] {
                store.forget_first(needed - self.first, self.len - self.first);
            }
            self.first = needed;
        }
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
        let one = |index: usize, cache: &mut LayerCache| {
            let own = |x: &Tensor| x.narrow(1, borders[index], borders[index + 1] - borders[index]);
            let (k, v) = cache.append(&own(k), &own(v));
            own(q).attention(&k, &v, spec)
        };
        let parts = map_mut(&mut self.sequences, one);
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1)
    }

    /// A copy of the keys and values of some positions, if they are all there.
    fn copy(&self, positions: &Range<usize>) -> Option<(Part, Part)> {
        let start = positions.start.checked_sub(self.first).filter(|_| positions.start >= self.real)?;
        let own = start..positions.end - self.first;
        Some((self.keys.part(&own), self.values.part(&own)))
    }

    /// Stores the parts of a beginning, one after the other. Of those that no later query sees, any other takes the place.
    fn begin(&mut self, parts: &[Option<&(Part, Part)>], time: usize) {
        let total = parts.len() * time;
        self.first = self.needed(total);
        self.real = total - time * parts.iter().rev().take_while(|part| part.is_some()).count();
        let Some(any) = parts.iter().rev().find_map(|part| *part) else { return };
        for (index, part) in parts.iter().enumerate() {
            let (start, (keys, values)) = (index * time, part.unwrap_or(any));
            let skip = self.first.saturating_sub(start);
            if skip < time {
                let (at, room) = (start + skip - self.first, self.room());
                self.keys.put(keys, skip, at, room);
                self.values.put(values, skip, at, room);
            }
        }
        self.len = total;
    }

    /// Keys and values of the positions stored, `[batch, time, kv_heads, head_dim]` each.
    pub fn contents(&self) -> Option<(Tensor, Tensor)> {
        let len = self.len - self.first;
        let read = |store: &Store| store.read(len, DType::F32);
        self.keys.is_some().then(|| (read(&self.keys), read(&self.values)))
    }

    /// Rows `rows` of the batch, in that order, instead of all. The memory stays: it is the same for all rows.
    fn select(&mut self, rows: &[u32]) {
        self.keys.select(rows);
        self.values.select(rows);
    }
}

/// Keys and values of consecutive positions of a sequence, in all layers: what sequences with a common beginning need not
/// compute again.
#[derive(Clone)]
pub struct KvBlock {
    /// None of a layer that had forgotten them.
    layers: Vec<Option<(Part, Part)>>,
    time: usize,
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
        Self::with_windows(std::iter::repeat_n(None, num_layers), KvType::Full)
    }

    /// An empty cache of layers of which some see a limited number of positions: what no query sees any more is forgotten.
    pub fn with_windows(windows: impl IntoIterator<Item = Option<usize>>, kind: KvType) -> Self {
        let layer = |window| LayerCache { window, kind, ..LayerCache::default() };
        Self { layers: windows.into_iter().map(layer).collect() }
    }

    /// Bytes that keys and values take.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
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

    /// A copy of some positions.
    pub fn block(&self, positions: Range<usize>) -> KvBlock {
        KvBlock { layers: self.layers.iter().map(|layer| layer.copy(&positions)).collect(), time: positions.len() }
    }

    /// How many of these blocks, all of one length, can be the beginning of a sequence: each layer needs what the next query
    /// sees, and the last block.
    pub fn usable(&self, blocks: &[&KvBlock]) -> usize {
        let Some(time) = blocks.first().map(|block| block.time) else { return 0 };
        let is_there = |count: &usize| {
            self.layers.iter().enumerate().all(|(index, layer)| {
                let seen = layer.window.map_or(0, |window| (count * time + 1).saturating_sub(window) / time);
                (seen.min(count - 1)..*count).all(|block| blocks[block].layers[index].is_some())
            })
        };
        (1..=blocks.len()).rev().find(is_there).unwrap_or(0)
    }

    /// Fills an empty cache with blocks, all of which are [`KvCache::usable`].
    pub fn begin(&mut self, blocks: &[&KvBlock]) {
        let Some(time) = blocks.first().map(|block| block.time) else { return };
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let parts: Vec<_> = blocks.iter().map(|block| block.layers[index].as_ref()).collect();
            layer.begin(&parts, time);
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

    /// Forgets every position from `len` on, which must not lie before the last pass: windows have moved on.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            debug_assert!(len >= layer.first, "truncated to {len}, but positions from {} on are left", layer.first);
            layer.len = layer.len.min(len);
        }
    }
}
