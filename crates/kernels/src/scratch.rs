//! Temporary buffers that are kept per thread, so that the steady state allocates nothing.

use half::bf16;
use std::cell::Cell;

/// An element type that has a buffer per thread.
pub(crate) trait Pooled: Copy + 'static {
    const ZERO: Self;
    fn cell<R>(use_it: impl FnOnce(&Cell<Vec<Self>>) -> R) -> R;
}

thread_local! {
    static I32: Cell<Vec<i32>> = const { Cell::new(Vec::new()) };
    static F32: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static BF16: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) };
}

impl Pooled for f32 {
    const ZERO: Self = 0.0;
    fn cell<R>(use_it: impl FnOnce(&Cell<Vec<Self>>) -> R) -> R {
        F32.with(use_it)
    }
}

impl Pooled for i32 {
    const ZERO: Self = 0;
    fn cell<R>(use_it: impl FnOnce(&Cell<Vec<Self>>) -> R) -> R {
        I32.with(use_it)
    }
}

impl Pooled for bf16 {
    const ZERO: Self = bf16::ZERO;
    fn cell<R>(use_it: impl FnOnce(&Cell<Vec<Self>>) -> R) -> R {
        BF16.with(use_it)
    }
}

/// Lends `len` elements with arbitrary content to `work`.
///
/// The buffer is taken out of its cell while in use: where rayon makes this thread help with other work in between,
/// that work finds an empty cell and gets a buffer of its own.
pub(crate) fn with_scratch<T: Pooled, R>(len: usize, work: impl FnOnce(&mut [T]) -> R) -> R {
    let mut buffer = T::cell(Cell::take);
    if buffer.len() < len {
        // Given back first: growing it would hold both for a moment, and leave a hole where the old one was.
        drop(buffer);
        buffer = vec![T::ZERO; len];
    }
    let result = work(&mut buffer[..len]);
    T::cell(|cell| {
        let other = cell.take();
        cell.set(if other.len() > buffer.len() { other } else { buffer });
    });
    result
}
