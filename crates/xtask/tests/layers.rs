//! Dependencies between the crates point down.

use loam_xtask::layers::{check, edges, refusal};
use loam_xtask::workspace_root;
use serde_json::{Value, json};
use std::process::Command;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(workspace_root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn every_dependency_between_the_crates_is_allowed_by_the_layers() {
    let complaints = check(&metadata());
    assert!(complaints.is_empty(), "the layers of the design forbid:\n{}", complaints.join("\n"));
}

#[test]
fn the_edges_are_really_read() {
    let edges = edges(&metadata());
    assert!(edges.contains_key(&("tensor".into(), "kernels".into(), false)), "found only {edges:?}");
    assert!(edges.len() >= 10, "found only {edges:?}");
}

#[test]
fn edges_up_across_and_around_the_seams_are_refused() {
    let refused = [
        ("kernels", "tensor", "same layer"),
        ("formats", "models", "points up"),
        ("models", "train", "points up"),
        ("infer", "train", "same layer"),
        ("nn", "models", "same layer"),
        ("formats", "tokenizer", "same layer"),
        ("data", "tensor", "never see a tensor"),
        ("agent", "infer", "only through `chat`"),
        ("rag", "formats", "only through `chat`"),
        ("testkit", "kernels", "beside the layers"),
        ("cli", "xtask", "beside the layers"),
        ("cli", "gadget", "no layer yet"),
        ("gadget", "kernels", "no layer yet"),
    ];
    for (user, used, reason) in refused {
        let why = refusal(user, used, false).unwrap_or_else(|| panic!("{user} -> {used} was allowed"));
        assert!(why.contains(reason), "{user} -> {used}: {why}");
        assert!(refusal(user, used, true).is_some(), "{user} -> {used} was allowed as a dev-dependency");
    }
}

#[test]
fn edges_down_and_the_listed_ones_within_a_layer_are_allowed() {
    let allowed = [
        ("tensor", "kernels"),
        ("data", "kernels"),
        ("data", "formats"),
        ("tokenizer", "chat"),
        ("models", "formats"),
        ("train", "infer"),
        ("infer", "chat"),
        ("agent", "chat"),
        ("rag", "prompt"),
        ("cli", "train"),
        ("cli", "serve"),
    ];
    for (user, used) in allowed {
        assert_eq!(refusal(user, used, false), None, "{user} -> {used}");
    }
}

#[test]
fn testkit_is_for_tests_only() {
    assert_eq!(refusal("kernels", "testkit", true), None);
    assert!(refusal("kernels", "testkit", false).is_some_and(|why| why.contains("dev-dependencies")));
}

#[test]
fn a_complaint_names_the_manifest_and_both_crates() {
    let made_up = json!({"packages": [{
        "name": "loam-kernels",
        "manifest_path": "crates/kernels/Cargo.toml",
        "dependencies": [{"name": "loam-tensor", "kind": null}, {"name": "rayon", "kind": null}],
    }, {"name": "loam-gadget", "manifest_path": "crates/gadget/Cargo.toml", "dependencies": []}]});
    let complaints = check(&made_up);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].starts_with("crates/kernels/Cargo.toml: `kernels` depends on `tensor`"), "{complaints:?}");
    assert!(complaints[1].contains("`gadget` has no layer yet"), "{complaints:?}");
}
