//! The buffer pool. A training step asks for the same sizes again and again, so a dropped buffer waits here for the
//! next request of its size class instead of going back to the system: after the first steps nothing large is
//! allocated and no page is touched for the first time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};

/// A cache line: the unit of allocation, which gives every buffer 64-byte alignment.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

/// Buffers below this size come and go through the system allocator: it is fast enough for them.
const POOLED_FROM_BYTES: usize = 4096;

/// What the pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Large buffers taken from the system, ever.
    pub fresh_allocations: u64,
    /// Bytes of large buffers in use now.
    pub live_bytes: usize,
    /// Most bytes of large buffers in use at once.
    pub peak_bytes: usize,
    /// Bytes of large buffers waiting for reuse.
    pub idle_bytes: usize,
}

#[derive(Default)]
struct Pool {
    idle: HashMap<usize, Vec<Vec<Line>>>,
    stats: PoolStats,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn with_pool<R>(work: impl FnOnce(&mut Pool) -> R) -> R {
    let mut guard = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    work(guard.get_or_insert_with(Pool::default))
}

/// Counters of the pool, for tests and for the memory planner.
pub fn pool_stats() -> PoolStats {
    with_pool(|pool| pool.stats)
}

/// Gives every idle buffer back to the system, for example between two stages of different shapes.
pub fn trim_pool() {
    with_pool(|pool| {
        pool.idle.clear();
        pool.stats.idle_bytes = 0;
    });
}

/// Rounds up to a size class of at most 1/8 waste, so that slightly different sizes share buffers.
fn size_class(lines: usize) -> usize {
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.div_ceil(step) * step
}

/// Host memory, 64-byte aligned, returned to the pool when dropped. Contents start unspecified but initialised.
pub struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// A buffer of at least `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let lines = size_class(bytes.div_ceil(LINE_BYTES));
        if lines * LINE_BYTES < POOLED_FROM_BYTES {
            return Self { lines: vec![Line::zeroed(); lines] };
        }
        let reused = with_pool(|pool| {
            let size = lines * LINE_BYTES;
            let found = pool.idle.get_mut(&lines).and_then(Vec::pop);
            match found {
                Some(_) => pool.stats.idle_bytes -= size,
                None => pool.stats.fresh_allocations += 1,
            }
            pool.stats.live_bytes += size;
            pool.stats.peak_bytes = pool.stats.peak_bytes.max(pool.stats.live_bytes);
            found
        });
        Self { lines: reused.unwrap_or_else(|| vec![Line::zeroed(); lines]) }
    }

    /// The whole buffer as elements of `T`.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The whole buffer as mutable elements of `T`.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let size = lines.len() * LINE_BYTES;
        if size >= POOLED_FROM_BYTES {
            with_pool(|pool| {
                pool.stats.live_bytes -= size;
                pool.stats.idle_bytes += size;
                pool.idle.entry(lines.len()).or_default().push(lines);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_class_wastes_at_most_an_eighth() {
        for lines in 1..5000 {
            let class = size_class(lines);
            assert!(class >= lines && class - lines <= lines / 8 + 1, "{lines} -> {class}");
        }
    }

    #[test]
    fn a_dropped_buffer_is_handed_out_again() {
        // A size no other test uses, since the pool is shared by the whole process.
        let bytes = 77_777_777;
        drop(Buffer::new(bytes));
        let before = pool_stats().fresh_allocations;
        let again = Buffer::new(bytes);
        assert!(again.as_slice::<f32>().len() * 4 >= bytes);
        assert_eq!(pool_stats().fresh_allocations, before);
    }
}
