//! The closed list of operations a device must offer. Object-safe and coarse: each entry is one fused step of a
//! Transformer, so that a GPU backend can be added here without touching a model.
//!
//! Backends see [`Raw`] data only. History, precision and parameters are the business of the layer above.

use loam_kernels::attention::{AttentionDims, Page};
use loam_kernels::cross_entropy::Terms as CrossEntropyTerms;
use loam_kernels::elementwise::{Binary, Unary};
use loam_kernels::optim::AdamW;
use loam_kernels::rope::RopeStyle;

use crate::cpu::Cpu;
use crate::dims::Dims;
use crate::precision::Precision;
use crate::raw::{DType, Raw};

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The processor: kernels of `loam-kernels`, all threads of the current rayon pool.
    #[default]
    Cpu,
}

impl Device {
    /// The operations of this device.
    pub fn backend(self) -> &'static dyn Backend {
        match self {
            Self::Cpu => &Cpu,
        }
    }
}

/// Cosines and sines of rotary positions, each `[rows, rotary_dim / 2]` where `rows` is `time` (shared by the batch)
/// or `batch * time`.
#[derive(Clone)]
pub struct RopeTables {
    /// Cosines.
    pub cos: Raw,
    /// Sines.
    pub sin: Raw,
    /// How features pair up.
    pub style: RopeStyle,
}

/// Which keys a query may see, beyond `AttentionDims::causal` and `window`.
#[derive(Clone, Default)]
pub struct AttentionMask {
    /// Document of every key, `[batch, kv_len]`: attention stays within a document.
    pub segments: Option<std::sync::Arc<[u32]>>,
    /// Document of every query, `[batch, q_len]`, where they are not the last keys' own.
    pub query_segments: Option<std::sync::Arc<[u32]>>,
    /// Additive bias `[heads, q_len, kv_len]`.
    pub bias: Option<Raw>,
    /// Borders of the sequences that lie end to end in a single row: each as if it were alone, without the masks above.
    /// There is no backward for it.
    pub runs: Option<std::sync::Arc<[usize]>>,
}

/// Gradients of attention's inputs, dense: `[batch, time, heads, head_dim]`.
pub struct AttentionGrads {
    /// Gradient of the queries.
    pub q: Raw,
    /// Gradient of the keys.
    pub k: Raw,
    /// Gradient of the values.
    pub v: Raw,
    /// Gradient of the additive bias, where there is one.
    pub bias: Option<Raw>,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Zero: what the destination holds is not read.
    Zero,
    /// What the destination holds.
    Sum,
    /// One value per column.
    Bias(&'a Raw),
}

/// Which statistic a norm divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Subtract the mean, divide by the standard deviation (Ba et al. 2016).
    Layer,
    /// Divide by the root mean square (Zhang and Sennrich 2019).
    Rms,
}

/// Inverted dropout whose mask is a function of its key, so that backward regenerates it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that an element is zeroed.
    pub p: f32,
    /// Run seed.
    pub seed: u64,
    /// Distinguishes calls: optimizer step, layer and place.
    pub step: u64,
}

/// Operations of a device. All tensors are dense f32 unless an entry says otherwise; results are freshly allocated.
///
/// What is kept for backward may be bf16 ([`crate::Tensor::stored`]): the inputs of activations and gates, whose result
/// then is, too, and attention's queries, keys, values and output. Gradients are f32.
pub trait Backend: Send + Sync {
    /// Dense copy of a strided view of f32 or bf16.
    fn copy(&self, x: &Raw) -> Raw;
    /// `dst[.., start..start + n, ..] += src` along `axis`; `src` may be strided.
    fn add_region(&self, dst: &mut Raw, axis: usize, start: usize, src: &Raw);
    /// `dst[.., start..start + n, ..] = src` along `axis`, both f32 or both bf16; `src` may be strided.
    fn write_region(&self, dst: &mut Raw, axis: usize, start: usize, src: &Raw);
    /// The same numbers in another element type, which is not one of files.
    fn cast(&self, x: &Raw, dtype: DType) -> Raw;

    /// `op(x)`, element by element.
    fn unary(&self, op: Unary, x: &Raw) -> Raw;
    /// `dy * op'(x)`.
    fn unary_backward(&self, op: Unary, x: &Raw, dy: &Raw) -> Raw;
    /// `op(a, b)`; the elements of `b` repeat over the leading axes of `a`.
    fn binary(&self, op: Binary, a: &Raw, b: &Raw) -> Raw;
    /// `x * scale + shift`.
    fn affine(&self, x: &Raw, scale: f32, shift: f32) -> Raw;
    /// `dst += scale * x`.
    fn axpy(&self, dst: &mut Raw, scale: f32, x: &Raw);
    /// `act(gate) * up` (Shazeer 2020).
    fn gated(&self, act: Unary, gate: &Raw, up: &Raw) -> Raw;
    /// Gradients of `gate` and `up`.
    fn gated_backward(&self, act: Unary, gate: &Raw, up: &Raw, dy: &Raw) -> (Raw, Raw);
    /// Inverted dropout.
    fn dropout(&self, x: &Raw, dropout: Dropout) -> Raw;

    /// Sum of all elements.
    fn sum(&self, x: &Raw) -> f32;
    /// Sum of all squares, in f64.
    fn sum_of_squares(&self, x: &Raw) -> f64;
    /// Whether every element is finite.
    fn all_finite(&self, x: &Raw) -> bool;
    /// `dst[width] += sum over rows of x[rows, width]`.
    fn add_column_sums(&self, dst: &mut Raw, x: &Raw);
    /// Sum over the last axis: `[.., width] -> [..]`.
    fn sum_last(&self, x: &Raw) -> Raw;

    /// `dst = start + a b` for matrices or equal batches of matrices `[batch, m, k] x [batch, k, n]`, any strides, result
    /// f32. In bf16 an operand may be stored as f32, and is rounded while it is read.
    fn matmul(&self, dst: &mut Raw, a: &Raw, b: &Raw, start: Start<'_>, precision: Precision);

    /// `x weight^T + bias` for `x` `[rows, in]` and a weight `[out, in]` made by [`Raw::quantised`] or [`Raw::nf4`]:
    /// `[rows, out]`. A row's result does not depend on the others. Weights that are [multiplied in
    /// bf16](Backend::multiplies_in) take `x` in bf16, too.
    fn linear_quantised(&self, x: &Raw, weight: &Raw, bias: Option<&Raw>) -> Raw;

    /// The gradient of the input of [`Backend::linear_quantised`]: `dx = start + dy weight`, for `dy` `[rows, out]`. In bf16
    /// `dy` and what weights of any type decode to are rounded.
    fn linear_quantised_backward(&self, dx: &mut Raw, dy: &Raw, weight: &Raw, start: Start<'_>, precision: Precision);

    /// The precision of products with a weight of this type where one is in force: bf16 is for those that are read in it,
    /// halves and NF4.
    fn multiplies_in(&self, weight: DType, precision: Precision) -> Precision;

    /// A gated feed-forward in f32, gate, up and down each a weight and a bias: to the bit what
    /// [`Backend::linear_quantised`] and [`Backend::gated`] give; none where that is not one operation.
    fn feed_forward(&self, act: Unary, x: &Raw, layers: [(&Raw, Option<&Raw>); 3]) -> Option<Raw>;

    /// Softmax over the last axis.
    fn softmax(&self, x: &Raw) -> Raw;
    /// Gradient of softmax from its output.
    fn softmax_backward(&self, y: &Raw, dy: &Raw) -> Raw;
    /// Log-softmax over the last axis.
    fn log_softmax(&self, x: &Raw) -> Raw;
    /// Gradient of log-softmax from its output.
    fn log_softmax_backward(&self, y: &Raw, dy: &Raw) -> Raw;
    /// `x[row, ids[row]]` of every row.
    fn gather_last(&self, x: &Raw, ids: &[u32]) -> Raw;
    /// `dst[row, ids[row]] += src[row]`.
    fn scatter_add_last(&self, dst: &mut Raw, ids: &[u32], src: &Raw);

    /// Norm over the last axis; also the statistics backward needs.
    fn norm(&self, kind: NormKind, x: &Raw, weight: &Raw, bias: Option<&Raw>, eps: f32) -> (Raw, Raw);
    /// Gradient of the input; adds those of weight and bias to `dweight` and `dbias`.
    #[allow(clippy::too_many_arguments, reason = "the operands of one equation")]
    fn norm_backward(
        &self,
        kind: NormKind,
        dy: &Raw,
        x: &Raw,
        weight: &Raw,
        stats: &Raw,
        dweight: &mut Raw,
        dbias: Option<&mut Raw>,
    ) -> Raw;

    /// Rotary position embedding of `[batch, time, heads, head_dim]`, strided input allowed; `inverse` undoes it.
    fn rope(&self, x: &Raw, tables: &RopeTables, inverse: bool) -> Raw;
    /// Rows of `table` `[vocab, width]`, of any element type: result `[ids.len(), width]`.
    fn embedding(&self, table: &Raw, ids: &[u32]) -> Raw;
    /// `dtable[ids[i]] += dy[i]`.
    fn embedding_backward(&self, dtable: &mut Raw, dy: &Raw, ids: &[u32]);

    /// Softmax attention of strided `[batch, time, heads, head_dim]` views: output `[batch, time, heads, head_dim]`
    /// and the log-sum-exp of every query `[batch, heads, time]` (Dao et al. 2022).
    fn attention(&self, q: &Raw, k: &Raw, v: &Raw, dims: &AttentionDims, mask: &AttentionMask) -> (Raw, Raw);
    /// The same with keys and values in the pages of a cache, without what backward would need.
    fn attention_in_pages(&self, q: &Raw, kv: [&[Page<'_>]; 2], dims: &AttentionDims, mask: &AttentionMask) -> Raw;
    /// Gradients of attention, recomputing the probabilities tile by tile.
    #[allow(clippy::too_many_arguments, reason = "the operands of one equation")]
    fn attention_backward(
        &self,
        dout: &Raw,
        out: &Raw,
        lse: &Raw,
        q: &Raw,
        k: &Raw,
        v: &Raw,
        dims: &AttentionDims,
        mask: &AttentionMask,
    ) -> AttentionGrads;

    /// Negative log-likelihood of each row's target (0 where the target is -100), with `terms`.
    fn cross_entropy(&self, logits: &Raw, targets: &[i32], terms: CrossEntropyTerms) -> Vec<f32>;
    /// As [`Backend::cross_entropy`]; overwrites `logits` with `scale * d loss / d logits`.
    fn cross_entropy_backward(
        &self,
        logits: &mut Raw,
        targets: &[i32],
        scale: f32,
        terms: CrossEntropyTerms,
    ) -> Vec<f32>;

    /// One AdamW step in place (Loshchilov and Hutter 2019).
    fn adamw(&self, value: &mut Raw, grad: &Raw, m: &mut Raw, v: &mut Raw, step: &AdamW);

    /// A zero-filled dense f32 tensor.
    fn zeros(&self, shape: Dims) -> Raw {
        Raw::full(shape, 0.0)
    }
}
