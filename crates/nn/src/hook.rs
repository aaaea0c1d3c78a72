//! Seams: places of a network where something from outside may stand, such as an adapter. What that is, a network never
//! knows.

use std::sync::{Arc, PoisonError, RwLock};

use loam_tensor::{Parameter, Tensor};

use crate::context::LayerContext;
use crate::linear::Linear;
use crate::norm::Norm;

/// A place for a hook, empty at first. Clones share what is in it.
pub struct Slot<H: ?Sized>(Arc<RwLock<Option<Arc<H>>>>);

impl<H: ?Sized> Slot<H> {
    /// What stands here.
    pub fn get(&self) -> Option<Arc<H>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts something here, or takes it away. A pass that is under way may see either.
    pub fn set(&self, hook: Option<Arc<H>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// What stands here, unless the pass goes without hooks.
    pub fn of(&self, hooks: &Hooks) -> Option<Arc<H>> {
        if matches!(hooks, Hooks::Off) { None } else { self.get() }
    }
}

impl<H: ?Sized> Default for Slot<H> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<H: ?Sized> Clone for Slot<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Which hooks a pass goes through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hooks {
    /// What stands in the slots.
    #[default]
    On,
    /// None: the network as it is by itself.
    Off,
    /// For every row of the batch, or for every position of a single row, the number of what it goes through, or none.
    /// What the numbers mean, hooks know.
    Rows(Arc<[Option<usize>]>),
}

/// Stands in for a linear layer.
pub trait LinearHook: Send + Sync {
    /// `[.., in_features] -> [.., out_features]`; `linear.apply(x)` is what the layer would give by itself.
    fn forward(&self, linear: &Linear, x: &Tensor, context: &LayerContext) -> Tensor;

    /// All that it differentiates.
    fn parameters(&self) -> Vec<Parameter>;
}

/// Stands where a block's half joins the residual stream.
pub trait JoinHook: Send + Sync {
    /// What is added to the stream `x` in place of `branch`; `norm` is the one that follows the sum, where one does.
    fn forward(&self, branch: &Tensor, x: &Tensor, norm: Option<&Norm>, context: &LayerContext) -> Tensor;

    /// All that it differentiates.
    fn parameters(&self) -> Vec<Parameter>;
}

/// Stands in for a table of vectors, or for the head that may share it.
pub trait TableHook: Send + Sync {
    /// Rows `ids` of the table, read as `lead`: `[lead.., width]`.
    fn rows(&self, own: &Parameter, ids: &[u32], lead: [usize; 2]) -> Tensor;

    /// The table that a head multiplies with; `is_shared` where the hook stands at the tokens' vectors and the head only
    /// borrows them.
    fn table(&self, own: &Parameter, is_shared: bool) -> Tensor;
}

/// Vectors, keys and values in front of every text.
pub struct Prompt {
    /// What the first block reads, `[count, hidden]`.
    pub vectors: Tensor,
    /// For every block the keys and values in place of its own, `[count, kv_heads * head_dim]` each; else none.
    pub keys_and_values: Vec<(Tensor, Tensor)>,
}

/// Puts virtual positions in front of every text.
pub trait PromptHook: Send + Sync {
    /// How many.
    fn count(&self) -> usize;

    /// What they hold.
    fn prompt(&self) -> Prompt;
}

/// One block's part of a [`Prompt`]'s keys and values.
#[derive(Clone)]
pub struct Prefix {
    /// `[count, kv_heads * head_dim]`.
    pub keys: Tensor,
    /// The same of values.
    pub values: Tensor,
    /// For every position of the batch where its keys are: its own, or beyond all positions those of the prefix.
    pub places: Arc<[u32]>,
}

impl Prefix {
    /// `own` `[batch, time, heads, head_dim]` with the rows of `ours` in their places.
    pub(crate) fn put(&self, own: &Tensor, ours: &Tensor) -> Tensor {
        let shape = own.shape();
        let (positions, width) = (shape[0] * shape[1], shape[2] * shape[3]);
        let all = Tensor::concat(&[&own.reshape([positions, width]), ours], 0);
        all.embedding(&self.places, [shape[0], shape[1]]).split_heads(shape[2])
    }
}

/// Runs `work` on the rows of a batch by the number that [`Hooks::Rows`] gives them, and puts the results back in order.
/// All `inputs` are `[batch, ..]`; where a single row has a number for each position, `work` sees positions as rows.
pub fn by_row(ids: &[Option<usize>], inputs: &[&Tensor], work: impl Fn(Option<usize>, &[Tensor]) -> Tensor) -> Tensor {
    let rows = inputs[0].size(0);
    if rows == 1 && ids.len() > 1 && inputs[0].size(1) == ids.len() {
        let turn = |x: &Tensor, rows: usize, time: usize| x.reshape(x.shape().with(0, rows).with(1, time));
        let turned: Vec<Tensor> = inputs.iter().map(|x| turn(x, ids.len(), 1)).collect();
        return turn(&by_row(ids, &turned.iter().collect::<Vec<_>>(), work), 1, ids.len());
    }
    assert_eq!(rows, ids.len(), "hooks for {} rows in a batch of {rows}", ids.len());
    let mut numbers = ids.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    if let [one] = numbers[..] {
        return work(one, &inputs.iter().map(|&input| input.clone()).collect::<Vec<_>>());
    }
    let (mut order, mut parts) = (Vec::with_capacity(rows), Vec::with_capacity(numbers.len()));
    for number in numbers {
        let own: Vec<u32> = (0u32..).zip(ids).filter(|(_, id)| **id == number).map(|(row, _)| row).collect();
        let picked: Vec<Tensor> = inputs.iter().map(|input| rows_of(input, &own)).collect();
        parts.push(work(number, &picked));
        order.extend(own);
    }
    let mut places = vec![0; rows];
    (0u32..).zip(&order).for_each(|(place, &row)| places[row as usize] = place);
    rows_of(&Tensor::concat(&parts.iter().collect::<Vec<_>>(), 0), &places)
}

fn rows_of(x: &Tensor, rows: &[u32]) -> Tensor {
    let shape = x.shape();
    let flat = x.reshape([shape[0], x.count() / shape[0]]);
    flat.embedding(rows, [rows.len()]).reshape(shape.with(0, rows.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_through_what_their_number_says_and_come_back_in_order() {
        let x = Tensor::from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [4, 2, 1]);
        let ids = [Some(1), None, Some(0), Some(1)];
        let y = by_row(&ids, &[&x], |id, parts| parts[0].scale(id.map_or(1.0, |id| 10.0 * (id + 1) as f32)));
        assert_eq!(y.shape()[..], [4, 2, 1]);
        let expected = [0.0, 20.0, 2.0, 3.0, 40.0, 50.0, 120.0, 140.0];
        assert_eq!(y.to_vec(), expected);
        // The same of the positions of one row.
        let x = x.reshape([1, 4, 2]);
        let y = by_row(&ids, &[&x], |id, parts| parts[0].scale(id.map_or(1.0, |id| 10.0 * (id + 1) as f32)));
        assert_eq!((y.shape()[..].to_vec(), y.to_vec()), (vec![1, 4, 2], expected.to_vec()));
    }
}
