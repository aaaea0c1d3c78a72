//! The part of the zip format that torch writes: a directory of entries that are stored as they are.

use super::{Problem, damaged};
use std::collections::HashMap;
use std::ops::Range;

/// Ends the file, behind the directory.
const END: &[u8] = b"PK\x05\x06";
const END_LENGTH: usize = 22;
/// Says where the 64-bit form of the end is; directly before the end.
const LOCATOR: &[u8] = b"PK\x06\x07";
const LOCATOR_LENGTH: usize = 20;
/// The 64-bit form of the end, for files of 4 GiB and more.
const END64: &[u8] = b"PK\x06\x06";
/// One entry of the directory.
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_LENGTH: usize = 46;
/// What stands before the bytes of an entry.
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_LENGTH: usize = 30;
/// The extra field that holds what does not fit 32 bits, and the value that refers to it.
const EXTRA64: u16 = 1;
const SEE_EXTRA: u64 = u32::MAX as u64;
/// A comment at the end of the file is at most this long.
const MAX_COMMENT: usize = u16::MAX as usize;

/// A torch archive's entries by name, without the directory that all of them lie in.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: HashMap<String, Range<usize>>,
    /// Whether numbers are stored with their highest byte first.
    pub(super) big_endian: bool,
}

impl<'a> Archive<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Problem> {
        let all = directory(bytes)?;
        let is_program = |name: &&String| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl");
        let mut programs = all.keys().filter(is_program);
        let prefix = match (programs.next(), programs.next()) {
            (Some(name), None) => name.trim_end_matches("data.pkl").to_owned(),
            (Some(_), Some(_)) => return damaged("the archive holds more than one data.pkl"),
            (None, _) => {
                let what = "it is a zip archive, but not one of torch.save: there is no data.pkl in it";
                return Err(Problem::Unsupported(what.into()));
            }
        };
        let inside = |(name, range): (String, Range<usize>)| Some((name.strip_prefix(&prefix)?.to_owned(), range));
        let mut archive = Self { bytes, entries: all.into_iter().filter_map(inside).collect(), big_endian: false };
        archive.big_endian = match archive.entry("byteorder") {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return damaged("its byteorder is neither little nor big"),
        };
        Ok(archive)
    }

    /// Where an entry's bytes lie in the file.
    pub(super) fn range(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(name).cloned()
    }

    /// An entry's bytes.
    pub(super) fn entry(&self, name: &str) -> Option<&'a [u8]> {
        self.range(name).map(|range| &self.bytes[range])
    }

    /// Length of the whole file.
    pub(super) fn file_length(&self) -> usize {
        self.bytes.len()
    }
}

/// A little-endian number of `N` bytes; `None` past the end.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    number::<2>(bytes, at).map(|n| n as usize)
}

/// All entries of the archive and where their bytes lie.
fn directory(bytes: &[u8]) -> Result<HashMap<String, Range<usize>>, Problem> {
    let Some((start, count)) = directory_start(bytes) else {
        return damaged("the end of the archive is missing: the file is truncated");
    };
    let mut entries = HashMap::new();
    let mut at = start;
    for index in 0..count {
        let Some((header, next)) = split_entry(bytes, at) else {
            return damaged(format!("entry {} of {count} of the archive's directory is damaged", index + 1));
        };
        let (name, range) = locate(bytes, header)?;
        if entries.insert(name.clone(), range).is_some() {
            return damaged(format!("two entries of the archive are named {name}"));
        }
        at = next;
    }
    Ok(entries)
}

/// Offset of the directory and number of its entries.
fn directory_start(bytes: &[u8]) -> Option<(usize, u64)> {
    let last = bytes.len().checked_sub(END_LENGTH)?;
    let is_end = |&at: &usize| {
        bytes[at..].starts_with(END)
            && u16_at(bytes, at + 20).is_some_and(|comment| at + END_LENGTH + comment == bytes.len())
    };
    let end = (last.saturating_sub(MAX_COMMENT)..=last).rev().find(is_end)?;
    let locator = end.checked_sub(LOCATOR_LENGTH).filter(|&at| bytes[at..].starts_with(LOCATOR));
    let (count, offset) = match locator {
        None => (number::<2>(bytes, end + 10)?, number::<4>(bytes, end + 16)?),
        Some(locator) => {
            let at = usize::try_from(number::<8>(bytes, locator + 8)?).ok()?;
            if !bytes.get(at..)?.starts_with(END64) {
                return None;
            }
            (number::<8>(bytes, at.checked_add(32)?)?, number::<8>(bytes, at.checked_add(48)?)?)
        }
    };
    Some((usize::try_from(offset).ok()?, count))
}

/// The directory's entry at an offset, and where the next one starts.
fn split_entry(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = ENTRY_LENGTH + u16_at(rest, 28)? + u16_at(rest, 30)? + u16_at(rest, 32)?;
    let header = rest.get(..length)?;
    header.starts_with(ENTRY).then_some((header, at + length))
}

/// The name of an entry of the directory and the range of its bytes.
fn locate(bytes: &[u8], header: &[u8]) -> Result<(String, Range<usize>), Problem> {
    let field = |at| u16_at(header, at).unwrap_or_default();
    let (name_length, extra_length) = (field(28), field(30));
    let (name, rest) = header[ENTRY_LENGTH..].split_at(name_length);
    let Ok(name) = String::from_utf8(name.to_vec()) else {
        return damaged("the name of an entry of the archive is not UTF-8");
    };
    let (flags, method) = (field(8), field(10));
    if method != 0 || flags & 1 != 0 {
        let how = if method != 0 { "compressed" } else { "encrypted" };
        return Err(Problem::Unsupported(format!("entry {name} of the archive is {how}, which torch.save never does")));
    }
    let range = sizes(header, &rest[..extra_length]).and_then(|(packed, size, offset)| {
        let (size, offset) = (usize::try_from(size).ok()?, usize::try_from(offset).ok()?);
        let local = bytes.get(offset..)?;
        let before = LOCAL_LENGTH + u16_at(local, 26)? + u16_at(local, 28)?;
        let start = offset.checked_add(before)?;
        let range = start..start.checked_add(size)?;
        (local.starts_with(LOCAL) && packed as usize == size && range.end <= bytes.len()).then_some(range)
    });
    match range {
        Some(range) => Ok((name, range)),
        None => damaged(format!("entry {name} of the archive does not lie inside of the file")),
    }
}

/// Stored size, size, and offset of an entry, from its fields or, where they are too small, from the extra field.
fn sizes(header: &[u8], mut extra: &[u8]) -> Option<(u64, u64, u64)> {
    let mut wide: &[u8] = &[];
    while let (Some(id), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let field = extra.get(4..4 + length)?;
        if id == usize::from(EXTRA64) {
            wide = field;
        }
        extra = &extra[4 + length..];
    }
    let mut take = |narrow: u64| {
        if narrow != SEE_EXTRA {
            return Some(narrow);
        }
        let (value, rest) = wide.split_first_chunk::<8>()?;
        wide = rest;
        Some(u64::from_le_bytes(*value))
    };
    // The order of the extra field: size, stored size, offset.
    let size = take(number::<4>(header, 24)?)?;
    let packed = take(number::<4>(header, 20)?)?;
    Some((packed, size, take(number::<4>(header, 42)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of one entry whose sizes and offset stand in the 64-bit fields, as for files beyond 4 GiB.
    fn wide_archive() -> Vec<u8> {
        let (name, content) = (b"x/data.pkl", b"hello");
        let mut bytes = LOCAL.to_vec();
        bytes.resize(LOCAL_LENGTH, 0);
        bytes[26] = name.len() as u8;
        bytes.extend(name);
        bytes.extend(content);
        let directory = bytes.len();
        bytes.extend(ENTRY);
        bytes.resize(directory + ENTRY_LENGTH, 0);
        bytes[directory + 20..directory + 28].fill(0xff);
        bytes[directory + 42..directory + 46].fill(0xff);
        (bytes[directory + 28], bytes[directory + 30]) = (name.len() as u8, 28);
        bytes.extend(name);
        bytes.extend([1, 0, 24, 0]);
        bytes.extend([5u64, 5, 0].iter().flat_map(|n| n.to_le_bytes()));
        let end64 = bytes.len();
        bytes.extend(END64);
        bytes.resize(end64 + 56, 0);
        bytes[end64 + 32] = 1;
        bytes[end64 + 48..end64 + 56].copy_from_slice(&(directory as u64).to_le_bytes());
        bytes.extend(LOCATOR);
        bytes.extend([0; 4]);
        bytes.extend((end64 as u64).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(END);
        bytes.extend([0xff; 16]);
        bytes.extend([0; 2]);
        bytes
    }

    #[test]
    fn the_wide_fields_of_files_beyond_4_gib_are_followed() {
        let bytes = wide_archive();
        assert_eq!(Archive::parse(&bytes).unwrap().entry("data.pkl"), Some(&b"hello"[..]));
    }

    #[test]
    fn a_compressed_entry_is_refused_by_name() {
        let mut bytes = wide_archive();
        let directory = bytes.windows(4).position(|w| w == ENTRY).unwrap();
        bytes[directory + 10] = 8;
        let Err(Problem::Unsupported(reason)) = Archive::parse(&bytes) else { panic!("accepted") };
        assert!(reason.contains("x/data.pkl") && reason.contains("compressed"), "{reason}");
    }

    #[test]
    fn no_byte_of_an_archive_can_be_changed_or_cut_into_a_panic() {
        let good = wide_archive();
        for at in 0..good.len() {
            assert!(Archive::parse(&good[..at]).is_err());
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = Archive::parse(&bytes);
            }
        }
    }
}
