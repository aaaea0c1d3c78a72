//! Rewards from a program: JSON lines on its standard input and output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Answered, Reward};
use crate::error::{Error, Result};

/// A program that runs as long as the training does.
pub struct Program {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<std::io::Result<String>>,
    limit: Duration,
}

impl Program {
    /// Starts it. Each answer may take `seconds`.
    pub fn start(command: &[String], seconds: f64) -> Result<Self> {
        let name = command.join(" ");
        let fail = |problem: String| refused(&name, problem);
        let (program, arguments) = command.split_first().ok_or_else(|| fail("is no command".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| fail(format!("cannot be started: {error}")))?;
        let (input, output) = match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => (input, output),
            _ => return Err(fail("has no standard input or output".into())),
        };
        let (send, lines) = channel();
        // A blocking read has no time limit, a channel has.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let limit = Duration::from_secs_f64(seconds);
        Ok(Self { name, child, input, lines, limit })
    }

    fn reward(&mut self, answer: &Answered<'_>) -> Result<f64> {
        let request = json!({"prompt": answer.prompt.text, "completion": answer.text, "row": answer.prompt.row});
        let written = writeln!(self.input, "{request}").and_then(|()| self.input.flush());
        written.map_err(|error| refused(&self.name, format!("takes no more answers: {error}")))?;
        let line = match self.lines.recv_timeout(self.limit) {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return Err(refused(&self.name, format!("cannot be read: {error}"))),
            Err(RecvTimeoutError::Timeout) => {
                return Err(refused(&self.name, format!("gave no reward within {} s", self.limit.as_secs_f64())));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(refused(&self.name, "ended before its time".into())),
        };
        let reward = serde_json::from_str::<Value>(&line).ok().and_then(|value| value["reward"].as_f64());
        reward.ok_or_else(|| refused(&self.name, format!("wrote {line:?} instead of {{\"reward\": number}}")))
    }
}

fn refused(name: &str, problem: String) -> Error {
    Error::Examples {
        what: format!("the reward program `{name}` {problem}"),
        hint:
            "it must read one JSON line per answer and write one line {\"reward\": number} for each, without buffering"
                .into(),
    }
}

impl Reward for Program {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        answers.iter().map(|answer| self.reward(answer)).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Prompted;

    fn ask(script: &str, seconds: f64) -> Result<Vec<f64>> {
        let mut program = Program::start(&["sh".into(), "-c".into(), script.into()], seconds)?;
        let prompt = Prompted { text: "a?".into(), ..Prompted::default() };
        let answer = |text| Answered { prompt: &prompt, tokens: &[], text };
        program.rewards(&[answer("long answer"), answer("b")])
    }

    #[test]
    fn a_program_rewards_line_by_line_and_its_failures_are_errors() {
        let by_word = "while read -r line; do case \"$line\" in *long*) echo '{\"reward\": 1.5}';; \
                       *) echo '{\"reward\": -1}';; esac; done";
        assert_eq!(ask(by_word, 5.0).unwrap(), [1.5, -1.0]);
        for (script, seconds, problem) in [
            ("sleep 30", 0.2, "no reward within 0.2 s"),
            ("read -r line; echo nonsense", 5.0, "nonsense"),
            ("read -r line; echo '{\"reward\": 1}'; exec 1>&-; cat > /dev/null", 5.0, "ended before its time"),
        ] {
            let error = ask(script, seconds).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
        let missing = Program::start(&["/no/such/program".into()], 1.0).err().unwrap();
        assert!(missing.to_string().contains("cannot be started") && missing.hint().is_some());
    }
}
