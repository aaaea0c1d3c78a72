//! Shapes and strides: a short inline list, so that making a view allocates nothing.

use std::fmt;
use std::ops::Deref;

/// Most axes a tensor may have.
pub const MAX_RANK: usize = 6;

/// A list of up to [`MAX_RANK`] sizes or strides.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    len: usize,
    values: [usize; MAX_RANK],
}

impl Dims {
    /// The list holding `values`. Panics past [`MAX_RANK`] axes.
    pub fn new(values: &[usize]) -> Self {
        assert!(values.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} axes, asked for {values:?}");
        let mut dims = Self { len: values.len(), values: [0; MAX_RANK] };
        dims.values[..values.len()].copy_from_slice(values);
        dims
    }

    /// Product of all sizes (1 for a scalar).
    pub fn count(&self) -> usize {
        self.iter().product()
    }

    /// Strides of a dense row-major tensor of this shape, in elements.
    pub fn dense_strides(&self) -> Self {
        let mut strides = *self;
        let mut step = 1;
        for axis in (0..self.len).rev() {
            strides.values[axis] = step;
            step *= self.values[axis];
        }
        strides
    }

    /// The size of the last axis (1 for a scalar).
    pub fn width(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// This list with the entry at `axis` replaced.
    pub fn with(mut self, axis: usize, value: usize) -> Self {
        self.values[..self.len][axis] = value;
        self
    }
}

impl Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.values[..self.len]
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self[..])
    }
}

impl From<&[usize]> for Dims {
    fn from(values: &[usize]) -> Self {
        Self::new(values)
    }
}

impl<const N: usize> From<[usize; N]> for Dims {
    fn from(values: [usize; N]) -> Self {
        Self::new(&values)
    }
}
