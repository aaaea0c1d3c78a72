//! Keys and values of the positions already seen.

use std::ops::Range;
use std::sync::Arc;

use loam_kernels::attention::PAGE;
use loam_kernels::parallel::map_mut;
use loam_tensor::{AttentionSpec, Tensor};

use crate::kv_store::{KvType, Page, Store};

/// The cache of one attention layer.
#[derive(Clone, Default)]
pub struct LayerCache {
    keys: Store,
    values: Store,
    kind: KvType,
    /// Positions seen so far.
    len: usize,
    /// Positions at the beginning that are forgotten, since no query sees them any more: whole pages, so that tiles of keys,
    /// and with them the bits of what is left, stay as they are.
    first: usize,
    /// How many positions a query sees, where that is limited.
    window: Option<usize>,
    /// Positions that are never exceeded, where that is known: room is made up to there at most.
    most: Option<usize>,
    /// Keys and values of the memory, for cross-attention.
    pub(crate) memory: Option<(Tensor, Tensor)>,
    /// Where several sequences run in one row: the cache of each, instead of all the above.
    sequences: Vec<LayerCache>,
}

impl LayerCache {
    /// Stores keys and values of new positions, `[batch, time, kv_heads, head_dim]`.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) {
        self.forget_unseen();
        let (start, most) = (self.len - self.first, self.most.map(|most| most - self.first));
        self.len += k.size(1);
        self.keys.write(k, start, most, self.kind);
        self.values.write(v, start, most, self.kind);
    }

    /// Stores keys and values of new positions; attention of their queries to all that they may still see.
    pub(crate) fn attend(&mut self, [q, k, v]: [&Tensor; 3], spec: &AttentionSpec) -> Tensor {
        self.append(k, v);
        let len = self.len - self.first;
        q.attention_in_pages([&self.keys.views(len), &self.values.views(len)], (len, k.size(2)), spec)
    }

    /// The first position that must be there for the query at `position`, at a border.
    fn needed(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window) / PAGE * PAGE)
    }

    /// Forgets the pages before the window of the next query, now and then.
    fn forget_unseen(&mut self) {
        let needed = self.needed(self.len);
        // What lies a little before the window may be the beginning of another text.
        if self.window.is_some_and(|window| needed >= self.first + window.max(PAGE)) {
            self.keys.forget_first(needed - self.first);
            self.values.forget_first(needed - self.first);
            self.first = needed;
        }
    }

    /// Whether this is the cache of several sequences; then [`LayerCache::attend_in_runs`] takes the place of
    /// [`LayerCache::attend`].
    pub(crate) fn is_joined(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Attention of several sequences that lie end to end in one row, `borders` apart. Each sees its own earlier positions
    /// and gets the bits that it would get alone.
    pub(crate) fn attend_in_runs(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        borders: &[usize],
        spec: &AttentionSpec,
    ) -> Tensor {
        assert_eq!(borders.len(), self.sequences.len() + 1, "attention: borders of the cached sequences");
        let one = |index: usize, cache: &mut LayerCache| {
            let own = |x: &Tensor| x.narrow(1, borders[index], borders[index + 1] - borders[index]);
            cache.attend([&own(q), &own(k), &own(v)], spec)
        };
        let parts = map_mut(&mut self.sequences, one);
        Tensor::concat(&parts.iter().collect::<Vec<_>>(), 1)
    }

    /// The page of some positions that begin one, if it is there: shared where they fill it, else a copy of them alone.
    fn page(&self, positions: &Range<usize>) -> Option<PagePair> {
        let start = positions.start.checked_sub(self.first)?;
        let (keys, values) = (self.keys.page(start)?, self.values.page(start)?);
        Some(match positions.len() {
            PAGE => (keys.clone(), values.clone()),
            len => (Arc::new(keys.copied(len, len)), Arc::new(values.copied(len, len))),
        })
    }

    /// Begins with `len` positions in these pages.
    fn begin(&mut self, pages: &[Option<&PagePair>], len: usize) {
        (self.len, self.first) = (len, self.needed(len));
        let needed = pages[self.first / PAGE..].iter().copied().map(Option::<&PagePair>::cloned);
        let whole = |page: Option<PagePair>| page.unwrap_or_else(|| panic!("cache: a beginning without its pages"));
        let (keys, values) = needed.map(whole).unzip();
        (self.keys, self.values) = (Store::of(keys), Store::of(values));
    }

    /// Keys and values of the positions stored, `[batch, time, kv_heads, head_dim]` each.
    pub fn contents(&self) -> Option<(Tensor, Tensor)> {
        let len = self.len - self.first;
        let read = |store: &Store| store.read(len);
        self.keys.is_some().then(|| (read(&self.keys), read(&self.values)))
    }

    /// Rows `rows` of the batch, in that order, instead of all. The memory stays: it is the same for all rows.
    fn select(&mut self, rows: &[u32]) {
        self.keys.select(rows);
        self.values.select(rows);
    }
}

/// A page of keys and one of values.
type PagePair = (Arc<Page>, Arc<Page>);

/// Keys and values of the positions of a page, or of its first ones, in all layers: what sequences with a common beginning
/// need neither compute nor hold twice.
pub struct KvPage {
    /// None of a layer that had forgotten them.
    layers: Vec<Option<PagePair>>,
    positions: usize,
}

impl KvPage {
    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// What tells these pages from others, as long as somebody has them; none of pages that all layers had forgotten.
    pub fn identity(&self) -> Option<usize> {
        self.layers.iter().flatten().next().map(|(keys, _)| Arc::as_ptr(keys) as usize)
    }

    /// Whether more of the page is here than in another, of positions or of layers, and nothing less.
    pub fn has_more_than(&self, other: &Self) -> bool {
        let size = |page: &Self| (page.positions, page.layers.iter().flatten().count());
        let (own, other) = (size(self), size(other));
        own.0 >= other.0 && own.1 >= other.1 && own != other
    }
}

/// Positions of a page of keys and values: what caches share is whole pages.
pub const KV_PAGE: usize = PAGE;

/// One [`LayerCache`] per layer. A clone shares the pages until either is written to.
#[derive(Clone, Default)]
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

    /// The pages of the first `len` positions, to begin other caches with: whole ones are shared, the rest is a copy.
    pub fn pages(&self, len: usize) -> Vec<KvPage> {
        let page = |start: usize| {
            let positions = start..len.min(start + PAGE);
            let layers = self.layers.iter().map(|layer| layer.page(&positions)).collect();
            KvPage { layers, positions: positions.len() }
        };
        (0..len).step_by(PAGE).map(page).collect()
    }

    /// Whether the page that begins at `start` is this cache's own in every layer that has it, and some layer does.
    pub fn holds(&self, page: &KvPage, start: usize) -> bool {
        let own = |layer: &LayerCache| Some(Arc::clone(layer.keys.page(start.checked_sub(layer.first)?)?));
        let pairs = self.layers.iter().map(own).zip(&page.layers);
        let mut found = pairs.filter_map(|(own, page)| Some((own?, page))).peekable();
        found.peek().is_some()
            && found.all(|(own, page)| page.as_ref().is_some_and(|(keys, _)| Arc::ptr_eq(&own, keys)))
    }

    /// Of `len` positions in pages the most, in steps of `step`, that can be the beginning of a sequence: each layer needs the
    /// pages that the next query sees.
    pub fn usable(&self, pages: &[&KvPage], len: usize, step: usize) -> usize {
        let is_there = |len: &usize| {
            self.layers.iter().enumerate().all(|(index, layer)| {
                let needed = layer.needed(*len).min(len - 1) / PAGE..len.div_ceil(PAGE);
                pages[needed].iter().all(|page| page.layers[index].is_some())
            })
        };
        (1..=len / step).rev().map(|steps| steps * step).find(is_there).unwrap_or(0)
    }

    /// Lets an empty cache begin with `len` positions in pages that are [`KvCache::usable`]. Nothing is copied until it is
    /// written to.
    pub fn begin(&mut self, pages: &[&KvPage], len: usize) {
        if len == 0 {
            return;
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let pages: Vec<_> = pages[..len.div_ceil(PAGE)].iter().map(|page| page.layers[index].as_ref()).collect();
            layer.begin(&pages, len);
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
            if len == 0 {
                (layer.keys, layer.values, layer.first) = (Store::default(), Store::default(), 0);
            }
            debug_assert!(len >= layer.first, "truncated to {len}, but positions from {} on are left", layer.first);
            layer.len = layer.len.min(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_tensor::no_grad;

    /// `time` positions of two heads of 32 numbers that tell where they are from.
    fn numbers(from: f32, time: usize) -> Tensor {
        let values: Vec<f32> = (0..time * 64).map(|i| from + (i / 64) as f32).collect();
        Tensor::from_slice(&values, [1, time, 2, 32])
    }

    fn add(cache: &mut KvCache, from: f32, time: usize) {
        let new = numbers(from, time);
        no_grad(|| cache.layers.iter_mut().for_each(|layer| layer.append(&new, &new)));
    }

    /// The number of each position.
    fn seen(cache: &KvCache) -> Vec<f32> {
        let (keys, values) = cache.layers[0].contents().expect("something is stored");
        assert_eq!(keys.to_vec(), values.to_vec());
        keys.to_vec().into_iter().step_by(64).collect()
    }

    fn counted(from: usize, to: usize) -> Vec<f32> {
        (from..to).map(|x| x as f32).collect()
    }

    #[test]
    fn who_writes_into_a_shared_page_changes_nobody_elses() {
        for kind in [KvType::Full, KvType::F16, KvType::Bf16] {
            let new = || KvCache::with_windows([None], kind);
            let mut first = new();
            first.limit(PAGE + 20);
            add(&mut first, 0.0, PAGE + 10);
            let pages = first.pages(PAGE + 8);
            let pages: Vec<&KvPage> = pages.iter().collect();
            assert_eq!([pages[0].positions(), pages[1].positions()], [PAGE, 8]);
            let mut second = new();
            second.begin(&pages, PAGE + 8);
            assert_eq!(seen(&second), counted(0, PAGE + 8));
            add(&mut second, 250.0, 2);
            // More than the page had room for.
            add(&mut first, (PAGE + 10) as f32, 100);
            let mut third = new();
            third.begin(&pages, 24);
            add(&mut third, 64.0, 1);
            assert_eq!(seen(&second), [counted(0, PAGE + 8), vec![250.0, 251.0]].concat(), "{}", kind.name());
            assert_eq!(seen(&first), counted(0, PAGE + 110));
            assert_eq!(seen(&third), [counted(0, 24), vec![64.0]].concat());
            assert!(first.holds(pages[0], 0) && second.holds(pages[0], 0) && !third.holds(pages[0], 0));
            assert!(!first.holds(pages[1], PAGE) && !second.holds(pages[1], PAGE));
            let copy = first.clone();
            add(&mut first, 1.0, 1);
            assert_eq!((copy.len(), first.len()), (PAGE + 110, PAGE + 111));
            assert_eq!(seen(&copy), counted(0, PAGE + 110));
        }
    }

    #[test]
    fn a_window_forgets_whole_pages_and_beginnings_need_what_it_sees() {
        let mut cache = KvCache::with_windows([Some(100)], KvType::Full);
        for at in 0..50 {
            add(&mut cache, 10.0 * at as f32, 10);
        }
        // The query at 500 sees keys from 401 on, and 384 is the border before.
        add(&mut cache, 500.0, 1);
        assert_eq!(seen(&cache), counted(384, 501));
        let pages = cache.pages(496);
        let pages: Vec<&KvPage> = pages.iter().collect();
        assert_eq!(cache.usable(&pages, 496, 16), 496);
        // What a query at 400 sees is gone.
        assert_eq!(cache.usable(&pages, 400, 16), 0);
        assert!(!cache.holds(pages[3], 384) && !cache.holds(pages[0], 0), "a copy, and nothing");
        let mut other = KvCache::with_windows([Some(100)], KvType::Full);
        other.begin(&pages, 496);
        assert_eq!((other.len(), seen(&other)), (496, counted(384, 496)));
        other.truncate(0);
        assert!(other.is_empty() && other.bytes() == 0);
    }
}
