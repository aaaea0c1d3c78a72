//! Reading files: what comes out, and what bad files are told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use loam_data::Error;
use loam_data::source::{BLOCK_BYTES, Chunk, ReadOptions, TextSplit, find};

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Chunk>, Error> {
    find(&[path.to_str().unwrap()])?[0].chunks(options)?.collect()
}

fn texts(path: &Path, options: &ReadOptions) -> Vec<String> {
    let mut texts = vec![String::new()];
    for chunk in read(path, options).unwrap() {
        texts.last_mut().unwrap().push_str(&chunk.text);
        if chunk.ends_document {
            texts.push(String::new());
        }
    }
    assert_eq!(texts.pop().as_deref(), Some(""), "the last chunk ends its document");
    texts
}

fn split(text_split: TextSplit) -> ReadOptions {
    ReadOptions { text_split, ..ReadOptions::default() }
}

fn refusal(path: &Path) -> String {
    read(path, &ReadOptions::default()).unwrap_err().to_string()
}

#[test]
fn a_text_file_is_one_document_or_is_split_at_empty_lines_or_marks() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.txt", "one\ntwo\n\n \nthree<|endoftext|>four\n");
    assert_eq!(texts(&path, &split(TextSplit::File)), ["one\ntwo\n\n \nthree<|endoftext|>four\n"]);
    assert_eq!(texts(&path, &split(TextSplit::EmptyLine)), ["one\ntwo", "three<|endoftext|>four"]);
    assert_eq!(texts(&path, &split(TextSplit::EndOfText)), ["one\ntwo\n\n \nthree", "four"]);
}

#[test]
fn a_file_larger_than_a_block_comes_in_chunks_that_join_to_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..120_000).map(|i| format!("line {i} über 很长\n")).collect();
    let one_line = "字".repeat(2 * BLOCK_BYTES);
    for text in [lines, one_line] {
        let path = write(dir.path(), "big.txt", &text);
        let chunks = read(&path, &ReadOptions::default()).unwrap();
        assert!(chunks.len() > 1);
        assert!(chunks.iter().all(|chunk| chunk.text.len() <= 4 * BLOCK_BYTES));
        assert!(chunks.iter().rev().skip(1).all(|chunk| !chunk.ends_document));
        assert_eq!(texts(&path, &ReadOptions::default()), [text]);
    }
}

#[test]
fn tables_give_a_document_per_row() {
    let dir = tempfile::tempdir().unwrap();
    let json = write(dir.path(), "a.jsonl", "{\"text\":\"one\\ntwo\"}\n\n{\"id\":1,\"text\":\"三\"}");
    assert_eq!(texts(&json, &ReadOptions::default()), ["one\ntwo", "三"]);
    let csv = write(dir.path(), "a.csv", "id,text\n1,\"one, \"\"two\"\"\n\"\n2,三\n");
    assert_eq!(texts(&csv, &ReadOptions::default()), ["one, \"two\"\n", "三"]);
    let other = ReadOptions { text_column: "id".into(), ..ReadOptions::default() };
    assert_eq!(texts(&csv, &other), ["1", "2"]);
}

#[test]
fn gzip_and_zstd_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let text = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
    let mut gzip = Vec::new();
    for _ in 0..2 {
        let mut encoder = flate2::write::GzEncoder::new(&mut gzip, flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
    }
    let path = write(dir.path(), "a.jsonl.gz", gzip);
    assert_eq!(texts(&path, &ReadOptions::default()), ["one", "two", "one", "two"]);
    let frame = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    let path = write(dir.path(), "a.jsonl.zst", [frame.clone(), frame].concat());
    assert_eq!(texts(&path, &ReadOptions::default()), ["one", "two", "one", "two"]);
}

#[test]
fn parquet_columns_are_read_in_every_compression() {
    use parquet::basic::Compression;
    let dir = tempfile::tempdir().unwrap();
    let plain = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(Default::default())];
    for (i, compression) in
        plain.into_iter().chain([Compression::LZ4_RAW, Compression::BROTLI(Default::default())]).enumerate()
    {
        let path = dir.path().join(format!("{i}.parquet"));
        let expected = write_parquet(&path, compression);
        assert_eq!(texts(&path, &ReadOptions::default()), expected, "{compression}");
    }
}

#[test]
fn zstd_pages_of_both_versions_are_read() {
    // Written by pyarrow: one row group, dictionary encoding, one row without a text.
    let expected = ["one", "文本 two", "three three three three three three"];
    for name in ["zstd-v1.parquet", "zstd-v2.parquet"] {
        let path = Path::new("tests/data").join(name);
        assert_eq!(texts(&path, &ReadOptions::default()), expected, "{name}");
    }
}

/// Two row groups with a column of numbers and a nullable one of texts.
fn write_parquet(path: &Path, compression: parquet::basic::Compression) -> Vec<String> {
    use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let schema = "message m { required int32 id; optional binary text (UTF8); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, properties).unwrap();
    let mut expected = Vec::new();
    for group in 0..2 {
        let values: Vec<String> = (0..700).map(|i| format!("文本 {group} number {i} {}", "x".repeat(i % 7))).collect();
        let mut rows = writer.next_row_group().unwrap();
        let mut ids = rows.next_column().unwrap().unwrap();
        ids.typed::<Int32Type>().write_batch(&(0..701).collect::<Vec<i32>>(), None, None).unwrap();
        ids.close().unwrap();
        let mut column = rows.next_column().unwrap().unwrap();
        let arrays: Vec<ByteArray> = values.iter().map(|value| value.as_str().into()).collect();
        let levels: Vec<i16> = (0..701).map(|i| i16::from(i != 3)).collect();
        column.typed::<ByteArrayType>().write_batch(&arrays, Some(&levels), None).unwrap();
        column.close().unwrap();
        rows.close().unwrap();
        expected.extend(values);
    }
    writer.close().unwrap();
    expected
}

#[test]
fn patterns_find_files_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b.txt", "a.txt", "c.md"] {
        write(dir.path(), name, "x");
    }
    let pattern = dir.path().join("*.txt").to_str().unwrap().to_string();
    let again = dir.path().join("a.txt").to_str().unwrap().to_string();
    let found = find(&[pattern, again]).unwrap();
    let names: Vec<_> = found.iter().map(|source| source.path().file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["a.txt", "b.txt"]);
    let error = find(&[dir.path().join("*.csv").to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("no file matches"), "{error}");
    assert!(find(&[dir.path().join("a[.txt").to_str().unwrap()]).unwrap_err().to_string().contains("pattern"));
}

#[test]
fn missing_empty_and_unknown_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nope.txt");
    assert!(refusal(&missing).contains("nope.txt does not exist"));
    assert!(refusal(&write(dir.path(), "empty.txt", "")).contains("no text in it"));
    assert!(refusal(&write(dir.path(), "rows.jsonl", "{\"text\":\"\"}\n\n")).contains("no text in it"));
    assert!(refusal(&write(dir.path(), "a.pdf", "x")).contains("unknown kind"));
    assert!(refusal(dir.path()).contains("directory"));
}

#[test]
fn bytes_that_are_not_text_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refusal(&write(dir.path(), "nul.txt", b"ab\ncd\0")).contains("byte 5 is NUL"));
    assert!(refusal(&write(dir.path(), "latin.txt", b"ab\nf\xfcr")).contains("not valid UTF-8 at byte 4"));
    assert!(refusal(&write(dir.path(), "cut.txt", b"ab\xe4\xbd")).contains("not valid UTF-8 at byte 2"));
    let error = refusal(&write(dir.path(), "a.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}"));
    assert!(error.contains("byte 22 (line 2)"), "{error}");
    let error = refusal(&write(dir.path(), "a.csv", b"text\nok\n\xff\n"));
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn malformed_tables_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let error = refusal(&write(dir.path(), "a.jsonl", "{\"text\":\"a\"}\n{\"text\":"));
    assert!(error.contains("line 2: invalid JSON"), "{error}");
    let error = refusal(&write(dir.path(), "b.jsonl", "[1]"));
    assert!(error.contains("line 1: expected a JSON object"), "{error}");
    let error = refusal(&write(dir.path(), "c.jsonl", "{\"text\":7}"));
    assert!(error.contains("should be a string but is a number"), "{error}");
    let error = refusal(&write(dir.path(), "d.csv", "id,text\n1,a\n2\n"));
    assert!(error.contains("line 3: expected 2 columns as in the header, found 1"), "{error}");
    assert!(refusal(&write(dir.path(), "e.parquet", "PAR1 no")).contains("not readable as Parquet"));
    assert!(refusal(&write(dir.path(), "f.txt.gz", "no gzip")).contains("cannot read"));
    assert!(refusal(&write(dir.path(), "g.txt.zst", "no zstd")).contains("cannot read"));
}

#[test]
fn a_missing_column_is_refused_with_the_nearest_name() {
    let dir = tempfile::tempdir().unwrap();
    let files =
        [write(dir.path(), "a.jsonl", "{\"id\":1,\"Text\":\"x\"}"), write(dir.path(), "a.csv", "id,Text\n1,x\n")];
    for path in files {
        let error = read(&path, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("no column 'text' (found: id, Text)"), "{error}");
        assert!(error.hint().unwrap().contains("text_column = \"Text\""));
    }
    let path = dir.path().join("a.parquet");
    write_parquet(&path, parquet::basic::Compression::UNCOMPRESSED);
    let options = ReadOptions { text_column: "body".into(), ..ReadOptions::default() };
    assert!(read(&path, &options).unwrap_err().to_string().contains("no column 'body' (found: id, text)"));
    let options = ReadOptions { text_column: "id".into(), ..ReadOptions::default() };
    assert!(read(&path, &options).unwrap_err().to_string().contains("has type INT32"));
}
