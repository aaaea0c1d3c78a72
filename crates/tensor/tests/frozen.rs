//! Frozen weights, in f32 and as a file holds them: gradients flow through them, and none is made for them.

use std::sync::Arc;

use half::{bf16, f16};
use loam_kernels::rng::Rng;
use loam_tensor::{GgmlType, HeadSettings, Parameter, Precision, Raw, Tensor, pool_stats, with_precision};

const OUTPUTS: usize = 160;
const INPUTS: usize = 96;

fn random(name: &str, shape: &[usize]) -> Parameter {
    let parameter = Parameter::zeros(shape);
    let mut values = vec![0.0; parameter.count()];
    Rng::new(7, name, 0).fill_normal(&mut values, 0.0, 0.7);
    parameter.set(&values);
    parameter
}

/// A weight of halves as a file holds it, and the same numbers in f32, frozen.
fn weights(ty: GgmlType) -> [Parameter; 2] {
    let values = random("w", &[OUTPUTS, INPUTS]).to_vec();
    let (bytes, wide): (Vec<[u8; 2]>, Vec<f32>) = values
        .iter()
        .map(|&x| match ty {
            GgmlType::F16 => (f16::from_f32(x).to_le_bytes(), f16::from_f32(x).to_f32()),
            _ => (bf16::from_f32(x).to_le_bytes(), bf16::from_f32(x).to_f32()),
        })
        .unzip();
    let held = Parameter::zeros([OUTPUTS, INPUTS]);
    held.replace(Raw::quantised(ty, [OUTPUTS, INPUTS], Arc::new(bytes.concat()), 0));
    let plain = Parameter::new(Raw::from_f32(&wide, [OUTPUTS, INPUTS]));
    plain.set_trainable(false);
    [held, plain]
}

/// The loss and the gradient of the input.
fn learned(weight: &Parameter, loss: impl Fn(&Tensor, &Tensor) -> Tensor) -> (f32, Vec<f32>) {
    let x = random("x", &[24, INPUTS]);
    let loss = loss(&Tensor::parameter(&x), &Tensor::parameter(weight));
    let value = loss.item();
    loss.backward();
    assert!(weight.grad().is_none(), "a frozen weight has no gradient");
    (value, x.grad().map(|grad| grad.f32().to_vec()).unwrap_or_default())
}

#[test]
fn halves_of_a_file_learn_as_the_same_numbers_in_f32_do() {
    let targets: Vec<i32> = (0..24).map(|i| i * 7 % OUTPUTS as i32).collect();
    for ty in [GgmlType::F16, GgmlType::Bf16] {
        let [held, plain] = weights(ty);
        let through_linear = |x: &Tensor, w: &Tensor| x.linear(w, None).mul(&x.linear(w, None)).mean();
        let through_head =
            |x: &Tensor, w: &Tensor| x.linear_cross_entropy(w, None, &targets, 0.1, HeadSettings::default());
        assert_eq!(learned(&held, through_linear), learned(&plain, through_linear), "{}", ty.name());
        assert_eq!(learned(&held, through_head), learned(&plain, through_head), "{}", ty.name());
        if ty == GgmlType::Bf16 {
            // Halves of the other kind are rounded only where the machine is fast at it.
            with_precision(Precision::Bf16, || {
                assert_eq!(learned(&held, through_linear), learned(&plain, through_linear));
                assert_eq!(learned(&held, through_head), learned(&plain, through_head));
            });
        }
    }
}

#[test]
fn a_frozen_head_takes_no_room_for_a_gradient() {
    let (vocab, hidden) = (32 * 1024, 1024);
    let head = Parameter::zeros([vocab, hidden]);
    head.set_trainable(false);
    let x = random("x", &[16, hidden]);
    let before = pool_stats().live_bytes;
    let loss = Tensor::parameter(&x).linear_cross_entropy(
        &Tensor::parameter(&head),
        None,
        &[3; 16],
        1.0,
        HeadSettings::default(),
    );
    loss.backward();
    let taken = pool_stats().peak_bytes - before;
    assert!(taken < 2 * 4 * vocab * hidden, "the head itself takes {}, all {taken}", 4 * vocab * hidden);
}
