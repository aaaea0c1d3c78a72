//! Files and directories that appear whole or not at all.
//!
//! A writer works on a temporary sibling (`<name>.tmp-<pid>-<n>`), forces it to disk, renames it over the final name
//! and forces the directory. A crash at any moment leaves either the old or the new content; a failed write removes its
//! temporary. What a killed process leaves behind is removed by [`clean_leftovers`], which recognises live writers by
//! the lock they hold on their temporary, so it may run beside them.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const TEMPORARY: &str = ".tmp-";
const REPLACED: &str = ".old-";

/// Writes `bytes` to `path`, whole or not at all. Missing parent directories are created.
pub fn write_file(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_with(path, |w| w.write_all(bytes))
}

/// Writes what `fill` produces to `path`, whole or not at all. Missing parent directories are created.
///
/// `fill` may fail with an error type of its own, as long as an [`io::Error`] of the writer can be turned into it by
/// way of [`Error`]; see [`try_write_with`] for that. This form is for closures that only do IO.
pub fn write_with(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    try_write_with(path, |w| fill(w).map_err(|e| Error::io("write", path, e)))
}

/// As [`write_with`], for a closure whose errors are not only of IO.
pub fn try_write_with<E: From<Error>>(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let parent = create_parent(path)?;
    let temporary = sibling(path, TEMPORARY);
    let io = |e| Error::io("write", path, e);
    let guard = Cleanup(&temporary);
    let file = File::create_new(&temporary).map_err(io)?;
    mark_live(&file);
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    let file = writer.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(io)?;
    fs::rename(&temporary, path).map_err(io)?;
    std::mem::forget(guard);
    sync_dir(parent).map_err(io)?;
    Ok(())
}

/// Fills a temporary directory and puts it in the place of `path`, whole or not at all.
///
/// If `path` exists it is replaced. The swap takes two renames; a crash exactly between them leaves the old directory
/// under a temporary name, from which [`clean_leftovers`] restores it.
pub fn replace_dir<E: From<Error>>(path: impl AsRef<Path>, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let path = path.as_ref();
    let parent = create_parent(path)?;
    let temporary = sibling(path, TEMPORARY);
    let io = |e| Error::io("write", path, e);
    let guard = Cleanup(&temporary);
    fs::create_dir(&temporary).map_err(io)?;
    let lock = File::open(&temporary).ok();
    lock.as_ref().inspect(|f| mark_live(f));
    fill(&temporary)?;
    sync_tree(&temporary).map_err(io)?;
    let old = sibling(path, REPLACED);
    let had_old = match fs::rename(path, &old) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(io(e).into()),
    };
    if let Err(e) = fs::rename(&temporary, path) {
        if had_old {
            // Best effort: the first error is the one to report.
            let _ = fs::rename(&old, path);
        }
        return Err(io(e).into());
    }
    std::mem::forget(guard);
    sync_dir(parent).map_err(io)?;
    if had_old {
        remove(&old).map_err(|e| Error::io("remove", &old, e))?;
    }
    Ok(())
}

/// Removes what killed writers left in `parent` and returns the paths it dealt with.
///
/// Only names that this module gives are touched, and none that a live process still writes. A directory that was being
/// replaced when its writer died is put back under its own name.
pub fn clean_leftovers(parent: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let parent = parent.as_ref();
    let io = |e| Error::io("read", parent, e);
    let mut cleaned = Vec::new();
    let entries = match fs::read_dir(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        other => other.map_err(io)?,
    };
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let Some((kind, original)) = original_of(&path) else { continue };
        if is_live(&path) {
            continue;
        }
        let outcome = if kind == REPLACED && !original.exists() { fs::rename(&path, &original) } else { remove(&path) };
        outcome.map_err(|e| Error::io("remove", &path, e))?;
        cleaned.push(path);
    }
    cleaned.sort();
    Ok(cleaned)
}

/// Removes a temporary when dropped; forgotten once the temporary has become the final file.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        // The error being reported is the one that matters; a temporary that stays is found by `clean_leftovers`.
        let _ = remove(self.0);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// The directory that holds `path`, created if need be.
fn create_parent(path: &Path) -> Result<&Path> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    Ok(parent)
}

/// A fresh name beside `path`: the process id keeps processes apart, the counter threads.
fn sibling(path: &Path, kind: &str) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let stem = path.file_name().unwrap_or(path.as_os_str());
    loop {
        let mut name = OsString::from(stem);
        name.push(format!("{kind}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let candidate = path.with_file_name(name);
        // A leftover of a killed process that had the same id may be in the way.
        if candidate.symlink_metadata().is_err() {
            return candidate;
        }
    }
}

/// For a name given by [`sibling`]: its kind and the path it stands for.
fn original_of(path: &Path) -> Option<(&'static str, PathBuf)> {
    let name = path.file_name()?.to_str()?;
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    [TEMPORARY, REPLACED].into_iter().find_map(|kind| {
        let (stem, suffix) = name.rsplit_once(kind)?;
        let (pid, count) = suffix.split_once('-')?;
        (!stem.is_empty() && number(pid) && number(count)).then(|| (kind, path.with_file_name(stem)))
    })
}

/// Holds a lock for as long as `file` is open. A file system without locks only loses the protection against a
/// simultaneous `clean_leftovers`, so a refusal is no error.
fn mark_live(file: &File) {
    let _ = file.try_lock();
}

/// Whether a writer still holds the temporary. What cannot be opened or locked is left alone.
fn is_live(path: &Path) -> bool {
    File::open(path).map_or(true, |file| file.try_lock().is_err())
}

/// Forces a directory's entries to disk (a rename is only durable after that). Only Unix can open a directory.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_written_with_its_parent_directories_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.txt");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(&dir.path().join("a/b")), ["c.txt"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_content_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_file(&path, b"old").unwrap();
        let failed = write_with(&path, |w| {
            w.write_all(&vec![7; 3 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = failed.unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }));
        assert!(error.to_string().contains("disk is full"));
        assert!(error.hint().unwrap().contains("free some space"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_writer_that_panics_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let attempt = std::panic::catch_unwind(|| write_with(&path, |_| panic!("interrupted")));
        assert!(attempt.is_err());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_directory_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        for (file, content) in [("a", "1"), ("b", "2")] {
            replace_dir::<Error>(&path, |tmp| write_file(tmp.join(file), content.as_bytes())).unwrap();
        }
        assert_eq!(names(&path), ["b"]);
        assert_eq!(names(dir.path()), ["step-1"]);
    }

    #[test]
    fn a_directory_whose_filling_fails_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step-1");
        replace_dir::<Error>(&path, |tmp| write_file(tmp.join("a"), b"1")).unwrap();
        let failed = replace_dir::<Error>(&path, |tmp| {
            write_file(tmp.join("b"), b"2")?;
            Err(Error::DiskFull { path: tmp.to_path_buf() })
        });
        assert!(failed.is_err());
        assert_eq!((names(&path), names(dir.path())), (vec!["a".to_owned()], vec!["step-1".to_owned()]));
    }

    #[test]
    fn leftovers_of_killed_writers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("step-2.tmp-123-0")).unwrap();
        fs::write(dir.path().join("step-2.tmp-123-0/x"), "x").unwrap();
        for name in ["m.safetensors.tmp-9-4", "notes.tmp-final", ".tmp-1-2", "keep.txt"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let cleaned = clean_leftovers(dir.path()).unwrap();
        assert_eq!(cleaned.len(), 2);
        assert_eq!(names(dir.path()), [".tmp-1-2", "keep.txt", "notes.tmp-final"]);
        assert!(clean_leftovers(dir.path().join("absent")).unwrap().is_empty());
    }

    #[test]
    fn a_directory_lost_between_the_two_renames_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model.old-77-1")).unwrap();
        clean_leftovers(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_temporary_still_being_written_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        write_with(dir.path().join("x"), |w| {
            w.write_all(b"1")?;
            assert!(clean_leftovers(dir.path()).unwrap().is_empty());
            Ok(())
        })
        .unwrap();
        replace_dir::<Error>(dir.path().join("d"), |_| {
            assert!(clean_leftovers(dir.path())?.is_empty());
            Ok(())
        })
        .unwrap();
        assert_eq!(names(dir.path()), ["d", "x"]);
    }
}
