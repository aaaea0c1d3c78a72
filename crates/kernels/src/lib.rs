//! Arithmetic on slices: GEMM, attention, norms, activations, cross-entropy, optimizer steps, counter-based random numbers.
