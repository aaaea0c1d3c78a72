//! Pairs of a model's own answers, ranked by a reward.
//!
//! A reward model is asked about what the policy says, and pairs that somebody else wrote need not look like that; so the
//! comparisons of InstructGPT (Ouyang et al. 2022, section 3.5) are between answers of the models that are trained. The same
//! pairs serve preference learning "on policy".

use loam_kernels::rng::Stream;
use loam_models::LanguageModel;
use loam_tensor::Precision;
use loam_tokenizer::Tokenizer;

use crate::error::Result;
use crate::reward::{Answered, Reward, finite_rewards};
use crate::rollout::{Author, Prompted, Written, write_answers};

/// How the answers are drawn, and how many pairs are made of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairSettings {
    /// Answers to each prompt.
    pub samples: usize,
    /// Most pairs of a prompt; those whose rewards are furthest apart come first.
    pub pairs: usize,
    /// Temperature of the draw.
    pub temperature: f32,
    /// Most tokens of an answer. What does not end by then is no answer.
    pub max_new_tokens: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// Number format of the forward passes.
    pub precision: Precision,
}

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedPair {
    /// The number of the prompt.
    pub prompt: usize,
    /// The answer with the higher reward.
    pub chosen: String,
    /// The other.
    pub rejected: String,
    /// The reward of the first.
    pub score_chosen: f64,
    /// The reward of the second.
    pub score_rejected: f64,
}

/// Pairs of answers that `model` gives to some prompts, the first of which has the number `first`: what is drawn is a
/// function of that number and the seed, however the prompts are cut into calls. Where all answers to a prompt are equally
/// good there is no pair.
pub fn ranked_pairs(
    (model, tokenizer): (&LanguageModel, &Tokenizer),
    (first, prompts): (usize, &[Prompted]),
    reward: &mut dyn Reward,
    settings: &PairSettings,
) -> Result<Vec<RankedPair>> {
    let PairSettings { samples, temperature, max_new_tokens, precision, .. } = *settings;
    let author = Author { model, tokenizer, temperature, max_new_tokens, precision };
    let asked: Vec<&[u32]> = prompts.iter().flat_map(|prompt| vec![&prompt.ids[..]; samples]).collect();
    let seed = |place: usize| Stream::new(settings.seed, "answer", (first * samples + place) as u64).next_u64();
    let written = write_answers(&author, &asked, seed)?;
    let text =
        |answer: &Written| tokenizer.decode(&answer.tokens[..answer.tokens.len() - usize::from(answer.ended)], true);
    let texts = written.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let answered: Vec<_> = written
        .iter()
        .zip(&texts)
        .enumerate()
        .map(|(place, (answer, text))| Answered { prompt: &prompts[place / samples], tokens: &answer.tokens, text })
        .collect();
    let rewards = finite_rewards(reward, &answered)?;
    let mut pairs = Vec::new();
    for index in 0..prompts.len() {
        let own = index * samples..(index + 1) * samples;
        let mut answers: Vec<(&str, f64)> = own
            .filter(|&place| written[place].ended && !texts[place].trim().is_empty())
            .map(|place| (&texts[place][..], rewards[place]))
            .collect();
        answers.sort_by(|a, b| a.0.cmp(b.0));
        answers.dedup_by(|a, b| a.0 == b.0);
        let number = first + index;
        let found = furthest(&answers, settings.pairs, Stream::new(settings.seed, "pair", number as u64));
        pairs.extend(found.into_iter().map(|(better, worse)| RankedPair {
            prompt: number,
            chosen: better.0.to_owned(),
            rejected: worse.0.to_owned(),
            score_chosen: better.1,
            score_rejected: worse.1,
        }));
    }
    Ok(pairs)
}

type Judged<'a> = (&'a str, f64);

/// The `most` pairs, better answer first, whose rewards are furthest apart; which of equal ones is left to chance.
fn furthest<'a>(answers: &[Judged<'a>], most: usize, mut chance: Stream) -> Vec<(Judged<'a>, Judged<'a>)> {
    let worse = |better: &Judged<'a>| answers.iter().filter(|worse| worse.1 < better.1).copied().collect::<Vec<_>>();
    let mut pairs: Vec<_> =
        answers.iter().flat_map(|better| worse(better).into_iter().map(|worse| (*better, worse))).collect();
    chance.shuffle(&mut pairs);
    pairs.sort_by(|a, b| (b.0.1 - b.1.1).total_cmp(&(a.0.1 - a.1.1)));
    pairs.truncate(most);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_of_different_rewards_and_the_furthest_apart_come_first() {
        let answers = [("fair", 0.5), ("good", 1.0), ("also good", 1.0), ("bad", 0.0)];
        let chance = Stream::new(1, "pair", 0);
        let all = furthest(&answers, 10, chance);
        assert_eq!(all.len(), 5, "two good before two worse, fair before bad");
        assert!(all.iter().all(|(better, worse)| better.1 > worse.1));
        assert!(all[..2].iter().all(|(better, worse)| better.1 == 1.0 && worse.0 == "bad"), "{all:?}");
        assert_eq!(furthest(&answers, 1, chance), all[..1]);
        assert!(furthest(&answers[1..3], 10, chance).is_empty(), "equally good");
    }
}
