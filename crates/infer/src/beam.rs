//! Beam search: the likeliest texts that a walk over several at once finds.

use loam_kernels::softmax::log_softmax;
use loam_models::{Forward, Input, KvCache, Memory};
use loam_tensor::{Tensor, no_grad};

use crate::generate::Prefix;
use crate::{Error, Generator};

/// How wide and how long a beam search looks, and what it calls good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSettings {
    /// Texts that are followed at once; 1 is greedy decoding.
    pub num_beams: usize,
    /// Most tokens of a text, its end counted.
    pub max_tokens: usize,
    /// Exponent p of the score: the log-probability of a text over its length to the p (Wu et al. 2016, section 7, in the
    /// form that transformers uses). 0 takes the likeliest text, larger ones longer texts.
    pub length_penalty: f32,
}

impl Default for BeamSettings {
    fn default() -> Self {
        Self { num_beams: 4, max_tokens: 256, length_penalty: 1.0 }
    }
}

/// A text that the search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its tokens, without an end token.
    pub tokens: Vec<u32>,
    /// Its log-probability over its length to the power of the penalty.
    pub score: f32,
}

impl Generator<'_> {
    /// The best texts for `prompt` (the source, for a model with an encoder), best first: as many as there are beams.
    ///
    /// A text counts as found once its end is among the `num_beams` best continuations; the search ends where the best
    /// text that is still open could not replace the worst one found.
    pub fn beam_search(&self, prompt: &[u32], settings: &BeamSettings) -> Result<Vec<Hypothesis>, Error> {
        if settings.num_beams == 0 {
            return Err(Error::Setting { key: "num_beams", problem: "must be at least 1" });
        }
        self.check(prompt)?;
        no_grad(|| {
            let mut walk = Walk::new(self, prompt, settings.num_beams)?;
            let limit = settings.max_tokens.min(self.context() - walk.start.len());
            let settings = BeamSettings { max_tokens: limit, ..*settings };
            search(&mut |parents, tokens| walk.step(parents, tokens), self.stop_ids(), &settings)
        })
    }
}

/// The model at work: a row of the cache for every open text.
struct Walk<'a> {
    generator: &'a Generator<'a>,
    cache: KvCache,
    /// Memory for one row, and for all of them.
    memory: Option<[Memory; 2]>,
    start: Vec<u32>,
    beams: usize,
}

impl<'a> Walk<'a> {
    fn new(generator: &'a Generator<'a>, prompt: &[u32], beams: usize) -> Result<Self, Error> {
        let Prefix { start, memory } = generator.prefix(prompt)?;
        let memory = memory.map(|memory| {
            let rows = vec![&memory.hidden; beams];
            let all = Memory { hidden: Tensor::concat(&rows, 0), segments: None };
            [memory, all]
        });
        Ok(Self { generator, cache: generator.new_cache(), memory, start, beams })
    }

    /// Log-probabilities of what follows: after the prompt where there are no tokens yet, else after each of `tokens`, of
    /// which the n-th continues row `parents[n]`.
    fn step(&mut self, parents: &[u32], tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
        let is_first = tokens.is_empty();
        if !is_first {
            self.cache.select_rows(parents);
            if self.memory.is_some() && self.cache.len() == self.start.len() {
                // The memory of one row made way for that of all.
                self.cache.forget_memory();
            }
        }
        let (tokens, rows) = if is_first { (&self.start[..], 1) } else { (tokens, self.beams) };
        let memory = self.memory.as_ref().map(|memory| &memory[usize::from(!is_first)]);
        let input = Input { memory, ..Input::rows(tokens, rows) };
        let forward = Forward { cache: Some(&mut self.cache), ..Forward::default() };
        let logits = self.generator.model().last_logits(&input, forward)?.to_vec();
        let (mut log_probs, width) = (vec![0.0; logits.len()], logits.len() / rows);
        log_softmax(&mut log_probs, &logits, width);
        Ok(log_probs.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }
}

/// An open text.
#[derive(Clone)]
struct Open {
    tokens: Vec<u32>,
    score: f32,
}

/// Gives log-probabilities of what follows, see [`Walk::step`].
type Next<'a> = dyn FnMut(&[u32], &[u32]) -> Result<Vec<Vec<f32>>, Error> + 'a;

/// The search itself: `next` gives log-probabilities, see [`Walk::step`].
fn search(next: &mut Next<'_>, ends: &[u32], settings: &BeamSettings) -> Result<Vec<Hypothesis>, Error> {
    let beams = settings.num_beams;
    let value = |score: f32, len: usize| score / (len as f32).powf(settings.length_penalty);
    let mut open = vec![Open { tokens: Vec::new(), score: 0.0 }];
    let mut found: Vec<Hypothesis> = Vec::new();
    let (mut parents, mut last) = (Vec::new(), Vec::new());
    for len in 1..=settings.max_tokens {
        let log_probs = next(&parents, &last)?;
        let candidates = best(&open, &log_probs, beams * (1 + ends.len().max(1)));
        let mut following = Vec::new();
        for (rank, &(row, token, score)) in candidates.iter().enumerate() {
            let is_end = ends.contains(&token);
            if (is_end || len == settings.max_tokens) && rank < beams {
                let mut tokens = open[row].tokens.clone();
                tokens.extend((!is_end).then_some(token));
                found.push(Hypothesis { tokens, score: value(score, len) });
            } else if !is_end && following.len() < beams {
                following.push((row as u32, token, score));
            }
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(beams);
        let hope = following.first().map_or(f32::NEG_INFINITY, |&(.., score)| value(score, len));
        if following.len() < beams || found.len() == beams && hope <= found[beams - 1].score {
            break;
        }
        open = following
            .iter()
            .map(|&(row, token, score)| Open { tokens: [&open[row as usize].tokens[..], &[token]].concat(), score })
            .collect();
        parents = following.iter().map(|&(row, ..)| row).collect();
        last = following.iter().map(|&(_, token, _)| token).collect();
    }
    Ok(found)
}

/// The `count` likeliest continuations: row, token and log-probability of the whole; of equal ones the first.
fn best(open: &[Open], log_probs: &[Vec<f32>], count: usize) -> Vec<(usize, u32, f32)> {
    let rows = open.iter().zip(log_probs).enumerate();
    let mut all: Vec<(usize, u32, f32)> = rows
        .flat_map(|(row, (open, log_probs))| {
            (0u32..).zip(log_probs).map(move |(token, log_prob)| (row, token, open.score + log_prob))
        })
        .collect();
    let order = |a: &(usize, u32, f32), b: &(usize, u32, f32)| b.2.total_cmp(&a.2).then((a.0, a.1).cmp(&(b.0, b.1)));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use loam_models::LanguageModel;
    use loam_testkit::{Golden, golden_dir};
    use loam_tokenizer::Tokenizer;

    /// What the reference made more likely, in the golden file.
    const END: u32 = 7;
    const BIAS: f32 = 1.5;

    /// It is not asked for anything.
    fn tokenizer() -> Tokenizer {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}"#;
        Tokenizer::from_bytes(json.as_bytes()).expect("a tokenizer")
    }

    #[test]
    fn what_is_found_and_its_scores_equal_the_reference() {
        let tokenizer = tokenizer();
        for case in ["qwen2", "t5", "bart"] {
            let golden = Golden::read(&golden_dir(case).join("beams.safetensors"));
            let mut model = LanguageModel::open(golden_dir(case)).expect("a golden model");
            model.set_config("decoder_start_token_id", 2.into());
            let generator = Generator::new(&model, &tokenizer).with_stop_ids(vec![END]);
            let source: Vec<u32> = golden.integers("source").values.iter().map(|&id| id as u32).collect();
            for (key, length_penalty) in [("short", 0.0), ("long", 2.0)] {
                let settings = BeamSettings { num_beams: 3, max_tokens: 6, length_penalty };
                let found = no_grad(|| {
                    let mut walk = Walk::new(&generator, &source, 3).expect("a prompt");
                    let mut next = |parents: &[u32], tokens: &[u32]| {
                        let mut log_probs = walk.step(parents, tokens)?;
                        log_probs.iter_mut().for_each(|row| row[END as usize] += BIAS);
                        Ok(log_probs)
                    };
                    search(&mut next, &[END], &settings).expect("a search")
                });
                let expected = golden.integers(&format!("{key}.tokens"));
                for (index, row) in expected.values.chunks(expected.shape[1]).enumerate() {
                    let row: Vec<u32> = row.iter().map(|&id| id as u32).take_while(|&id| id != END).collect();
                    assert_eq!(found[index].tokens, row, "{case} {key} {index}");
                    let score = golden.floats(&format!("{key}.scores")).values[index];
                    assert!((found[index].score - score).abs() < 2e-5, "{case} {key}: {} {score}", found[index].score);
                }
            }
        }
    }

    #[test]
    fn one_beam_writes_what_greedy_decoding_writes() {
        let tokenizer = tokenizer();
        for case in ["qwen2", "t5", "bart", "llama-gqa"] {
            let mut model = LanguageModel::open(golden_dir(case)).expect("a golden model");
            model.set_config("decoder_start_token_id", 2.into());
            let generator = Generator::new(&model, &tokenizer).with_stop_ids(vec![END]);
            let sampling = loam_chat::Sampling { temperature: 0.0, max_tokens: 6, ..Default::default() };
            let greedy = generator.tokens(&[3, 4, 5], &sampling, &mut |_| true).expect("tokens").tokens;
            let settings = BeamSettings { num_beams: 1, max_tokens: 6, length_penalty: 1.0 };
            assert_eq!(generator.beam_search(&[3, 4, 5], &settings).expect("a search")[0].tokens, greedy, "{case}");
        }
    }
}
