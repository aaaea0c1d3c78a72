//! [`Parameter`]: a named tensor that training changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{Device, Start};
use crate::dims::Dims;
use crate::raw::{DType, Raw};

/// A trainable tensor: its f32 master value, its accumulated gradient, and a bf16 copy kept while it is valid. Or a
/// frozen one in the element type of a file ([`Parameter::replace`]).
///
/// Clones share the same parameter, which is how tied weights are expressed.
#[derive(Clone)]
pub struct Parameter(Arc<Inner>);

struct Inner {
    /// `None` stands for zeros that nobody has looked at: a model that is about to be read takes no memory before.
    value: Mutex<Option<Raw>>,
    grad: Mutex<Option<Raw>>,
    low_precision: Mutex<Option<Raw>>,
    trainable: AtomicBool,
    shape: Dims,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parameter {
    /// A trainable parameter with this value (dense f32).
    pub fn new(value: Raw) -> Self {
        assert!(value.dtype() == DType::F32 && value.is_dense(), "a parameter's master value is dense f32");
        let shape = value.shape();
        Self::with(shape, Some(value))
    }

    fn with(shape: Dims, value: Option<Raw>) -> Self {
        Self(Arc::new(Inner {
            value: Mutex::new(value),
            grad: Mutex::new(None),
            low_precision: Mutex::new(None),
            trainable: AtomicBool::new(true),
            shape,
        }))
    }

    /// A zero parameter of this shape.
    pub fn zeros(shape: impl Into<Dims>) -> Self {
        Self::with(shape.into(), None)
    }

    /// Shape.
    pub fn shape(&self) -> Dims {
        self.0.shape
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.0.shape.count()
    }

    /// A handle on the current value. While one is held the value cannot be changed.
    pub fn value(&self) -> Raw {
        lock(&self.0.value).get_or_insert_with(|| Raw::full(self.0.shape, 0.0)).clone()
    }

    /// Element type of the value.
    pub fn dtype(&self) -> DType {
        lock(&self.0.value).as_ref().map_or(DType::F32, Raw::dtype)
    }

    /// Bytes of the value.
    pub fn bytes(&self) -> usize {
        lock(&self.0.value).as_ref().map_or_else(|| DType::F32.bytes(self.count()), Raw::bytes)
    }

    /// A copy of the current value, decoded where it is quantised.
    pub fn to_vec(&self) -> Vec<f32> {
        Device::Cpu.backend().cast(&self.value(), DType::F32).f32().to_vec()
    }

    /// Puts another value of the same shape in its place: dense f32, or [`Raw::quantised`] or [`Raw::nf4`], which freeze
    /// the parameter for as long as it is so. The gradient is forgotten.
    pub fn replace(&self, value: Raw) {
        assert!(value.dtype() != DType::Bf16 && value.is_dense(), "a parameter's value is dense f32 or quantised");
        assert_eq!(value.shape(), self.0.shape, "a parameter keeps its shape");
        if value.dtype() != DType::F32 {
            self.0.trainable.store(false, Ordering::Relaxed);
        }
        self.clear_grad();
        *lock(&self.0.low_precision) = None;
        *lock(&self.0.value) = Some(value);
    }

    /// Replaces the value. Panics if the count differs.
    pub fn set(&self, values: &[f32]) {
        self.change(|raw| raw.f32_mut().copy_from_slice(values));
    }

    /// The value in bf16, converted once and kept until the value changes.
    pub fn bf16(&self) -> Raw {
        lock(&self.0.low_precision)
            .get_or_insert_with(|| Device::Cpu.backend().cast(&self.value(), DType::Bf16))
            .clone()
    }

    /// The gradient accumulated since the last [`Parameter::clear_grad`].
    pub fn grad(&self) -> Option<Raw> {
        lock(&self.0.grad).clone()
    }

    /// The gradient, which the parameter then has no more.
    pub(crate) fn take_grad(&self) -> Option<Raw> {
        lock(&self.0.grad).take()
    }

    /// Forgets the gradient.
    pub fn clear_grad(&self) {
        *lock(&self.0.grad) = None;
    }

    /// Whether gradients are wanted.
    pub fn is_trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or unfreezes; what is quantised stays frozen.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable && self.dtype() == DType::F32, Ordering::Relaxed);
    }

    /// Whether two handles are one parameter (tied weights).
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Tells parameters apart, as long as they live.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Changes the value in place. Panics if a tensor still holds it: that graph's backward would see other numbers.
    pub fn change(&self, work: impl FnOnce(&mut Raw)) {
        *lock(&self.0.low_precision) = None;
        let mut slot = lock(&self.0.value);
        let value = slot.get_or_insert_with(|| Raw::full(self.0.shape, 0.0));
        assert!(value.is_unique(), "a parameter was changed while a graph still holds its value");
        work(value);
        assert_eq!(value.shape(), self.0.shape, "a parameter keeps its shape");
    }

    /// Exchanges the value with another of the same shape, dense f32, without a copy.
    pub fn swap(&self, other: &mut Raw) {
        assert!(other.dtype() == DType::F32 && other.is_dense(), "a parameter's master value is dense f32");
        self.change(|value| std::mem::swap(value, other));
    }

    /// The optimizer's access: value to change and gradient to read. Does nothing without a gradient.
    pub fn step(&self, work: impl FnOnce(&mut Raw, &Raw)) {
        if let Some(grad) = self.grad() {
            self.change(|value| work(value, &grad));
        }
    }

    /// Runs `work` on the gradient slot: `(slot, Start::Zero)` when there was none yet (contents unspecified),
    /// else `(slot, Start::Sum)`, so that a matrix product can accumulate straight into it.
    pub(crate) fn accumulate(&self, work: impl FnOnce(&mut Raw, Start<'static>)) {
        let mut slot = lock(&self.0.grad);
        match slot.as_mut() {
            Some(grad) => work(grad, Start::Sum),
            None => work(slot.insert(Raw::empty(DType::F32, self.0.shape)), Start::Zero),
        }
    }

    /// Adds a gradient, keeping the buffer itself when it is the first.
    pub(crate) fn add_grad(&self, grad: Raw) {
        let mut slot = lock(&self.0.grad);
        match slot.as_mut() {
            Some(sum) => Device::Cpu.backend().axpy(sum, 1.0, &grad),
            None => {
                let mut grad = if grad.is_dense() { grad } else { Device::Cpu.backend().copy(&grad) };
                if !grad.is_unique() {
                    grad = Device::Cpu.backend().copy(&grad);
                }
                *slot = Some(grad.reshaped(self.0.shape));
            }
        }
    }
}

impl std::fmt::Debug for Parameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parameter{:?}", self.0.shape)
    }
}
