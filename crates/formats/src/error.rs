//! What can go wrong with a file, said once and clearly.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything a file or a disk can do wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a path.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: "open", "write", …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No room left for a file; nothing of it remains on disk.
    #[error("the disk is full: {} was not written", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// A file or directory that must exist does not.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The missing path.
        path: PathBuf,
        /// What the user can do about it.
        hint: String,
    },
    /// A safetensors file is damaged or inconsistent.
    #[error("{}: not a valid safetensors file: {reason}", path.display())]
    SafeTensors {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong, with what was expected and found.
        reason: String,
    },
    /// A PyTorch checkpoint is damaged or inconsistent.
    #[error("{}: not a valid PyTorch checkpoint: {reason}", path.display())]
    Torch {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong, with what was expected and found.
        reason: String,
    },
    /// A PyTorch checkpoint holds something that Loam does not read.
    #[error("{}: cannot read this PyTorch checkpoint: {reason}", path.display())]
    UnsupportedTorch {
        /// The file.
        path: PathBuf,
        /// What it holds.
        reason: String,
    },
    /// A pickle calls something that building tensors does not need. It was not called.
    #[error("{}: refused: the file would execute code, it calls `{name}` when Python loads it", path.display())]
    RefusedPickle {
        /// The file.
        path: PathBuf,
        /// What it would call, with its module.
        name: String,
    },
    /// A GGUF file is damaged or inconsistent.
    #[error("{}: not a valid GGUF file: {reason}", path.display())]
    Gguf {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong, with what was expected and found.
        reason: String,
    },
    /// A GGUF file of a kind that Loam does not read.
    #[error("{}: cannot read this GGUF file: {reason}", path.display())]
    UnsupportedGguf {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// Something that a GGUF file cannot hold.
    #[error("cannot write {}: {reason}", path.display())]
    GgufContent {
        /// The file to be written.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A JSON file is damaged.
    #[error("{}: invalid JSON: {reason}", path.display())]
    Json {
        /// The damaged file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A file of a model directory contradicts another one.
    #[error("{}: {reason}", path.display())]
    Inconsistent {
        /// The file that makes the claim.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },
    /// A tensor was asked for by a name that is not there.
    #[error("{}: no tensor named '{name}'", path.display())]
    NoSuchTensor {
        /// The file or directory searched.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The most similar name that is there.
        nearest: Option<String>,
    },
    /// A tensor's dtype cannot be turned into f32.
    #[error("tensor of dtype {found} cannot be read as f32 (expected F32, F16, BF16 or F64)")]
    NotFloat {
        /// The dtype found.
        found: &'static str,
    },
    /// The data given for a tensor does not have the size that its dtype and shape say.
    #[error("tensor '{name}': dtype and shape need {expected} bytes, but {found} were given")]
    WrongLength {
        /// The tensor.
        name: String,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Two tensors of one file share a name.
    #[error("{}: two tensors are named '{name}'", path.display())]
    DuplicateTensor {
        /// The file to be written.
        path: PathBuf,
        /// The name given twice.
        name: String,
    },
}

impl Error {
    /// A way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::DiskFull { path } => Some(format!(
                "free some space on the disk of {} or write elsewhere; what was there before is untouched",
                path.parent().unwrap_or(path).display()
            )),
            Self::Missing { hint, .. } if !hint.is_empty() => Some(hint.clone()),
            Self::Missing { path, .. } => Some(missing_hint(path)),
            Self::SafeTensors { .. } => Some("the file is damaged or incomplete: copy or download it again".into()),
            Self::Gguf { .. } => Some("the file is damaged or incomplete: copy or download it again".into()),
            Self::UnsupportedGguf { .. } => {
                Some("convert the model again with a current version of llama.cpp's converter, on this computer".into())
            }
            Self::Torch { .. } => Some("the file is damaged or incomplete: copy or download it again".into()),
            Self::UnsupportedTorch { .. } => Some(
                "convert it with safetensors: load it in Python, then save_file(state_dict, \"model.safetensors\") of \
                 safetensors.torch"
                    .into(),
            ),
            Self::RefusedPickle { .. } => Some(
                "Loam executed nothing; ask for the model as safetensors or, if you trust the file's author, convert it with \
                 safetensors in Python"
                    .into(),
            ),
            Self::NoSuchTensor { nearest: Some(name), .. } => Some(format!("the nearest name there is '{name}'")),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check the owner and the permissions of the path".into())
            }
            _ => None,
        }
    }

    /// Names the operation and the path of an [`io::Error`]; a full disk becomes [`Error::DiskFull`] and a path that
    /// does not exist [`Error::Missing`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero => {
                Self::DiskFull { path }
            }
            io::ErrorKind::NotFound => Self::Missing { path, hint: String::new() },
            _ => Self::Io { action, path, source },
        }
    }
}

/// What is there instead of `path`: the nearest name beside it, or the first directory above it that does not exist.
fn missing_hint(path: &Path) -> String {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(parent) else {
        return format!("there is no directory {} either", parent.display());
    };
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(name) => format!("did you mean {}?", parent.join(name).display()),
        None => "check the spelling; a relative path starts at the current directory".into(),
    }
}

/// The candidate most similar to `name`, if any is similar at all: at most a third of it, or two letters, would have to
/// change. Upper and lower case are the same.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let limit = (name.chars().count() / 3).max(2);
    let name = name.to_lowercase();
    candidates
        .map(|c| (edit_distance(&name, &c.to_lowercase()), c))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, c)| c.to_owned())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not_offered() {
        let names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        assert_eq!(
            nearest("model.layers.0.mlp.up_prj.weight", names.into_iter()).as_deref(),
            Some("model.layers.0.mlp.up_proj.weight")
        );
        assert_eq!(nearest("zzz", names.into_iter()), None);
    }
}
