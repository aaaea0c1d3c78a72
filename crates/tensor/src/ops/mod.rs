//! Operations on [`crate::Tensor`]: one file per kind, each entry one forward and one backward.

mod activation;
mod arithmetic;
pub(crate) mod attention;
pub(crate) mod head;
mod index;
mod linear;
pub(crate) mod log_probs;
pub(crate) mod loss;
mod norm;
mod recompute;
mod reduce;
mod shape;
