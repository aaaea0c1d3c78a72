//! Unpacks the zstd-compressed pages of a Parquet column, in pure Rust.

use std::io::Read;

use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use ruzstd::decoding::StreamingDecoder;

/// Pages that were read as if they were not compressed.
pub(super) struct ZstdPages<P>(pub(super) P);

impl<P: PageReader> PageReader for ZstdPages<P> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.0.get_next_page()?.map(unpack_page).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }
}

impl<P: PageReader> Iterator for ZstdPages<P> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

fn unpack_page(mut page: Page) -> Result<Page> {
    let (buffer, plain_prefix) = match &mut page {
        Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
        // The levels at the front of a page of the second version are never compressed.
        Page::DataPageV2 { buf, is_compressed: true, def_levels_byte_len, rep_levels_byte_len, .. } => {
            (buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)
        }
        Page::DataPageV2 { .. } => return Ok(page),
    };
    if plain_prefix > buffer.len() {
        return Err(ParquetError::General("page is shorter than its levels".into()));
    }
    let mut unpacked = buffer[..plain_prefix].to_vec();
    let packed = &buffer[plain_prefix..];
    if !packed.is_empty() {
        let fail = |error: String| ParquetError::General(format!("zstd page: {error}"));
        let mut decoder = StreamingDecoder::new(packed).map_err(|error| fail(error.to_string()))?;
        decoder.read_to_end(&mut unpacked).map_err(|error| fail(error.to_string()))?;
    }
    *buffer = unpacked.into();
    Ok(page)
}
