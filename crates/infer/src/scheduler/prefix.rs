//! Keys and values of beginnings that may come again: system prompts, conversations that go on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use loam_models::{KV_PAGE, KvCache, KvPage};
use rustc_hash::FxHashMap;

/// Blocks of tokens by what comes before them. A block belongs to one beginning alone: the tokens themselves are the key,
/// so no two beginnings can be taken for each other.
///
/// What a block says of keys and values is the page that it lies in. What counts is pages, each once, whoever has it: the
/// blocks of a beginning, those of several that part ways later, and the texts that hold it while they run.
pub(super) struct PrefixStore {
    block: usize,
    nodes: FxHashMap<u64, Node>,
    /// The node after another one by its tokens. Starts are no nodes: 0 is that of the model alone.
    next: FxHashMap<(u64, Box<[u32]>), u64>,
    pages: Pages,
    clock: u64,
    last_id: u64,
}

struct Node {
    parent: u64,
    tokens: Box<[u32]>,
    page: Arc<KvPage>,
    used: u64,
    children: usize,
}

/// What is known of a beginning.
pub(super) struct Known {
    tokens: usize,
    pages: Vec<Arc<KvPage>>,
}

impl Known {
    /// That nothing is.
    pub(super) fn nothing() -> Self {
        Self { tokens: 0, pages: Vec::new() }
    }

    /// How many of its tokens are known.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// That alone which is shared for good.
    pub(super) fn into_whole(mut self) -> Self {
        self.tokens = self.shared_tokens();
        self.pages.truncate(self.tokens / KV_PAGE);
        self
    }

    /// The pages that nobody writes to: whole ones.
    fn whole(&self) -> &[Arc<KvPage>] {
        &self.pages[..self.tokens / KV_PAGE]
    }

    /// Tokens in them.
    pub(super) fn shared_tokens(&self) -> usize {
        self.whole().len() * KV_PAGE
    }
}

/// Who has which pages, by their identity.
#[derive(Default)]
struct Pages {
    uses: FxHashMap<usize, Uses>,
    /// Positions of all of them, and of those that running texts hold.
    positions: usize,
    held: usize,
}

#[derive(Default)]
struct Uses {
    nodes: usize,
    holders: usize,
}

impl Pages {
    /// Pages of which nothing is left count, too: their blocks take some memory.
    fn identity(page: &Arc<KvPage>) -> usize {
        page.identity().unwrap_or(Arc::as_ptr(page) as usize)
    }

    fn has(&self, page: &Arc<KvPage>) -> bool {
        self.uses.contains_key(&Self::identity(page))
    }

    fn is_held(&self, page: &Arc<KvPage>) -> bool {
        self.uses.get(&Self::identity(page)).is_some_and(|uses| uses.holders > 0)
    }

    /// Changes who has a page.
    fn change(&mut self, page: &Arc<KvPage>, change: impl FnOnce(&mut Uses)) {
        let identity = Self::identity(page);
        let uses = self.uses.entry(identity).or_default();
        let (was_there, was_held) = (uses.nodes + uses.holders > 0, uses.holders > 0);
        change(uses);
        let (is_there, is_held) = (uses.nodes + uses.holders > 0, uses.holders > 0);
        if !is_there {
            self.uses.remove(&identity);
        }
        let positions = |is: bool| if is { page.positions() } else { 0 };
        self.positions = self.positions + positions(is_there) - positions(was_there);
        self.held = self.held + positions(is_held) - positions(was_held);
    }
}

impl PrefixStore {
    /// A store of blocks of so many tokens, which divide a page.
    pub(super) fn new(block: usize) -> Self {
        let (nodes, next) = (FxHashMap::default(), FxHashMap::default());
        Self { block, nodes, next, pages: Pages::default(), clock: 0, last_id: 0 }
    }

    /// Tokens that there is room taken for.
    pub(super) fn tokens(&self) -> usize {
        self.pages.positions
    }

    /// Those of pages that running texts hold.
    pub(super) fn held_tokens(&self) -> usize {
        self.pages.held
    }

    /// The nodes of the longest known beginning of a prompt, the last token apart: it is the one whose logits are needed.
    fn find(&self, start: u64, prompt: &[u32]) -> Vec<u64> {
        self.path(start, &prompt[..prompt.len().saturating_sub(1)])
    }

    /// The nodes of the longest known beginning of `tokens`.
    fn path(&self, start: u64, tokens: &[u32]) -> Vec<u64> {
        let mut path = Vec::new();
        for part in tokens.chunks_exact(self.block) {
            let at = path.last().copied().unwrap_or(start);
            match self.next.get(&(at, Box::from(part))) {
                Some(&id) => path.push(id),
                None => break,
            }
        }
        path
    }

    /// How many tokens of a beginning are known.
    pub(super) fn known_tokens(&self, start: u64, tokens: &[u32]) -> usize {
        self.find(start, tokens).len() * self.block
    }

    /// What is known of a beginning that a cache like this one can begin with.
    pub(super) fn known(&self, start: u64, tokens: &[u32], cache: &KvCache) -> Known {
        let path = self.find(start, tokens);
        let all = path.len() * self.block;
        // The last block of a page knows most of it.
        let last = |page: usize| &self.nodes[&path[(all.min((page + 1) * KV_PAGE) - 1) / self.block]].page;
        let pages: Vec<&Arc<KvPage>> = (0..all.div_ceil(KV_PAGE)).map(last).collect();
        let looked_at: Vec<&KvPage> = pages.iter().map(|page| &***page).collect();
        let tokens = cache.usable(&looked_at, all, self.block);
        Known { tokens, pages: pages[..tokens.div_ceil(KV_PAGE)].iter().copied().cloned().collect() }
    }

    /// Of what is known of a beginning the whole pages that are this cache's own.
    pub(super) fn kept_of(&self, start: u64, tokens: &[u32], cache: &KvCache) -> Known {
        let mut known = self.known(start, tokens, cache);
        let own =
            known.whole().iter().enumerate().take_while(|(index, page)| cache.holds(page, index * KV_PAGE)).count();
        known.pages.truncate(own);
        known.tokens = own * KV_PAGE;
        known
    }

    /// Tokens of what a text would share that no running text holds yet.
    pub(super) fn newly_held(&self, known: &Known) -> usize {
        known.whole().iter().filter(|page| !self.pages.is_held(page)).count() * KV_PAGE
    }

    /// Lets an empty cache begin with what is known, and holds what it shares.
    pub(super) fn begin(&mut self, (start, tokens): (u64, &[u32]), known: &Known, cache: &mut KvCache) {
        self.clock += 1;
        self.find(start, tokens).iter().for_each(|id| self.use_now(id));
        cache.begin(&known.pages.iter().map(|page| &**page).collect::<Vec<_>>(), known.tokens);
        self.hold(known);
    }

    fn use_now(&mut self, id: &u64) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.used = self.clock;
        }
    }

    /// What a running text shares counts until it is [released](Self::release).
    pub(super) fn hold(&mut self, known: &Known) {
        known.whole().iter().for_each(|page| self.pages.change(page, |uses| uses.holders += 1));
    }

    /// A text is over that began with this.
    pub(super) fn release(&mut self, known: &Known) {
        known.whole().iter().for_each(|page| self.pages.change(page, |uses| uses.holders -= 1));
    }

    /// Keeps the whole blocks of `tokens`, whose keys and values are in `cache`, as long as there is room for so many
    /// tokens in all. What was used longest ago gives way.
    pub(super) fn keep(&mut self, start: u64, tokens: &[u32], cache: &KvCache, room: usize) {
        self.clock += 1;
        let whole = tokens.len() / self.block * self.block;
        // What is there already gives way to nothing.
        self.path(start, tokens).iter().for_each(|id| self.use_now(id));
        let pages: Vec<Arc<KvPage>> = cache.pages(whole).into_iter().map(Arc::new).collect();
        let mut at = start;
        for (index, part) in tokens.chunks_exact(self.block).enumerate() {
            let (key, page) = ((at, Box::from(part)), &pages[index * self.block / KV_PAGE]);
            let known = self.next.get(&key).copied();
            let is_better = known.is_none_or(|id| page.has_more_than(&self.nodes[&id].page));
            if is_better && !self.pages.has(page) {
                if self.held_tokens() + page.positions() > room {
                    return;
                }
                self.shrink(room.saturating_sub(page.positions()));
                if self.tokens() + page.positions() > room {
                    return;
                }
            }
            at = match known {
                Some(id) => id,
                None => self.add(key, page),
            };
            if let (Some(id), true) = (known, is_better) {
                self.renew(id, page);
            }
        }
    }

    /// Gives a node a page of which more is there.
    fn renew(&mut self, id: u64, page: &Arc<KvPage>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            self.pages.change(page, |uses| uses.nodes += 1);
            self.pages.change(&node.page, |uses| uses.nodes -= 1);
            node.page = Arc::clone(page);
        }
    }

    fn add(&mut self, key: (u64, Box<[u32]>), page: &Arc<KvPage>) -> u64 {
        self.last_id += 1;
        let (parent, tokens) = key.clone();
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
        self.pages.change(page, |uses| uses.nodes += 1);
        let node = Node { parent, tokens, page: Arc::clone(page), used: self.clock, children: 0 };
        self.nodes.insert(self.last_id, node);
        self.next.insert(key, self.last_id);
        self.last_id
    }

    /// Forgets what was used longest ago until there is room taken for at most so many tokens, but nothing of the current
    /// call, and nothing of pages that running texts hold: that would free no room.
    pub(super) fn shrink(&mut self, room: usize) {
        if self.tokens() <= room {
            return;
        }
        let ends = self.nodes.keys().filter_map(|id| self.forgettable(*id));
        let mut ends: BinaryHeap<Reverse<(u64, u64)>> = ends.map(Reverse).collect();
        while self.tokens() > room
            && let Some(Reverse((_, id))) = ends.pop()
        {
            let parent = self.forget(id);
            ends.extend(parent.and_then(|parent| self.forgettable(parent)).map(Reverse));
        }
    }

    /// When a node was used, and its name, if it may be forgotten now.
    fn forgettable(&self, id: u64) -> Option<(u64, u64)> {
        let node = self.nodes.get(&id)?;
        let may_go = node.children == 0 && node.used < self.clock && !self.pages.is_held(&node.page);
        may_go.then_some((node.used, id))
    }

    /// A new call begins: everything may give way.
    pub(super) fn tick(&mut self) {
        self.clock += 1;
    }

    /// Returns the node before it.
    fn forget(&mut self, id: u64) -> Option<u64> {
        let node = self.nodes.remove(&id)?;
        self.pages.change(&node.page, |uses| uses.nodes -= 1);
        self.next.remove(&(node.parent, node.tokens));
        let parent = self.nodes.get_mut(&node.parent)?;
        parent.children -= 1;
        Some(node.parent)
    }
}
