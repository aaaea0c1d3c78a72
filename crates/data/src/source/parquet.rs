//! One column of texts of a Parquet file, read a batch of rows at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, Type};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type as SchemaType;
use serde_json::{Map, Value};

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
        let pages = page_reader(&self.file, chunk, rows).map_err(fail)?;
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

/// The pages of a column in a row group.
fn page_reader(
    file: &Arc<File>,
    chunk: &ColumnChunkMetaData,
    rows: usize,
) -> Result<Box<dyn PageReader>, ParquetError> {
    if let Compression::ZSTD(_) = chunk.compression() {
        // The library's zstd is a C library, so it is told that the pages are plain and we unpack them.
        let plain = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        return Ok(Box::new(ZstdPages(SerializedPageReader::new(file.clone(), &plain, rows, None)?)));
    }
    Ok(Box::new(SerializedPageReader::new(file.clone(), chunk, rows, None)?))
}

/// Whole rows of a Parquet file, a row group at a time.
pub(super) struct ParquetRows {
    path: PathBuf,
    file: Arc<File>,
    metadata: Arc<ParquetMetaData>,
    row_group: usize,
    ready: VecDeque<Map<String, Value>>,
}

impl ParquetRows {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let shared = file.try_clone().map_err(|error| Error::io("open", path, error))?;
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, "footer", &error))?;
        let metadata = Arc::new(reader.metadata().clone());
        Ok(Self { path: path.to_path_buf(), file: Arc::new(shared), metadata, row_group: 0, ready: VecDeque::new() })
    }

    pub(super) fn next_row(&mut self) -> Result<Option<Map<String, Value>>> {
        while self.ready.is_empty() && self.row_group < self.metadata.num_row_groups() {
            let metadata = self.metadata.row_group(self.row_group).clone();
            self.row_group += 1;
            let group = RowGroup { metadata, file: self.file.clone() };
            let fail = |error: ParquetError| damaged(&self.path, &format!("row group {}", self.row_group), &error);
            for row in group.get_row_iter(None).map_err(fail)? {
                self.ready.push_back(row.map_err(fail)?.into_columns().into_iter().map(named).collect());
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// A row group whose pages we unpack where the library cannot.
struct RowGroup {
    metadata: RowGroupMetaData,
    file: Arc<File>,
}

impl RowGroupReader for RowGroup {
    fn metadata(&self) -> &RowGroupMetaData {
        &self.metadata
    }

    fn num_columns(&self) -> usize {
        self.metadata.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>, ParquetError> {
        page_reader(&self.file, self.metadata.column(i), self.metadata.num_rows().max(0) as usize)
    }

    fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
        None
    }

    fn get_row_iter(&self, projection: Option<SchemaType>) -> Result<RowIter<'_>, ParquetError> {
        RowIter::from_row_group(projection, self)
    }
}

fn named((name, field): (String, Field)) -> (String, Value) {
    (name, json(field))
}

fn json(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => value.into(),
        Field::Double(value) => value.into(),
        Field::Str(value) => value.into(),
        Field::Group(row) => row.into_columns().into_iter().map(named).collect::<Map<_, _>>().into(),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        // Dates and the like are labels of no task; their text is what an error message can show.
        other => other.to_string().into(),
    }
}

fn damaged(path: &Path, place: &str, error: &ParquetError) -> Error {
    Error::malformed(path, place, format!("not readable as Parquet: {error}"))
}
