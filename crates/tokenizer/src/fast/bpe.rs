//! Merging the symbols of one word, lowest rank first.

use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Above this many symbols a heap beats scanning for the lowest rank.
const LONG: usize = 48;

/// What each adjacent pair of symbols merges into: its rank (lower merges first) and the new symbol.
#[derive(Debug, Default)]
pub(crate) struct Merges(FxHashMap<u64, (u32, u32)>);

/// A pair of symbols as one key.
pub(crate) fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// From (left, right, merged) in order of rank. A pair given twice keeps its later rank, as in the reference.
    pub(crate) fn new(merges: impl IntoIterator<Item = (u32, u32, u32)>) -> Self {
        Self(merges.into_iter().zip(0..).map(|((l, r, new), rank)| (key(l, r), (rank, new))).collect())
    }

    fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.0.get(&key(left, right)).copied()
    }

    /// Merges the symbols of a word in place.
    pub(crate) fn apply(&self, symbols: &mut Vec<u32>) {
        if symbols.len() > LONG { self.apply_heap(symbols) } else { self.apply_scan(symbols) }
    }

    fn apply_scan(&self, symbols: &mut Vec<u32>) {
        const NONE: (u32, u32) = (u32::MAX, 0);
        let rank = |l, r| self.get(l, r).unwrap_or(NONE);
        let mut ranks = [NONE; LONG];
        for (slot, pair) in ranks.iter_mut().zip(symbols.windows(2)) {
            *slot = rank(pair[0], pair[1]);
        }
        while symbols.len() > 1 {
            let pairs = symbols.len() - 1;
            // `min_by_key` takes the first of equals: the leftmost pair.
            let Some((at, &(lowest, new))) = ranks[..pairs].iter().enumerate().min_by_key(|(_, r)| r.0) else { break };
            if lowest == u32::MAX {
                break;
            }
            symbols[at] = new;
            symbols.remove(at + 1);
            ranks.copy_within(at + 1..pairs, at);
            if at > 0 {
                ranks[at - 1] = rank(symbols[at - 1], new);
            }
            if at + 1 < symbols.len() {
                ranks[at] = rank(new, symbols[at + 1]);
            }
        }
    }

    /// The same for long words: candidates wait in a heap; one whose pair has changed meanwhile is dropped.
    fn apply_heap(&self, symbols: &mut Vec<u32>) {
        const GONE: u32 = u32::MAX;
        let n = symbols.len();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
        let mut heap: BinaryHeap<Reverse<(u32, usize, u64)>> = symbols
            .windows(2)
            .enumerate()
            .filter_map(|(i, w)| self.get(w[0], w[1]).map(|(rank, _)| Reverse((rank, i, key(w[0], w[1])))))
            .collect();
        while let Some(Reverse((_, at, expected))) = heap.pop() {
            let right = next[at];
            if symbols[at] == GONE || right >= n || key(symbols[at], symbols[right]) != expected {
                continue;
            }
            let Some((_, new)) = self.get(symbols[at], symbols[right]) else { continue };
            symbols[at] = new;
            symbols[right] = GONE;
            next[at] = next[right];
            if next[at] < n {
                previous[next[at]] = at;
            }
            for left in [previous[at], at] {
                if left < n && next[left] < n {
                    let pair = (symbols[left], symbols[next[left]]);
                    if let Some((rank, _)) = self.get(pair.0, pair.1) {
                        heap.push(Reverse((rank, left, key(pair.0, pair.1))));
                    }
                }
            }
        }
        symbols.retain(|s| *s != GONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scanning_and_the_heap_give_the_same_symbols() {
        let merges = Merges::new([(1, 2, 10), (1, 1, 11), (10, 3, 12), (11, 11, 13), (2, 1, 14), (12, 12, 15)]);
        let mut state = 1_u64;
        for length in 0..LONG {
            for _ in 0..50 {
                let symbols: Vec<u32> = (0..length)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        1 + (state >> 33) as u32 % 3
                    })
                    .collect();
                let (mut scanned, mut heaped) = (symbols.clone(), symbols);
                merges.apply_scan(&mut scanned);
                merges.apply_heap(&mut heaped);
                assert_eq!(scanned, heaped);
            }
        }
    }
}
