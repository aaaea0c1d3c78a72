//! The buffer pool. A training step asks for the same buffers again and again, so memory is taken from the system in
//! large slabs, on huge pages where the system has them, and kept: after the first steps nothing large is allocated and
//! no page is touched for the first time.
//!
//! A request gets the start of the smallest free block that is large enough; a buffer that is dropped is joined with its
//! free neighbours. So the space of activations, which die during backward, serves the gradients that are born meanwhile,
//! whatever their sizes. A small request that fits only into blocks of half a slab or more gets one in the slab that was
//! there first, so that a slab that was needed once for a little is not filled as readily as another.

#![allow(unsafe_code, reason = "buffers are parts of mapped slabs, which no safe type expresses")]

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

/// A cache line: the unit of allocation, which gives every buffer 64-byte alignment.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

/// Buffers below this size come and go through the system allocator: it is fast enough for them.
const POOLED_FROM_BYTES: usize = 4096;

/// Slabs are this large, or as large as the request that did not fit into any: a multiple of a huge page, and of the
/// matrices of usual widths (768 x 768, 768 x 3072 and 1024 x 1024 in f32), so that little of a slab is left over.
const SLAB_BYTES: usize = 36 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What the pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Slabs taken from the system, ever.
    pub fresh_allocations: u64,
    /// Bytes of large buffers in use now.
    pub live_bytes: usize,
    /// Most bytes of large buffers in use at once.
    pub peak_bytes: usize,
    /// Bytes of slabs waiting for use.
    pub idle_bytes: usize,
}

#[derive(Default)]
struct Pool {
    /// Slabs by their address, and how many there were before.
    slabs: BTreeMap<usize, (MmapMut, usize)>,
    /// Free blocks: length by address, and the same by length.
    free: BTreeMap<usize, usize>,
    by_length: BTreeSet<(usize, usize)>,
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

impl Pool {
    fn add_free(&mut self, address: usize, length: usize) {
        self.free.insert(address, length);
        self.by_length.insert((length, address));
    }

    fn remove_free(&mut self, address: usize, length: usize) {
        self.free.remove(&address);
        self.by_length.remove(&(length, address));
    }

    /// The address of `bytes` bytes.
    fn take(&mut self, bytes: usize) -> usize {
        let (length, address) = self.fitting(bytes).unwrap_or_else(|| self.grow(bytes));
        self.remove_free(address, length);
        if length > bytes {
            self.add_free(address + bytes, length - bytes);
        }
        self.stats.idle_bytes -= bytes;
        self.stats.live_bytes += bytes;
        self.stats.peak_bytes = self.stats.peak_bytes.max(self.stats.live_bytes);
        address
    }

    /// The length and address of a free block of at least so many bytes.
    fn fitting(&self, bytes: usize) -> Option<(usize, usize)> {
        let fitting = self.by_length.range((bytes, 0)..).copied();
        let smallest = fitting.clone().next()?;
        let age = |&(_, address): &(usize, usize)| {
            self.slabs.range(..=address).next_back().map(|(_, &(_, slabs_before))| slabs_before)
        };
        let is_usual = bytes >= SLAB_BYTES / 2 || smallest.0 < SLAB_BYTES / 2;
        if is_usual { Some(smallest) } else { fitting.min_by_key(age) }
    }

    /// Takes a slab from the system: its length and address.
    fn grow(&mut self, bytes: usize) -> (usize, usize) {
        let length = bytes.max(SLAB_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
        let slab = MmapMut::map_anon(length);
        // As with every other allocation in Rust there is no going on without memory.
        let slab = slab.unwrap_or_else(|e| panic!("no memory for a tensor of {} MiB: {e}", length >> 20));
        // An advice, which a system may lack or decline.
        #[cfg(target_os = "linux")]
        let _ = slab.advise(memmap2::Advice::HugePage);
        let address = slab.as_ptr() as usize;
        self.slabs.insert(address, (slab, self.slabs.len()));
        self.add_free(address, length);
        self.stats.fresh_allocations += 1;
        self.stats.idle_bytes += length;
        (length, address)
    }

    /// Takes a block back and joins it with its free neighbours of the same slab.
    fn give_back(&mut self, address: usize, bytes: usize) {
        self.stats.live_bytes -= bytes;
        self.stats.idle_bytes += bytes;
        let (mut start, mut length) = (address, bytes);
        let before = self.free.range(..address).next_back().map(|(&start, &length)| (start, length));
        if let Some((before, size)) = before
            && before + size == address
            && !self.slabs.contains_key(&address)
        {
            self.remove_free(before, size);
            (start, length) = (before, size + length);
        }
        let end = start + length;
        if let Some(&size) = self.free.get(&end)
            && !self.slabs.contains_key(&end)
        {
            self.remove_free(end, size);
            length += size;
        }
        self.add_free(start, length);
    }
}

/// Host memory, 64-byte aligned, returned to the pool when dropped. Contents start unspecified but initialised.
pub struct Buffer(Storage);

enum Storage {
    Small(Vec<Line>),
    Pooled { start: NonNull<Line>, lines: usize },
}

// SAFETY: a pooled block belongs to one buffer alone until that is dropped, like a vector's memory.
unsafe impl Send for Buffer {}
// SAFETY: as above; it is written through `&mut` only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of at least `bytes` bytes.
    pub fn new(bytes: usize) -> Self {
        let lines = bytes.div_ceil(LINE_BYTES);
        if lines * LINE_BYTES < POOLED_FROM_BYTES {
            return Self(Storage::Small(vec![Line::zeroed(); lines]));
        }
        let address = with_pool(|pool| pool.take(lines * LINE_BYTES));
        let start =
            NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("a slab is not at address zero");
        Self(Storage::Pooled { start, lines })
    }

    /// The whole buffer as elements of `T`.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        match &self.0 {
            Storage::Small(lines) => bytemuck::cast_slice(lines),
            // SAFETY: the block lies in a mapped slab, is initialised (the system's zeros, or what was there before), and
            // is this buffer's alone.
            Storage::Pooled { start, lines } => {
                bytemuck::cast_slice(unsafe { std::slice::from_raw_parts(start.as_ptr(), *lines) })
            }
        }
    }

    /// The whole buffer as mutable elements of `T`.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        match &mut self.0 {
            Storage::Small(lines) => bytemuck::cast_slice_mut(lines),
            // SAFETY: as in `as_slice`, and borrowed mutably.
            Storage::Pooled { start, lines } => {
                bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *lines) })
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Storage::Pooled { start, lines } = self.0 {
            with_pool(|pool| pool.give_back(start.as_ptr() as usize, lines * LINE_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_handed_out_again() {
        // A size that no other test uses, since the pool is shared by the whole process.
        let bytes = 77_777_777;
        drop(Buffer::new(bytes));
        let before = pool_stats().fresh_allocations;
        let again = Buffer::new(bytes);
        assert!(again.as_slice::<f32>().len() * 4 >= bytes);
        assert_eq!(pool_stats().fresh_allocations, before);
    }

    #[test]
    fn of_two_slabs_that_are_free_the_first_is_filled_though_the_other_fits_closer() {
        let mut pool = Pool::default();
        let whole = [pool.take(SLAB_BYTES), pool.take(SLAB_BYTES)];
        pool.give_back(whole[0], SLAB_BYTES);
        pool.give_back(whole[1], SLAB_BYTES / 4 * 3);
        let next: Vec<usize> = (0..4).map(|_| pool.take(SLAB_BYTES / 16)).collect();
        assert_eq!(next, [0, 1, 2, 3].map(|i| whole[0] + i * (SLAB_BYTES / 16)));
    }

    #[test]
    fn blocks_are_split_and_joined_again_without_overlap() {
        let mut pool = Pool::default();
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        for round in 0..2000_usize {
            if round % 3 == 2 {
                let (address, bytes) = blocks.swap_remove(round * 7919 % blocks.len());
                pool.give_back(address, bytes);
            } else {
                let bytes = (1 + round * 104_729 % 5000) * LINE_BYTES;
                blocks.push((pool.take(bytes), bytes));
            }
            let held: usize = pool.slabs.values().map(|slab| slab.0.len()).sum();
            assert_eq!(pool.stats.live_bytes, blocks.iter().map(|(_, bytes)| bytes).sum::<usize>());
            assert_eq!(pool.stats.live_bytes + pool.stats.idle_bytes, held);
        }
        blocks.sort_unstable();
        assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        for (address, bytes) in blocks {
            pool.give_back(address, bytes);
        }
        assert_eq!(pool.free.len(), pool.slabs.len(), "every slab is one free block again");
    }
}
