//! Sources are short and finished, and recipes are TOML.

use loam_xtask::sources::{check_recipe, check_source, files, lines_before_tests};
use loam_xtask::workspace_root;
use std::fs;
use std::path::PathBuf;

/// Path relative to the root and text of every file below a directory.
fn texts(directory: &str, extension: &str) -> Vec<(String, String)> {
    let root = workspace_root();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let relative = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
        (relative, text)
    };
    files(&root.join(directory), extension).expect("listable").into_iter().map(read).collect()
}

#[test]
fn every_source_file_is_short_finished_and_within_its_layer() {
    let sources = texts("crates", "rs");
    assert!(sources.len() > 10, "found only {} sources", sources.len());
    let complaints: Vec<_> = sources.iter().flat_map(|(path, text)| check_source(path, text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_recipe_is_toml() {
    let complaints: Vec<_> =
        texts("recipes", "toml").iter().flat_map(|(path, text)| check_recipe(path, text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn tests_do_not_count_as_lines_of_a_file() {
    assert_eq!(lines_before_tests("fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n"), 2);
    assert_eq!(lines_before_tests("fn a() {}\nfn b() {}\n"), 2);
}

#[test]
fn a_test_module_in_another_file_does_not_end_the_count() {
    assert_eq!(lines_before_tests("#[cfg(test)]\nmod tests;\nfn a() {}\n"), 3);
}

#[test]
fn a_long_file_is_refused_with_the_limit_of_its_directory() {
    let text = "fn a() {}\n".repeat(180);
    assert!(check_source("crates/nn/src/linear.rs", &text).is_empty());
    assert!(check_source("crates/train/src/objective/sft.rs", &text).is_empty());
    let complaints = check_source("crates/models/src/family/llama.rs", &text);
    assert!(complaints[0].contains("180 lines") && complaints[0].contains("150"), "{complaints:?}");
    let complaints = check_source("crates/nn/src/linear.rs", &"fn a() {}\n".repeat(601));
    assert!(complaints[0].contains("at most 600"), "{complaints:?}");
}

#[test]
fn unfinished_work_is_refused_wherever_it_stands() {
    for word in ["todo", "unimplemented", "dbg"] {
        let text = format!("#[cfg(test)]\nmod tests {{\n    fn a() {{ {word}!(1) }}\n}}\n");
        let complaints = check_source("crates/nn/src/linear.rs", &text);
        assert_eq!(complaints.len(), 1, "{word}: {complaints:?}");
        assert!(complaints[0].starts_with("crates/nn/src/linear.rs:3: "), "{complaints:?}");
    }
}

#[test]
fn only_the_cli_reads_the_environment_and_kernels_open_no_file() {
    let environment = "let cpu = std::env::var(\"LOAM_CPU\");\n";
    assert_eq!(check_source("crates/kernels/src/cpu.rs", environment).len(), 1);
    assert!(check_source("crates/cli/src/main.rs", environment).is_empty());
    assert!(check_source("crates/kernels/tests/cpu.rs", environment).is_empty());
    assert_eq!(check_source("crates/kernels/src/cpu.rs", "use std::fs;\n").len(), 1);
    assert!(check_source("crates/kernels/src/cpu.rs", "// unlike std::fs\n").is_empty());
    assert!(check_source("crates/formats/src/map.rs", "use std::fs;\n").is_empty());
}

#[test]
fn a_recipe_that_is_not_toml_is_refused_with_its_path() {
    assert!(check_recipe("recipes/a.toml", "stage = \"pretrain\"\n[train]\nsteps = 10\n").is_empty());
    let complaints = check_recipe("recipes/b.toml", "stage = pretrain\n");
    assert!(complaints[0].starts_with("recipes/b.toml: is not TOML"), "{complaints:?}");
}
