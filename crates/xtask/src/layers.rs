//! The layers: dependencies between loam crates point down, and within a layer only along the edges listed here.

use serde_json::Value;
use std::collections::BTreeMap;

/// Where a crate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Kernels and tensors.
    Arithmetic,
    /// Text and files; nothing here sees a tensor.
    Text,
    /// Parts of networks and whole models.
    Networks,
    /// Training, generation, evaluation.
    Engines,
    /// What is built on a model that is only seen through `chat`'s traits.
    Applications,
    /// What a user starts.
    Product,
    /// For the other crates' tests, and for the workspace.
    Tools,
}

const LAYERS: &[(&str, Layer)] = &[
    ("kernels", Layer::Arithmetic),
    ("tensor", Layer::Arithmetic),
    ("chat", Layer::Text),
    ("formats", Layer::Text),
    ("tokenizer", Layer::Text),
    ("data", Layer::Text),
    ("nn", Layer::Networks),
    ("models", Layer::Networks),
    ("peft", Layer::Networks),
    ("compress", Layer::Networks),
    ("train", Layer::Engines),
    ("infer", Layer::Engines),
    ("eval", Layer::Engines),
    ("prompt", Layer::Applications),
    ("rag", Layer::Applications),
    ("agent", Layer::Applications),
    ("safety", Layer::Applications),
    ("serve", Layer::Product),
    ("cli", Layer::Product),
    ("testkit", Layer::Tools),
    ("xtask", Layer::Tools),
];

/// Edges between two crates of the same layer: (user, used).
const INSIDE_A_LAYER: &[(&str, &str)] = &[
    ("tensor", "kernels"),
    ("tokenizer", "chat"),
    ("data", "tokenizer"),
    ("data", "chat"),
    // One definition of atomic writes and memory maps.
    ("tokenizer", "formats"),
    ("data", "formats"),
    ("models", "nn"),
    ("peft", "nn"),
    ("peft", "models"),
    ("compress", "nn"),
    ("compress", "models"),
    ("train", "infer"),
    ("agent", "prompt"),
    ("rag", "prompt"),
    ("cli", "serve"),
];

fn layer(name: &str) -> Option<Layer> {
    LAYERS.iter().find(|(known, _)| *known == name).map(|(_, layer)| *layer)
}

/// Why `user` may not depend on `used`; `None` where it may.
pub fn refusal(user: &str, used: &str, is_dev: bool) -> Option<String> {
    let unknown = |name: &str| format!("`{name}` has no layer yet: add it to LAYERS in crates/xtask/src/layers.rs");
    let (Some(from), Some(to)) = (layer(user), layer(used)) else {
        return Some(unknown(if layer(user).is_none() { user } else { used }));
    };
    if used == "testkit" {
        return (!is_dev).then(|| "testkit is for tests: move it to [dev-dependencies]".to_owned());
    }
    if from == Layer::Tools || to == Layer::Tools {
        return Some(
            "testkit and xtask stand beside the layers: they use no loam crate and only tests use testkit".into(),
        );
    }
    if from == Layer::Text && used == "tensor" {
        return Some("text and files never see a tensor: hand over slices, or move the code up to `train`".into());
    }
    if from == Layer::Applications && to < from && used != "chat" {
        return Some("applications see a model only through `chat`'s traits: add what is missing there".into());
    }
    if to < from || INSIDE_A_LAYER.contains(&(user, used)) {
        return None;
    }
    Some(if to == from {
        "both are in the same layer: move what is shared one layer down (or, if the design says so, add the edge to \
         INSIDE_A_LAYER in crates/xtask/src/layers.rs)"
            .into()
    } else {
        "the dependency points up: let the lower crate define a trait that the upper one implements".into()
    })
}

/// All edges of `cargo metadata`'s packages that the layers do not allow, one sentence each.
pub fn check(metadata: &Value) -> Vec<String> {
    edges(metadata)
        .into_iter()
        .filter_map(|((user, used, is_dev), manifest)| {
            let why = refusal(&user, &used, is_dev)?;
            let kind = if is_dev { "dev-depends" } else { "depends" };
            Some(format!("{manifest}: `{user}` {kind} on `{used}`, but {why}"))
        })
        .chain(packages(metadata).filter_map(|(name, manifest)| {
            layer(&name).is_none().then(|| {
                format!("{manifest}: `{name}` has no layer yet: add it to LAYERS in crates/xtask/src/layers.rs")
            })
        }))
        .collect()
}

/// Every (user, used, is a dev-dependency) among the loam crates, with the user's manifest.
pub fn edges(metadata: &Value) -> BTreeMap<(String, String, bool), String> {
    let mut edges = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let Some(user) = short(&package["name"]) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if let Some(used) = short(&dependency["name"]) {
                let manifest = package["manifest_path"].as_str().unwrap_or_default().to_owned();
                edges.insert((user.clone(), used, dependency["kind"] == "dev"), manifest);
            }
        }
    }
    edges
}

fn packages(metadata: &Value) -> impl Iterator<Item = (String, String)> {
    metadata["packages"].as_array().into_iter().flatten().filter_map(|package| {
        Some((short(&package["name"])?, package["manifest_path"].as_str().unwrap_or_default().to_owned()))
    })
}

/// `loam-tensor` is `tensor` here, as its directory is.
fn short(name: &Value) -> Option<String> {
    name.as_str()?.strip_prefix("loam-").map(str::to_owned)
}
