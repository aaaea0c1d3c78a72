//! Where AdaLoRA's ranks go (Zhang et al. 2023, sections 3.2 and 3.3), step by step as PEFT does it.

use loam_models::LanguageModel;
use loam_tensor::{Parameter, Raw, Tensor};

use crate::adapter::Adapter;
use crate::config::{AdaLora, Config, Method};
use crate::error::Result;

/// What is remembered of one of a layer's three tensors.
struct Watched {
    parameter: Parameter,
    /// Running mean of the importance.
    mean: Parameter,
    /// Running mean of how far it is from its mean.
    uncertainty: Parameter,
}

/// A layer's A, E and B.
struct Layer {
    /// The name that PEFT's rank pattern has.
    name: String,
    /// A, E, B.
    tensors: [Watched; 3],
    /// Which ranks are left, once ranks have been taken away; NaN before.
    left: Parameter,
}

/// Moves ranks between layers while an AdaLoRA adapter trains.
pub struct RankAllocator {
    config: AdaLora,
    layers: Vec<Layer>,
    state: Vec<(String, Parameter)>,
}

/// Gradients of one step, in the allocator's order.
pub struct StepGradients(Vec<Option<Raw>>);

impl RankAllocator {
    /// The allocator of an adapter; `None` for other methods.
    pub fn new(adapter: &Adapter) -> Option<Self> {
        let Method::AdaLora(config) = &adapter.config().method else { return None };
        let mut state = Vec::new();
        let mut remembered = |name: &str, kind: &str, parameter: &Parameter, start: f32| {
            let own = Parameter::new(Raw::full(parameter.shape(), start));
            own.set_trainable(false);
            state.push((format!("adalora.{kind}.{name}"), own.clone()));
            own
        };
        let named = adapter.parameters();
        let find =
            |name: String| named.iter().find(|(known, _)| *known == name).map(|(name, p)| (name.clone(), p.clone()));
        let bases = named.iter().filter_map(|(name, _)| name.strip_suffix(".lora_E"));
        let layers = bases
            .filter_map(|base| {
                let tensors = ["lora_A", "lora_E", "lora_B"].map(|end| find(format!("{base}.{end}")));
                let [Some(a), Some(e), Some(b)] = tensors else { return None };
                let left = remembered(&e.0, "left", &e.1, f32::NAN);
                let tensors = [a, e, b].map(|(name, parameter)| Watched {
                    mean: remembered(&name, "mean", &parameter, 0.0),
                    uncertainty: remembered(&name, "uncertainty", &parameter, 0.0),
                    parameter,
                });
                let name = format!("{}.lora_E", base.strip_prefix("base_model.model.").unwrap_or(base));
                Some(Layer { name, tensors, left })
            })
            .collect();
        Some(Self { config: config.clone(), layers, state })
    }

    /// What a checkpoint has to keep of it.
    pub fn state(&self) -> &[(String, Parameter)] {
        &self.state
    }

    /// The gradients before the optimizer takes them.
    pub fn gradients(&self) -> StepGradients {
        StepGradients(self.layers.iter().flat_map(|layer| &layer.tensors).map(|own| own.parameter.grad()).collect())
    }

    /// What is added to the loss: how far A and B are from orthonormal, on average (eq. 4), times its weight.
    pub fn regularisation(&self) -> Tensor {
        let mut sum = Tensor::from(0.0);
        for layer in &self.layers {
            let [a, _, b] = &layer.tensors;
            for (parameter, is_b) in [(&a.parameter, false), (&b.parameter, true)] {
                let own = Tensor::parameter(parameter);
                let rows = if is_b { own.transpose(0, 1) } else { own };
                let r = rows.size(0);
                let mut eye = vec![0.0; r * r];
                (0..r).for_each(|i| eye[i * r + i] = 1.0);
                let gap = &rows.matmul(&rows.transpose(0, 1)) - &Tensor::from_slice(&eye, [r, r]);
                sum = &sum + &gap.mul(&gap).sum().unary(loam_tensor::Unary::Sqrt);
            }
        }
        sum.scale(self.config.orth_reg_weight as f32 / (2 * self.layers.len()).max(1) as f32)
    }

    /// After the optimizer's step number `step` (from 1), with that step's gradients.
    pub fn after_step(&self, step: u64, gradients: &StepGradients) {
        let last = self.config.total_step.saturating_sub(self.config.tfinal);
        if step < last {
            self.weigh(gradients);
            if step > self.config.tinit && step.is_multiple_of(self.config.delta_t.max(1)) {
                self.take_away(self.budget(step));
            }
        } else if step == last {
            self.take_away(self.target());
        } else {
            self.layers.iter().for_each(Layer::keep_away);
        }
    }

    fn initial(&self) -> usize {
        self.layers.iter().map(|layer| layer.left.count()).sum()
    }

    fn target(&self) -> usize {
        self.config.target_r * self.layers.len()
    }

    /// Ranks of all layers together after a step, by a cubic schedule (eq. 9).
    fn budget(&self, step: u64) -> usize {
        let (initial, target) = (self.initial() as f64, self.target() as f64);
        let span = self.config.total_step as f64 - self.config.tfinal as f64 - self.config.tinit as f64;
        let left = 1.0 - (step - self.config.tinit) as f64 / span;
        ((initial - target) * left.powi(3) + target) as usize
    }

    /// Importance of every number: a running mean of |value · gradient|, and of how much that varies.
    fn weigh(&self, gradients: &StepGradients) {
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        for (own, gradient) in self.layers.iter().flat_map(|layer| &layer.tensors).zip(&gradients.0) {
            let Some(gradient) = gradient else { continue };
            let (values, slopes) = (own.parameter.to_vec(), gradient.f32());
            let now: Vec<f32> = values.iter().zip(slopes).map(|(x, g)| (x * g).abs()).collect();
            let mean: Vec<f32> =
                own.mean.to_vec().iter().zip(&now).map(|(m, x)| beta1 * m + (1.0 - beta1) * x).collect();
            let old = own.uncertainty.to_vec();
            let gaps = now.iter().zip(&mean).map(|(x, m)| (x - m).abs());
            let uncertainty: Vec<f32> = old.iter().zip(gaps).map(|(u, gap)| beta2 * u + (1.0 - beta2) * gap).collect();
            own.mean.set(&mean);
            own.uncertainty.set(&uncertainty);
        }
    }

    /// Sets the least important singular values to zero, so that `budget` are left.
    fn take_away(&self, budget: usize) {
        let scores: Vec<Vec<f32>> = self.layers.iter().map(Layer::scores).collect();
        let away = self.initial().saturating_sub(budget);
        if away == 0 {
            return;
        }
        let mut sorted: Vec<f32> = scores.iter().flatten().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let threshold = sorted[away - 1];
        for (layer, scores) in self.layers.iter().zip(scores) {
            let left: Vec<f32> = scores.iter().map(|&score| f32::from(u8::from(score > threshold))).collect();
            layer.left.set(&left);
            layer.keep_away();
        }
    }

    /// The adapter as it is saved: with the ranks that are left only, once that is settled.
    pub fn settle(&self, model: &LanguageModel, adapter: &Adapter) -> Result<Adapter> {
        let config = self.settled(adapter.config());
        let settled = Adapter::bare(model, &config)?;
        for ((name, to), (_, from)) in settled.parameters().iter().zip(adapter.parameters()) {
            let Some(layer) =
                self.layers.iter().find(|layer| layer.tensors.iter().any(|own| own.parameter.is_same(from)))
            else {
                to.set(&from.to_vec());
                continue;
            };
            let left = layer.left.to_vec();
            // All of them, while nothing is settled.
            let is_left = |rank: usize| left[rank].is_nan() || left[rank] > 0.0;
            let (values, ranks) = (from.to_vec(), left.len());
            let kept: Vec<f32> = if name.ends_with("lora_B") {
                values.chunks_exact(ranks).flat_map(|row| (0..ranks).filter(|&k| is_left(k)).map(|k| row[k])).collect()
            } else {
                let width = values.len() / ranks.max(1);
                (0..ranks).filter(|&k| is_left(k)).flat_map(|k| values[k * width..][..width].to_vec()).collect()
            };
            to.set(&kept);
        }
        Ok(settled)
    }

    /// The configuration with the ranks that are left now, as it is saved.
    pub fn settled(&self, config: &Config) -> Config {
        let mut config = config.clone();
        if let Method::AdaLora(adalora) = &mut config.method {
            let left = |layer: &Layer| -> Option<(String, Vec<bool>)> {
                let left = layer.left.to_vec();
                let is_settled = left.iter().all(|x| !x.is_nan());
                is_settled.then(|| (layer.name.clone(), left.iter().map(|&x| x > 0.0).collect()))
            };
            adalora.rank_pattern = self.layers.iter().filter_map(left).collect();
        }
        config
    }
}

impl Layer {
    /// Importance of every rank: of its singular value, and the means of its vectors.
    fn scores(&self) -> Vec<f32> {
        let of = |own: &Watched| -> Vec<f32> {
            own.mean.to_vec().iter().zip(own.uncertainty.to_vec()).map(|(m, u)| m * u).collect()
        };
        let [a, e, b] = &self.tensors;
        let (in_a, mut scores, in_b) = (of(a), of(e), of(b));
        let r = scores.len();
        let (width, height) = (in_a.len() / r.max(1), in_b.len() / r.max(1));
        for (rank, score) in scores.iter_mut().enumerate() {
            let row: f32 = in_a[rank * width..][..width].iter().sum::<f32>() / width as f32;
            let column: f32 = (0..height).map(|i| in_b[i * r + rank]).sum::<f32>() / height as f32;
            *score += row + column;
        }
        scores
    }

    /// Sets the singular values of ranks that are not left to zero.
    fn keep_away(&self) {
        let left = self.left.to_vec();
        self.tensors[1].parameter.change(|values| {
            for (value, left) in values.f32_mut().iter_mut().zip(&left) {
                if *left == 0.0 {
                    *value = 0.0;
                }
            }
        });
    }
}
