//! Relative positions as biases on the scores.

use loam_tensor::{Parameter, Tensor};

use crate::module::{Module, join};

/// A bias per head for every class of distance between query and key (Raffel et al. 2020, section 2.1): near ones each
/// have a class, far ones share one with those of similar magnitude.
pub struct RelativePositions {
    /// `[num_buckets, heads]`.
    pub weight: Parameter,
    max_distance: usize,
    is_causal: bool,
}

impl RelativePositions {
    /// Zeros, to be initialised or loaded. Where it is not causal, half of the classes are for keys that follow.
    pub fn zeros(num_buckets: usize, max_distance: usize, heads: usize, is_causal: bool) -> Self {
        Self { weight: Parameter::zeros([num_buckets, heads]), max_distance, is_causal }
    }

    /// Biases `[heads, q_len, kv_len]`, the last query sitting at the last key.
    pub fn forward(&self, q_len: usize, kv_len: usize) -> Tensor {
        let first = (kv_len - q_len) as i64;
        let distances = |query: usize| (0..kv_len as i64).map(move |key| key - (first + query as i64));
        let buckets: Vec<u32> = (0..q_len).flat_map(distances).map(|distance| self.bucket(distance)).collect();
        let biases = Tensor::parameter(&self.weight).embedding(&buckets, [q_len, kv_len]);
        biases.transpose(1, 2).transpose(0, 1)
    }

    /// The class of a distance, positive where the key follows.
    fn bucket(&self, distance: i64) -> u32 {
        let all = self.weight.shape()[0] as u32;
        let (buckets, start, distance) = match (self.is_causal, distance > 0) {
            (true, true) => (all, 0, 0),
            (true, false) => (all, 0, distance.unsigned_abs()),
            (false, follows) => (all / 2, if follows { all / 2 } else { 0 }, distance.unsigned_abs()),
        };
        let exact = buckets / 2;
        if distance < u64::from(exact) {
            return start + distance as u32;
        }
        // In f32, as the reference implementation rounds.
        let range = (self.max_distance as f64 / f64::from(exact)).ln() as f32;
        let share = (distance as f32 / exact as f32).ln() / range;
        start + (exact + (share * (buckets - exact) as f32) as u32).min(buckets - 1)
    }
}

impl Module for RelativePositions {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        visit(join(path, "weight"), &self.weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_classes_of_their_own_and_far_ones_share() {
        let both = RelativePositions::zeros(32, 128, 1, false);
        let buckets: Vec<u32> = [0, -1, -7, -8, -15, -64, -128, -5000, 1, 7, 5000].map(|d| both.bucket(d)).into();
        assert_eq!(buckets, [0, 1, 7, 8, 9, 14, 15, 15, 17, 23, 31]);
        let causal = RelativePositions::zeros(32, 128, 1, true);
        let buckets: Vec<u32> = [3, 0, -1, -15, -16, -127, -128].map(|d| causal.bucket(d)).into();
        assert_eq!(buckets, [0, 0, 1, 15, 16, 31, 31]);
    }
}
