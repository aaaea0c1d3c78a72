//! Looking things up by number.

use crate::dims::Dims;
use crate::raw::Raw;
use crate::tensor::{Tensor, backend};

impl Tensor {
    /// Rows of this `[rows, width]` table: `ids` of shape `lead` give `[lead.., width]`. Panics on an id out of range.
    pub fn embedding(&self, ids: &[u32], lead: impl Into<Dims>) -> Self {
        let (rows, width, lead) = (self.size(0), self.size(1), lead.into());
        assert_eq!(ids.len(), lead.count(), "embedding: {} ids for shape {lead:?}", ids.len());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            panic!("embedding: id {id} in a table of {rows} rows");
        }
        let mut shape = lead.to_vec();
        shape.push(width);
        let out = backend().embedding(&self.dense(), ids).reshaped(&shape[..]);
        let ids = ids.to_vec();
        Self::from_op(out, &[self], move |dy, grads| {
            grads.add_into(0, |slot| backend().embedding_backward(slot, dy, &ids));
        })
    }

    /// `self[row, ids[row]]` of every row of the last axis: `[.., width] -> [..]`.
    pub fn gather_last(&self, ids: &[u32]) -> Self {
        let shape = self.shape();
        let x = self.dense();
        assert_eq!(ids.len(), x.rows(), "gather_last: {} ids for shape {shape:?}", ids.len());
        let picked = backend().gather_last(&x, ids).reshaped(&shape[..shape.len() - 1]);
        let ids = ids.to_vec();
        Self::from_op(picked, &[self], move |dy, grads| {
            grads.add_into(0, |slot: &mut Raw| backend().scatter_add_last(slot, &ids, dy));
        })
    }
}
