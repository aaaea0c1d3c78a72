//! One block of a stack.

use loam_nn::{
    Attention, Experts, FeedForward, Hooks, JoinHook, LayerCache, LayerContext, Linear, Module, Norm, Slot, join,
};
use loam_tensor::{Parameter, Tensor};

use crate::spec::{LayerSpec, Residual};

/// Attention, perhaps attention to a memory, and a feed-forward, joined as [`Residual`] says.
#[derive(Clone)]
pub(crate) struct Block {
    residual: Residual,
    attention_norm: Option<Norm>,
    attention: Attention,
    /// Of what attention gives, in a sandwich.
    attention_post_norm: Option<Norm>,
    cross_attention: Option<(Norm, Attention)>,
    /// `None` where attention's serves both.
    feed_forward_norm: Option<Norm>,
    feed_forward: Wide,
    feed_forward_post_norm: Option<Norm>,
    /// Which of the stack's rotations it uses.
    pub(crate) rope: Option<usize>,
    /// Where attention joins the residual stream, and where the feed-forward does.
    pub(crate) joins: [Slot<dyn JoinHook>; 2],
}

/// What stands in a block's second half.
#[derive(Clone)]
enum Wide {
    Dense(FeedForward),
    Sparse(Experts),
}

impl Wide {
    fn forward(&self, x: &Tensor, context: &LayerContext) -> Tensor {
        match self {
            Self::Dense(feed_forward) => feed_forward.forward(x, context),
            Self::Sparse(experts) => experts.forward(x, context),
        }
    }
}

impl Module for Wide {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        match self {
            Self::Dense(feed_forward) => feed_forward.visit(path, visit),
            Self::Sparse(experts) => experts.visit(path, visit),
        }
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        match self {
            Self::Dense(feed_forward) => feed_forward.visit_linears(path, visit),
            Self::Sparse(experts) => experts.visit_linears(path, visit),
        }
    }
}

fn after(norm: &Option<Norm>, y: Tensor) -> Tensor {
    norm.as_ref().map_or(y.clone(), |norm| norm.forward(&y))
}

/// Places of dropout in a block, and one before it.
const PLACES: u64 = 4;

impl Block {
    /// The place of dropout before the block.
    pub(crate) fn first_place(index: u64) -> u64 {
        PLACES * index
    }

    pub(crate) fn zeros(hidden_size: usize, spec: &LayerSpec, rope: Option<usize>) -> Self {
        let norm = || Norm::new(hidden_size, spec.norm);
        let is_sandwich = spec.residual == Residual::Sandwich;
        Self {
            residual: spec.residual,
            attention_norm: spec.has_attention_norm.then(norm),
            attention: Attention::zeros(hidden_size, &spec.attention),
            attention_post_norm: is_sandwich.then(norm),
            cross_attention: spec.cross_attention.map(|cross| (norm(), Attention::zeros(hidden_size, &cross))),
            feed_forward_norm: (spec.residual != Residual::ParallelSharedNorm).then(norm),
            feed_forward: match &spec.experts {
                Some(experts) => Wide::Sparse(Experts::zeros(hidden_size, experts, &spec.feed_forward)),
                None => Wide::Dense(FeedForward::zeros(hidden_size, &spec.feed_forward)),
            },
            feed_forward_post_norm: is_sandwich.then(norm),
            rope,
            joins: Default::default(),
        }
    }

    /// What hooks of this block differentiate.
    pub(crate) fn hooked_parameters(&self, hooks: &Hooks) -> Vec<Parameter> {
        let mut found: Vec<Parameter> =
            self.joins.iter().filter_map(|slot| slot.of(hooks)).flat_map(|hook| hook.parameters()).collect();
        self.visit_linears("", &mut |_, linear| {
            found.extend(linear.hook.of(hooks).into_iter().flat_map(|hook| hook.parameters()));
        });
        // One hook may stand in several places, and so may a parameter.
        let mut seen = std::collections::HashSet::new();
        found.retain(|parameter| seen.insert(parameter.address()));
        found
    }

    /// `[batch, time, hidden] -> [batch, time, hidden]`; `index` is the block's place in its stack.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        index: u64,
        context: &LayerContext,
        mut cache: Option<&mut LayerCache>,
    ) -> Tensor {
        let drop = |y: Tensor, place: u64| context.drop(y, PLACES * index + place);
        let join =
            |half: usize, branch: Tensor, x: &Tensor, norm: Option<&Norm>| match self.joins[half].of(&context.hooks) {
                Some(hook) => x + &hook.forward(&branch, x, norm, context),
                None => x + &branch,
            };
        if self.residual == Residual::PostNorm {
            let attended = self.attention.forward(x, context, cache.as_deref_mut());
            let norm = self.attention_norm.as_ref();
            let mut joined = after(&self.attention_norm, join(0, drop(attended, 1), x, norm));
            if let (Some((norm, cross)), Some(memory)) = (&self.cross_attention, &context.memory) {
                let seen = cross.forward_cross(&joined, context, memory, cache);
                joined = norm.forward(&(&joined + &drop(seen, 3)));
            }
            let fed = self.feed_forward.forward(&joined, context);
            let norm = self.feed_forward_norm.as_ref();
            return after(&self.feed_forward_norm, join(1, drop(fed, 2), &joined, norm));
        }
        let normed = after(&self.attention_norm, x.clone());
        let attended = self.attention.forward(&normed, context, cache.as_deref_mut());
        let mut joined = join(0, drop(after(&self.attention_post_norm, attended), 1), x, None);
        if let (Some((norm, cross)), Some(memory)) = (&self.cross_attention, &context.memory) {
            let seen = cross.forward_cross(&norm.forward(&joined), context, memory, cache);
            joined = &joined + &drop(seen, 3);
        }
        let input = match self.residual {
            Residual::Parallel => after(&self.feed_forward_norm, x.clone()),
            Residual::ParallelSharedNorm => normed,
            _ => after(&self.feed_forward_norm, joined.clone()),
        };
        let fed = after(&self.feed_forward_post_norm, self.feed_forward.forward(&input, context));
        join(1, drop(fed, 2), &joined, None)
    }
}

impl Module for Block {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        self.attention_norm.visit(&join(path, "attention_norm"), visit);
        self.attention.visit(&join(path, "attention"), visit);
        self.attention_post_norm.visit(&join(path, "attention_post_norm"), visit);
        if let Some((norm, attention)) = &self.cross_attention {
            norm.visit(&join(path, "cross_attention_norm"), visit);
            attention.visit(&join(path, "cross_attention"), visit);
        }
        self.feed_forward_norm.visit(&join(path, "feed_forward_norm"), visit);
        self.feed_forward.visit(&join(path, "feed_forward"), visit);
        self.feed_forward_post_norm.visit(&join(path, "feed_forward_post_norm"), visit);
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        self.attention.visit_linears(&join(path, "attention"), visit);
        if let Some((_, attention)) = &self.cross_attention {
            attention.visit_linears(&join(path, "cross_attention"), visit);
        }
        self.feed_forward.visit_linears(&join(path, "feed_forward"), visit);
    }
}
