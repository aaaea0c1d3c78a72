//! One file onto the disk: under another name until its checksum is right, and from where it was cut.

use super::client::{FileInfo, Hub, Trouble};
use crate::failure::Failure;
use crate::output;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Tries in a row that bring nothing new.
const TRIES: u32 = 5;
/// Between the first two; then twice as long each time.
const PAUSE: Duration = Duration::from_millis(200);
const BUFFER: usize = 1 << 18;

/// A file of a repository.
pub struct Wanted<'a> {
    /// The repository.
    pub repo: &'a str,
    /// Its commit.
    pub commit: &'a str,
    /// The file's path there.
    pub file: &'a str,
    /// What the hub says of it.
    pub info: &'a FileInfo,
}

/// Fetches a file to `path`. What is there of it under `path` with `.part` behind is continued. `watch` is told bytes as
/// they come, and those that are there already.
pub fn download(hub: &Hub, wanted: &Wanted<'_>, path: &Path, watch: &mut dyn FnMut(u64)) -> Result<(), Failure> {
    let part = path.with_file_name(format!("{}.part", path.file_name().unwrap_or_default().to_string_lossy()));
    let fail = |e: std::io::Error| Failure::io(&format!("cannot write {}", part.display()), &e);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    let mut have = part.metadata().map_or(0, |m| m.len());
    if wanted.info.size.is_some_and(|size| have > size) {
        have = 0;
    }
    watch(have);
    let mut idle = 0;
    while wanted.info.size.is_none_or(|size| have < size) {
        let before = have;
        match piece(hub, wanted, &part, &mut have, watch) {
            Ok(()) if wanted.info.size.is_none() => break,
            Ok(()) => {}
            Err(Trouble::Final(failure)) => return Err(failure),
            Err(Trouble::Passing(what, _)) if have == before && idle + 1 >= TRIES => {
                let hint = format!("run the command again: it continues from byte {have}");
                return Err(Failure::with_hint(format!("{}: {what}", wanted.file), hint));
            }
            Err(Trouble::Passing(what, wait)) => {
                output::say(&format!("{}: {what}; continuing from byte {have}", wanted.file));
                std::thread::sleep(wait.unwrap_or(PAUSE * 2_u32.pow(idle)).min(Duration::from_secs(60)));
            }
        }
        idle = if have > before { 0 } else { idle + 1 };
        if idle >= TRIES {
            let message = format!("{}: the hub sends {have} bytes and no more", wanted.file);
            return Err(Failure::with_hint(message, "run the command again: it continues from there"));
        }
    }
    if !part.exists() {
        File::create(&part).map_err(fail)?;
    }
    check(wanted, &part)?;
    fs::rename(&part, path).map_err(fail)
}

/// Fetches what one answer brings.
fn piece(
    hub: &Hub,
    wanted: &Wanted<'_>,
    part: &Path,
    have: &mut u64,
    watch: &mut dyn FnMut(u64),
) -> Result<(), Trouble> {
    let fail = |e: std::io::Error| Trouble::Final(Failure::io(&format!("cannot write {}", part.display()), &e));
    let (response, begins) = hub.open(wanted.repo, wanted.commit, wanted.file, *have)?;
    if begins > *have {
        return Err(Trouble::Final(Failure::new(format!("{}: the hub skips bytes", wanted.file))));
    }
    // A server that knows no ranges begins anew.
    *have = begins;
    let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(part).map_err(fail)?;
    file.set_len(begins).map_err(fail)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(begins)).map_err(fail)?;
    let (mut body, mut buffer) = (response.into_body().into_reader(), vec![0; BUFFER]);
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Trouble::Passing(format!("the connection was cut ({e})"), None)),
        };
        file.write_all(&buffer[..count]).map_err(fail)?;
        *have += count as u64;
        watch(*have);
    }
    file.sync_all().map_err(fail)?;
    match wanted.info.size {
        Some(size) if *have < size => Err(Trouble::Passing("the connection was cut".into(), None)),
        _ => Ok(()),
    }
}

/// Compares size and checksum with what the hub says; what differs is removed, since continuing it would be no use.
fn check(wanted: &Wanted<'_>, part: &Path) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::io(&format!("cannot read {}", part.display()), &e);
    let size = part.metadata().map_err(fail)?.len();
    let found = match wanted.info.etag.len() {
        64 => hashed(Sha256::new(), part).map_err(fail)?,
        // What git calls a file: a header and its contents.
        40 => hashed(Sha1::new().chain_update(format!("blob {size}\0")), part).map_err(fail)?,
        _ => wanted.info.etag.clone(),
    };
    let is_whole = wanted.info.size.is_none_or(|wanted| wanted == size);
    if is_whole && found.eq_ignore_ascii_case(&wanted.info.etag) {
        return Ok(());
    }
    fs::remove_file(part).map_err(fail)?;
    let message =
        format!("{} arrived damaged: its checksum is {found}, the hub says {}", wanted.file, wanted.info.etag);
    Err(Failure::with_hint(message, "nothing was kept of it; run the command again, or try another HF_ENDPOINT"))
}

fn hashed<D: Digest>(mut digest: D, path: &Path) -> std::io::Result<String> {
    let (mut file, mut buffer) = (File::open(path)?, vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a file on the disk is the one that the hub speaks of.
pub fn is_same(path: &Path, info: &FileInfo) -> bool {
    let Ok(meta) = path.metadata() else { return false };
    let found = match info.etag.len() {
        64 => hashed(Sha256::new(), path),
        40 => hashed(Sha1::new().chain_update(format!("blob {}\0", meta.len())), path),
        _ => return false,
    };
    found.is_ok_and(|found| found.eq_ignore_ascii_case(&info.etag))
}
