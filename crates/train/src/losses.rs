//! Losses of rows of numbers, for heads other than the next token's: each a scalar, the mean over its elements or rows. Those
//! of preferences and of reinforcement learning are in [`preference`] and [`policy`].
//!
//! The language model's own loss is fused with its head: [`Tensor::linear_cross_entropy`]. A shape that does not fit is a
//! bug of the caller and panics with both shapes.

pub mod policy;
pub mod preference;

use loam_kernels::cross_entropy::IGNORED;
use loam_tensor::{CrossEntropyTerms, Tensor, Unary};

/// How a sum becomes the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// It is the loss.
    Sum,
    /// It is divided by the rows, not by the elements: the mean of a divergence per row (PyTorch's `batchmean`).
    BatchMean,
}

fn same_shape(name: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "{name}: both sides have one shape");
}

/// Mean squared error of `x` and `target`, of one shape: mean of (x - y)².
pub fn mse(x: &Tensor, target: &Tensor) -> Tensor {
    same_shape("mse", x, target);
    (x - target).unary(Unary::Square).mean()
}

/// Mean absolute error of `x` and `target`, of one shape: mean of |x - y|, with slope 0 where they are equal.
pub fn mae(x: &Tensor, target: &Tensor) -> Tensor {
    same_shape("mae", x, target);
    (x - target).unary(Unary::Abs).mean()
}

/// Huber loss of `x` and `target`, of one shape (Huber 1964, section 3): with d = |x - y|, mean of d² / 2 up to `delta` and
/// of `delta` (d - `delta` / 2) beyond. `delta` is above 0.
pub fn huber(x: &Tensor, target: &Tensor, delta: f32) -> Tensor {
    same_shape("huber", x, target);
    assert!(delta > 0.0, "huber: delta is {delta}");
    let distance = (x - target).unary(Unary::Abs);
    // q (d - q / 2) with q = min(d, delta) is both branches.
    let near = distance.minimum(&Tensor::from(delta));
    near.mul(&(&distance - &near.scale(0.5))).mean()
}

/// Binary cross-entropy of `logits` against probabilities `target`, of one shape:
/// mean of -y ln σ(x) - (1 - y) ln(1 - σ(x)), which neither overflows nor cancels for large logits.
pub fn bce_with_logits(logits: &Tensor, target: &Tensor) -> Tensor {
    same_shape("bce_with_logits", logits, target);
    let miss = target.mul(&logits.scale(-1.0).unary(Unary::Softplus));
    let false_alarm = target.affine(-1.0, 1.0).mul(&logits.unary(Unary::Softplus));
    (&miss + &false_alarm).mean()
}

/// Kullback-Leibler divergence of probabilities `target` `[.., classes]` from log-probabilities `log_probs` of that shape
/// (Kullback and Leibler 1951, eq. 2.4): sum of y (ln y - x), where y = 0 adds nothing.
pub fn kl_div(log_probs: &Tensor, target: &Tensor, reduction: Reduction) -> Tensor {
    same_shape("kl_div", log_probs, target);
    let log_target = target.maximum(&Tensor::from(f32::MIN_POSITIVE)).unary(Unary::Log);
    reduced(&target.mul(&(&log_target - log_probs)), reduction)
}

/// [`kl_div`] of a target in log-probabilities: sum of e^t (t - x).
pub fn kl_div_log_target(log_probs: &Tensor, log_target: &Tensor, reduction: Reduction) -> Tensor {
    same_shape("kl_div_log_target", log_probs, log_target);
    reduced(&log_target.unary(Unary::Exp).mul(&(log_target - log_probs)), reduction)
}

fn reduced(terms: &Tensor, reduction: Reduction) -> Tensor {
    match reduction {
        Reduction::Sum => terms.sum(),
        Reduction::BatchMean => terms.sum().scale(1.0 / terms.size(0) as f32),
    }
}

/// Hinge loss of `scores` against classes `target` of -1 and 1, of one shape (Cortes and Vapnik 1995): mean of max(0, 1 - y s).
pub fn hinge(scores: &Tensor, target: &Tensor) -> Tensor {
    same_shape("hinge", scores, target);
    scores.mul(target).affine(-1.0, 1.0).unary(Unary::Relu).mean()
}

/// InfoNCE with in-batch negatives (van den Oord et al. 2018, eq. 4): the cross-entropy of finding row i of `b` from row i
/// of `a`, among all rows of `b`, by cosine similarity over `temperature`.
///
/// `a`: `[rows, width]`; `b`: `[at least as many rows, width]`, those beyond `a`'s being further negatives. This is
/// sentence-transformers' `MultipleNegativesRankingLoss` with a scale of one over the temperature.
pub fn info_nce(a: &Tensor, b: &Tensor, temperature: f32) -> Tensor {
    assert!(a.shape().len() == 2 && b.shape().len() == 2, "info_nce: {:?} and {:?}", a.shape(), b.shape());
    assert!(b.size(0) >= a.size(0) && a.size(1) == b.size(1), "info_nce: {:?} and {:?}", a.shape(), b.shape());
    find_own(&unit_rows(a), &unit_rows(b), temperature)
}

/// [`info_nce`] in both directions, and the mean of both: CLIP's loss (Radford et al. 2021, figure 3). `a` and `b`:
/// `[rows, width]`.
pub fn info_nce_symmetric(a: &Tensor, b: &Tensor, temperature: f32) -> Tensor {
    same_shape("info_nce_symmetric", a, b);
    let (a, b) = (unit_rows(a), unit_rows(b));
    (&find_own(&a, &b, temperature) + &find_own(&b, &a, temperature)).scale(0.5)
}

fn find_own(a: &Tensor, b: &Tensor, temperature: f32) -> Tensor {
    assert!(temperature > 0.0, "info_nce: temperature is {temperature}");
    let own: Vec<i32> = (0..a.size(0) as i32).collect();
    cross_entropy(&a.linear(b, None).scale(1.0 / temperature), &own, CrossEntropyTerms::default())
}

/// Rows of length 1, but for rows of zeros.
fn unit_rows(x: &Tensor) -> Tensor {
    // As small as the bound on lengths in torch's `normalize`, squared.
    let squares = x.unary(Unary::Square).sum_last().maximum(&Tensor::from(1e-24));
    x.div(&squares.unary(Unary::Sqrt).repeat_last(x.shape().width()))
}

/// Contrastive loss of pairs (Hadsell et al. 2006, eq. 4): with d the distance of row i of `a` from row i of `b`, mean of
/// d² / 2 for pairs that are alike, and of max(0, `margin` - d)² / 2 for those that are not.
///
/// `a`, `b`: `[rows, width]`; `similar`: `[rows]`, 1 for alike and 0 for not.
pub fn contrastive(a: &Tensor, b: &Tensor, similar: &Tensor, margin: f32) -> Tensor {
    same_shape("contrastive", a, b);
    let squares = (a - b).unary(Unary::Square).sum_last();
    same_shape("contrastive", &squares, similar);
    // The root's slope is infinite at zero, where equal rows would be pushed nowhere.
    let distance = squares.maximum(&Tensor::from(f32::MIN_POSITIVE)).unary(Unary::Sqrt);
    let apart = distance.affine(-1.0, margin).unary(Unary::Relu).unary(Unary::Square);
    (&similar.mul(&squares) + &similar.affine(-1.0, 1.0).mul(&apart)).mean().scale(0.5)
}

/// Cross-entropy of `logits` `[.., classes]` against one class per row, the mean over the rows whose class is not -100, with
/// label smoothing (Szegedy et al. 2016, section 7) and z-loss. Zero where no row counts.
pub fn cross_entropy(logits: &Tensor, targets: &[i32], terms: CrossEntropyTerms) -> Tensor {
    let counted = targets.iter().filter(|&&target| target != IGNORED).count();
    logits.cross_entropy(targets, 1.0 / counted.max(1) as f32, terms)
}
