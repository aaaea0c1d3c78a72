//! The processor's [`Backend`]: shapes are checked here, arithmetic happens in `loam-kernels`.

mod strided;

use loam_kernels::attention::{self, AttentionDims, Heads, Masking, Page, Stored, StoredMut};
use loam_kernels::elementwise::{self, Binary, Unary};
use loam_kernels::gemm::{self, Mat, MatMut, Operand, gemm_bf16, gemm_f32};
use loam_kernels::optim::{AdamW, adamw_step};
use loam_kernels::quant::{
    GgmlType, Nf4, Quantised, can_feed_forward, dequantise, dequantise_rows, feed_forward, matmul_bf16, matmul_nf4,
    matmul_nf4_backward, matmul_nf4_bf16, matmul_quantised, matmul_quantised_backward, reads_halves_as_bf16,
};
use loam_kernels::{convert, cross_entropy, embedding, norm, rope, softmax};

use crate::backend::{AttentionGrads, AttentionMask, Backend, Dropout, NormKind, RopeTables, Start};
use crate::precision::Precision;
use crate::profile;
use crate::raw::{DType, Raw};

/// Kernels on the threads of the current rayon pool.
pub(crate) struct Cpu;

fn like(x: &Raw) -> Raw {
    Raw::empty(DType::F32, x.shape())
}

/// Arithmetic of one of attention's products, of which forward has two and backward five.
fn product_flop(dims: &AttentionDims) -> f64 {
    let all = 2.0 * (dims.batch * dims.heads * dims.q_len * dims.kv_len * dims.head_dim) as f64;
    if dims.causal && dims.q_len == dims.kv_len { all / 2.0 } else { all }
}

/// The same where a row is cut into sequences.
fn runs_flop(dims: &AttentionDims, borders: &[usize]) -> f64 {
    let of = |len: usize| product_flop(&AttentionDims { q_len: len, kv_len: len, ..*dims });
    borders.windows(2).map(|border| of(border[1] - border[0])).sum()
}

/// A `[batch, time, heads, head_dim]` view as the attention kernels take it.
fn heads(x: &Raw) -> Heads<'_> {
    let strides = x.strides();
    assert!(x.shape().len() == 4 && (strides[3] == 1 || x.shape()[3] == 1), "features of a head lie side by side");
    let data = match x.dtype() {
        DType::Bf16 => Stored::Bf16(x.strided_bf16()),
        _ => Stored::F32(x.strided_f32()),
    };
    Heads { data, batch_stride: strides[0], time_stride: strides[1], head_stride: strides[2] }
}

fn stored_mut(out: &mut Raw) -> StoredMut<'_> {
    match out.dtype() {
        DType::Bf16 => StoredMut::Bf16(out.bf16_mut()),
        _ => StoredMut::F32(out.f32_mut()),
    }
}

fn masking(mask: &AttentionMask) -> Masking<'_> {
    Masking {
        segments: mask.segments.as_deref(),
        query_segments: mask.query_segments.as_deref(),
        bias: mask.bias.as_ref().map(Raw::f32),
    }
}

/// One matrix of a strided operand, `batch` many of which lie `batch_stride` apart.
fn matrix<'a, T>(data: &'a [T], x: &Raw, index: usize) -> Mat<'a, T> {
    let (shape, strides, rank) = (x.shape(), x.strides(), x.shape().len());
    let start = if rank == 3 { index * strides[0] } else { 0 };
    Mat {
        data: &data[start..],
        rows: shape[rank - 2],
        cols: shape[rank - 1],
        row_stride: strides[rank - 2],
        col_stride: strides[rank - 1],
    }
}

/// The same of either element type, for a product in bf16.
fn operand(x: &Raw, index: usize) -> Operand<'_> {
    match x.dtype() {
        DType::F32 => Operand::F32(matrix(x.strided_f32(), x, index)),
        _ => Operand::Bf16(matrix(x.strided_bf16(), x, index)),
    }
}

/// What the sums of a product start from.
fn started(start: Start<'_>) -> gemm::Start<'_> {
    match start {
        Start::Zero => gemm::Start::Zero,
        Start::Sum => gemm::Start::Sum,
        Start::Bias(bias) => gemm::Start::Bias(bias.f32()),
    }
}

/// The weights of a tensor that must be quantised.
fn quantised(x: &Raw) -> Quantised<'_> {
    x.as_quantised().unwrap_or_else(|| panic!("quantised weights asked of a {:?} tensor", x.dtype()))
}

/// The weights of a tensor that must be in NF4.
fn nf4(x: &Raw) -> &Nf4 {
    x.as_nf4().unwrap_or_else(|| panic!("weights in NF4 asked of a {:?} tensor", x.dtype()))
}

impl Backend for Cpu {
    fn copy(&self, x: &Raw) -> Raw {
        let _op = profile::op("copy", &[x, x]);
        let mut out = Raw::empty(x.dtype(), x.shape());
        match x.dtype() {
            DType::Bf16 => strided::copy_bf16(out.bf16_mut(), x),
            _ => strided::copy(out.f32_mut(), x),
        }
        out
    }

    fn add_region(&self, dst: &mut Raw, axis: usize, start: usize, src: &Raw) {
        let _op = profile::op("add_region", &[src, src, src]);
        strided::add_region(dst, axis, start, src);
    }

    fn write_region(&self, dst: &mut Raw, axis: usize, start: usize, src: &Raw) {
        let _op = profile::op("write_region", &[src, src]);
        strided::write_region(dst, axis, start, src);
    }

    fn cast(&self, x: &Raw, dtype: DType) -> Raw {
        let _op = profile::op("cast", &[x, x]);
        let mut out = Raw::empty(dtype, x.shape());
        match (x.dtype(), dtype) {
            (DType::F32, DType::Bf16) => convert::f32_to_bf16(out.bf16_mut(), x.f32()),
            (DType::Bf16, DType::F32) if !x.is_dense() => strided::widen(out.f32_mut(), x),
            (DType::Bf16, DType::F32) => convert::bf16_to_f32(out.f32_mut(), x.bf16()),
            (DType::Ggml(ty), DType::F32) => dequantise_rows(ty, quantised(x).bytes, out.f32_mut()),
            (DType::Nf4, DType::F32) => nf4(x).decode_all(out.f32_mut()),
            (DType::Ggml(_) | DType::Nf4, DType::Bf16) => return self.cast(&self.cast(x, DType::F32), dtype),
            (from, to) => {
                assert_eq!(from, to, "there is no cast into what only files hold");
                return x.clone();
            }
        }
        out
    }

    fn unary(&self, op: Unary, x: &Raw) -> Raw {
        let _op = profile::op("unary", &[x, x]);
        let mut out = Raw::empty(x.dtype(), x.shape());
        match x.dtype() {
            DType::Bf16 => elementwise::unary_bf16(op, out.bf16_mut(), x.bf16()),
            _ => elementwise::unary(op, out.f32_mut(), x.f32()),
        }
        out
    }

    fn unary_backward(&self, op: Unary, x: &Raw, dy: &Raw) -> Raw {
        let _op = profile::op("unary_backward", &[x, dy, x]);
        let mut dx = like(x);
        match x.dtype() {
            DType::Bf16 => elementwise::unary_backward_bf16(op, dx.f32_mut(), x.bf16(), dy.f32()),
            _ => elementwise::unary_backward(op, dx.f32_mut(), x.f32(), dy.f32()),
        }
        dx
    }

    fn binary(&self, op: Binary, a: &Raw, b: &Raw) -> Raw {
        let _op = profile::op("binary", &[a, b, a]);
        let mut out = like(a);
        elementwise::binary(op, out.f32_mut(), a.f32(), b.f32());
        out
    }

    fn affine(&self, x: &Raw, scale: f32, shift: f32) -> Raw {
        let _op = profile::op("affine", &[x, x]);
        let mut out = like(x);
        elementwise::affine(out.f32_mut(), x.f32(), scale, shift);
        out
    }

    fn axpy(&self, dst: &mut Raw, scale: f32, x: &Raw) {
        let _op = profile::op("axpy", &[x, x, x]);
        elementwise::axpy(dst.f32_mut(), scale, x.f32());
    }

    fn gated(&self, act: Unary, gate: &Raw, up: &Raw) -> Raw {
        let _op = profile::op("gated", &[gate, up, gate]);
        let mut out = Raw::empty(gate.dtype(), gate.shape());
        match gate.dtype() {
            DType::Bf16 => elementwise::gated_bf16(act, out.bf16_mut(), gate.bf16(), up.bf16()),
            _ => elementwise::gated(act, out.f32_mut(), gate.f32(), up.f32()),
        }
        out
    }

    fn gated_backward(&self, act: Unary, gate: &Raw, up: &Raw, dy: &Raw) -> (Raw, Raw) {
        let _op = profile::op("gated_backward", &[gate, up, dy, gate, up]);
        let (mut dgate, mut dup) = (like(gate), like(up));
        let (to_gate, to_up) = (dgate.f32_mut(), dup.f32_mut());
        match gate.dtype() {
            DType::Bf16 => elementwise::gated_backward_bf16(act, to_gate, to_up, gate.bf16(), up.bf16(), dy.f32()),
            _ => elementwise::gated_backward(act, to_gate, to_up, gate.f32(), up.f32(), dy.f32()),
        }
        (dgate, dup)
    }

    fn dropout(&self, x: &Raw, dropout: Dropout) -> Raw {
        let _op = profile::op("dropout", &[x, x]);
        let mut out = like(x);
        elementwise::dropout(out.f32_mut(), x.f32(), dropout.p, dropout.seed, dropout.step);
        out
    }

    fn sum(&self, x: &Raw) -> f32 {
        let _op = profile::op("sum", &[x]);
        elementwise::sum(x.f32())
    }

    fn sum_of_squares(&self, x: &Raw) -> f64 {
        let _op = profile::op("sum_of_squares", &[x]);
        elementwise::sum_of_squares(x.f32())
    }

    fn all_finite(&self, x: &Raw) -> bool {
        let _op = profile::op("all_finite", &[x]);
        elementwise::all_finite(x.f32())
    }

    fn add_column_sums(&self, dst: &mut Raw, x: &Raw) {
        let _op = profile::op("add_column_sums", &[x]);
        let width = dst.count();
        elementwise::column_sums(dst.f32_mut(), x.f32(), width);
    }

    fn sum_last(&self, x: &Raw) -> Raw {
        let _op = profile::op("sum_last", &[x]);
        let (shape, width) = (x.shape(), x.shape().width());
        let mut out = Raw::empty(DType::F32, &shape[..shape.len() - 1]);
        for (total, row) in out.f32_mut().iter_mut().zip(x.f32().chunks_exact(width.max(1))) {
            *total = elementwise::sum(row);
        }
        out
    }

    fn matmul(&self, dst: &mut Raw, a: &Raw, b: &Raw, start: Start<'_>, precision: Precision) {
        let start = started(start);
        let rank = a.shape().len();
        let batch = if rank == 3 { a.shape()[0] } else { 1 };
        let shape = dst.shape();
        let (rows, cols) = (a.shape()[rank - 2], b.shape()[rank - 1]);
        let flop = 2.0 * (batch * rows * cols * a.shape()[rank - 1]) as f64;
        let _op = profile::op("matmul", &[a, b, dst]).with_flop(flop);
        assert_eq!(a.shape()[rank - 1], b.shape()[rank - 2], "matmul: {:?} x {:?}", a.shape(), b.shape());
        assert_eq!(dst.count(), batch * rows * cols, "matmul: {:?} x {:?} into {shape:?}", a.shape(), b.shape());
        for (index, out) in dst.f32_mut().chunks_exact_mut((rows * cols).max(1)).enumerate() {
            let c = MatMut { data: out, rows, cols, row_stride: cols, col_stride: 1 };
            match precision {
                Precision::F32 => {
                    gemm_f32(c, matrix(a.strided_f32(), a, index), matrix(b.strided_f32(), b, index), start);
                }
                Precision::Bf16 => gemm_bf16(c, operand(a, index), operand(b, index), start),
            }
        }
    }

    fn linear_quantised(&self, x: &Raw, weight: &Raw, bias: Option<&Raw>) -> Raw {
        let mut out = Raw::empty(DType::F32, [x.rows(), weight.shape()[0]]);
        let flop = 2.0 * (x.rows() * weight.count()) as f64;
        let _op = profile::op("linear_quantised", &[x, weight, &out]).with_flop(flop);
        let bias = bias.map(Raw::f32);
        match (weight.dtype(), x.dtype()) {
            (DType::Nf4, DType::Bf16) => {
                matmul_nf4_bf16(out.f32_mut(), x.bf16(), nf4(weight), weight.shape()[1], bias);
            }
            (DType::Nf4, _) => matmul_nf4(out.f32_mut(), x.f32(), nf4(weight), weight.shape()[1], bias),
            (_, DType::Bf16) => matmul_bf16(out.f32_mut(), x.bf16(), quantised(weight), bias),
            _ => matmul_quantised(out.f32_mut(), x.f32(), quantised(weight), bias),
        }
        out
    }

    fn linear_quantised_backward(&self, dx: &mut Raw, dy: &Raw, weight: &Raw, start: Start<'_>, precision: Precision) {
        let flop = 2.0 * (dy.rows() * weight.count()) as f64;
        let _op = profile::op("linear_quantised_backward", &[dy, weight, dx]).with_flop(flop);
        let (start, in_bf16) = (started(start), precision == Precision::Bf16);
        match weight.dtype() {
            DType::Nf4 => {
                let cols = weight.shape()[1];
                matmul_nf4_backward(dx.f32_mut(), dy.f32(), nf4(weight), cols, start, in_bf16);
            }
            _ => matmul_quantised_backward(dx.f32_mut(), dy.f32(), quantised(weight), start, in_bf16),
        }
    }

    fn multiplies_in(&self, weight: DType, precision: Precision) -> Precision {
        match weight {
            DType::Nf4 | DType::Ggml(GgmlType::Bf16) => precision,
            DType::Ggml(GgmlType::F16) if reads_halves_as_bf16() => precision,
            _ => Precision::F32,
        }
    }

    fn feed_forward(&self, act: Unary, x: &Raw, layers: [(&Raw, Option<&Raw>); 3]) -> Option<Raw> {
        let weights @ [gate, up, down] = layers.map(|(weight, _)| weight);
        let [DType::Ggml(a), DType::Ggml(b), DType::Ggml(c)] = weights.map(Raw::dtype) else { return None };
        if !can_feed_forward([a, b, c]) {
            return None;
        }
        let mut out = Raw::empty(DType::F32, [x.rows(), down.shape()[0]]);
        let flop = 2.0 * (x.rows() * (gate.count() + up.count() + down.count())) as f64;
        let _op = profile::op("feed_forward", &[x, gate, up, down, &out]).with_flop(flop);
        let biases = layers.map(|(_, bias)| bias.map(Raw::f32));
        feed_forward(act, out.f32_mut(), x.f32(), weights.map(quantised), biases);
        Some(out)
    }

    fn softmax(&self, x: &Raw) -> Raw {
        let _op = profile::op("softmax", &[x, x]);
        let mut out = like(x);
        softmax::softmax(out.f32_mut(), x.f32(), x.shape().width());
        out
    }

    fn softmax_backward(&self, y: &Raw, dy: &Raw) -> Raw {
        let _op = profile::op("softmax_backward", &[y, dy, y]);
        let mut dx = like(y);
        softmax::softmax_backward(dx.f32_mut(), y.f32(), dy.f32(), y.shape().width());
        dx
    }

    fn log_softmax(&self, x: &Raw) -> Raw {
        let _op = profile::op("log_softmax", &[x, x]);
        let mut out = like(x);
        softmax::log_softmax(out.f32_mut(), x.f32(), x.shape().width());
        out
    }

    fn log_softmax_backward(&self, y: &Raw, dy: &Raw) -> Raw {
        let _op = profile::op("log_softmax_backward", &[y, dy, y]);
        let mut dx = like(y);
        softmax::log_softmax_backward(dx.f32_mut(), y.f32(), dy.f32(), y.shape().width());
        dx
    }

    fn gather_last(&self, x: &Raw, ids: &[u32]) -> Raw {
        let _op = profile::op("gather_last", &[]);
        let width = x.shape().width();
        let mut out = Raw::empty(DType::F32, [ids.len()]);
        for ((picked, row), &id) in out.f32_mut().iter_mut().zip(x.f32().chunks_exact(width)).zip(ids) {
            *picked = row[id as usize];
        }
        out
    }

    fn scatter_add_last(&self, dst: &mut Raw, ids: &[u32], src: &Raw) {
        let _op = profile::op("scatter_add_last", &[src, src, src]);
        let width = dst.shape().width();
        for ((row, &id), &value) in dst.f32_mut().chunks_exact_mut(width).zip(ids).zip(src.f32()) {
            row[id as usize] += value;
        }
    }

    fn norm(&self, kind: NormKind, x: &Raw, weight: &Raw, bias: Option<&Raw>, eps: f32) -> (Raw, Raw) {
        let _op = profile::op("norm", &[x, x]);
        let mut out = like(x);
        let per_row = if kind == NormKind::Layer { 2 } else { 1 };
        let mut stats = Raw::empty(DType::F32, [x.rows() * per_row]);
        match kind {
            NormKind::Layer => {
                let bias = bias.map(Raw::f32);
                norm::layer_norm(out.f32_mut(), stats.f32_mut(), x.f32(), weight.f32(), bias, eps);
            }
            NormKind::Rms => norm::rms_norm(out.f32_mut(), stats.f32_mut(), x.f32(), weight.f32(), eps),
        }
        (out, stats)
    }

    fn norm_backward(
        &self,
        kind: NormKind,
        dy: &Raw,
        x: &Raw,
        weight: &Raw,
        stats: &Raw,
        dweight: &mut Raw,
        dbias: Option<&mut Raw>,
    ) -> Raw {
        let _op = profile::op("norm_backward", &[dy, x, x]);
        let mut dx = like(x);
        let (dw, db) = (dweight.f32_mut(), dbias.map(Raw::f32_mut));
        match kind {
            NormKind::Layer => {
                norm::layer_norm_backward(dx.f32_mut(), dw, db, dy.f32(), x.f32(), weight.f32(), stats.f32());
            }
            NormKind::Rms => norm::rms_norm_backward(dx.f32_mut(), dw, dy.f32(), x.f32(), weight.f32(), stats.f32()),
        }
        dx
    }

    fn rope(&self, x: &Raw, tables: &RopeTables, inverse: bool) -> Raw {
        let _op = profile::op("rope", &[x, x]);
        let mut out = like(x);
        strided::copy(out.f32_mut(), x);
        let [batch, time, heads, head_dim] = x.shape()[..] else { panic!("rope of shape {:?}", x.shape()) };
        let dims = rope::RopeDims {
            batch,
            time,
            heads,
            head_dim,
            rotary_dim: 2 * tables.cos.shape().width(),
            style: tables.style,
            inverse,
        };
        rope::rope_in_place(out.f32_mut(), tables.cos.f32(), tables.sin.f32(), &dims);
        out
    }

    fn embedding(&self, table: &Raw, ids: &[u32]) -> Raw {
        let _op = profile::op("embedding", &[]);
        let width = table.shape().width();
        let mut out = Raw::empty(DType::F32, [ids.len(), width]);
        if let Some(weights) = table.as_nf4() {
            let rows = out.f32_mut().chunks_exact_mut(width).zip(ids);
            rows.for_each(|(out, &id)| weights.decode(id as usize * width, out));
            return out;
        }
        let Some(rows) = table.as_quantised() else {
            embedding::embedding(out.f32_mut(), table.f32(), ids, width);
            return out;
        };
        let row_bytes = rows.bytes.len() / rows.rows;
        for (out, &id) in out.f32_mut().chunks_exact_mut(width).zip(ids) {
            dequantise(rows.ty, &rows.bytes[id as usize * row_bytes..][..row_bytes], out);
        }
        out
    }

    fn embedding_backward(&self, dtable: &mut Raw, dy: &Raw, ids: &[u32]) {
        let _op = profile::op("embedding_backward", &[dy, dy]);
        let width = dtable.shape().width();
        embedding::embedding_backward(dtable.f32_mut(), dy.f32(), ids, width);
    }

    fn attention(&self, q: &Raw, k: &Raw, v: &Raw, dims: &AttentionDims, mask: &AttentionMask) -> (Raw, Raw) {
        let flop = mask.runs.as_deref().map_or(product_flop(dims), |runs| runs_flop(dims, runs));
        let _op = profile::op("attention", &[q, k, v, q]).with_flop(flop * 2.0);
        let mut out = Raw::empty(q.dtype(), [dims.batch, dims.q_len, dims.heads, dims.head_dim]);
        let mut lse = Raw::empty(DType::F32, [dims.batch, dims.heads, dims.q_len]);
        let (q, k, v) = (heads(q), heads(k), heads(v));
        let to_out = stored_mut(&mut out);
        match &mask.runs {
            Some(runs) => {
                assert!(mask.segments.is_none() && mask.bias.is_none(), "attention: runs beside segments or a bias");
                attention::attention_in_runs(to_out, lse.f32_mut(), [q, k, v], dims, runs);
            }
            None => attention::attention(to_out, lse.f32_mut(), q, k, v, dims, &masking(mask)),
        }
        (out, lse)
    }

    fn attention_in_pages(&self, q: &Raw, kv: [&[Page<'_>]; 2], dims: &AttentionDims, mask: &AttentionMask) -> Raw {
        let _op = profile::op("attention_in_pages", &[q, q]).with_flop(product_flop(dims) * 2.0);
        let mut out = Raw::empty(q.dtype(), [dims.batch, dims.q_len, dims.heads, dims.head_dim]);
        let mut lse = Raw::empty(DType::F32, [dims.batch, dims.heads, dims.q_len]);
        attention::attention_in_pages(stored_mut(&mut out), lse.f32_mut(), heads(q), kv, dims, &masking(mask));
        out
    }

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
    ) -> AttentionGrads {
        assert!(mask.runs.is_none(), "attention: runs are for inference, training packs documents with segments");
        let _op = profile::op("attention_backward", &[dout, out, q, k, v, q, k, v]).with_flop(product_flop(dims) * 5.0);
        let kv_shape = [dims.batch, dims.kv_len, dims.kv_heads, dims.head_dim];
        let mut dq = Raw::empty(DType::F32, [dims.batch, dims.q_len, dims.heads, dims.head_dim]);
        let (mut dk, mut dv) = (Raw::empty(DType::F32, kv_shape), Raw::empty(DType::F32, kv_shape));
        let mut dbias = mask.bias.as_ref().map(|bias| Raw::full(bias.shape(), 0.0));
        attention::attention_backward(
            attention::Grads {
                dq: dq.f32_mut(),
                dk: dk.f32_mut(),
                dv: dv.f32_mut(),
                dbias: dbias.as_mut().map(Raw::f32_mut),
            },
            dout.f32(),
            match out.dtype() {
                DType::Bf16 => Stored::Bf16(out.bf16()),
                _ => Stored::F32(out.f32()),
            },
            lse.f32(),
            heads(q),
            heads(k),
            heads(v),
            dims,
            &masking(mask),
        );
        AttentionGrads { q: dq, k: dk, v: dv, bias: dbias }
    }

    fn cross_entropy(&self, logits: &Raw, targets: &[i32], terms: cross_entropy::Terms) -> Vec<f32> {
        let _op = profile::op("cross_entropy", &[logits]);
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::cross_entropy(&mut losses, logits.f32(), targets, logits.shape().width(), terms);
        losses
    }

    fn cross_entropy_backward(
        &self,
        logits: &mut Raw,
        targets: &[i32],
        scale: f32,
        terms: cross_entropy::Terms,
    ) -> Vec<f32> {
        let _op = profile::op("cross_entropy_backward", &[logits, logits]);
        let vocab = logits.shape().width();
        let mut losses = vec![0.0; targets.len()];
        cross_entropy::cross_entropy_backward_in_place(&mut losses, logits.f32_mut(), targets, vocab, scale, terms);
        losses
    }

    fn adamw(&self, value: &mut Raw, grad: &Raw, m: &mut Raw, v: &mut Raw, step: &AdamW) {
        let _op = profile::op("adamw", &[value, value, grad, m, m, v, v]);
        adamw_step(value.f32_mut(), grad.f32(), m.f32_mut(), v.f32_mut(), step);
    }
}
