//! The safetensors format: a JSON header (name, dtype, shape, byte range) followed by the tensors' bytes.
//!
//! Reading maps the file and hands out views without copying. Writing lays tensors out as the reference library does
//! (largest alignment first, then by name), so that a file read and written again has the same bytes.

mod dtype;
mod read;
mod write;

pub use dtype::Dtype;
pub use read::{SafeTensors, TensorView};
pub use write::{TensorOut, encode_f32, write};

/// The metadata that `transformers` expects in a weight file.
pub fn pt_metadata() -> Vec<(String, String)> {
    vec![("format".into(), "pt".into())]
}
