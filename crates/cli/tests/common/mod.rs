//! Running the binary as a user does, away from the user's own store and terminal.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]
#![allow(dead_code, reason = "not every test file uses every helper")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a run of the binary left.
pub struct Ran {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.stdout))
    }
}

/// The binary, in a directory that is also its store, with an environment of its own.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loam"));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command.env("LOAM_HOME", dir.join("home")).env_remove("LOAM_CPU").env_remove("LOAM_THREADS").env_remove("NO_COLOR");
    command
}

/// Runs it to its end.
pub fn loam(dir: &Path, args: &[&str]) -> Ran {
    ran(command(dir, args).output().unwrap())
}

/// Runs it with some standard input.
pub fn loam_with_input(dir: &Path, args: &[&str], input: &str) -> Ran {
    use std::io::Write;
    let mut child =
        command(dir, args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    ran(child.wait_with_output().unwrap())
}

fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
