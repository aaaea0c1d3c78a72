//! Which documents share a row of a batch.
//!
//! Rows are filled best-fit decreasing: within a window of documents the longest comes first, each into the open row
//! where it leaves the least room. What is longer than a row is cut (or, for examples that must not be cut, shortened).
//! The plan is made once; the order of its rows changes with every epoch.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::permute::Permutation;

/// Documents that are sorted and packed together. Larger packs tighter and mixes less.
const WINDOW: u64 = 8192;

/// Tokens `start..start + len` of the corpus, all of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Position of the first token.
    pub start: u64,
    /// Number of tokens.
    pub len: u32,
    /// True if the document goes on after this piece.
    pub continues: bool,
}

/// What to do with a document that is longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// Cut it into pieces; every token is kept.
    Cut,
    /// Keep its beginning only.
    Shorten,
}

/// The rows of a corpus.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pieces: Vec<Piece>,
    ends: Vec<u32>,
    /// Documents that were shortened.
    pub shortened: u64,
}

impl Plan {
    /// Packs `documents` documents into rows of `seq_len` tokens.
    pub fn new(
        documents: u64,
        document: impl Fn(u64) -> Range<u64>,
        seq_len: usize,
        too_long: TooLong,
        seed: u64,
    ) -> Plan {
        let mut plan = Plan::default();
        let order = Permutation::new(documents, seed, "packing", 0);
        let mut window = Vec::new();
        for first in (0..documents).step_by(WINDOW as usize) {
            for place in first..documents.min(first + WINDOW) {
                plan.cut(document(order.at(place)), seq_len as u64, too_long, &mut window);
            }
            plan.pack(&mut window, seq_len as u32);
        }
        plan
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The pieces of a row.
    pub fn row(&self, index: u64) -> &[Piece] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        &self.pieces[start..self.ends[index] as usize]
    }

    /// The tokens in all rows.
    pub fn tokens(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }

    fn cut(&mut self, range: Range<u64>, seq_len: u64, too_long: TooLong, out: &mut Vec<Piece>) {
        if too_long == TooLong::Shorten && range.end - range.start > seq_len {
            self.shortened += 1;
            out.push(Piece { start: range.start, len: seq_len as u32, continues: true });
            return;
        }
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + seq_len);
            out.push(Piece { start, len: (end - start) as u32, continues: end < range.end });
            start = end;
        }
    }

    fn pack(&mut self, window: &mut Vec<Piece>, seq_len: u32) {
        window.sort_by_key(|piece| (std::cmp::Reverse(piece.len), piece.start));
        let mut rows: Vec<Vec<Piece>> = Vec::new();
        // Open rows by the room that is left; equal room goes to the older row.
        let mut room: BTreeSet<(u32, usize)> = BTreeSet::new();
        for piece in window.drain(..) {
            let found = room.range((piece.len, 0)..).next().copied();
            let (left, row) = found.unwrap_or_else(|| {
                rows.push(Vec::new());
                (seq_len, rows.len() - 1)
            });
            room.remove(&(left, row));
            rows[row].push(piece);
            if left > piece.len {
                room.insert((left - piece.len, row));
            }
        }
        for row in rows {
            self.pieces.extend(row);
            self.ends.push(self.pieces.len() as u32);
        }
    }
}

/// Which examples share a row, for examples that are never cut and may have two sides (a source and a target).
#[derive(Debug, Clone, Default)]
pub struct Groups {
    members: Vec<u64>,
    ends: Vec<usize>,
}

/// Examples that are sorted and packed together; each looks at all rows of its window.
const GROUP_WINDOW: u64 = 2048;

impl Groups {
    /// Packs `count` examples into rows with room for `room` tokens on each side. `sizes` gives an example's tokens on
    /// each side; what is more than a row is taken to be a row. Within a window of examples the largest comes first, each
    /// into the first open row that both sides fit.
    pub fn new(count: u64, sizes: impl Fn(u64) -> [usize; 2], room: [usize; 2], seed: u64) -> Groups {
        let mut groups = Groups::default();
        let order = Permutation::new(count, seed, "packing", 0);
        for first in (0..count).step_by(GROUP_WINDOW as usize) {
            let places = first..count.min(first + GROUP_WINDOW);
            let mut window: Vec<(u64, [usize; 2])> = places
                .map(|place| order.at(place))
                .map(|index| (index, std::array::from_fn(|side| sizes(index)[side].min(room[side]))))
                .collect();
            window.sort_by_key(|&(index, size)| (std::cmp::Reverse(size[0] + size[1]), index));
            groups.pack(&window, room);
        }
        groups
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.ends.len() as u64
    }

    /// The examples of a row.
    pub fn row(&self, index: u64) -> &[u64] {
        let index = index as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.members[start..self.ends[index]]
    }

    fn pack(&mut self, window: &[(u64, [usize; 2])], room: [usize; 2]) {
        let mut rows: Vec<(Vec<u64>, [usize; 2])> = Vec::new();
        for &(index, size) in window {
            let fits = |left: &[usize; 2]| size[0] <= left[0] && size[1] <= left[1];
            let row = rows.iter().position(|(_, left)| fits(left)).unwrap_or_else(|| {
                rows.push((Vec::new(), room));
                rows.len() - 1
            });
            let (members, left) = &mut rows[row];
            members.push(index);
            *left = [left[0] - size[0], left[1] - size[1]];
        }
        for (members, _) in rows {
            self.members.extend(members);
            self.ends.push(self.members.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_kernels::rng::Stream;

    fn documents(seed: u64, count: usize, longest: u64) -> Vec<Range<u64>> {
        let mut stream = Stream::new(seed, "test", 0);
        let mut at = 0;
        (0..count)
            .map(|_| {
                let start = at;
                at += 1 + stream.next_below(longest);
                start..at
            })
            .collect()
    }

    #[test]
    fn every_token_is_in_exactly_one_row_and_no_row_is_too_long() {
        for (seed, count, longest, seq_len) in [(1, 1, 5, 8), (2, 300, 20, 32), (3, 9000, 50, 64), (4, 50, 400, 33)] {
            let documents = documents(seed, count, longest);
            let plan = Plan::new(count as u64, |i| documents[i as usize].clone(), seq_len, TooLong::Cut, seed);
            let total = documents.last().unwrap().end;
            let mut seen = vec![0; total as usize];
            for row in 0..plan.rows() {
                let used: u32 = plan.row(row).iter().map(|piece| piece.len).sum();
                assert!(used as usize <= seq_len && used > 0);
                for piece in plan.row(row) {
                    let range = piece.start..piece.start + u64::from(piece.len);
                    assert!(documents.iter().any(|d| d.start <= range.start && range.end <= d.end));
                    assert_eq!(piece.continues, !documents.iter().any(|d| d.end == range.end));
                    range.for_each(|token| seen[token as usize] += 1);
                }
            }
            assert!(seen.iter().all(|&times| times == 1));
            assert_eq!(plan.tokens(), total);
        }
    }

    #[test]
    fn rows_are_nearly_full() {
        let documents = documents(5, 20_000, 60);
        let plan = Plan::new(20_000, |i| documents[i as usize].clone(), 128, TooLong::Cut, 0);
        let fill = plan.tokens() as f64 / (plan.rows() * 128) as f64;
        assert!(fill > 0.99, "{fill}");
    }

    #[test]
    fn a_long_example_is_shortened_and_counted() {
        let plan = Plan::new(2, |i| [0..10, 10..13][i as usize].clone(), 4, TooLong::Shorten, 0);
        assert_eq!((plan.tokens(), plan.shortened), (7, 1));
    }

    #[test]
    fn every_example_is_in_one_row_whose_two_sides_fit() {
        let mut stream = Stream::new(8, "test", 0);
        let sizes: Vec<[usize; 2]> =
            (0..9000).map(|_| [1 + stream.next_below(40) as usize, 1 + stream.next_below(20) as usize]).collect();
        let groups = Groups::new(9000, |i| sizes[i as usize], [64, 32], 3);
        let mut seen = vec![0; 9000];
        for row in 0..groups.rows() {
            let used = |side: usize| groups.row(row).iter().map(|&i| sizes[i as usize][side]).sum::<usize>();
            assert!(used(0) <= 64 && used(1) <= 32 && !groups.row(row).is_empty());
            groups.row(row).iter().for_each(|&i| seen[i as usize] += 1);
        }
        assert!(seen.iter().all(|&times| times == 1));
        let fill = sizes.iter().map(|size| size[0]).sum::<usize>() as f64 / (groups.rows() * 64) as f64;
        assert!(fill > 0.9, "{fill}");
    }

    #[test]
    fn an_example_larger_than_a_row_has_a_row_to_itself() {
        let groups = Groups::new(3, |i| [[9, 1], [2, 1], [2, 1]][i as usize], [4, 4], 0);
        let rows: Vec<usize> = (0..groups.rows()).map(|row| groups.row(row).len()).collect();
        assert_eq!(rows, [1, 2]);
    }
}
