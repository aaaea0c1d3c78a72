//! How likely a given text is.

use loam_chat::{Score, Scored};
use loam_models::{Forward, Input};
use loam_tensor::no_grad;
use loam_tokenizer::Special;

use crate::sampler::{greedy, logprob};
use crate::{Error, Generator};

impl Generator<'_> {
    /// The natural log-probability of every token of `tokens` from index `start` (at least 1) on, each given all tokens
    /// before it, and whether it is the most likely one there.
    pub fn score_tokens(&self, tokens: &[u32], start: usize) -> Result<Vec<(f64, bool)>, Error> {
        let start = start.max(1);
        if start >= tokens.len() {
            return Ok(Vec::new());
        }
        // The last token is only predicted, never read.
        let read = &tokens[..tokens.len() - 1];
        self.check(read)?;
        self.check(&tokens[tokens.len() - 1..])?;
        let logits = no_grad(|| self.model().logits(&Input::rows(read, 1), Forward::default()))?.to_vec();
        let vocab_size = self.model().spec().vocab_size;
        let rows = logits.chunks_exact(vocab_size).skip(start - 1);
        let scored = rows.zip(&tokens[start..]);
        Ok(scored.map(|(row, &token)| (logprob(row, token), greedy(row) == Some(token))).collect())
    }

    /// The tokens of context and continuation together, and where those of the continuation start. The two are encoded
    /// as one text, since a token may reach across the border; what the context alone would share is the context.
    fn border(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, usize), Error> {
        let mut before = self.tokenizer().encode(context, Special::Parse)?;
        let mut whole = self.tokenizer().encode(&format!("{context}{continuation}"), Special::Parse)?;
        if let Some(start) = self.tokenizer().bos_id().or(self.tokenizer().eos_id().filter(|_| before.is_empty())) {
            before.insert(0, start);
            whole.insert(0, start);
        }
        let shared = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        if shared == 0 && !whole.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Ok((whole, shared))
    }
}

impl Score for Generator<'_> {
    fn log_likelihood(&self, context: &str, continuation: &str) -> Result<Scored, loam_chat::Error> {
        let (tokens, start) = self.border(context, continuation)?;
        let scored = self.score_tokens(&tokens, start)?;
        Ok(Scored {
            log_likelihood: scored.iter().map(|(logprob, _)| logprob).sum(),
            tokens: scored.len(),
            is_greedy: scored.iter().all(|(_, is_greedy)| *is_greedy),
        })
    }
}
