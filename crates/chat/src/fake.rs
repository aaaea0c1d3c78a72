//! Scripted models: applications are tested against these, without weights and with known answers.

use crate::{Completion, Embed, Error, FinishReason, Generate, Message, Sampling, Score, Scored};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Gives prepared answers in order, and remembers what it was asked.
#[derive(Debug, Default)]
pub struct FakeGenerate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<String>,
    asked: Vec<Vec<Message>>,
}

impl FakeGenerate {
    /// A model that gives `answers` in order, then an error.
    pub fn new<S: Into<String>>(answers: impl IntoIterator<Item = S>) -> Self {
        let answers = answers.into_iter().map(Into::into).collect();
        Self { state: Mutex::new(State { answers, asked: Vec::new() }) }
    }

    /// Every conversation that was asked so far; a plain prompt counts as one user message.
    pub fn asked(&self) -> Vec<Vec<Message>> {
        self.lock().asked.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the script in a valid state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, Error> {
        sampling.validate()?;
        let script = {
            let mut state = self.lock();
            let given = state.asked.len();
            let answer = state.answers.pop_front().ok_or(Error::ScriptEnded { given })?;
            state.asked.push(messages.to_vec());
            answer
        };
        let stop = sampling.stop.iter().filter_map(|s| script.find(s.as_str())).min();
        let whole = &script[..stop.unwrap_or(script.len())];
        let mut finish_reason = FinishReason::Stop;
        let mut text = String::new();
        // A "token" is a word with the space that follows it.
        for (i, word) in whole.split_inclusive(' ').enumerate() {
            if i == sampling.max_tokens {
                finish_reason = FinishReason::Length;
                break;
            }
            on_text(word);
            text.push_str(word);
        }
        let tokens = (0..text.split_inclusive(' ').count() as u32).collect();
        Ok(Completion { text, tokens, finish_reason, logprobs: None })
    }
}

impl Generate for FakeGenerate {
    fn generate(
        &self,
        messages: &[Message],
        sampling: &Sampling,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Completion, Error> {
        self.answer(messages, sampling, on_text)
    }

    fn complete(&self, prompt: &str, sampling: &Sampling, on_text: &mut dyn FnMut(&str)) -> Result<Completion, Error> {
        self.answer(&[Message::user(prompt)], sampling, on_text)
    }
}

/// Scores continuations from a table; one that is not in it gets `fallback` per character.
#[derive(Debug, Clone)]
pub struct FakeScore {
    /// Continuation and its log-likelihood.
    pub table: Vec<(String, f64)>,
    /// Log-likelihood per character of every other continuation.
    pub fallback: f64,
}

impl Score for FakeScore {
    fn log_likelihood(&self, _context: &str, continuation: &str) -> Result<Scored, Error> {
        let tokens = continuation.chars().count();
        let known = self.table.iter().find(|(text, _)| text == continuation);
        let log_likelihood = known.map_or(self.fallback * tokens as f64, |(_, score)| *score);
        let is_greedy = self.table.iter().all(|(_, other)| *other <= log_likelihood);
        Ok(Scored { log_likelihood, tokens, is_greedy })
    }
}

/// Embeds a text as the counts of its words, each hashed to a dimension, scaled to length 1: texts with common words
/// are near each other.
#[derive(Debug, Clone, Copy)]
pub struct FakeEmbed {
    /// Length of the vectors.
    pub dimensions: usize,
}

impl Embed for FakeEmbed {
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error> {
        Ok(texts.iter().map(|text| self.one(text)).collect())
    }
}

impl FakeEmbed {
    fn one(&self, text: &str) -> Vec<f32> {
        let mut vector = vec![0.0_f32; self.dimensions];
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            // FNV-1a: fixed for all time, which the standard library's hasher does not promise.
            let hash = word
                .to_lowercase()
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
            vector[(hash % self.dimensions as u64) as usize] += 1.0;
        }
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
        }
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripted_answers_come_in_order_are_streamed_and_end_with_an_error() {
        let model = FakeGenerate::new(["one two three", "second"]);
        let mut streamed = String::new();
        let sampling = Sampling::default();
        let first = model.generate(&[Message::user("q")], &sampling, &mut |t| streamed.push_str(t)).unwrap();
        assert_eq!((first.text.as_str(), streamed.as_str()), ("one two three", "one two three"));
        assert_eq!(first.tokens.len(), 3);
        assert_eq!(model.complete("p", &sampling, &mut |_| {}).unwrap().text, "second");
        let error = model.complete("p", &sampling, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("after 2"));
        assert_eq!(model.asked(), [[Message::user("q")], [Message::user("p")]]);
    }

    #[test]
    fn the_limit_and_stop_texts_are_respected() {
        let model = FakeGenerate::new(["a b c d", "a b. c. d"]);
        let short = Sampling { max_tokens: 2, ..Sampling::default() };
        let cut = model.complete("", &short, &mut |_| {}).unwrap();
        assert_eq!((cut.text.as_str(), cut.finish_reason), ("a b ", FinishReason::Length));
        let stop = Sampling { stop: vec!["d".into(), ".".into()], ..Sampling::default() };
        let stopped = model.complete("", &stop, &mut |_| {}).unwrap();
        assert_eq!((stopped.text.as_str(), stopped.finish_reason), ("a b", FinishReason::Stop));
    }

    #[test]
    fn the_scripted_scorer_prefers_what_its_table_says() {
        let model = FakeScore { table: vec![("yes".into(), -0.1), ("no".into(), -2.0)], fallback: -5.0 };
        let score = |text| model.log_likelihood("q", text).unwrap();
        assert!(score("yes").log_likelihood > score("no").log_likelihood);
        assert!(score("yes").is_greedy && !score("no").is_greedy);
        assert_eq!(score("abc").log_likelihood, -15.0);
    }

    #[test]
    fn texts_with_common_words_are_nearer_than_others() {
        let model = FakeEmbed { dimensions: 64 };
        let v = model.embed(&["the red boat", "A red boat!", "arithmetic is hard", ""]).unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        assert!(dot(&v[0], &v[1]) > dot(&v[0], &v[2]) + 0.3);
        assert!((dot(&v[0], &v[0]) - 1.0).abs() < 1e-6);
        assert_eq!(v[3], [0.0; 64]);
    }
}
