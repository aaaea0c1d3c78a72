//! Checks of the workspace itself: which crate may use which, how long a file may be, what a source may not contain.
//!
//! The rules live here as functions from text to complaints, so that they are tested on made-up input as well; the tests
//! under `tests/` apply them to the real workspace, and the binary starts continuous integration and the golden script.

pub mod layers;
pub mod sources;

use std::path::{Path, PathBuf};

/// The workspace's root directory.
pub fn workspace_root() -> PathBuf {
    // At run time first: a target directory may have been built for another checkout.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).ancestors().nth(2).expect("xtask lies two levels below the root").to_owned()
}
