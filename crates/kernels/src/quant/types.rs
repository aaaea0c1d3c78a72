//! The element types of GGUF files: numbers, and blocks of numbers that share scales.

/// The type of a tensor's elements in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum GgmlType {
    /// Single precision.
    F32 = 0,
    /// Half precision.
    F16 = 1,
    /// Blocks of 32 in 18 bytes.
    Q4_0 = 2,
    /// Blocks of 32 in 20 bytes.
    Q4_1 = 3,
    /// Blocks of 32 in 22 bytes.
    Q5_0 = 6,
    /// Blocks of 32 in 24 bytes.
    Q5_1 = 7,
    /// Blocks of 32 in 34 bytes.
    Q8_0 = 8,
    /// Blocks of 32 in 36 bytes.
    Q8_1 = 9,
    /// Blocks of 256 in 84 bytes.
    Q2K = 10,
    /// Blocks of 256 in 110 bytes.
    Q3K = 11,
    /// Blocks of 256 in 144 bytes.
    Q4K = 12,
    /// Blocks of 256 in 176 bytes.
    Q5K = 13,
    /// Blocks of 256 in 210 bytes.
    Q6K = 14,
    /// Blocks of 256 in 292 bytes.
    Q8K = 15,
    /// Blocks of 256 in 66 bytes.
    Iq2Xxs = 16,
    /// Blocks of 256 in 74 bytes.
    Iq2Xs = 17,
    /// Blocks of 256 in 98 bytes.
    Iq3Xxs = 18,
    /// Blocks of 256 in 50 bytes.
    Iq1S = 19,
    /// Blocks of 32 in 18 bytes.
    Iq4Nl = 20,
    /// Blocks of 256 in 110 bytes.
    Iq3S = 21,
    /// Blocks of 256 in 82 bytes.
    Iq2S = 22,
    /// Blocks of 256 in 136 bytes.
    Iq4Xs = 23,
    /// Integers of one byte.
    I8 = 24,
    /// Integers of two bytes.
    I16 = 25,
    /// Integers of four bytes.
    I32 = 26,
    /// Integers of eight bytes.
    I64 = 27,
    /// Double precision.
    F64 = 28,
    /// Blocks of 256 in 56 bytes.
    Iq1M = 29,
    /// bfloat16.
    Bf16 = 30,
    /// Blocks of 256 in 54 bytes.
    Tq1_0 = 34,
    /// Blocks of 256 in 66 bytes.
    Tq2_0 = 35,
    /// Blocks of 32 in 17 bytes.
    Mxfp4 = 39,
    /// Blocks of 64 in 36 bytes.
    Nvfp4 = 40,
    /// Blocks of 128 in 18 bytes.
    Q1_0 = 41,
    /// Blocks of 64 in 18 bytes.
    Q2_0 = 42,
}

/// Type, name in GGUF tools, elements per block, bytes per block.
const TABLE: [(GgmlType, &str, usize, usize); 35] = [
    (GgmlType::F32, "F32", 1, 4),
    (GgmlType::F16, "F16", 1, 2),
    (GgmlType::Q4_0, "Q4_0", 32, 18),
    (GgmlType::Q4_1, "Q4_1", 32, 20),
    (GgmlType::Q5_0, "Q5_0", 32, 22),
    (GgmlType::Q5_1, "Q5_1", 32, 24),
    (GgmlType::Q8_0, "Q8_0", 32, 34),
    (GgmlType::Q8_1, "Q8_1", 32, 36),
    (GgmlType::Q2K, "Q2_K", 256, 84),
    (GgmlType::Q3K, "Q3_K", 256, 110),
    (GgmlType::Q4K, "Q4_K", 256, 144),
    (GgmlType::Q5K, "Q5_K", 256, 176),
    (GgmlType::Q6K, "Q6_K", 256, 210),
    (GgmlType::Q8K, "Q8_K", 256, 292),
    (GgmlType::Iq2Xxs, "IQ2_XXS", 256, 66),
    (GgmlType::Iq2Xs, "IQ2_XS", 256, 74),
    (GgmlType::Iq3Xxs, "IQ3_XXS", 256, 98),
    (GgmlType::Iq1S, "IQ1_S", 256, 50),
    (GgmlType::Iq4Nl, "IQ4_NL", 32, 18),
    (GgmlType::Iq3S, "IQ3_S", 256, 110),
    (GgmlType::Iq2S, "IQ2_S", 256, 82),
    (GgmlType::Iq4Xs, "IQ4_XS", 256, 136),
    (GgmlType::I8, "I8", 1, 1),
    (GgmlType::I16, "I16", 1, 2),
    (GgmlType::I32, "I32", 1, 4),
    (GgmlType::I64, "I64", 1, 8),
    (GgmlType::F64, "F64", 1, 8),
    (GgmlType::Iq1M, "IQ1_M", 256, 56),
    (GgmlType::Bf16, "BF16", 1, 2),
    (GgmlType::Tq1_0, "TQ1_0", 256, 54),
    (GgmlType::Tq2_0, "TQ2_0", 256, 66),
    (GgmlType::Mxfp4, "MXFP4", 32, 17),
    (GgmlType::Nvfp4, "NVFP4", 64, 36),
    (GgmlType::Q1_0, "Q1_0", 128, 18),
    (GgmlType::Q2_0, "Q2_0", 64, 18),
];

impl GgmlType {
    /// Every type that can be read.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The type with this number in a file, if there is one.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|ty| ty.id() == id)
    }

    /// The type of this name, in capitals or not (`Q4_K`, `q8_0`).
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Its name, as GGUF tools write it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements that share a block; 1 for plain numbers. A row's length is a multiple of it.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Whether elements share scales with others in their block.
    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of `count` elements, or `None` where that is no whole number of blocks.
    pub fn bytes(self, count: usize) -> Option<usize> {
        let blocks = (count.is_multiple_of(self.block_len())).then(|| count / self.block_len())?;
        blocks.checked_mul(self.block_bytes())
    }

    fn row(self) -> &'static (Self, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has a row for every type")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_by_its_number_and_its_name() {
        for ty in GgmlType::all() {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(GgmlType::from_name(&ty.name().to_lowercase()), Some(ty));
        }
        assert_eq!(GgmlType::from_id(4), None, "Q4_2 is long gone");
    }

    #[test]
    fn bytes_are_counted_in_whole_blocks() {
        assert_eq!(GgmlType::Q4K.bytes(512), Some(288));
        assert_eq!(GgmlType::Q8_0.bytes(33), None);
        assert_eq!(GgmlType::F16.bytes(3), Some(6));
    }
}
