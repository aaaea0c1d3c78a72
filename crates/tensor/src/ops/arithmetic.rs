//! Element-wise arithmetic, for the equations of a loss or a schedule.

use loam_kernels::elementwise::{Binary, Unary};

use crate::autograd::Grads;
use crate::dims::Dims;
use crate::raw::Raw;
use crate::tensor::{Tensor, backend};

/// Sums the leading axes of `grad` away, down to `shape`: the gradient of a repeated operand.
fn reduce_leading(grad: Raw, shape: Dims) -> Raw {
    if grad.count() == shape.count() {
        return grad.reshaped(shape);
    }
    let mut sum = Raw::full(shape, 0.0);
    let rows = grad.count() / shape.count();
    let flat = [shape.count()];
    let mut total = Raw::full(flat, 0.0);
    backend().add_column_sums(&mut total, &grad.reshaped([rows, shape.count()]));
    backend().axpy(&mut sum, 1.0, &total.reshaped(shape));
    sum
}

impl Tensor {
    /// `op(self, other)` where `other`'s shape equals the trailing axes of `self`'s (or is a scalar).
    fn binary(&self, op: Binary, other: &Self, backward: impl FnOnce(&Raw, &mut Grads<'_>) + Send + 'static) -> Self {
        let (a, b) = (self.shape(), other.shape());
        let fits = other.count() == 1 || (a.len() >= b.len() && a[a.len() - b.len()..] == b[..]);
        assert!(fits, "{op:?}: shape {b:?} does not repeat over {a:?}");
        Self::from_op(backend().binary(op, &self.dense(), &other.dense()), &[self, other], backward)
    }

    /// `self + other`; `other` may repeat over leading axes.
    #[allow(clippy::should_implement_trait, reason = "operators are implemented on references below")]
    pub fn add(&self, other: &Self) -> Self {
        let shape = other.shape();
        self.binary(Binary::Add, other, move |dy, grads| {
            grads.add(0, dy.clone());
            if grads.wants(1) {
                grads.add(1, reduce_leading(dy.clone(), shape));
            }
        })
    }

    /// `self - other`; `other` may repeat over leading axes.
    #[allow(clippy::should_implement_trait, reason = "operators are implemented on references below")]
    pub fn sub(&self, other: &Self) -> Self {
        let shape = other.shape();
        self.binary(Binary::Sub, other, move |dy, grads| {
            grads.add(0, dy.clone());
            if grads.wants(1) {
                grads.add(1, reduce_leading(backend().affine(dy, -1.0, 0.0), shape));
            }
        })
    }

    /// `self * other`, element by element; `other` may repeat over leading axes.
    #[allow(clippy::should_implement_trait, reason = "operators are implemented on references below")]
    pub fn mul(&self, other: &Self) -> Self {
        let (a, b, shape) = (self.dense(), other.dense(), other.shape());
        self.binary(Binary::Mul, other, move |dy, grads| {
            if grads.wants(0) {
                grads.add(0, backend().binary(Binary::Mul, dy, &b));
            }
            if grads.wants(1) {
                grads.add(1, reduce_leading(backend().binary(Binary::Mul, dy, &a), shape));
            }
        })
    }

    /// `self / other`, element by element; `other` may repeat over leading axes.
    #[allow(clippy::should_implement_trait, reason = "operators are implemented on references below")]
    pub fn div(&self, other: &Self) -> Self {
        let (a, b, shape) = (self.dense(), other.dense(), other.shape());
        self.binary(Binary::Div, other, move |dy, grads| {
            let da = backend().binary(Binary::Div, dy, &b);
            if grads.wants(1) {
                let slope = backend().binary(Binary::Div, &backend().binary(Binary::Mul, &da, &a), &b);
                grads.add(1, reduce_leading(backend().affine(&slope, -1.0, 0.0), shape));
            }
            grads.add(0, da);
        })
    }

    /// The smaller of the two, element by element. At a tie the gradient goes to `other`.
    pub fn minimum(&self, other: &Self) -> Self {
        self.choose(Binary::Min, other)
    }

    /// The larger of the two, element by element. At a tie the gradient goes to `other`.
    pub fn maximum(&self, other: &Self) -> Self {
        self.choose(Binary::Max, other)
    }

    fn choose(&self, op: Binary, other: &Self) -> Self {
        let (a, b, shape) = (self.dense(), other.dense(), other.shape());
        self.binary(op, other, move |dy, grads| {
            // relu'(x) is 1 exactly where x > 0: where `self` was chosen.
            let lead = backend().binary(Binary::Sub, &a, &b);
            let lead = if op == Binary::Min { backend().affine(&lead, -1.0, 0.0) } else { lead };
            let da = backend().unary_backward(Unary::Relu, &lead, dy);
            if grads.wants(1) {
                grads.add(1, reduce_leading(backend().binary(Binary::Sub, dy, &da), shape));
            }
            grads.add(0, da);
        })
    }

    /// `f` of every element, in f64; `f` returns value and slope. For the few numbers of a loss, where an equation in f32
    /// would cancel.
    pub fn map(&self, f: impl Fn(f64) -> (f64, f64)) -> Self {
        let x = self.dense();
        let (values, slopes): (Vec<f32>, Vec<f32>) =
            x.f32().iter().map(|&x| f(f64::from(x))).map(|(value, slope)| (value as f32, slope as f32)).unzip();
        let slopes = Raw::from_f32(&slopes, x.shape());
        Self::from_op(Raw::from_f32(&values, x.shape()), &[self], move |dy, grads| {
            grads.add(0, backend().binary(Binary::Mul, dy, &slopes));
        })
    }

    /// This tensor; whoever differentiates it also adds the gradient of the scalar `loss`, as it is.
    pub fn with_auxiliary(&self, loss: &Self) -> Self {
        Self::from_op(self.dense(), &[self, loss], |dy, grads| {
            grads.add(0, dy.clone());
            grads.add(1, Raw::full([], 1.0));
        })
    }

    /// `self * scale + shift`.
    pub fn affine(&self, scale: f32, shift: f32) -> Self {
        Self::from_op(backend().affine(&self.dense(), scale, shift), &[self], move |dy, grads| {
            grads.add(0, backend().affine(dy, scale, 0.0));
        })
    }

    /// `self * scale`.
    pub fn scale(&self, scale: f32) -> Self {
        self.affine(scale, 0.0)
    }
}

impl std::ops::Add for &Tensor {
    type Output = Tensor;
    fn add(self, other: Self) -> Tensor {
        Tensor::add(self, other)
    }
}

impl std::ops::Sub for &Tensor {
    type Output = Tensor;
    fn sub(self, other: Self) -> Tensor {
        Tensor::sub(self, other)
    }
}

impl std::ops::Mul for &Tensor {
    type Output = Tensor;
    fn mul(self, other: Self) -> Tensor {
        Tensor::mul(self, other)
    }
}

impl std::ops::Div for &Tensor {
    type Output = Tensor;
    fn div(self, other: Self) -> Tensor {
        Tensor::div(self, other)
    }
}

impl std::ops::Mul<f32> for &Tensor {
    type Output = Tensor;
    fn mul(self, scale: f32) -> Tensor {
        self.scale(scale)
    }
}

impl std::ops::Neg for &Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        self.scale(-1.0)
    }
}
