//! Plain text files, read line by line in bounded memory.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use ruzstd::decoding::StreamingDecoder;

use super::{BLOCK_BYTES, Chunk, TextSplit, refuse_nul};
use crate::{Error, Result};

const END_OF_TEXT: &str = "<|endoftext|>";

/// The documents of a text file.
pub(super) struct TextChunks {
    path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    split: TextSplit,
    offset: u64,
    /// Bytes of a character whose end was not read yet.
    carry: Vec<u8>,
    text: String,
    ready: VecDeque<Chunk>,
    done: bool,
}

impl TextChunks {
    pub(super) fn new(path: &Path, reader: Box<dyn Read>, split: TextSplit) -> Self {
        Self {
            path: path.to_path_buf(),
            reader: BufReader::with_capacity(BLOCK_BYTES / 4, reader),
            split,
            offset: 0,
            carry: Vec::new(),
            text: String::new(),
            ready: VecDeque::new(),
            done: false,
        }
    }

    /// The next line with its line feed, or a block of a line that is longer than a block.
    fn line(&mut self) -> Result<Option<String>> {
        let mut bytes = std::mem::take(&mut self.carry);
        let start = self.offset - bytes.len() as u64;
        let before = bytes.len();
        let mut limited = (&mut self.reader).take(BLOCK_BYTES as u64);
        limited.read_until(b'\n', &mut bytes).map_err(|error| Error::io("read", &self.path, error))?;
        let read = bytes.len() - before;
        self.offset += read as u64;
        if bytes.is_empty() {
            return Ok(None);
        }
        refuse_nul(&self.path, &bytes, start)?;
        let error = match String::from_utf8(bytes) {
            Ok(line) if start == 0 => return Ok(Some(line.trim_start_matches('\u{feff}').to_string())),
            Ok(line) => return Ok(Some(line)),
            Err(error) => error,
        };
        let valid = error.utf8_error().valid_up_to();
        // An unfinished character at the end of a block is only an error if nothing follows.
        if error.utf8_error().error_len().is_some() || read == 0 {
            let place = format!("byte {}", start + valid as u64);
            return Err(Error::NotUtf8 { path: self.path.clone(), place });
        }
        let mut bytes = error.into_bytes();
        self.carry = bytes.split_off(valid);
        match String::from_utf8(bytes) {
            Ok(line) => Ok(Some(line)),
            Err(_) => unreachable!("the bytes before the first invalid one are valid"),
        }
    }

    fn push_line(&mut self, line: &str) {
        match self.split {
            TextSplit::EmptyLine if line.trim().is_empty() => self.end_document(),
            TextSplit::EndOfText => {
                let mut parts = line.split(END_OF_TEXT);
                let first = parts.next().unwrap_or("");
                self.append(first);
                for part in parts {
                    self.end_document();
                    self.append(part);
                }
            }
            _ => self.append(line),
        }
    }

    fn append(&mut self, line: &str) {
        if self.text.len() + line.len() > BLOCK_BYTES && is_good_cut(&self.text, line)
            || self.text.len() > 2 * BLOCK_BYTES
        {
            self.flush(false);
        }
        self.text.push_str(line);
    }

    fn end_document(&mut self) {
        if self.split != TextSplit::File {
            let end = self.text.trim_end().len();
            self.text.truncate(end);
            let start = self.text.len() - self.text.trim_start_matches(['\n', '\r']).len();
            self.text.drain(..start);
        }
        self.flush(true);
    }

    fn flush(&mut self, ends_document: bool) {
        if !self.text.is_empty() {
            self.ready.push_back(Chunk { text: std::mem::take(&mut self.text), ends_document });
        } else if ends_document && let Some(last) = self.ready.back_mut() {
            last.ends_document = true;
        }
    }
}

/// Cutting between a single line feed and a letter changes no tokenizer's result: no pattern of the usual ones reaches
/// across it.
fn is_good_cut(before: &str, after: &str) -> bool {
    let mut last = before.chars().rev();
    last.next() == Some('\n')
        && last.next().is_some_and(|c| !c.is_whitespace())
        && after.starts_with(|c: char| !c.is_whitespace())
}

impl Iterator for TextChunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        // One chunk is always held back: if its document turns out to have ended, it is marked so.
        while !self.done && self.ready.len() < 2 {
            match self.line() {
                Ok(Some(line)) => self.push_line(&line),
                Ok(None) => {
                    self.end_document();
                    self.done = true;
                }
                Err(error) => {
                    self.ready.clear();
                    self.text.clear();
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// Reads the frames of a zstd file one after another.
pub(super) struct ZstdReader<R: Read> {
    state: Option<ZstdState<R>>,
}

enum ZstdState<R: Read> {
    Between(R),
    Inside(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
}

impl<R: BufRead> ZstdReader<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { state: Some(ZstdState::Between(reader)) }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state.take() {
                None => return Ok(0),
                Some(ZstdState::Between(mut reader)) => {
                    if reader.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder = StreamingDecoder::new(reader)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                    self.state = Some(ZstdState::Inside(Box::new(decoder)));
                }
                Some(ZstdState::Inside(mut decoder)) => {
                    let read = decoder.read(out)?;
                    if read > 0 || out.is_empty() {
                        self.state = Some(ZstdState::Inside(decoder));
                        return Ok(read);
                    }
                    self.state = Some(ZstdState::Between(decoder.into_inner()));
                }
            }
        }
    }
}
