//! Element types as tags: no arithmetic here.

use safetensors::Dtype as External;
use serde::{Deserialize, Serialize};

/// An element type. The order is the one that the format sorts by: by alignment, and fixed within one alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// One byte, 0 or 1.
    #[serde(rename = "BOOL")]
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// 8-bit float with 5 exponent bits.
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    /// 8-bit float with 4 exponent bits.
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

/// Our tag, the format library's tag, the name in files, bytes per element.
const TABLE: [(Dtype, External, &str, usize); 15] = [
    (Dtype::Bool, External::BOOL, "BOOL", 1),
    (Dtype::U8, External::U8, "U8", 1),
    (Dtype::I8, External::I8, "I8", 1),
    (Dtype::F8E5M2, External::F8_E5M2, "F8_E5M2", 1),
    (Dtype::F8E4M3, External::F8_E4M3, "F8_E4M3", 1),
    (Dtype::I16, External::I16, "I16", 2),
    (Dtype::U16, External::U16, "U16", 2),
    (Dtype::F16, External::F16, "F16", 2),
    (Dtype::BF16, External::BF16, "BF16", 2),
    (Dtype::I32, External::I32, "I32", 4),
    (Dtype::U32, External::U32, "U32", 4),
    (Dtype::F32, External::F32, "F32", 4),
    (Dtype::F64, External::F64, "F64", 8),
    (Dtype::I64, External::I64, "I64", 8),
    (Dtype::U64, External::U64, "U64", 8),
];

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        TABLE[self as usize].3
    }

    /// The name that files use, such as `BF16`.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].2
    }

    /// The tag of the format library, if it is one that Loam has a use for.
    pub(super) fn from_external(external: External) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == external).map(|row| row.0)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_both_enums_and_names_agree() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            assert_eq!(row.1.to_string(), row.2);
            assert_eq!(row.1.bitsize(), row.3 * 8);
            assert_eq!(serde_json::to_value(row.0).unwrap(), row.2);
        }
        assert!(TABLE.windows(2).all(|w| w[0].1 < w[1].1));
    }
}
