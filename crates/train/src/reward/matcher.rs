//! Right or wrong by what a pattern finds, as for GSM8K.

use regex::Regex;

use super::{Answered, Reward};
use crate::error::{Error, Result};

/// Compares what a pattern finds last in the answer and in the row's `answer`.
#[derive(Clone, Debug)]
pub struct Matcher {
    pattern: Regex,
}

impl Matcher {
    /// A matcher; the first group of the pattern counts, where it has one.
    pub fn new(pattern: &str) -> Result<Self> {
        let pattern = Regex::new(pattern).map_err(|error| Error::Examples {
            what: format!("rl.reward.pattern is no regular expression: {error}"),
            hint: "for a last number it is -?\\d[\\d,]*(?:\\.\\d+)?".into(),
        })?;
        Ok(Self { pattern })
    }

    fn found<'a>(&self, text: &'a str) -> Option<&'a str> {
        let last = self.pattern.captures_iter(text).last()?;
        last.get(1).or_else(|| last.get(0)).map(|part| part.as_str())
    }

    /// Whether the text gives the expected answer.
    pub fn is_right(&self, text: &str, expected: &str) -> bool {
        // A bare answer may have nothing that the pattern wants around it.
        let wanted = plain(self.found(expected).unwrap_or(expected));
        let Some(found) = self.found(text).map(plain) else { return false };
        match (found.parse::<f64>(), wanted.parse::<f64>()) {
            (Ok(a), Ok(b)) => a == b,
            _ => found == wanted,
        }
    }
}

fn plain(text: &str) -> String {
    text.trim().trim_end_matches('.').replace([',', '$'], "").to_lowercase()
}

impl Reward for Matcher {
    fn rewards(&mut self, answers: &[Answered<'_>]) -> Result<Vec<f64>> {
        let score = |answer: &Answered<'_>| {
            let expected = match answer.prompt.row.get(&answer.prompt.answer_field) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => {
                    return Err(Error::Examples {
                        what: format!(
                            "the prompt {:?} comes without `{}`",
                            answer.prompt.text, answer.prompt.answer_field
                        ),
                        hint: "name the field of right answers: data.fields.answer in a recipe, --field on the command line".into(),
                    });
                }
            };
            Ok(f64::from(u8::from(self.is_right(answer.text, &expected))))
        };
        answers.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers_and_the_last_one_counts() {
        let last = Matcher::new(r"-?\d[\d,]*(?:\.\d+)?").unwrap();
        assert!(last.is_right("3 + 4 is 7.", "She has 3 + 4 = <<3+4=7>>7 left.\n#### 7"));
        assert!(last.is_right("It costs $1,200.00", "#### 1200"));
        assert!(!last.is_right("7 or 8", "#### 7") && !last.is_right("seven", "7"));
        let marked = Matcher::new(r"####\s*(\S+)").unwrap();
        assert!(marked.is_right("so #### 12 apples", "12") && !marked.is_right("12", "#### 12"));
        assert!(Matcher::new("(").unwrap_err().to_string().contains("no regular expression"));
    }
}
