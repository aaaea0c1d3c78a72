//! PyTorch checkpoints made by PyTorch (`scripts/goldens_pickle.py`), and files that only look like some.
#![allow(clippy::unwrap_used, reason = "a failing helper of a test may panic")]

use loam_formats::{Error, SafeTensors, TorchFile};
use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

/// Tests run in their package's directory.
fn golden(name: &str) -> PathBuf {
    Path::new("../testkit/pickles").join(name)
}

fn open(name: &str) -> TorchFile {
    TorchFile::open(golden(name)).unwrap()
}

/// Compares a checkpoint's tensors with those that PyTorch saw in it.
fn assert_expected(file: &TorchFile, case: &str) {
    let expected = SafeTensors::open(golden("expected.safetensors")).unwrap();
    let prefix = format!("{case}/");
    let mut wanted: Vec<&str> = expected.names().filter_map(|name| name.strip_prefix(&prefix)).collect();
    let mut found: Vec<&str> = file.names().collect();
    wanted.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, wanted, "{case}");
    for name in wanted {
        let (got, want) = (file.get(name).unwrap(), expected.get(&format!("{prefix}{name}")).unwrap());
        assert_eq!((got.dtype, got.shape, got.bytes), (want.dtype, want.shape, want.bytes), "{case}: {name}");
    }
}

/// An archive of stored entries, as torch writes it.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    let two = |n: usize| (n as u16).to_le_bytes();
    let four = |n: usize| (n as u32).to_le_bytes();
    for (name, content) in entries {
        let name = format!("archive/{name}");
        let sizes = [four(0), four(content.len()), four(content.len())].concat();
        let lengths = [two(name.len()), two(0)].concat();
        directory.extend([b"PK\x01\x02", &[0; 12][..], &sizes, &lengths, &[0; 10], &four(bytes.len())].concat());
        directory.extend(name.as_bytes());
        bytes.extend([b"PK\x03\x04", &[0; 10][..], &sizes, &lengths, name.as_bytes(), content].concat());
    }
    let start = bytes.len();
    let count = two(entries.len());
    bytes.extend_from_slice(&directory);
    let lengths = [four(directory.len()), four(start)].concat();
    bytes.extend([b"PK\x05\x06", &[0; 4][..], &count, &count, &lengths, &[0; 2]].concat());
    bytes
}

/// What opening an archive with this pickle, and a storage `0` of 24 bytes, ends with.
fn attempt(pickle: &[u8]) -> Result<TorchFile, Error> {
    TorchFile::from_bytes("x.pt", archive(&[("data.pkl", pickle), ("data/0", &[1; 24])]))
}

/// The pickle of `{"w": tensor}`, a view of storage `key` of `length` elements.
fn tensor(kind: &str, key: &str, length: i64, offset: i64, shape: &[i64], stride: &[i64]) -> Vec<u8> {
    let number = |n: i64| [&[0x8a, 8], &n.to_le_bytes()[..]].concat();
    let text = |t: &str| [&[0x8c, t.len() as u8], t.as_bytes()].concat();
    let tuple = |all: &[i64]| [b"(".to_vec(), all.iter().flat_map(|&n| number(n)).collect(), b"t".to_vec()].concat();
    let storage = [text("storage"), format!("ctorch\n{kind}\n").into_bytes(), text(key), text("cpu"), number(length)];
    let view = [number(offset), tuple(shape), tuple(stride), b"\x89ccollections\nOrderedDict\n)R".to_vec()];
    let call = [b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(), storage.concat(), b"tQ".to_vec(), view.concat()];
    [b"\x80\x02}".to_vec(), text("w"), call.concat(), b"tRs.".to_vec()].concat()
}

#[test]
fn every_kind_of_checkpoint_holds_what_pytorch_saved() {
    for case in ["plain", "views", "parameters", "nested", "untyped"] {
        assert_expected(&open(&format!("{case}.pt")), case);
    }
}

#[test]
fn the_newest_protocol_says_the_same() {
    let file = open("protocol5.pt");
    assert_expected(&file, "protocol5");
    assert_eq!(file.names().count(), open("views.pt").names().count() + open("parameters.pt").names().count());
}

#[test]
fn a_checkpoint_of_a_machine_with_the_other_byte_order_is_turned_around() {
    assert_expected(&open("big_endian.pt"), "plain");
}

#[test]
fn names_keep_the_order_of_the_file_and_a_wrong_one_is_corrected() {
    let file = open("views.pt");
    assert_eq!(file.names().take(3).collect::<Vec<_>>(), ["whole", "transposed", "rows"]);
    assert!(file.contains("head") && !file.contains("heads"));
    let error = file.get("colums").unwrap_err();
    assert!(error.to_string().contains("views.pt: no tensor named 'colums'"), "{error}");
    assert_eq!(error.hint().unwrap(), "the nearest name there is 'columns'");
}

#[test]
fn tensors_that_lie_in_the_file_as_they_are_are_not_copied() {
    let file = open("views.pt");
    for (name, copied) in [("whole", false), ("rows", false), ("one", false), ("flipped_back", false), ("thin", false)]
        .into_iter()
        .chain([("transposed", true), ("columns", true), ("repeated", true)])
    {
        assert_eq!(matches!(file.get(name).unwrap().bytes, Cow::Owned(_)), copied, "{name}");
    }
    let (embed, head) = (file.get("embed").unwrap(), file.get("head").unwrap());
    assert_eq!(embed.bytes.as_ptr(), head.bytes.as_ptr(), "tied tensors share their storage");
}

#[test]
fn a_file_that_would_execute_code_is_refused_by_the_name_it_calls() {
    let error = TorchFile::open(golden("malicious.pt")).unwrap_err();
    // What Python calls os.system lies in the module `posix`.
    let expected = "malicious.pt: refused: the file would execute code, it calls `posix.system` when Python loads it";
    assert!(error.to_string().ends_with(expected), "{error}");
    assert!(error.hint().unwrap().contains("safetensors"));
}

#[test]
fn no_spelling_of_a_call_gets_through() {
    for (pickle, name) in [
        (&b"cos\nsystem\n(S'echo'\ntR."[..], "os.system"),
        (b"(S'echo'\nios\nsystem\n.", "'S'"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch._utils\nos.system\n.", "torch._utils.os.system"),
        (b"\x80\x02ctorch\n\n.", "torch."),
        (b"\x80\x02\x82\x01.", "extension registry"),
    ] {
        match attempt(pickle) {
            Err(error @ Error::RefusedPickle { .. }) => assert!(error.to_string().contains(name), "{error}"),
            // Texts in the old spelling are no instruction that is known.
            Err(Error::Torch { reason, .. }) if name == "'S'" => assert!(reason.contains("0x53"), "{reason}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_checkpoint_of_weights_says_what_it_is() {
    for (name, expected) in [
        ("legacy.pt", "it was saved in the format from before PyTorch 1.6"),
        ("sparse.pt", "torch._utils._rebuild_sparse_tensor"),
        ("complex.pt", "torch.ComplexFloatStorage"),
        ("list.pt", "it holds a list, expected a dictionary from names to tensors"),
        ("no_tensors.pt", "its keys begin with [epoch, encoder]"),
        ("expected.safetensors", "it is not a zip archive"),
    ] {
        let error = TorchFile::open(golden(name)).unwrap_err();
        assert!(error.to_string().contains(name) && error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
    let no_pickle = TorchFile::from_bytes("x.pt", archive(&[("word/document.xml", b"<xml/>")])).unwrap_err();
    assert!(no_pickle.to_string().contains("there is no data.pkl in it"), "{no_pickle}");
}

#[test]
fn a_tensor_that_leaves_its_storage_is_refused_and_one_that_does_not_is_read() {
    let good = attempt(&tensor("FloatStorage", "0", 6, 1, &[2, 2], &[2, 1])).unwrap();
    assert_eq!(good.get("w").unwrap().shape, [2, 2]);
    let big = i64::MAX;
    for (kind, key, length, offset, shape, stride, expected) in [
        ("FloatStorage", "0", 6, 3, &[2, 2][..], &[2, 1][..], "leaves its storage of 24 bytes"),
        ("FloatStorage", "0", 6, big, &[1], &[1], "leaves its storage"),
        ("FloatStorage", "0", 6, 0, &[2, 2], &[big, big], "leaves its storage"),
        ("FloatStorage", "0", 6, 0, &[big, big], &[0, 0], "impossible shape"),
        ("FloatStorage", "0", 6, 0, &[big, big, 0], &[0, 0, 0], "impossible shape"),
        ("FloatStorage", "0", 6, 0, &[1 << 40], &[0], "larger than its file"),
        ("FloatStorage", "0", 6, 0, &[2], &[1, 1], "impossible shape"),
        ("FloatStorage", "0", 6, -1, &[2], &[1], "whole numbers from zero"),
        ("FloatStorage", "0", 6, 0, &[-2], &[1], "whole numbers from zero"),
        ("FloatStorage", "0", 6, 0, &[1; 17], &[1; 17], "whole numbers from zero"),
        ("FloatStorage", "0", 7, 0, &[2], &[1], "is said to hold 7 elements of F32, but its entry has 24 bytes"),
        ("FloatStorage", "0", big, 0, &[2], &[1], "but its entry has 24 bytes"),
        ("FloatStorage", "0", -6, 0, &[2], &[1], "storage 0 has the length -6"),
        ("FloatStorage", "1", 6, 0, &[2], &[1], "'w' lies in storage 1, which the archive lacks"),
        ("FloatStorage", "../0", 6, 0, &[2], &[1], "which the archive lacks"),
        ("UntypedStorage", "0", 24, 0, &[2], &[1], "has no element type"),
    ] {
        let error = attempt(&tensor(kind, key, length, offset, shape, stride)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}; expected {expected}");
    }
}

#[test]
fn nesting_without_end_and_counts_beyond_the_file_are_errors() {
    let many = |code: &[u8]| [b"\x80\x02)".to_vec(), code.repeat(1_000_000), b".".to_vec()].concat();
    let inside_itself = b"\x80\x02}q\x00\x8c\x05modelh\x00s.";
    for (pickle, expected) in [
        (many(b"\x85"), "it holds a list"),
        (many(b"("), "takes a value from an empty stack"),
        (many(b")))))"), "more than 4194304 values"),
        (many(b"22222"), "more than 4194304 values"),
        (many(b"\x94\x94\x94\x94\x94"), "more than 4194304 values"),
        (inside_itself.to_vec(), "its keys begin with [model]"),
        (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(), "in the middle of an instruction"),
        (b"\x80\x02X\xff\xff\xff\xff.".to_vec(), "in the middle of an instruction"),
        (b"\x80\x02r\xff\xff\xff\xff.".to_vec(), "from an empty stack"),
        (b"\x80\x02h\x07.".to_vec(), "asks for value 7, which it never stored"),
        (b"\x80\x02}K\x01s.".to_vec(), "takes a value from an empty stack"),
        (b"\x80\x02}(K\x01u.".to_vec(), "a key without a value"),
        (b"\x80\x02u.".to_vec(), "ends a group that was not begun"),
        (b"\x80\x02)Q.".to_vec(), "a persistent id is not that of a storage"),
        (b"\x80\x02K\x01)R.".to_vec(), "calls a number"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"\x80\x02".to_vec(), "ends at byte 2"),
        (Vec::new(), "ends at byte 0"),
    ] {
        let error = attempt(&pickle).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}; expected {expected}");
    }
}

#[test]
fn no_file_can_be_cut_or_changed_into_a_panic() {
    for name in ["plain.pt", "views.pt", "nested.pt", "malicious.pt"] {
        let good = fs::read(golden(name)).unwrap();
        for length in 0..good.len() {
            assert!(TorchFile::from_bytes("x", good[..length].to_vec()).is_err(), "{name} cut to {length} bytes");
        }
        for at in 0..good.len() {
            for value in [at as u8, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(file) = TorchFile::from_bytes("x", bytes) {
                    let total: usize = file.names().map(|name| file.get(name).unwrap().bytes.len()).sum();
                    assert_eq!(total as u64, file.total_bytes(), "{name} with {value} at {at}");
                }
            }
        }
    }
}
