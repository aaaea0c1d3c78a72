//! What is remembered of the inputs of a linear layer.

use std::sync::{Mutex, PoisonError};

use loam_kernels::gemm::{Mat, MatMut, Start, gemm_f32};
use loam_nn::{LayerContext, Linear, LinearHook};
use loam_tensor::{Parameter, Tensor};

/// Sums over all input rows `x` `[width]` that a layer saw.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Inputs of the layer.
    pub width: usize,
    /// Rows seen.
    pub rows: usize,
    /// Sum of `x[j]^2`, `[width]`.
    pub squares: Vec<f64>,
    /// Sum of `|x[j]|`, `[width]`.
    pub sizes: Vec<f64>,
    /// Largest `|x[j]|`, `[width]`.
    pub largest: Vec<f32>,
    /// Sum of `x[i] x[j]`, `[width, width]`, where it was asked for.
    pub gram: Vec<f64>,
}

impl Statistics {
    /// Nothing seen yet; `with_gram` asks for the matrix.
    pub fn new(width: usize, with_gram: bool) -> Self {
        let gram = if with_gram { vec![0.0; width * width] } else { Vec::new() };
        Self { width, rows: 0, squares: vec![0.0; width], sizes: vec![0.0; width], largest: vec![0.0; width], gram }
    }

    /// Adds rows `x` `[n, width]`.
    pub fn add(&mut self, x: &[f32]) {
        let width = self.width;
        self.rows += x.len() / width;
        for row in x.chunks_exact(width) {
            for (j, &x) in row.iter().enumerate() {
                self.squares[j] += f64::from(x) * f64::from(x);
                self.sizes[j] += f64::from(x.abs());
                self.largest[j] = self.largest[j].max(x.abs());
            }
        }
        if self.gram.is_empty() {
            return;
        }
        // A product of few rows at a time in f32, their sum in f64.
        let mut part = vec![0.0; width * width];
        for x in x.chunks(width * ROWS) {
            let x = Mat::rows(x, x.len() / width, width);
            gemm_f32(MatMut::rows(&mut part, width, width), x.t(), x, Start::Zero);
            self.gram.iter_mut().zip(&part).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }

    /// Mean square of every input: how much an error in its column of the weight matters.
    pub fn importance(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f64;
        self.squares.iter().map(|square| (square / rows) as f32).collect()
    }

    /// Mean of `|x[j]|`.
    pub fn mean_sizes(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.sizes.iter().map(|size| size / rows).collect()
    }

    /// Whether all sums are finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.squares.iter().all(|x| x.is_finite())
    }
}

/// Rows whose products are added in f32.
const ROWS: usize = 512;

/// Stands in front of a layer and looks at what passes.
pub(crate) struct Recorder(Mutex<Statistics>);

impl Recorder {
    pub(crate) fn new(width: usize, with_gram: bool) -> Self {
        Self(Mutex::new(Statistics::new(width, with_gram)))
    }

    pub(crate) fn taken(&self) -> Statistics {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LinearHook for Recorder {
    fn forward(&self, linear: &Linear, x: &Tensor, _: &LayerContext) -> Tensor {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(&x.to_vec());
        linear.apply(x)
    }

    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }
}
