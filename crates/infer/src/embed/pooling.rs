//! From the hidden states of a text's tokens to one vector.

use std::str::FromStr;

/// How the vectors of the tokens become the vector of the text (the names are those of sentence-transformers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// The largest value of each feature.
    Max,
    /// The mean.
    Mean,
    /// The sum over the root of the number of tokens.
    MeanSqrtLen,
    /// The mean weighted by position: 1 for the first token, 2 for the second, ...
    WeightedMean,
    /// The last token's, which is the only one that has seen everything in a causal model.
    LastToken,
}

impl Pooling {
    /// Every one, in the order in which sentence-transformers puts their vectors side by side.
    pub const ALL: [Self; 6] =
        [Self::Cls, Self::Max, Self::Mean, Self::MeanSqrtLen, Self::WeightedMean, Self::LastToken];

    /// What `pooling_mode` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Max => "max",
            Self::Mean => "mean",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
            Self::LastToken => "lasttoken",
        }
    }

    /// The key that older files switch it on with.
    pub(super) fn legacy_key(self) -> &'static str {
        match self {
            Self::Cls => "pooling_mode_cls_token",
            Self::Max => "pooling_mode_max_tokens",
            Self::Mean => "pooling_mode_mean_tokens",
            Self::MeanSqrtLen => "pooling_mode_mean_sqrt_len_tokens",
            Self::WeightedMean => "pooling_mode_weightedmean_tokens",
            Self::LastToken => "pooling_mode_lasttoken",
        }
    }

    /// Appends the pooled vector of `hidden`, rows of `width`; that of no row at all is zero.
    pub(super) fn pool(self, hidden: &[f32], width: usize, out: &mut Vec<f32>) {
        let rows = hidden.chunks_exact(width);
        let (count, start) = (rows.len(), out.len());
        if count == 0 {
            return out.resize(start + width, 0.0);
        }
        let weighted_sum = |out: &mut Vec<f32>, weight: &dyn Fn(usize) -> f32, divisor: f32| {
            out.resize(start + width, 0.0);
            let sum = &mut out[start..];
            for (index, row) in hidden.chunks_exact(width).enumerate() {
                let weight = weight(index);
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
            }
            sum.iter_mut().for_each(|sum| *sum /= divisor);
        };
        match self {
            Self::Cls => out.extend(&hidden[..width]),
            Self::LastToken => out.extend(&hidden[(count - 1) * width..]),
            Self::Max => {
                out.extend(&hidden[..width]);
                for row in rows {
                    out[start..].iter_mut().zip(row).for_each(|(top, x)| *top = top.max(*x));
                }
            }
            Self::Mean => weighted_sum(out, &|_| 1.0, count as f32),
            Self::MeanSqrtLen => weighted_sum(out, &|_| 1.0, (count as f32).sqrt()),
            Self::WeightedMean => {
                weighted_sum(out, &|index| (index + 1) as f32, (count * (count + 1) / 2) as f32);
            }
        }
    }
}

impl std::fmt::Display for Pooling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|pooling| pooling.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|pooling| pooling.name()).collect();
            format!("there is no pooling `{name}`; known are {}", known.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pooling_does_what_its_name_says() {
        let hidden = [1.0, -2.0, 3.0, 4.0, 5.0, -8.0];
        let expected = [
            (Pooling::Cls, [1.0, -2.0]),
            (Pooling::Max, [5.0, 4.0]),
            (Pooling::Mean, [3.0, -2.0]),
            (Pooling::MeanSqrtLen, [9.0 / 3f32.sqrt(), -6.0 / 3f32.sqrt()]),
            (Pooling::WeightedMean, [22.0 / 6.0, -18.0 / 6.0]),
            (Pooling::LastToken, [5.0, -8.0]),
        ];
        for (pooling, expected) in expected {
            let mut out = vec![7.0];
            pooling.pool(&hidden, 2, &mut out);
            assert_eq!(out, [7.0, expected[0], expected[1]], "{pooling}");
            assert_eq!(pooling.name().parse(), Ok(pooling));
            let mut nothing = Vec::new();
            pooling.pool(&[], 2, &mut nothing);
            assert_eq!(nothing, [0.0, 0.0], "{pooling} of nothing");
        }
        assert!("median".parse::<Pooling>().unwrap_err().contains("known are cls, max, mean"));
    }
}
