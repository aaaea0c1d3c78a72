//! The one place that memory-maps files.
//!
//! A map shares the page cache between processes and costs no copy, which is what makes opening a checkpoint or a
//! token shard larger than memory instant. Its one danger is stated at [`Mapped::open`].

use crate::{Error, Result};
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// A file's bytes, read-only, loaded by the operating system as they are touched.
#[derive(Debug)]
pub struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps a whole file. An empty file gives an empty slice.
    ///
    /// The file must not be shortened by another process while it is mapped (the system would kill the reader);
    /// Loam's own writers never do that: they replace files by renaming, see [`crate::atomic`].
    #[allow(unsafe_code, reason = "a memory map is unsafe by nature; this is the only one outside of kernels/tensor")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let is_dir = file.metadata().map_err(|e| Error::io("open", path, e))?.is_dir();
        if is_dir {
            return Err(Error::io("open", path, std::io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the map is private to this process and read-only. That no other process truncates the file is the
        // documented condition above; all files that Loam maps are written by renaming a finished file into place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("memory-map", path, e))?;
        Ok(Self(map))
    }
}

impl Mapped {
    /// Lets go of the memory that a part takes, where the system has such a call: what is read of it again comes from the
    /// file again.
    #[allow(unsafe_code, reason = "see the safety comment")]
    pub(crate) fn forget(&self, part: Range<usize>) {
        #[cfg(unix)]
        {
            // Pages that are partly outside stay.
            let (start, end) = (part.start.next_multiple_of(PAGE), part.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the map is of a file and read-only, so that a dropped page comes back as it was. That it could
                // not be dropped is no error.
                let _ =
                    unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
        #[cfg(not(unix))]
        let _ = part;
    }
}

/// As long as any page of memory is, or a multiple.
#[cfg(unix)]
const PAGE: usize = 64 * 1024;

/// The bytes of a whole file, for as long as someone holds them.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A file's content: mapped, or held in memory.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Mapped),
    Owned(Vec<u8>),
}

impl Bytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(vec) => vec,
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_shows_the_bytes_of_the_file_and_an_empty_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert_eq!(&Mapped::open(&path).unwrap()[..], [1, 2, 3]);
        std::fs::write(&path, []).unwrap();
        assert!(Mapped::open(&path).unwrap().is_empty());
    }

    #[test]
    fn a_missing_file_and_a_directory_are_errors_that_name_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nope.bin");
        assert!(Mapped::open(&missing).unwrap_err().to_string().contains("nope.bin does not exist"));
        assert!(Mapped::open(dir.path()).unwrap_err().to_string().contains("directory"));
    }
}
