//! `cargo run -p loam-xtask -- ci | goldens [--python PATH]`: starts what is not a cargo command by itself.

use loam_xtask::workspace_root;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: cargo run -p loam-xtask -- COMMAND

  ci                       run everything that continuous integration runs (.ci/run)
  goldens [--python PATH]  write the golden files again (scripts/goldens.py); PATH is a Python with torch and
                           transformers, default `python3`
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["ci"] => run(&[".ci/run"]),
        ["goldens"] => run(&["python3", "scripts/goldens.py"]),
        ["goldens", "--python", python] => run(&[python, "scripts/goldens.py"]),
        ["help" | "--help" | "-h"] => say(USAGE, ExitCode::SUCCESS),
        _ => say(USAGE, ExitCode::from(2)),
    }
}

/// Runs a command in the workspace's root, after saying which, and ends as it ends.
fn run(command: &[&str]) -> ExitCode {
    let root = workspace_root();
    say(&format!("+ {}   (in {})\n", command.join(" "), root.display()), ExitCode::SUCCESS);
    // A relative program is looked up from this process's directory, not from the one that it is started in.
    let program = if command[0].contains('/') { root.join(command[0]) } else { command[0].into() };
    match Command::new(&program).args(&command[1..]).current_dir(&root).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => say(&format!("error: {} ended with {status}\n", command[0]), ExitCode::FAILURE),
        Err(error) => say(&format!("error: cannot start {}: {error}\n", program.display()), ExitCode::from(2)),
    }
}

/// Talks on stderr; that nobody listens is no reason to fail.
fn say(text: &str, code: ExitCode) -> ExitCode {
    let _ = io::stderr().write_all(text.as_bytes());
    code
}
