//! The GGUF format: typed key-value metadata, then tensors in the element types of [`loam_kernels::quant`], aligned so
//! that they can be used where they lie.
//!
//! Reading maps the file and hands out byte ranges without copying; a model may be split over several files. Every
//! count and length of a file is compared with the bytes that are left before anything is allocated for it.

mod read;
mod value;
mod write;

pub use loam_kernels::quant::GgmlType;
pub use read::{Gguf, GgufTensor};
pub use value::{GgufArray, GgufValue};
pub use write::{GgufOut, write, write_split};

/// The first bytes of a file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// Key of the alignment of tensors, and what it is where a file does not say.
const ALIGNMENT: (&str, u32) = ("general.alignment", 32);
/// Keys of a model in several files: which of them this is, how many there are, tensors of all together.
const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";
/// Axes of a tensor at most.
const MAX_AXES: usize = 4;
/// Bytes of a tensor's name at most, so that there is room for the zero that C ends it with.
const MAX_NAME: usize = 63;

/// `name-00002-of-00005.gguf` as its beginning, 2 and 5.
fn shard_of(file_name: &str) -> Option<(&str, usize, usize)> {
    let stem = file_name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let number_of = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5);
    Some((prefix, number_of(number)?, number_of(count)?))
}

/// The name of a file of several; `number` counts from 1.
fn shard_name(prefix: &str, number: usize, count: usize) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_are_read_as_they_are_written() {
        assert_eq!(shard_of(&shard_name("a-b", 2, 13)), Some(("a-b", 2, 13)));
        assert_eq!(shard_of("model.gguf"), None);
        assert_eq!(shard_of("x-1-of-2.gguf"), None);
    }
}
