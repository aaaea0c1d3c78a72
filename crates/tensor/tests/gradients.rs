//! Every operation's gradient against finite differences.

use loam_kernels::rng::Rng;
use loam_tensor::gradcheck::gradient_error;
use loam_tensor::{
    AttentionSpec, CrossEntropyTerms, Dropout, HeadSettings, LogProbSettings, Parameter, Raw, RopeStyle, RopeTables,
    Tensor, Unary,
};

/// Largest error of a gradient relative to the largest one of its input. f32 rounding of the function values over the
/// step of the central difference leaves about 1e-4; a wrong term leaves 1e-1 or more.
const TOLERANCE: f64 = 2e-3;

fn random(name: &str, shape: &[usize]) -> Parameter {
    let parameter = Parameter::zeros(shape);
    let mut values = vec![0.0; parameter.count()];
    Rng::new(7, name, 0).fill_normal(&mut values, 0.0, 0.7);
    parameter.set(&values);
    parameter
}

/// Values away from zero, where divisions and kinks are.
fn positive(name: &str, shape: &[usize]) -> Parameter {
    let parameter = random(name, shape);
    let values: Vec<f32> = parameter.to_vec().iter().map(|x| x.abs() + 0.5).collect();
    parameter.set(&values);
    parameter
}

fn check(name: &str, inputs: &[Parameter], f: impl Fn(&[Tensor]) -> Tensor) {
    let error = gradient_error(inputs, f);
    assert!(error < TOLERANCE, "{name}: gradient is off by {error:.2e} of the largest");
}

#[test]
fn arithmetic_with_and_without_repeating_operands() {
    for shape in [vec![3, 5], vec![5], vec![]] {
        let inputs = [random("a", &[3, 5]), positive("b", &shape)];
        check("add", &inputs, |x| &x[0] + &x[1]);
        check("sub", &inputs, |x| &x[0] - &x[1]);
        check("mul", &inputs, |x| &x[0] * &x[1]);
        check("div", &inputs, |x| &x[0] / &x[1]);
        check("minimum", &inputs, |x| x[0].minimum(&x[1]));
        check("maximum", &inputs, |x| x[0].maximum(&x[1]));
        check("affine", &inputs[..1], |x| x[0].affine(-2.0, 0.5));
    }
}

#[test]
fn a_tensor_used_twice_gets_both_gradients() {
    let inputs = [random("a", &[4, 3])];
    check("a * a + a", &inputs, |x| &(&x[0] * &x[0]) + &x[0]);
    check("a + a", &inputs, |x| &x[0] + &x[0]);
}

#[test]
fn activations() {
    let ops = [
        Unary::Relu,
        Unary::LeakyRelu(0.1),
        Unary::ReluSquared,
        Unary::Elu(0.7),
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::QuickGelu,
        Unary::Silu,
        Unary::Sigmoid,
        Unary::Tanh,
        Unary::Exp,
        Unary::Square,
        Unary::Abs,
        Unary::Neg,
        Unary::Softplus,
        Unary::LogSigmoid,
    ];
    for op in ops {
        check(&format!("{op:?}"), &[random("x", &[3, 7])], |x| x[0].unary(op));
    }
    for op in [Unary::Log, Unary::Sqrt, Unary::Reciprocal] {
        check(&format!("{op:?}"), &[positive("x", &[3, 7])], |x| x[0].unary(op));
    }
    for act in [Unary::Silu, Unary::GeluTanh, Unary::Relu] {
        check("gated", &[random("gate", &[3, 7]), random("up", &[3, 7])], |x| x[0].gated(act, &x[1]));
    }
}

#[test]
fn dropout_keeps_its_mask_for_backward() {
    let dropout = Dropout { p: 0.4, seed: 3, step: 9 };
    check("dropout", &[random("x", &[5, 9])], |x| x[0].dropout(dropout));
}

#[test]
fn softmax_and_its_logarithm() {
    check("softmax", &[random("x", &[3, 7])], |x| x[0].softmax());
    check("log_softmax", &[random("x", &[3, 7])], |x| x[0].log_softmax());
}

#[test]
fn matrix_products() {
    let inputs = [random("x", &[2, 3, 5]), random("w", &[4, 5]), random("b", &[4])];
    check("linear with bias", &inputs, |x| x[0].linear(&x[1], Some(&x[2])));
    check("linear", &inputs[..2], |x| x[0].linear(&x[1], None));
    check("matmul", &[random("a", &[3, 5]), random("b", &[5, 2])], |x| x[0].matmul(&x[1]));
    check("batched", &[random("a", &[2, 3, 5]), random("b", &[2, 5, 4])], |x| x[0].matmul(&x[1]));
    let transposed = [random("a", &[5, 3]), random("b", &[5, 2])];
    check("matmul of a view", &transposed, |x| x[0].transpose(0, 1).matmul(&x[1]));
}

#[test]
fn norms() {
    let inputs = [random("x", &[4, 9]), random("w", &[9]), random("b", &[9])];
    check("layer_norm", &inputs, |x| x[0].layer_norm(&x[1], Some(&x[2]), 1e-5));
    check("layer_norm without bias", &inputs[..2], |x| x[0].layer_norm(&x[1], None, 1e-5));
    check("rms_norm", &inputs[..2], |x| x[0].rms_norm(&x[1], 1e-5));
}

#[test]
fn views_and_copies() {
    let x = [random("x", &[2, 3, 8])];
    check("reshape", &x, |x| x[0].reshape([6, 8]));
    check("split_heads", &x, |x| x[0].split_heads(4).reshape([2, 3, 8]).unary(Unary::Square));
    check("narrow", &x, |x| x[0].narrow(2, 3, 4).unary(Unary::Square));
    check("narrow on the middle axis", &x, |x| x[0].narrow(1, 1, 2).unary(Unary::Square));
    check("transpose", &x, |x| x[0].transpose(1, 2).unary(Unary::Square));
    let parts = [random("a", &[2, 3]), random("b", &[2, 4])];
    check("concat", &parts, |x| Tensor::concat(&[&x[0], &x[1], &x[0]], 1).unary(Unary::Square));
}

#[test]
fn reductions() {
    let x = [random("x", &[3, 4])];
    check("sum", &x, |x| x[0].unary(Unary::Square).sum());
    check("mean", &x, |x| x[0].unary(Unary::Square).mean());
    check("sum_last", &x, |x| x[0].unary(Unary::Square).sum_last());
    check("mean_last", &x, |x| x[0].unary(Unary::Square).mean_last());
    check("repeat_last", &x, |x| x[0].repeat_last(5).unary(Unary::Square));
}

#[test]
fn an_auxiliary_loss_adds_its_gradient_but_not_its_value() {
    let (x, y) = (random("x", &[3]), random("y", &[3]));
    let auxiliary = |scale: f32| Tensor::parameter(&y).unary(Unary::Square).sum().scale(scale);
    let loss = Tensor::parameter(&x).mul(&Tensor::parameter(&y)).sum();
    let with = loss.with_auxiliary(&auxiliary(0.5));
    assert_eq!(with.item(), loss.item());
    with.backward();
    let found = y.grad().expect("a gradient").f32().to_vec();
    let expected: Vec<f32> = x.to_vec().iter().zip(y.to_vec()).map(|(x, y)| x + y).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn lookups() {
    let table = [random("table", &[6, 5])];
    check("embedding", &table, |x| x[0].embedding(&[1, 5, 1, 0], [2, 2]));
    check("gather_last", &table, |x| x[0].gather_last(&[0, 4, 2, 2, 1, 3]));
}

#[test]
fn losses() {
    let targets = [2, -100, 0, 6];
    let plain = CrossEntropyTerms::default();
    let terms = CrossEntropyTerms { label_smoothing: 0.2, z_loss: 0.05 };
    check("cross_entropy", &[random("logits", &[4, 7])], |x| x[0].cross_entropy(&targets, 0.5, plain));
    check("smoothed cross_entropy", &[random("logits", &[4, 7])], |x| x[0].cross_entropy(&targets, 0.5, terms));
    // A cap that bends logits of order one.
    for settings in [
        HeadSettings::default(),
        HeadSettings { softcap: Some(1.5), ..Default::default() },
        HeadSettings { softcap: None, terms },
        HeadSettings { softcap: Some(1.5), terms },
    ] {
        let inputs = [random("h", &[4, 5]), random("w", &[7, 5]), random("b", &[7])];
        let head = |x: &[Tensor]| x[0].linear_cross_entropy(&x[1], x.get(2), &targets, 0.5, settings);
        check(&format!("linear_cross_entropy {settings:?}"), &inputs[..2], head);
        check(&format!("biased linear_cross_entropy {settings:?}"), &inputs, head);
        check(&format!("scaled linear_cross_entropy {settings:?}"), &inputs, |x| head(x).scale(3.0));
    }
}

#[test]
fn a_frozen_bias_or_a_frozen_head_lets_the_others_learn() {
    let inputs = [random("h", &[4, 5]), random("w", &[7, 5]), random("b", &[7])];
    for frozen in 0..3 {
        inputs.iter().enumerate().for_each(|(index, input)| input.set_trainable(index != frozen));
        check("linear_cross_entropy", &inputs, |x| {
            x[0].linear_cross_entropy(&x[1], Some(&x[2]), &[2, -100, 0, 6], 0.5, HeadSettings::default())
        });
    }
}

#[test]
fn the_fused_head_equals_the_two_steps_it_fuses() {
    let (h, w, b) = (random("h", &[300, 5]), random("w", &[20_000, 5]), random("b", &[20_000]));
    let targets: Vec<i32> = (0..300).map(|i| if i % 7 == 0 { -100 } else { (i * 61) % 20_000 }).collect();
    for terms in [CrossEntropyTerms::default(), CrossEntropyTerms { label_smoothing: 0.1, z_loss: 1e-3 }] {
        for biased in [false, true] {
            let run = |fused: bool| {
                let parameters = [&h, &w, &b];
                parameters.iter().for_each(|parameter| parameter.clear_grad());
                let [x, weight, bias] = parameters.map(Tensor::parameter);
                let bias = biased.then_some(&bias);
                let settings = HeadSettings { softcap: None, terms };
                let loss = match fused {
                    true => x.linear_cross_entropy(&weight, bias, &targets, 0.01, settings),
                    false => x.linear(&weight, bias).cross_entropy(&targets, 0.01, terms),
                };
                let value = loss.item();
                loss.backward();
                let read = |p: &Parameter| p.grad().map(|grad| grad.f32().to_vec()).unwrap_or_default();
                (value, parameters.map(read))
            };
            let ((a, fused), (b, steps)) = (run(true), run(false));
            assert!((a - b).abs() <= 1e-6 * b.abs(), "{a} and {b}");
            assert_eq!(fused.iter().filter(|grad| !grad.is_empty()).count(), 2 + usize::from(biased));
            // The chunks only change the order of sums.
            for (x, y) in fused.iter().flatten().zip(steps.iter().flatten()) {
                assert!((x - y).abs() <= 1e-7, "{x} and {y}");
            }
        }
    }
}

#[test]
fn rotary_positions() {
    let tables = |style| {
        let angles: Vec<f32> = (0..3 * 2).map(|i| 0.3 * i as f32).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        RopeTables { cos: Raw::from_f32(&cos, [3, 2]), sin: Raw::from_f32(&sin, [3, 2]), style }
    };
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        let tables = tables(style);
        // Features beyond the tables' width pass through.
        check("rope", &[random("x", &[2, 3, 2, 6])], |x| x[0].rope(&tables));
    }
}

#[test]
fn attention_with_every_kind_of_mask() {
    let inputs = [random("q", &[2, 3, 4, 6]), random("k", &[2, 5, 2, 6]), random("v", &[2, 5, 2, 6])];
    let segments = Some(vec![0, 0, 1, 1, 1, 0, 0, 0, 0, 1].into());
    let query_segments = Some(vec![0, 1, 1, 1, 0, 0].into());
    let specs = [
        ("full", AttentionSpec::default()),
        ("causal", AttentionSpec { causal: true, ..Default::default() }),
        ("window", AttentionSpec { causal: true, window: Some(2), scale: Some(0.7), ..Default::default() }),
        ("window on both sides", AttentionSpec { window: Some(2), ..Default::default() }),
        ("segments", AttentionSpec { causal: true, segments: segments.clone(), ..Default::default() }),
        ("documents of two sequences", AttentionSpec { segments, query_segments, ..Default::default() }),
    ];
    for (name, spec) in specs {
        check(name, &inputs, |x| x[0].attention(&x[1], &x[2], &spec));
    }
    let biased = [&inputs[..], &[random("bias", &[4, 3, 5])]].concat();
    check("bias", &biased, |x| {
        x[0].attention(&x[1], &x[2], &AttentionSpec { bias: Some(x[3].clone()), ..Default::default() })
    });
}

#[test]
fn attention_of_views_of_one_projection() {
    let spec = AttentionSpec { causal: true, ..Default::default() };
    check("fused qkv", &[random("qkv", &[2, 4, 18])], |x| {
        let part = |index: usize| x[0].narrow(2, 6 * index, 6).split_heads(2);
        part(0).attention(&part(1), &part(2), &spec)
    });
}

/// A function of one tensor as one of a list of them.
fn again(work: impl Fn(&Tensor) -> Tensor) -> impl Fn(&[Tensor]) -> Tensor {
    move |inputs| work(&inputs[0])
}

#[test]
fn what_is_recomputed_has_the_same_value_and_gradients_to_the_bit() {
    let (x, w) = (random("x", &[5, 4]), random("w", &[4, 4]));
    let network = |w: &Parameter| {
        let w = w.clone();
        move |x: &Tensor| x.linear(&Tensor::parameter(&w), None).unary(Unary::Tanh).linear(&Tensor::parameter(&w), None)
    };
    let run = |recomputed: bool| {
        let input = Tensor::parameter(&x);
        let output = if recomputed {
            Tensor::recomputed(&[&input], std::slice::from_ref(&w), again(network(&w)))
        } else {
            network(&w)(&input)
        };
        let (value, loss) = (output.to_vec(), (&output * &output).sum());
        loss.backward();
        let gradients = [&x, &w].map(|p| p.grad().unwrap().f32().to_vec());
        [&x, &w].into_iter().for_each(Parameter::clear_grad);
        (value, gradients)
    };
    assert_eq!(run(true), run(false));
    assert!(run(true).1.iter().flatten().any(|&g| g != 0.0));
}

#[test]
fn a_parameter_may_be_changed_and_its_gradient_freed_as_soon_as_it_is_complete() {
    // `shared` is used first and last, so it is complete last; each of the others right after its own layer.
    let (x, shared, middle) = (random("x", &[5, 4]), random("shared", &[4, 4]), random("middle", &[4, 4]));
    let names = [("x", &x), ("shared", &shared), ("middle", &middle)];
    let loss = |recomputed: bool| {
        let y = Tensor::parameter(&x).linear(&Tensor::parameter(&shared), None);
        let layer = {
            let middle = middle.clone();
            move |y: &Tensor| y.linear(&Tensor::parameter(&middle), None).unary(Unary::Tanh)
        };
        let y =
            if recomputed { Tensor::recomputed(&[&y], std::slice::from_ref(&middle), again(layer)) } else { layer(&y) };
        let y = y.linear(&Tensor::parameter(&shared), None);
        (&y * &y).sum()
    };
    loss(false).backward();
    let expected = names.map(|(_, parameter)| parameter.grad().unwrap().f32().to_vec());
    names.iter().for_each(|(_, parameter)| parameter.clear_grad());
    for recomputed in [false, true] {
        let before = names.map(|(_, parameter)| parameter.to_vec());
        let (mut order, mut gradients) = (Vec::new(), Vec::new());
        loss(recomputed).backward_consuming(&mut |parameter| {
            order.push(names.iter().find(|(_, known)| known.is_same(parameter)).unwrap().0);
            gradients.push(parameter.grad().unwrap().f32().to_vec());
            parameter.change(|value| value.f32_mut().fill(0.0));
            parameter.clear_grad();
        });
        // The first layer's two inputs are complete at the same node.
        assert_eq!(order[0], "middle");
        for (name, gradient) in order.iter().zip(gradients) {
            let index = names.iter().position(|(known, _)| known == name).unwrap();
            assert_eq!(gradient, expected[index], "{name}");
        }
        assert_eq!(order.len(), 3);
        for ((_, parameter), before) in names.iter().zip(before) {
            assert!(parameter.grad().is_none() && parameter.to_vec().iter().all(|&x| x == 0.0));
            parameter.set(&before);
        }
    }
}

#[test]
fn large_activations_are_made_again_for_backward_with_the_same_gradients_to_the_bit() {
    // Beyond the size from which on they are; `* 1.0` hides from the product where its input came from.
    let (rows, wide) = (1024, 1024);
    let (x, gate, w) = (random("x", &[rows, wide]), random("gate", &[rows, wide]), random("w", &[3, wide]));
    let run = |gated: bool, hidden: bool| {
        let [x_, gate_, w_] = [&x, &gate, &w].map(Tensor::parameter);
        let y = if gated { gate_.gated(Unary::Silu, &x_) } else { x_.unary(Unary::GeluTanh) };
        let y = if hidden { y.affine(1.0, 0.0) } else { y };
        let out = y.linear(&w_, None);
        (&out * &out).sum().backward();
        [&x, &gate, &w].map(|parameter| {
            let grad = parameter.grad().map(|grad| grad.f32().to_vec());
            parameter.clear_grad();
            grad
        })
    };
    for gated in [false, true] {
        assert_eq!(run(gated, false), run(gated, true));
        assert!(run(gated, false)[2].as_ref().unwrap().iter().any(|&g| g != 0.0));
    }
}

#[test]
fn log_probabilities_of_tokens_from_a_head() {
    let settings = |softcap, temperature| LogProbSettings { softcap, temperature, entropies: true };
    for settings in [settings(None, 1.0), settings(None, 0.7), settings(Some(3.0), 1.0), settings(Some(3.0), 1.3)] {
        let inputs = [random("hidden", &[5, 6]), random("head", &[9, 6]), random("bias", &[9])];
        let targets = [0, 8, 3, 3, 1];
        let run = |x: &[Tensor]| x[0].linear_log_probs(&x[1], Some(&x[2]), &targets, settings);
        assert!(gradient_error(&inputs, |x| run(x).0) < 1e-2);
        let x: Vec<Tensor> = inputs.iter().map(Tensor::parameter).collect();
        let (found, entropies) = run(&x);
        let mut logits = x[0].linear(&x[1], Some(&x[2]));
        if let Some(cap) = settings.softcap {
            logits = logits.softcap(cap);
        }
        let logs = logits.scale(1.0 / settings.temperature).log_softmax();
        let expected = logs.gather_last(&targets).to_vec();
        assert!(found.to_vec().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
        let terms = logs.to_vec();
        let sums = terms.chunks(9).map(|row| -row.iter().map(|l| l.exp() * l).sum::<f32>());
        assert!(entropies.iter().zip(sums).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn a_map_has_the_slope_that_its_function_says() {
    let inputs = [random("x", &[7])];
    assert!(gradient_error(&inputs, |x| x[0].map(|x| (x.sin(), x.cos()))) < 1e-2);
}

#[test]
fn a_loss_of_logits_is_the_same_in_chunks_as_at_once_with_its_gradients() {
    for softcap in [None, Some(3.0)] {
        let inputs = [random("hidden", &[5, 6]), random("head", &[9, 6]), random("bias", &[9])];
        let square = |logits: &Tensor| logits.log_softmax().unary(Unary::Square).sum();
        let fused = |x: &[Tensor]| x[0].linear_loss(&x[1], Some(&x[2]), softcap, |logits, _| square(logits)).scale(0.5);
        let plain = |x: &[Tensor]| {
            let logits = x[0].linear(&x[1], Some(&x[2]));
            square(&softcap.map_or(logits.clone(), |cap| logits.softcap(cap))).scale(0.5)
        };
        assert!(gradient_error(&inputs, fused) < 1e-2);
        let run = |work: &dyn Fn(&[Tensor]) -> Tensor| {
            inputs.iter().for_each(Parameter::clear_grad);
            let loss = work(&inputs.iter().map(Tensor::parameter).collect::<Vec<_>>());
            let value = loss.item();
            loss.backward();
            (value, inputs.iter().flat_map(|x| x.grad().unwrap().f32().to_vec()).collect::<Vec<f32>>())
        };
        let (a, b) = (run(&fused), run(&plain));
        assert!((a.0 - b.0).abs() < 1e-5 * b.0.abs());
        assert!(a.1.iter().zip(&b.1).all(|(x, y)| (x - y).abs() < 1e-4 * y.abs().max(1.0)), "{:?} {:?}", a.1, b.1);
        // Without a gradient to collect, the value is the same.
        let value = loam_tensor::no_grad(|| fused(&inputs.iter().map(Tensor::parameter).collect::<Vec<_>>()).item());
        assert_eq!(value, a.0);
    }
}
