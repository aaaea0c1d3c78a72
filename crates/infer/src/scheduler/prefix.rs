//! Keys and values of beginnings that may come again: system prompts, conversations that go on.

use loam_models::{KvBlock, KvCache};
use rustc_hash::FxHashMap;

/// Blocks of tokens by what comes before them. A block belongs to one beginning alone: the tokens themselves are the key,
/// so no two beginnings can be taken for each other.
pub(super) struct PrefixStore {
    block: usize,
    nodes: FxHashMap<u64, Node>,
    /// The node after another one by its tokens. Starts are no nodes: 0 is that of the model alone.
    next: FxHashMap<(u64, Box<[u32]>), u64>,
    clock: u64,
    last_id: u64,
}

struct Node {
    parent: u64,
    tokens: Box<[u32]>,
    keys_and_values: KvBlock,
    used: u64,
    children: usize,
}

impl PrefixStore {
    /// A store of blocks of so many tokens.
    pub(super) fn new(block: usize) -> Self {
        Self { block, nodes: FxHashMap::default(), next: FxHashMap::default(), clock: 0, last_id: 0 }
    }

    /// Tokens whose keys and values are held.
    pub(super) fn tokens(&self) -> usize {
        self.nodes.len() * self.block
    }

    /// The nodes of the longest known beginning of `tokens`, the last token apart: it is the one whose logits are needed.
    fn find(&self, start: u64, tokens: &[u32]) -> Vec<u64> {
        let mut path = Vec::new();
        for part in tokens[..tokens.len().saturating_sub(1)].chunks_exact(self.block) {
            let at = path.last().copied().unwrap_or(start);
            match self.next.get(&(at, Box::from(part))) {
                Some(&id) => path.push(id),
                None => break,
            }
        }
        path
    }

    /// How many tokens of a beginning are known.
    pub(super) fn known(&self, start: u64, tokens: &[u32]) -> usize {
        self.find(start, tokens).len() * self.block
    }

    /// Fills an empty cache with what is known of a beginning; returns the number of its tokens.
    pub(super) fn fill(&mut self, start: u64, tokens: &[u32], cache: &mut KvCache) -> usize {
        let path = self.find(start, tokens);
        self.clock += 1;
        for id in &path {
            if let Some(node) = self.nodes.get_mut(id) {
                node.used = self.clock;
            }
        }
        let blocks: Vec<&KvBlock> = path.iter().map(|id| &self.nodes[id].keys_and_values).collect();
        let count = cache.usable(&blocks);
        cache.begin(&blocks[..count]);
        count * self.block
    }

    /// Keeps the whole blocks of `tokens`, whose keys and values are in `cache`, as long as there is room for so many
    /// tokens in all. What was used longest ago gives way.
    pub(super) fn keep(&mut self, start: u64, tokens: &[u32], cache: &KvCache, room: usize) {
        self.clock += 1;
        let mut at = start;
        for (index, part) in tokens.chunks_exact(self.block).enumerate() {
            let key = (at, Box::from(part));
            if let Some(&id) = self.next.get(&key) {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.used = self.clock;
                }
                at = id;
                continue;
            }
            self.shrink(room.saturating_sub(self.block));
            if self.tokens() + self.block > room {
                return;
            }
            self.last_id += 1;
            let first = index * self.block;
            let node = Node {
                parent: at,
                tokens: key.1.clone(),
                keys_and_values: cache.block(first..first + self.block),
                used: self.clock,
                children: 0,
            };
            if let Some(parent) = self.nodes.get_mut(&at) {
                parent.children += 1;
            }
            self.nodes.insert(self.last_id, node);
            self.next.insert(key, self.last_id);
            at = self.last_id;
        }
    }

    /// Forgets what was used longest ago until at most so many tokens are held, but nothing of the current call.
    pub(super) fn shrink(&mut self, room: usize) {
        while self.tokens() > room {
            let oldest = self.nodes.iter().filter(|(_, node)| node.children == 0 && node.used < self.clock);
            let Some((&id, _)) = oldest.min_by_key(|(id, node)| (node.used, **id)) else { return };
            self.forget(id);
        }
    }

    /// A new call begins: everything may give way.
    pub(super) fn tick(&mut self) {
        self.clock += 1;
    }

    fn forget(&mut self, id: u64) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.next.remove(&(node.parent, node.tokens));
        if let Some(parent) = self.nodes.get_mut(&node.parent) {
            parent.children -= 1;
        }
    }
}
