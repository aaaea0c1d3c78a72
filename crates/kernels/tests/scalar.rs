//! The scalar instruction set from end to end, in a process of its own: the choice is made once per process.

use loam_kernels::elementwise::{Unary, unary};
use loam_kernels::isa::{Isa, force, isa};
use loam_kernels::rng::Rng;
use loam_kernels::{Mat, MatMut, Start, gemm_f32};

#[test]
fn forcing_scalar_keeps_one_chain_per_element() {
    // The only test of this process: no other thread reads the environment yet.
    assert_eq!(force("scalar"), Ok(Isa::Scalar));
    assert_eq!(isa(), Isa::Scalar);
    let (k, n) = (300, 20);
    let (mut x, mut w) = (vec![0.0_f32; 33 * k], vec![0.0_f32; n * k]);
    Rng::new(1, "x", 0).fill_normal(&mut x, 0.0, 1.0);
    Rng::new(1, "w", 0).fill_normal(&mut w, 0.0, 1.0);
    for m in [1, 8, 9, 33] {
        let mut c = vec![f32::NAN; m * n];
        gemm_f32(MatMut::rows(&mut c, m, n), Mat::rows(&x[..m * k], m, k), Mat::rows(&w, n, k).t(), Start::Zero);
        for (i, &c) in c.iter().enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
            assert_eq!(c, x.iter().zip(w).fold(0.0, |acc, (x, w)| x * w + acc), "m {m}, element {i}");
        }
    }
    let mut y = [0.0; 3];
    unary(Unary::Silu, &mut y, &[-1.0, 0.0, 2.0]);
    assert!((y[0] + 0.268_941_4).abs() < 1e-6 && y[1] == 0.0 && (y[2] - 1.761_594_2).abs() < 1e-6);
    if Isa::Avx2.is_supported() {
        assert!(force("avx2").unwrap_err().contains("scalar is already in use"));
    }
}
