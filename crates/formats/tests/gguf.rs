//! GGUF: what is written is read again, and damaged files are refused with one clear error.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use loam_formats::gguf::{GgmlType, write, write_split};
use loam_formats::{Error, Gguf, GgufArray, GgufOut, GgufValue};

fn pairs(list: &[(&str, GgufValue)]) -> Vec<(String, GgufValue)> {
    list.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// A value of every type, lists of every type, and a list of lists.
fn every_value() -> Vec<(String, GgufValue)> {
    let array = GgufValue::Array;
    pairs(&[
        ("general.architecture", "llama".into()),
        ("u8", GgufValue::U8(200)),
        ("i8", GgufValue::I8(-3)),
        ("u16", GgufValue::U16(60_000)),
        ("i16", GgufValue::I16(-30_000)),
        ("u32", GgufValue::U32(4_000_000_000)),
        ("i32", GgufValue::I32(-7)),
        ("f32", GgufValue::F32(1e-6)),
        ("bool", GgufValue::Bool(true)),
        ("text", "Grüße, 世界".into()),
        ("u64", GgufValue::U64(1 << 60)),
        ("i64", GgufValue::I64(-(1 << 60))),
        ("f64", GgufValue::F64(0.1)),
        ("[u8]", array(GgufArray::U8(vec![1, 255]))),
        ("[i8]", array(GgufArray::I8(vec![-1, 5]))),
        ("[u16]", array(GgufArray::U16(vec![1]))),
        ("[i16]", array(GgufArray::I16(vec![-1]))),
        ("[u32]", array(GgufArray::U32(vec![]))),
        ("[i32]", array(GgufArray::I32(vec![-1, 2, 3]))),
        ("[f32]", array(GgufArray::F32(vec![0.5]))),
        ("[bool]", array(GgufArray::Bool(vec![true, false]))),
        ("[text]", array(GgufArray::Text(vec!["a".into(), String::new()]))),
        ("[[i32]]", array(GgufArray::Array(vec![GgufArray::I32(vec![1]), GgufArray::Text(vec!["x".into()])]))),
        ("[u64]", array(GgufArray::U64(vec![u64::MAX]))),
        ("[i64]", array(GgufArray::I64(vec![i64::MIN]))),
        ("[f64]", array(GgufArray::F64(vec![0.25]))),
    ])
}

/// A small file's bytes: two tensors, the second of quantised blocks.
fn small(metadata: &[(String, GgufValue)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.gguf");
    let floats: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let blocks: Vec<u8> = (0..68).collect();
    let tensors = [
        GgufOut::new("a", GgmlType::F32, &[3, 1], &floats),
        GgufOut::new("b.weight", GgmlType::Q8_0, &[1, 2, 32], &blocks),
    ];
    write(&path, metadata, &tensors).unwrap();
    std::fs::read(path).unwrap()
}

fn refused(bytes: Vec<u8>) -> String {
    Gguf::from_bytes("bad.gguf", bytes).expect_err("a damaged file").to_string()
}

#[test]
fn what_is_written_is_read_again() {
    let metadata = every_value();
    let gguf = Gguf::from_bytes("small.gguf", small(&metadata)).unwrap();
    assert_eq!(gguf.metadata(), metadata);
    let (a, b) = (gguf.get("a").unwrap(), gguf.get("b.weight").unwrap());
    assert_eq!((a.ty, &a.shape[..], gguf.bytes(a).len()), (GgmlType::F32, &[3, 1][..], 12));
    assert_eq!((b.ty, &b.shape[..]), (GgmlType::Q8_0, &[1, 2, 32][..]));
    assert_eq!(gguf.bytes(b), (0..68).collect::<Vec<u8>>());
    let (whole, start) = gguf.shared_bytes(b);
    assert_eq!(&whole.as_ref().as_ref()[start..][..68], gguf.bytes(b));
    assert_eq!(start % 32, 0);
    assert_eq!(gguf.number("f32").unwrap(), Some(1e-6), "the decimal that was meant");
    assert_eq!(gguf.size("u64").unwrap(), Some(1 << 60));
    assert_eq!(gguf.text("text").unwrap(), Some("Grüße, 世界"));
    assert_eq!(gguf.numbers("[bool]").unwrap(), Some(vec![1.0, 0.0]));
    assert!(gguf.size("text").unwrap_err().to_string().contains("'text' must be a whole number"));
    assert!(gguf.get("b.wieght").unwrap_err().hint().unwrap().contains("b.weight"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = small(&every_value());
    let end = bytes.len() - 28;
    assert!(Gguf::from_bytes("whole.gguf", bytes[..end].to_vec()).is_ok(), "padding at the end is no content");
    for length in 0..end {
        let said = refused(bytes[..length].to_vec());
        assert!(said.starts_with("bad.gguf: not a valid GGUF file"), "cut at {length}: {said}");
    }
}

#[test]
fn any_single_byte_may_be_wrong_without_harm() {
    let bytes = small(&every_value());
    let mut opened = 0;
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            if let Ok(gguf) = Gguf::from_bytes("odd.gguf", bytes) {
                opened += gguf.tensors().iter().map(|tensor| gguf.bytes(tensor).len()).sum::<usize>().min(1);
            }
        }
    }
    assert!(opened > 0, "bytes of tensors may be any");
}

/// Where `needle` begins.
fn find(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).expect("the bytes are there")
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    let put = |at: usize, value: u64| {
        let mut bytes = small(&pairs(&[("list", GgufValue::Array(GgufArray::U32(vec![7, 7]))), ("t", "xyz".into())]));
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        refused(bytes)
    };
    let bytes = small(&pairs(&[("list", GgufValue::Array(GgufArray::U32(vec![7, 7]))), ("t", "xyz".into())]));
    let (list, text) = (find(&bytes, &[7, 0, 0, 0, 7]) - 8, find(&bytes, b"xyz") - 8);
    let axes = find(&bytes, b"b.weight") + 8 + 4;
    for huge in [1 << 31, 1 << 60, u64::MAX] {
        assert!(put(8, huge).contains("claims"), "tensors");
        assert!(put(16, huge).contains("claims"), "keys");
        assert!(put(list, huge).contains("'list': a list claims"), "elements");
        assert!(put(text, huge).contains("'t': a text claims"), "bytes");
        let said = put(axes, huge);
        assert!(
            said.contains("b.weight") && (said.contains("no whole number") || said.contains("truncated")),
            "{said}"
        );
    }
}

#[test]
fn overlaps_bad_alignment_and_unknown_types_are_refused() {
    let bytes = small(&[]);
    let after = |name: &[u8], axes: usize| find(&bytes, name) + name.len() + 4 + 8 * axes;
    let change = |at: usize, value: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        refused(bytes)
    };
    let (ty, offset) = (after(b"b.weight", 3), after(b"b.weight", 3) + 4);
    assert!(change(offset, &[0]).contains("'a' and 'b.weight' overlap"));
    assert!(change(offset, &[33]).contains("begins at byte 33 of the data, no multiple of 32"));
    assert!(change(offset + 7, &[0x80]).contains("truncated"));
    assert!(change(ty, &[4]).contains("'b.weight': it has the unknown element type 4"));
    assert!(change(ty, &[12]).contains("no whole number of Q4_K blocks"));
    assert!(change(after(b"b.weight", 0) - 4, &[5]).contains("5 axes, more than"));
    assert!(change(find(&bytes, b"b.weight"), &[0xff]).contains("not UTF-8"));
    let twice = small(&pairs(&[("aa", 1.into()), ("ab", 1.into())]));
    let at = find(&twice, b"ab");
    let mut bytes = twice.clone();
    bytes[at + 1] = b'a';
    assert!(refused(bytes).contains("two values are given for 'aa'"));
    let aligned = small(&pairs(&[("general.alignment", 64.into())]));
    let at = find(&aligned, &[64, 0, 0, 0]);
    for wrong in [0, 3, 24] {
        let mut bytes = aligned.clone();
        bytes[at] = wrong;
        assert!(refused(bytes).contains("expected a power of two"), "{wrong}");
    }
}

#[test]
fn lists_nested_without_end_are_refused() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([0_u64, 1, 1].iter().flat_map(|n| n.to_le_bytes()));
    bytes.push(b'k');
    for _ in 0..10_000 {
        bytes.extend_from_slice(&9_u32.to_le_bytes());
        bytes.extend_from_slice(&1_u64.to_le_bytes());
    }
    // The first is the value's type alone.
    bytes.drain(33 + 4..33 + 12);
    assert!(refused(bytes).contains("nested more than 4 deep"));
}

#[test]
fn versions_that_are_not_read_are_named() {
    let with = |version: [u8; 4]| {
        let mut bytes = small(&[]);
        bytes[4..8].copy_from_slice(&version);
        Gguf::from_bytes("x.gguf", bytes)
    };
    assert!(with([2, 0, 0, 0]).is_ok());
    assert!(with([0, 0, 0, 3]).unwrap_err().to_string().contains("big-endian"));
    assert!(with([1, 0, 0, 0]).unwrap_err().to_string().contains("version 1"));
    assert!(with([9, 0, 0, 0]).unwrap_err().to_string().contains("version 9; known are 2 and 3"));
    let error = Gguf::from_bytes("x.gguf", b"PK\x03\x04....".to_vec()).unwrap_err();
    assert!(error.to_string().contains("not with the letters GGUF") && error.hint().is_some());
}

#[test]
fn a_model_in_several_files_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = [0_u8; 64];
    let tensors = || (0..5).map(|i| GgufOut::new(format!("t{i}"), GgmlType::F32, &[16], &data)).collect::<Vec<_>>();
    let metadata = pairs(&[("general.architecture", "gpt2".into()), ("general.alignment", 64.into())]);
    let one = write_split(dir.path().join("one.gguf"), &metadata, tensors(), 1 << 20).unwrap();
    assert_eq!(one, [dir.path().join("one.gguf")]);
    assert_eq!(Gguf::open(&one[0]).unwrap().metadata(), metadata);
    let files = write_split(dir.path().join("many.gguf"), &metadata, tensors(), 128).unwrap();
    assert_eq!(files.len(), 3);
    assert!(files[2].ends_with("many-00003-of-00003.gguf"));
    for file in &files {
        let gguf = Gguf::open(file).unwrap();
        let names: Vec<&str> = gguf.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
        assert_eq!(gguf.text("general.architecture").unwrap(), Some("gpt2"));
        assert!(gguf.tensors().iter().all(|tensor| gguf.bytes(tensor) == data));
    }
    std::fs::copy(&files[0], &files[1]).unwrap();
    let said = Gguf::open(&files[0]).unwrap_err().to_string();
    assert!(said.contains("file 2 of 3") && said.contains("number 0"), "{said}");
    std::fs::remove_file(&files[1]).unwrap();
    let error = Gguf::open(&files[0]).unwrap_err();
    assert!(matches!(&error, Error::Missing { path, .. } if path == &files[1]));
    assert!(error.hint().unwrap().contains("3 files"));
    let renamed = dir.path().join("renamed.gguf");
    std::fs::rename(&files[0], &renamed).unwrap();
    assert!(Gguf::open(&renamed).unwrap_err().to_string().contains("-00001-of-00003.gguf"));
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let data = [0_u8; 8];
    let said = |metadata: &[(String, GgufValue)], tensors: &[GgufOut<'_>]| {
        let error = write(&path, metadata, tensors).unwrap_err().to_string();
        assert!(!path.exists(), "nothing remains");
        error
    };
    let tensor = |name: &str, ty, shape: &[usize]| GgufOut::new(name, ty, shape, &data);
    assert!(said(&[], &[tensor(&"n".repeat(64), GgmlType::F32, &[2])]).contains("at most 63 bytes"));
    assert!(said(&[], &[tensor("a", GgmlType::F32, &[1; 5])]).contains("1 to 4 axes"));
    assert!(said(&[], &[tensor("a", GgmlType::Q4K, &[2, 32])]).contains("no whole number of Q4_K blocks"));
    assert!(said(&[], &[tensor("a", GgmlType::F32, &[2]), tensor("a", GgmlType::F32, &[2])]).contains("named 'a'"));
    assert!(said(&[], &[tensor("a", GgmlType::F32, &[3])]).contains("need 12 bytes, but 8"));
    assert!(said(&pairs(&[("k", 1.into()), ("k", 2.into())]), &[]).contains("two values"));
    assert!(said(&pairs(&[("general.alignment", 5.into())]), &[]).contains("power of two"));
}
