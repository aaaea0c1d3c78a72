//! Rows of a table by index, and the sum of gradients back into it.

use crate::isa::isa;
use crate::parallel::{for_chunks, for_ranges};
use crate::simd::{Kernel, Simd, dispatch_on};

/// Rows that one piece of work copies.
const ROWS: usize = 64;
/// Columns that one piece of work adds up: several cache lines, so that two threads seldom share one.
const COLUMNS: usize = 64;
/// Below this many elements the pieces are not handed out.
const SMALL: usize = 16 * 1024;

/// `out[i] = table[ids[i]]`, rows of `width`. Panics where an id is outside the table.
pub fn embedding(out: &mut [f32], table: &[f32], ids: &[u32], width: usize) {
    assert_eq!(out.len(), ids.len() * width, "embedding: length of the result");
    check(table.len(), ids, width);
    for_chunks(out, ROWS * width, |at, out| {
        for (out, &id) in out.chunks_exact_mut(width).zip(&ids[at / width.max(1)..]) {
            out.copy_from_slice(&table[id as usize * width..][..width]);
        }
    });
}

/// `dtable[ids[i]] += dy[i]` for every i, in ascending order of i.
///
/// Threads share out the columns, not the ids: every sum is made by one thread in one order, whatever their number.
pub fn embedding_backward(dtable: &mut [f32], dy: &[f32], ids: &[u32], width: usize) {
    assert_eq!(dy.len(), ids.len() * width, "embedding_backward: length of dy");
    check(dtable.len(), ids, width);
    let columns = if dy.len() <= SMALL { width } else { COLUMNS };
    let table = Table(dtable.as_mut_ptr());
    for_ranges(width, columns, |range| {
        let table = &table;
        for (dy, &id) in dy.chunks_exact(width).zip(ids) {
            // SAFETY: the row is inside the table (checked above), and only this piece touches these columns.
            let row =
                unsafe { std::slice::from_raw_parts_mut(table.0.add(id as usize * width + range.start), range.len()) };
            dispatch_on(isa(), Add { row, dy: &dy[range.clone()] });
        }
    });
}

fn check(table: usize, ids: &[u32], width: usize) {
    assert!(ids.is_empty() || width > 0 && table.is_multiple_of(width), "embedding: table of {table}, rows of {width}");
    let rows = table / width.max(1);
    for &id in ids {
        assert!((id as usize) < rows, "embedding: id {id} of {rows}");
    }
}

/// The table's address, shared by pieces that write disjoint columns.
struct Table(*mut f32);
// SAFETY: every piece writes its own columns only.
unsafe impl Sync for Table {}

/// `row += dy`
struct Add<'a> {
    row: &'a mut [f32],
    dy: &'a [f32],
}
impl Kernel for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, dy) in self.row.chunks_mut(S::LANES).zip(self.dy.chunks(S::LANES)) {
            let sum = s.add(s.load_partial(row), s.load_partial(dy));
            s.store_partial(row, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::with_threads;
    use crate::rng::Rng;

    #[test]
    fn rows_are_gathered_and_their_gradients_are_summed_back() {
        for (vocab, count, width) in [(3, 0, 4), (1, 1, 1), (5, 9, 3), (7, 33, 17), (50, 100, 31), (40, 500, 200)] {
            let draw = Rng::new(1, "ids", 0);
            let ids: Vec<u32> = (0..count).map(|i| draw.below(i, vocab as u64) as u32).collect();
            let (mut table, mut dy) = (vec![0.0; vocab * width], vec![0.0; ids.len() * width]);
            Rng::new(1, "table", 0).fill_normal(&mut table, 0.0, 1.0);
            Rng::new(1, "dy", 0).fill_normal(&mut dy, 0.0, 1.0);
            let run = |threads| {
                let (mut out, mut dtable) = (vec![f32::NAN; ids.len() * width], vec![0.5; vocab * width]);
                with_threads(threads, || {
                    embedding(&mut out, &table, &ids, width);
                    embedding_backward(&mut dtable, &dy, &ids, width);
                });
                (out, dtable)
            };
            let (out, dtable) = run(1);
            assert_eq!(run(2), (out.clone(), dtable.clone()));
            let mut exact = vec![0.5_f32; vocab * width];
            for (i, &id) in ids.iter().enumerate() {
                for j in 0..width {
                    assert_eq!(out[i * width + j], table[id as usize * width + j]);
                    exact[id as usize * width + j] += dy[i * width + j];
                }
            }
            assert_eq!(dtable, exact, "sums are made in the order of the ids");
        }
    }

    #[test]
    #[should_panic(expected = "embedding: id 3 of 3")]
    fn an_id_outside_the_table_panics() {
        embedding(&mut [0.0; 2], &[0.0; 6], &[3], 2);
    }
}
