//! Block-quantised numbers: the element types of GGUF files.

mod types;

pub use types::GgmlType;
