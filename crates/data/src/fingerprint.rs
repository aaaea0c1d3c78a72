//! The content hashes of source files, remembered by path, size and time of change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::hash::ContentHasher;
use crate::source::{BLOCK_BYTES, Source};
use crate::{Error, Result};

const FILE: &str = "sources.json";

/// A file that was changed this recently may change again within the clock's resolution, so its hash is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    modified_ns: u128,
    sha256: String,
}

/// What is known about source files, kept in `sources.json`. A damaged or missing file only costs time.
pub(crate) struct Fingerprints {
    path: PathBuf,
    known: BTreeMap<String, Known>,
    changed: bool,
    /// Files whose content was read, for tests.
    pub(crate) hashed: usize,
}

impl Fingerprints {
    pub(crate) fn open(out: &Path) -> Self {
        let path = out.join(FILE);
        let known = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, known, changed: false, hashed: 0 }
    }

    /// SHA-256 of the file's content.
    pub(crate) fn of(&mut self, source: &Source) -> Result<String> {
        let full = source.path().canonicalize().map_err(|error| Error::io("open", source.path(), error))?;
        let key = full.to_string_lossy().into_owned();
        let modified = source.modified().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let (Some(known), Some(modified)) = (self.known.get(&key), modified)
            && known.bytes == source.bytes()
            && known.modified_ns == modified.as_nanos()
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = hash_file(source.path())?;
        self.hashed += 1;
        let age = source.modified().and_then(|time| SystemTime::now().duration_since(time).ok());
        if let (Some(modified), Some(age)) = (modified, age)
            && age > SETTLED
        {
            let known = Known { bytes: source.bytes(), modified_ns: modified.as_nanos(), sha256: sha256.clone() };
            self.known.insert(key, known);
            self.changed = true;
        }
        Ok(sha256)
    }

    pub(crate) fn save(&self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let bytes = serde_json::to_vec_pretty(&self.known).expect("the map has only string keys");
        Ok(loam_formats::atomic::write_file(&self.path, &bytes)?)
    }
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut hasher = ContentHasher::default();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block).map_err(|error| Error::io("read", path, error))? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&block[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let set = |text: &str, seconds: u64| {
            std::fs::write(&path, text).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        set("one", 1000);
        let mut first = Fingerprints::open(dir.path());
        let hash = first.of(&Source::open(&path).unwrap()).unwrap();
        first.save().unwrap();
        let mut second = Fingerprints::open(dir.path());
        assert_eq!(second.of(&Source::open(&path).unwrap()).unwrap(), hash);
        assert_eq!((first.hashed, second.hashed), (1, 0));
        set("two", 2000);
        assert_ne!(second.of(&Source::open(&path).unwrap()).unwrap(), hash);
        assert_eq!(second.hashed, 1);
    }

    #[test]
    fn a_file_that_was_just_written_is_read_every_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "one").unwrap();
        let mut fingerprints = Fingerprints::open(dir.path());
        for expected in 1..=2 {
            fingerprints.of(&Source::open(&path).unwrap()).unwrap();
            assert_eq!(fingerprints.hashed, expected);
        }
    }
}
