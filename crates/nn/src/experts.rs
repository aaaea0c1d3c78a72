//! Mixture of experts: a router that picks a few feed-forward networks for each token.

use loam_tensor::{Parameter, Tensor};

use crate::context::LayerContext;
use crate::feed_forward::{FeedForward, FeedForwardConfig};
use crate::linear::Linear;
use crate::module::{Module, join};

/// How many experts there are, and how their answers are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Experts in a layer.
    pub num_experts: usize,
    /// Experts that a token goes through.
    pub num_experts_per_tok: usize,
    /// Whether the weights of a token's experts are scaled to add up to one.
    pub norm_topk_prob: bool,
    /// Factor on the load-balancing loss; 0 is none.
    pub router_aux_loss_coef: f32,
}

/// A router and its experts (Shazeer et al. 2017; Jiang et al. 2024).
#[derive(Clone)]
pub struct Experts {
    /// The router: one logit per expert.
    pub gate: Linear,
    /// The experts, all of one shape.
    pub experts: Vec<FeedForward>,
    config: ExpertsConfig,
}

/// Where the tokens go: for each of a token's choices, and for each expert.
struct Routes {
    /// Expert of every token's n-th choice, `[num_experts_per_tok][tokens]`.
    choices: Vec<Vec<u32>>,
    /// Tokens of every expert, ascending.
    tokens: Vec<Vec<u32>>,
    /// Row of every token's n-th choice in the experts' answers, laid end to end.
    places: Vec<Vec<u32>>,
}

impl Routes {
    /// The most probable experts of every row of `probabilities`; of equal ones the first.
    fn of(probabilities: &[f32], config: &ExpertsConfig) -> Self {
        let ExpertsConfig { num_experts, num_experts_per_tok: top, .. } = *config;
        let (mut choices, mut tokens) = (vec![Vec::new(); top], vec![Vec::new(); num_experts]);
        for (token, row) in probabilities.chunks_exact(num_experts).enumerate() {
            let mut order: Vec<usize> = (0..num_experts).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            for (choice, &expert) in choices.iter_mut().zip(&order) {
                choice.push(expert as u32);
                tokens[expert].push(token as u32);
            }
        }
        let starts: Vec<usize> =
            tokens.iter().scan(0, |end, own| Some(std::mem::replace(end, *end + own.len()))).collect();
        let mut next = starts;
        let mut places = vec![Vec::new(); top];
        for token in 0..choices[0].len() {
            for (places, choice) in places.iter_mut().zip(&choices) {
                let place = &mut next[choice[token] as usize];
                places.push(*place as u32);
                *place += 1;
            }
        }
        Self { choices, tokens, places }
    }
}

impl Experts {
    /// Zeros, to be initialised or loaded; `feed_forward` is one expert.
    pub fn zeros(hidden_size: usize, config: &ExpertsConfig, feed_forward: &FeedForwardConfig) -> Self {
        Self {
            gate: Linear::zeros(hidden_size, config.num_experts, false),
            experts: (0..config.num_experts).map(|_| FeedForward::zeros(hidden_size, feed_forward)).collect(),
            config: *config,
        }
    }

    /// `[.., hidden] -> [.., hidden]`. Each expert sees its tokens only; a token's answers are added up in the order of
    /// their probability, so they do not depend on the other tokens.
    pub fn forward(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        let (shape, hidden) = (x.shape(), x.shape().width());
        let rows = x.count() / hidden;
        let x = x.reshape([rows, hidden]);
        let probabilities = self.gate.apply(&x).softmax();
        let routes = Routes::of(&probabilities.to_vec(), &self.config);
        let answers: Vec<Tensor> = self
            .experts
            .iter()
            .zip(&routes.tokens)
            .filter(|(_, tokens)| !tokens.is_empty())
            .map(|(expert, tokens)| expert.forward(&x.embedding(tokens, [tokens.len()]), context))
            .collect();
        let answers = Tensor::concat(&answers.iter().collect::<Vec<_>>(), 0);
        let weights: Vec<Tensor> = routes.choices.iter().map(|experts| probabilities.gather_last(experts)).collect();
        let total = weights.iter().skip(1).fold(weights[0].clone(), |sum, weight| &sum + weight);
        let mut sum: Option<Tensor> = None;
        for (weight, places) in weights.iter().zip(&routes.places) {
            let weight = if self.config.norm_topk_prob { weight.div(&total) } else { weight.clone() };
            let answer = answers.embedding(places, [rows]).mul(&weight.repeat_last(hidden));
            sum = Some(sum.map_or(answer.clone(), |sum| &sum + &answer));
        }
        let sum = sum.expect("a token goes through one expert at least");
        self.balanced(sum, &probabilities, &routes, context).reshape(shape)
    }

    /// Adds the gradient of the load-balancing loss (Fedus et al. 2022, eq. 4 to 6: experts times the sum over experts of
    /// the share of choices that fell on one times its mean probability), while training with it. Each layer balances
    /// by itself, as in the paper; transformers mixes the shares of all layers.
    fn balanced(&self, sum: Tensor, probabilities: &Tensor, routes: &Routes, context: &LayerContext) -> Tensor {
        let factor = self.config.router_aux_loss_coef * context.auxiliary_scale;
        if factor == 0.0 || !probabilities.wants_grad() {
            return sum;
        }
        let rows = routes.choices[0].len() as f32;
        let share: Vec<f32> = routes.tokens.iter().map(|tokens| tokens.len() as f32 / rows).collect();
        let share = Tensor::from_slice(&share, [self.config.num_experts]);
        let loss = probabilities.mul(&share).sum().scale(self.config.num_experts as f32 * factor);
        sum.with_auxiliary(&loss)
    }
}

impl Module for Experts {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.gate.visit(&join(path, "gate"), visit);
        self.experts.visit(&join(path, "experts"), visit);
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.experts.visit_linears(&join(path, "experts"), visit);
    }
}
