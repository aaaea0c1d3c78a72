//! One column of texts of a Parquet file, read a batch of rows at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, Type};
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;

use super::columns::whole;
use super::zstd_pages::ZstdPages;
use super::{Chunk, refuse_nul};
use crate::{Error, Result};

/// Rows decoded at once.
const BATCH_ROWS: usize = 256;

/// The texts of one column.
pub(super) struct ParquetColumn {
    path: PathBuf,
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    row_group: usize,
    current: Option<ColumnReaderImpl<ByteArrayType>>,
    rows: u64,
    ready: VecDeque<String>,
    failed: bool,
}

impl ParquetColumn {
    pub(super) fn new(path: &Path, column: &str) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let shared = file.try_clone().map_err(|error| Error::io("open", path, error))?;
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, "footer", &error))?;
        let metadata = Arc::new(reader.metadata().clone());
        let schema = metadata.file_metadata().schema_descr();
        let names: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let Some(index) = names.iter().position(|name| name == column) else {
            return Err(Error::no_column(path, "the schema", column, names.iter().map(String::as_str)));
        };
        let description = schema.column(index);
        if description.physical_type() != Type::BYTE_ARRAY || description.max_rep_level() > 0 {
            let found = description.physical_type();
            let reason = format!("column '{column}' should hold one string per row but has type {found}");
            return Err(Error::malformed(path, "schema", reason));
        }
        Ok(Self {
            path: path.to_path_buf(),
            file: Arc::new(shared),
            metadata,
            column: index,
            row_group: 0,
            current: None,
            rows: 0,
            ready: VecDeque::new(),
            failed: false,
        })
    }

    /// Opens the column in the next row group; false after the last one.
    fn next_row_group(&mut self) -> Result<bool> {
        if self.row_group == self.metadata.num_row_groups() {
            return Ok(false);
        }
        let group = self.metadata.row_group(self.row_group);
        let place = format!("row group {}", self.row_group + 1);
        self.row_group += 1;
        let chunk = group.column(self.column);
        let rows = group.num_rows().max(0) as usize;
        let fail = |error: ParquetError| damaged(&self.path, &place, &error);
        let pages: Box<dyn PageReader> = if let Compression::ZSTD(_) = chunk.compression() {
            // The library's zstd is a C library, so it is told that the pages are plain and we unpack them.
            let plain = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED);
            let plain = plain.build().map_err(fail)?;
            Box::new(ZstdPages(SerializedPageReader::new(self.file.clone(), &plain, rows, None).map_err(fail)?))
        } else {
            Box::new(SerializedPageReader::new(self.file.clone(), chunk, rows, None).map_err(fail)?)
        };
        self.current = Some(get_typed_column_reader(get_column_reader(chunk.column_descr_ptr(), pages)));
        Ok(true)
    }

    fn read_batch(&mut self) -> Result<bool> {
        let Some(reader) = &mut self.current else {
            return self.next_row_group();
        };
        let (mut values, mut levels): (Vec<ByteArray>, Vec<i16>) = (Vec::new(), Vec::new());
        let (rows, _, _) = reader
            .read_records(BATCH_ROWS, Some(&mut levels), None, &mut values)
            .map_err(|error| damaged(&self.path, &format!("after row {}", self.rows), &error))?;
        if rows == 0 {
            self.current = None;
            return Ok(true);
        }
        for value in values {
            let place = format!("a row between {} and {}", self.rows + 1, self.rows + rows as u64);
            refuse_nul(&self.path, value.data(), 0)?;
            let text = std::str::from_utf8(value.data())
                .map_err(|_| Error::NotUtf8 { path: self.path.clone(), place: place.clone() })?;
            if !text.is_empty() {
                self.ready.push_back(text.to_string());
            }
        }
        self.rows += rows as u64;
        Ok(true)
    }
}

impl Iterator for ParquetColumn {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.failed {
            match self.read_batch() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front().map(|text| Ok(whole(text)))
    }
}

fn damaged(path: &Path, place: &str, error: &ParquetError) -> Error {
    Error::malformed(path, place, format!("not readable as Parquet: {error}"))
}
