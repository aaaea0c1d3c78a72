//! The safetensors reader and writer, against the format library and against damaged files.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

use loam_formats::safetensors::{self as st, pt_metadata};
use loam_formats::{Dtype, Error, SafeTensors, TensorOut};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// A small deterministic generator (xorshift), enough to place damage.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn sample() -> Vec<TensorOut<'static>> {
    let data: &'static [u8] = &[7; 256];
    vec![
        TensorOut::new("b.weight", Dtype::F32, &[2, 3], &data[..24]),
        TensorOut::new("a.weight", Dtype::F32, &[5], &data[..20]),
        TensorOut::new("half", Dtype::BF16, &[3, 1, 3], &data[..18]),
        TensorOut::new("step", Dtype::I64, &[], &data[..8]),
        TensorOut::new("none", Dtype::F32, &[0, 4], &[]),
        TensorOut::new("mask", Dtype::Bool, &[5], &data[..5]),
    ]
}

fn written(dir: &Path) -> Vec<u8> {
    let path = dir.join("x.safetensors");
    st::write(&path, &pt_metadata(), sample()).unwrap();
    std::fs::read(path).unwrap()
}

fn reason(bytes: Vec<u8>) -> String {
    SafeTensors::from_bytes("x.safetensors", bytes).unwrap_err().to_string()
}

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn written_bytes_equal_those_of_the_format_library() {
    let dir = tempfile::tempdir().unwrap();
    let ours = written(dir.path());
    let data = [7_u8; 256];
    let view =
        |dtype, shape: &[usize], n| safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &data[..n]).unwrap();
    let tensors = vec![
        ("mask", view(safetensors::Dtype::BOOL, &[5], 5)),
        ("a.weight", view(safetensors::Dtype::F32, &[5], 20)),
        ("none", view(safetensors::Dtype::F32, &[0, 4], 0)),
        ("b.weight", view(safetensors::Dtype::F32, &[2, 3], 24)),
        ("step", view(safetensors::Dtype::I64, &[], 8)),
        ("half", view(safetensors::Dtype::BF16, &[3, 1, 3], 18)),
    ];
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    assert_eq!(ours, safetensors::serialize(tensors, Some(metadata)).unwrap());
}

#[test]
fn a_file_read_and_written_again_has_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let metadata: Vec<(String, String)> =
        ["zeta", "alpha", "mid"].iter().map(|k| ((*k).to_owned(), format!("\"{k}\"\n"))).collect();
    st::write(&path, &metadata, sample()).unwrap();
    let before = std::fs::read(&path).unwrap();
    let file = SafeTensors::open(&path).unwrap();
    assert_eq!(file.metadata(), metadata);
    let copy = dir.path().join("y.safetensors");
    let tensors = file.names().map(|name| {
        let view = file.get(name).unwrap();
        TensorOut::lazy(name, view.dtype, view.shape, move || view.bytes.clone())
    });
    st::write(&copy, file.metadata(), tensors).unwrap();
    assert_eq!(std::fs::read(copy).unwrap(), before);
}

#[test]
fn views_carry_dtype_shape_and_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = SafeTensors::from_bytes("x", written(dir.path())).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["step", "a.weight", "b.weight", "none", "half", "mask"]);
    let view = file.get("b.weight").unwrap();
    assert_eq!((view.dtype, view.shape, view.elements()), (Dtype::F32, &[2, 3][..], 6));
    assert_eq!(*view.bytes, [7; 24]);
    let error = file.get("b.wieght").unwrap_err();
    assert!(matches!(&error, Error::NoSuchTensor { nearest: Some(n), .. } if n == "b.weight"));
    assert!(error.hint().unwrap().contains("b.weight"));
}

#[test]
fn f32_values_survive_each_float_dtype_to_its_precision() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let values = [0.0, -0.0, 1.0, -2.5, 0.1, 65504.0, 1e-3, f32::INFINITY];
    for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::F16, 1e-3), (Dtype::BF16, 8e-3)] {
        // An odd-sized tensor in front puts the values at an unaligned place.
        let odd = TensorOut::new("odd", Dtype::F64, &[1], &[0; 8]);
        st::write(&path, &[], [odd, TensorOut::from_f32("v", dtype, &[8], &values)]).unwrap();
        let got = SafeTensors::open(&path).unwrap().get("v").unwrap().to_f32().unwrap();
        for (g, v) in got.iter().zip(values) {
            assert!(*g == v || (g - v).abs() <= tolerance * v.abs(), "{dtype}: {g} for {v}");
        }
    }
    let doubles: Vec<u8> = [0.5_f64, -3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    st::write(&path, &[], [TensorOut::new("v", Dtype::F64, &[2], &doubles)]).unwrap();
    assert_eq!(SafeTensors::open(&path).unwrap().get("v").unwrap().to_f32().unwrap(), [0.5, -3.0]);
}

#[test]
fn halves_at_an_unaligned_place_are_read_right() {
    let header = r#"{"v":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    for padding in 0..4 {
        let mut bytes = file(&format!("{header}{}", " ".repeat(padding)), 4);
        let n = bytes.len();
        bytes[n - 4..].copy_from_slice(&[0x00, 0x3c, 0x00, 0xc0]);
        let file = SafeTensors::from_bytes("x", bytes).unwrap();
        assert_eq!(file.get("v").unwrap().to_f32().unwrap(), [1.0, -2.0]);
    }
}

#[test]
fn integers_are_not_read_as_floats() {
    let dir = tempfile::tempdir().unwrap();
    let file = SafeTensors::from_bytes("x", written(dir.path())).unwrap();
    let message = file.get("step").unwrap().to_f32().unwrap_err().to_string();
    assert!(message.contains("I64") && message.contains("expected F32"));
}

#[test]
fn each_kind_of_damage_is_named() {
    let tensor = |range: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{range}}}}}"#);
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let cases = [
        (vec![1, 2, 3], "the file has 3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "more than the format's"),
        (file("{", 0), "invalid JSON"),
        (file("[]", 0), "invalid JSON"),
        (file("\u{0}", 0), "invalid JSON"),
        (file(&tensor("[0,8]"), 7), "describes 8 bytes of data, the file holds 7"),
        (file(&tensor("[0,8]"), 9), "describes 8 bytes of data, the file holds 9"),
        (file(&tensor("[0,4]"), 4), "tensor 'a' of dtype F32 and shape [2] does not fit its 4 bytes"),
        (file(&tensor("[8,0]"), 8), "before its start"),
        (file(&tensor("[4,12]"), 12), "leaves a gap"),
        (file(two, 12), "tensor 'b' overlaps"),
        (file(&tensor("[0,8]").replace("F32", "F33"), 8), "unknown variant `F33`"),
        (file(&tensor("[0,8]").replace("[2]", "[4294967296,4294967296,4294967296]"), 8), "does not fit"),
        (file(&tensor("[0,8]").replace("[2]", "[-2]"), 8), "tensor 'a'"),
        (file(&tensor("[0,8]").replace("F32", "C64").replace("[2]", "[1]"), 8), "unsupported dtype C64"),
    ];
    for (bytes, expected) in cases {
        let message = reason(bytes);
        assert!(message.contains("x.safetensors") && message.contains(expected), "{message}, expected {expected}");
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    let whole = written(dir.path());
    for n in 0..whole.len() {
        let message = reason(whole[..n].to_vec());
        assert!(message.contains("truncated") || message.contains("bytes"), "{n}: {message}");
    }
}

#[test]
fn flipped_bytes_never_panic_and_never_give_a_view_of_the_wrong_size() {
    let dir = tempfile::tempdir().unwrap();
    let whole = written(dir.path());
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            bytes[rng.below(header)] ^= 1 << rng.below(8);
        }
        match SafeTensors::from_bytes("x", bytes) {
            Err(_) => refused += 1,
            Ok(file) => {
                for name in file.names() {
                    let view = file.get(name).unwrap();
                    assert_eq!(view.shape.iter().product::<usize>() * view.dtype.size(), view.bytes.len());
                }
            }
        }
    }
    assert!(refused > 10_000, "only {refused} of 20000 damaged headers were refused");
}

#[test]
fn random_bytes_are_refused() {
    let mut rng = Rng(7);
    for _ in 0..2_000 {
        let n = rng.below(200);
        let mut bytes: Vec<u8> = (0..n).map(|_| rng.below(256) as u8).collect();
        if n > 8 {
            // A plausible length, so that the JSON parser is reached too.
            bytes[..8].copy_from_slice(&(rng.below(n) as u64).to_le_bytes());
        }
        assert!(SafeTensors::from_bytes("x", bytes).is_err());
    }
}

#[test]
fn a_source_of_the_wrong_length_and_a_name_given_twice_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let short = TensorOut::lazy("a", Dtype::F32, &[2], || Cow::Owned(vec![0; 4]));
    let message = st::write(&path, &[], [short]).unwrap_err().to_string();
    assert!(message.contains("'a'") && message.contains("need 8 bytes") && message.contains("4 were given"));
    let twice = [0, 1].map(|_| TensorOut::new("a", Dtype::U8, &[1], &[0]));
    assert!(matches!(st::write(&path, &[], twice), Err(Error::DuplicateTensor { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
