//! Splitting work into pieces whose borders depend on the size of the problem alone.
//!
//! The number of threads must never change a result. So every helper here cuts at multiples of a fixed chunk, each
//! piece is computed by one thread, and partial results are combined in index order. Where one piece is all there is,
//! the caller's thread does it and rayon is not touched.
//!
//! The rayon pool in force is the caller's: run a whole computation inside `ThreadPool::install`, since entering the
//! pool from outside costs a hand-over per call. Within [`crate::with_team`] the pool's threads stand by.

use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements per piece for element-wise work: 64 KiB of f32, a few microseconds of memory traffic.
pub const CHUNK: usize = 16 * 1024;

/// Upper bound of the pieces of a reduction, so that partial results fit on the stack.
const MAX_PARTIALS: usize = 64;

/// Calls `work` for each of so many pieces. The pool hands neighbours out together as long as nobody idles.
pub fn for_pieces(pieces: usize, work: impl Fn(usize) + Sync) {
    for_each(pieces, usize::MAX, work);
}

/// The same for pieces that differ in size: each is handed out by itself.
pub fn for_uneven_pieces(pieces: usize, work: impl Fn(usize) + Sync) {
    for_each(pieces, 1, work);
}

fn for_each(pieces: usize, together: usize, work: impl Fn(usize) + Sync) {
    match pieces {
        0 => {}
        1 => work(0),
        _ if crate::team::run(pieces, &work) => {}
        _ => (0..pieces).into_par_iter().with_max_len(together).for_each(&work),
    }
}

/// Calls `work` for each piece of `0..len`.
pub fn for_ranges(len: usize, chunk: usize, work: impl Fn(Range<usize>) + Sync) {
    let chunk = chunk.max(1);
    for_pieces(len.div_ceil(chunk), |i| work(i * chunk..((i + 1) * chunk).min(len)));
}

/// A slice in pieces that are written at the same time.
struct Cut<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: a piece goes to one thread, which may have a `&mut T` of a `T: Send`.
unsafe impl<T: Send> Sync for Cut<'_, T> {}

impl<'a, T> Cut<'a, T> {
    fn new(slice: &'a mut [T], chunk: usize) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), chunk: chunk.max(1), slice: PhantomData }
    }

    fn pieces(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    /// # Safety
    /// No piece may be asked for twice as long as the first answer is in use.
    #[allow(clippy::mut_from_ref, reason = "pieces do not overlap")]
    unsafe fn piece(&self, index: usize) -> &mut [T] {
        let first = index * self.chunk;
        assert!(first < self.len);
        // SAFETY: inside the slice, which is borrowed for as long; nobody else has this piece.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), self.chunk.min(self.len - first)) }
    }
}

/// Calls `work(offset, piece)` for each piece of `out`.
pub fn for_chunks<T: Send>(out: &mut [T], chunk: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let out = Cut::new(out, chunk);
    // SAFETY: each index comes once, here and below.
    for_pieces(out.pieces(), |i| work(i * out.chunk, unsafe { out.piece(i) }));
}

/// Calls `work(index, piece of a, piece of b)`: the i-th piece of each, cut by its own chunk size.
///
/// Both must have the same number of pieces.
pub fn for_chunks2<A: Send, B: Send>(
    (a, chunk_a): (&mut [A], usize),
    (b, chunk_b): (&mut [B], usize),
    work: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (a, b) = (Cut::new(a, chunk_a), Cut::new(b, chunk_b));
    assert_eq!(a.pieces(), b.pieces(), "for_chunks2: both slices must have the same number of pieces");
    // SAFETY: see `for_chunks`.
    for_pieces(a.pieces(), |i| unsafe { work(i, a.piece(i), b.piece(i)) });
}

/// Like [`for_chunks2`] for three slices.
pub fn for_chunks3<A: Send, B: Send, C: Send>(
    (a, chunk_a): (&mut [A], usize),
    (b, chunk_b): (&mut [B], usize),
    (c, chunk_c): (&mut [C], usize),
    work: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
) {
    let (a, b, c) = (Cut::new(a, chunk_a), Cut::new(b, chunk_b), Cut::new(c, chunk_c));
    assert_eq!(a.pieces(), b.pieces(), "for_chunks3: all slices must have the same number of pieces");
    assert_eq!(a.pieces(), c.pieces(), "for_chunks3: all slices must have the same number of pieces");
    // SAFETY: see `for_chunks`.
    for_pieces(a.pieces(), |i| unsafe { work(i, a.piece(i), b.piece(i), c.piece(i)) });
}

/// What `work(index, item)` gives for each item, in order.
pub fn map_mut<T: Send, R: Send>(items: &mut [T], work: impl Fn(usize, &mut T) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for_chunks2((items, 1), (&mut results, 1), |i, item, result| result[0] = Some(work(i, &mut item[0])));
    results.into_iter().flatten().collect()
}

/// Which rows of a matrix are read together: see [`lines`].
#[cfg(any(test, target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) struct Lines {
    /// How many times.
    pub(crate) strips: usize,
    /// Rows at a time.
    pub(crate) count: usize,
    /// From one of these rows to the next.
    pub(crate) apart: usize,
}

/// Cuts the next of `rows` rows into strips of `width` rows that are far apart: strip s has the rows s, s + apart,
/// s + 2 apart, ... So each of them goes on where it ended in the strip before, and memory is read in `width` long lines,
/// which the machine fetches ahead by itself; of neighbours it sees many short ones. Fewer rows than `width` are one strip.
#[cfg(any(test, target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn lines(rows: usize, width: usize, row_bytes: usize) -> Lines {
    /// Lines as far apart as this or a multiple of it share places in the first-level cache.
    const CROWDED: usize = 1024;
    let strips = rows / width;
    if strips == 0 {
        return neighbours(rows, width);
    }
    let strips = if strips > 1 && (strips * row_bytes).is_multiple_of(CROWDED) { strips - 1 } else { strips };
    Lines { strips, count: width, apart: strips }
}

/// The next strip of neighbours.
#[cfg(any(test, target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) fn neighbours(rows: usize, width: usize) -> Lines {
    Lines { strips: 1, count: rows.min(width), apart: 1 }
}

/// Maps each piece of `0..len` to a number and folds the numbers in index order.
///
/// There are at most 64 pieces, each at least `chunk` long and a multiple of it (but for the last).
pub fn reduce(
    len: usize,
    chunk: usize,
    map: impl Fn(Range<usize>) -> f64 + Sync,
    fold: impl Fn(f64, f64) -> f64,
) -> Option<f64> {
    let chunk = chunk.max(1);
    let chunk = len.div_ceil(MAX_PARTIALS).next_multiple_of(chunk).max(chunk);
    let pieces = len.div_ceil(chunk);
    let mut partials = [0.0_f64; MAX_PARTIALS];
    let partials = &mut partials[..pieces];
    for_chunks(partials, 1, |i, p| p[0] = map(i * chunk..((i + 1) * chunk).min(len)));
    partials.iter().copied().reduce(fold)
}

/// Runs `work` in a pool of `threads`, for tests of thread-count independence.
#[cfg(test)]
pub(crate) fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn pieces_cover_the_whole_range_once_and_do_not_depend_on_the_thread_count() {
        for len in [0, 1, 7, 8, 9, 100] {
            let seen = |threads| {
                let ranges = Mutex::new(Vec::new());
                with_threads(threads, || for_ranges(len, 8, |r| ranges.lock().unwrap().push((r.start, r.end))));
                let mut ranges = ranges.into_inner().unwrap();
                ranges.sort_unstable();
                ranges
            };
            let ranges = seen(1);
            assert_eq!(ranges, seen(2));
            assert_eq!(ranges.iter().map(|(a, b)| b - a).sum::<usize>(), len);
            assert!(ranges.windows(2).all(|w| w[0].1 == w[1].0));
        }
    }

    #[test]
    fn lines_cover_all_rows_once() {
        for (rows, width, row_bytes) in [(5, 16, 100), (16, 16, 4096), (64, 16, 256), (100, 16, 544), (33, 8, 1024)] {
            let (mut seen, mut next) = (vec![0; rows], 0);
            while next < rows {
                let lines = lines(rows - next, width, row_bytes);
                for strip in 0..lines.strips {
                    (0..lines.count).for_each(|i| seen[next + strip + i * lines.apart] += 1);
                }
                next += lines.strips * lines.count;
            }
            assert!(seen.iter().all(|&count| count == 1), "{rows} {width} {row_bytes}: {seen:?}");
        }
    }

    #[test]
    fn several_slices_are_cut_in_step() {
        let (mut a, mut b, mut c) = (vec![0_usize; 10], vec![0_usize; 20], vec![0_usize; 5]);
        for_chunks3((&mut a, 4), (&mut b, 8), (&mut c, 2), |i, a, b, c| {
            a.fill(i);
            b.fill(i);
            c.fill(i);
        });
        assert_eq!(a, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
        assert_eq!(b[7..17], [0, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
        assert_eq!(c, [0, 0, 1, 1, 2]);
        for_chunks2((&mut a, 5), (&mut b, 10), |i, a, b| {
            a.fill(i + 7);
            b.fill(i + 7);
        });
        assert_eq!((a[4], a[5], b[9], b[10]), (7, 8, 7, 8));
    }

    #[test]
    fn a_reduction_has_one_order() {
        let x: Vec<f64> = (0..100_003).map(|i| 1.0 / (i as f64 + 0.3)).collect();
        let sum = |threads| with_threads(threads, || reduce(x.len(), 16, |r| x[r].iter().sum(), |a, b| a + b));
        let one = sum(1).unwrap();
        assert_eq!(one.to_bits(), sum(2).unwrap().to_bits());
        assert!((one - x.iter().sum::<f64>()).abs() < 1e-9);
        assert_eq!(reduce(0, 16, |_| 1.0, |a, b| a + b), None);
    }
}
