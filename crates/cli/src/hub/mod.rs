//! A hub of models, spoken to as Hugging Face's is: which files a revision has, and the files, checked and resumed.

mod client;
mod download;

pub use client::{FileInfo, Hub, Trouble};
pub use download::{Wanted, download, is_same};

use crate::failure::Failure;

/// Refuses names that would leave the store's directory.
pub fn check_path(name: &str) -> Result<(), Failure> {
    let is_plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    if name.split('/').all(is_plain) {
        return Ok(());
    }
    let hint = "names are relative and stay below the model's directory; this hub cannot be trusted";
    Err(Failure::with_hint(format!("the hub names a file `{name}`"), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for good in ["config.json", "onnx/model.onnx", "a..b/c"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "c:\\x", "./x", "a\\..\\b"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }
}
