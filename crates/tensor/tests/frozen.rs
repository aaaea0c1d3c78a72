//! Frozen weights, in f32 and as a file holds them: gradients flow through them, and none is made for them.

use std::sync::Arc;

use half::{bf16, f16};
use loam_kernels::rng::Rng;
use loam_tensor::{
    Dropout, GgmlType, HeadSettings, Nf4, Parameter, Precision, Raw, Tensor, pool_stats, with_precision,
};

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
    (value, x.grad().expect("the input has a gradient").f32().to_vec())
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
fn quantised_weights_learn_as_what_they_decode_to_does() {
    let targets: Vec<i32> = (0..24).map(|i| i * 7 % OUTPUTS as i32).collect();
    let through_head = |x: &Tensor, w: &Tensor| x.linear_cross_entropy(w, None, &targets, 0.1, HeadSettings::default());
    let values = random("w", &[OUTPUTS, INPUTS]).to_vec();
    let mut bytes = vec![0; GgmlType::Q8_0.bytes(values.len()).expect("whole blocks")];
    loam_kernels::quant::quantise_rows(GgmlType::Q8_0, &values, INPUTS, None, &mut bytes);
    let shape = [OUTPUTS, INPUTS];
    for packed in
        [Raw::quantised(GgmlType::Q8_0, shape, Arc::new(bytes), 0), Raw::nf4(Nf4::encode(&values, true), shape)]
    {
        let held = Parameter::zeros(shape);
        held.replace(packed);
        let plain = Parameter::new(Raw::from_f32(&held.to_vec(), shape));
        plain.set_trainable(false);
        for precision in [Precision::F32, Precision::Bf16] {
            let [(loss, own), (wide_loss, wanted)] =
                [&held, &plain].map(|weight| with_precision(precision, || learned(weight, through_head)));
            // Q8_0 rounds the inputs to eight bits, too: half a step of 1/127 of the largest.
            let largest = wanted.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let error = own.iter().zip(&wanted).fold(0.0_f32, |most, (x, y)| most.max((x - y).abs()));
            assert!(
                error < 0.02 * largest && (loss - wide_loss).abs() < 2e-3 * wide_loss,
                "{precision:?}: {error} of {largest}"
            );
        }
    }
}

/// Gradients of a factor of what is dropped, where that is large enough to be made again in backward.
#[test]
fn what_was_dropped_is_made_again_for_backward_as_it_was() {
    let (rows, width) = (1024, 512);
    let [x, w] = [random("x", &[rows, width]), random("w", &[4, width])];
    let dropout = Dropout { p: 0.3, seed: 5, step: 2 };
    for precision in [Precision::F32, Precision::Bf16] {
        with_precision(precision, || {
            let dropped = Tensor::parameter(&x).stored().dropout(dropout);
            let kept = dropped.to_vec();
            dropped.linear(&Tensor::parameter(&w), None).sum().backward();
            // The gradient of every row of the weight is the sum of what it met, in products of bf16 rounded to it.
            let grad = w.grad().expect("a gradient");
            for (column, own) in grad.f32()[..width].iter().enumerate() {
                let met = kept.iter().skip(column).step_by(width);
                let round = |x: f32| if precision == Precision::Bf16 { bf16::from_f32(x).to_f64() } else { x.into() };
                let (sum, size) = met.fold((0.0, 0.0), |(sum, size), &x| (sum + round(x), size + f64::from(x.abs())));
                assert!((f64::from(*own) - sum).abs() < 1e-5 * size, "{precision:?}, column {column}: {own} for {sum}");
            }
            w.clear_grad();
            x.clear_grad();
        });
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
