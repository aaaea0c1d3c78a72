//! A bidirectional LSTM (Hochreiter and Schmidhuber 1997), with PyTorch's names and order of gates.

use loam_tensor::{Parameter, Tensor, Unary};

use crate::linear::{Named, like_linear};

/// One direction of one layer.
struct Direction {
    /// `[4 hidden, inputs]`: input, forget, cell and output gate.
    weight_ih: Parameter,
    weight_hh: Parameter,
    bias_ih: Parameter,
    bias_hh: Parameter,
}

/// Layers of two directions each.
pub(crate) struct Lstm {
    layers: Vec<[Direction; 2]>,
    hidden: usize,
}

impl Lstm {
    pub(crate) fn new(named: &mut Named, inputs: usize, hidden: usize, layers: usize, seed: u64, name: &str) -> Self {
        let mut direction = |layer: usize, suffix: &str| {
            let inputs = if layer == 0 { inputs } else { 2 * hidden };
            let own = Direction {
                weight_ih: Parameter::zeros([4 * hidden, inputs]),
                weight_hh: Parameter::zeros([4 * hidden, hidden]),
                bias_ih: Parameter::zeros([4 * hidden]),
                bias_hh: Parameter::zeros([4 * hidden]),
            };
            for (parameter, part) in [
                (&own.weight_ih, "weight_ih"),
                (&own.weight_hh, "weight_hh"),
                (&own.bias_ih, "bias_ih"),
                (&own.bias_hh, "bias_hh"),
            ] {
                let name = format!("{name}.{part}_l{layer}{suffix}");
                like_linear(parameter, hidden, seed, &name);
                named.push((name, parameter.clone()));
            }
            own
        };
        let layers = (0..layers).map(|layer| [direction(layer, ""), direction(layer, "_reverse")]).collect();
        Self { layers, hidden }
    }

    /// `[time, inputs] -> [time, 2 hidden]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let both = |x: Tensor, [ahead, back]: &[Direction; 2]| {
            Tensor::concat(&[&self.run(&x, ahead, false), &self.run(&x, back, true)], 1)
        };
        self.layers.iter().fold(x.clone(), both)
    }

    fn run(&self, x: &Tensor, direction: &Direction, is_reversed: bool) -> Tensor {
        let (time, hidden) = (x.size(0), self.hidden);
        let of = Tensor::parameter;
        let inputs = x.linear(&of(&direction.weight_ih), Some(&of(&direction.bias_ih)));
        let (mut h, mut c) = (Tensor::full([1, hidden], 0.0), Tensor::full([1, hidden], 0.0));
        let mut outputs = vec![None; time];
        for step in 0..time {
            let at = if is_reversed { time - 1 - step } else { step };
            let again = h.linear(&of(&direction.weight_hh), Some(&of(&direction.bias_hh)));
            let gates = &inputs.narrow(0, at, 1).reshape([1, 4 * hidden]) + &again;
            let gate = |index: usize, activation: Unary| {
                gates.narrow(1, index * hidden, hidden).reshape([1, hidden]).unary(activation)
            };
            let fresh = gate(0, Unary::Sigmoid).mul(&gate(2, Unary::Tanh));
            c = &gate(1, Unary::Sigmoid).mul(&c) + &fresh;
            h = gate(3, Unary::Sigmoid).mul(&c.unary(Unary::Tanh));
            outputs[at] = Some(h.clone());
        }
        let outputs: Vec<Tensor> = outputs.into_iter().flatten().collect();
        Tensor::concat(&outputs.iter().collect::<Vec<_>>(), 0)
    }
}
