//! [`Tensor`]: data plus the history its gradient flows back along.

use std::sync::{Arc, OnceLock};

use crate::autograd::{self, Grads, Node, Origin};
use crate::backend::{Backend, Device};
use crate::dims::Dims;
use crate::parameter::Parameter;
use crate::precision::{Precision, precision};
use crate::raw::{DType, Raw};

/// An immutable f32 tensor. Cloning is cheap; operations record themselves unless inside [`crate::no_grad`].
#[derive(Clone)]
pub struct Tensor {
    raw: Raw,
    origin: Option<Origin>,
    /// The parameter this is the value of: its bf16 copy is worth reusing, with or without a gradient.
    parameter: Option<Parameter>,
    /// Makes the data once more from what its operation keeps for backward anyway.
    again: Option<Again>,
    /// The data in bf16, once a product asked for it: several products of one input share it.
    narrow: Arc<OnceLock<Raw>>,
}

/// See [`Tensor::remade_by`].
pub(crate) type Again = Arc<dyn Fn() -> Raw + Send + Sync>;

/// Elements from which on a cheap result is made again in backward rather than kept: 2 MiB. Smaller ones stay in a cache.
const WORTH_REMAKING: usize = 1 << 19;

/// Whether an activation of so many elements is made again in backward rather than kept.
pub fn is_worth_remaking(count: usize) -> bool {
    count >= WORTH_REMAKING
}

/// The device's operations, for the ops below.
pub(crate) fn backend() -> &'static dyn Backend {
    Device::Cpu.backend()
}

impl Tensor {
    /// A constant holding a copy of `values`. Panics if the count does not fit the shape.
    pub fn from_slice(values: &[f32], shape: impl Into<Dims>) -> Self {
        Self::constant(Raw::from_f32(values, shape))
    }

    /// A constant filled with `value`.
    pub fn full(shape: impl Into<Dims>, value: f32) -> Self {
        Self::constant(Raw::full(shape, value))
    }

    /// A tensor without history.
    pub fn constant(raw: Raw) -> Self {
        Self { raw, origin: None, parameter: None, again: None, narrow: Arc::default() }
    }

    /// The current value of a parameter, wanting a gradient if the parameter is trainable.
    pub fn parameter(parameter: &Parameter) -> Self {
        let wanted = parameter.is_trainable() && autograd::is_recording();
        let origin = wanted.then(|| Origin::Parameter(parameter.clone()));
        Self { raw: parameter.value(), origin, parameter: Some(parameter.clone()), again: None, narrow: Arc::default() }
    }

    /// The result of an operation on `parents`.
    pub(crate) fn from_op(
        raw: Raw,
        parents: &[&Tensor],
        backward: impl FnOnce(&Raw, &mut Grads<'_>) + Send + 'static,
    ) -> Self {
        let origins = parents.iter().map(|parent| parent.origin.clone()).collect();
        let origin = Node::record(raw.shape(), origins, backward);
        Self { raw, origin, parameter: None, again: None, narrow: Arc::default() }
    }

    /// Notes that `make` gives the same data, to the bit, from what this tensor's operation has saved, and cheaply: what
    /// would keep the data for backward can call it instead.
    pub(crate) fn remade_by(self, make: impl Fn() -> Raw + Send + Sync + 'static) -> Self {
        let worth = self.wants_grad() && is_worth_remaking(self.count());
        Self { again: worth.then(|| Arc::new(make) as Again), ..self }
    }

    /// How to make the data again, where that is better than keeping it.
    pub(crate) fn again(&self) -> Option<Again> {
        self.again.clone()
    }

    /// The data.
    pub fn raw(&self) -> &Raw {
        &self.raw
    }

    /// The data in f32, dense: itself, or a copy when this is a strided view or kept in bf16.
    pub(crate) fn dense(&self) -> Raw {
        match self.raw.dtype() {
            DType::Bf16 => backend().cast(&self.raw, DType::F32),
            _ if self.raw.is_dense() => self.raw.clone(),
            _ => backend().copy(&self.raw),
        }
    }

    /// The data, dense, in the element type that it is kept in.
    pub(crate) fn dense_as_kept(&self) -> Raw {
        if self.raw.is_dense() { self.raw.clone() } else { backend().copy(&self.raw) }
    }

    /// The data as an operand of products in `precision`, dense. In bf16 a parameter that is being trained stays f32, and
    /// is rounded while it is read; a frozen one has a copy, and everything else is converted once.
    pub(crate) fn operand(&self, precision: Precision) -> Raw {
        match (precision, &self.parameter) {
            (Precision::F32, _) => self.dense(),
            (Precision::Bf16, Some(parameter)) if parameter.is_trainable() && autograd::is_training() => self.dense(),
            (Precision::Bf16, Some(parameter)) => parameter.bf16(),
            (Precision::Bf16, None) if self.raw.dtype() == DType::Bf16 => self.dense_as_kept(),
            (Precision::Bf16, None) => self.narrow.get_or_init(|| backend().cast(&self.dense(), DType::Bf16)).clone(),
        }
    }

    /// This tensor as activations are kept in the precision in force: in bf16 it is rounded, and the operations that keep
    /// it for backward keep half the bytes. Its gradient stays f32.
    pub fn stored(&self) -> Self {
        match precision() {
            Precision::F32 => self.clone(),
            Precision::Bf16 => {
                let narrow = backend().cast(&self.dense(), DType::Bf16);
                Self::from_op(narrow, &[self], |dy, grads| grads.add(0, dy.clone()))
            }
        }
    }

    /// Shape.
    pub fn shape(&self) -> Dims {
        self.raw.shape()
    }

    /// Size of one axis.
    pub fn size(&self, axis: usize) -> usize {
        self.raw.shape()[axis]
    }

    /// Number of elements.
    pub fn count(&self) -> usize {
        self.raw.count()
    }

    /// A copy of the elements in row-major order.
    pub fn to_vec(&self) -> Vec<f32> {
        self.dense().f32().to_vec()
    }

    /// The only element. Panics unless there is exactly one.
    pub fn item(&self) -> f32 {
        assert_eq!(self.count(), 1, "item() of a tensor of shape {:?}", self.shape());
        self.raw.f32()[0]
    }

    /// The same data without history.
    pub fn detach(&self) -> Self {
        Self::constant(self.raw.clone())
    }

    /// Whether a gradient would flow back from here.
    pub fn wants_grad(&self) -> bool {
        self.origin.is_some()
    }

    /// Back-propagates from this scalar with gradient 1: adds to the gradient of every parameter it depends on.
    pub fn backward(self) {
        self.run_backward(None, None);
    }

    /// Like [`Tensor::backward`]; calls `on_complete` with each parameter as soon as its gradient is complete and no
    /// later part of the pass needs its value. It may be changed there, and its gradient freed: then all gradients never
    /// exist at once (Lv et al. 2024, "Full parameter fine-tuning for large language models with limited resources").
    pub fn backward_consuming(self, on_complete: &mut dyn FnMut(&Parameter)) {
        self.run_backward(None, Some(on_complete));
    }

    /// Back-propagates from this tensor with the given gradient of the same shape.
    pub fn backward_with(self, grad: Raw) {
        self.run_backward(Some(grad), None);
    }

    fn run_backward(self, grad: Option<Raw>, on_complete: Option<&mut dyn FnMut(&Parameter)>) {
        let grad = grad.unwrap_or_else(|| {
            assert_eq!(self.count(), 1, "backward() starts at a scalar, not at shape {:?}", self.shape());
            Raw::full(self.shape(), 1.0)
        });
        assert_eq!(grad.shape(), self.shape(), "a gradient has the shape of its tensor");
        let Self { raw, origin, .. } = self;
        // The value itself is not needed any more: free it before its inputs' gradients are allocated.
        drop(raw);
        if let Some(origin) = origin {
            autograd::backward(&origin, grad, on_complete);
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = self.to_vec();
        write!(f, "Tensor{:?}{:?}", self.shape(), &values[..values.len().min(16)])
    }
}
