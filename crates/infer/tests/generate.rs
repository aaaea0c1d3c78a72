//! Generation on tiny random models: the same text whatever the way, the company, or the number of threads.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use loam_chat::{FinishReason, Generate, Message, Sampling, Score};
use loam_infer::{Error, Generator, OpenModel, Written, sampler};
use loam_models::{Forward, Input, LanguageModel};
use loam_testkit::{cases, golden_dir};
use loam_tokenizer::{ChatTemplate, Tokenizer, TrainConfig, TrainKind, train};
use serde_json::json;
use std::sync::atomic::AtomicBool;

const TEXT: &str = "the fox and the goose ate a pear. 狐狸和鹅吃了一个梨。é";

fn tokenizer(kind: TrainKind) -> Tokenizer {
    let config = TrainConfig { vocab_size: 300, ..TrainConfig::new(kind) };
    train([Ok::<_, std::io::Error>(TEXT.to_owned())], &config, &mut |_| {}).unwrap()
}

/// A model whose fresh weights are large enough that every step has a clear favourite, and not always the same one.
fn model(family: &str, tokenizer: &Tokenizer) -> LanguageModel {
    let vocab = tokenizer.vocab_size();
    let config = match family {
        "gpt2" => json!({
            "model_type": "gpt2", "vocab_size": vocab, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 48,
            "initializer_range": 0.6,
        }),
        _ => json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
            "initializer_range": 0.6,
        }),
    };
    LanguageModel::new(&config, 7).unwrap()
}

fn free(sampling: Sampling) -> Sampling {
    Sampling { max_tokens: 20, ..sampling }
}

/// Every token from a pass over everything before it, without a cache.
fn without_cache(model: &LanguageModel, prompt: &[u32], sampling: &Sampling) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for step in 0..sampling.max_tokens {
        let logits = model.last_logits(&Input::rows(&tokens, 1), Forward::default()).unwrap().to_vec();
        tokens.push(sampler::choose(&logits, &tokens, sampling, step as u64).unwrap().token);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn the_cache_changes_no_token() {
    let tokenizer = tokenizer(TrainKind::Char);
    for family in ["gpt2", "llama"] {
        let model = model(family, &tokenizer);
        let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
        for sampling in [Sampling::greedy(), Sampling { seed: 3, repetition_penalty: 1.2, ..Sampling::default() }] {
            let sampling = free(sampling);
            for prompt in ["t", "the fox and the"] {
                let prompt = generator.encode_prompt(prompt).unwrap();
                let found = generator.tokens(&prompt, &sampling, &mut |_| true).unwrap();
                assert_eq!(found.tokens, without_cache(&model, &prompt, &sampling), "{family}");
                assert_eq!((found.tokens.len(), found.finish_reason), (20, FinishReason::Length));
                assert!(found.tokens.windows(2).any(|w| w[0] != w[1]), "{family} repeats itself: {:?}", found.tokens);
            }
        }
    }
}

#[test]
fn log_probabilities_while_writing_equal_those_of_scoring_the_result() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    let prompt = generator.encode_prompt("the fox").unwrap();
    let sampling = free(Sampling { temperature: 0.7, top_k: 20, seed: 5, ..Sampling::default() });
    let written = generator.tokens(&prompt, &sampling, &mut |_| true).unwrap();
    let all: Vec<u32> = prompt.iter().chain(&written.tokens).copied().collect();
    let scored = generator.score_tokens(&all, prompt.len()).unwrap();
    assert_eq!(scored.len(), written.logprobs.len());
    for ((logprob, _), written) in scored.iter().zip(&written.logprobs) {
        assert!((logprob - f64::from(*written)).abs() < 1e-4, "{logprob} and {written}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let tokenizer = tokenizer(TrainKind::ByteBpe);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let write = |seed| {
        let sampling = free(Sampling { seed, ..Sampling::default() });
        generator.complete("the", &sampling, &mut |_| {}).unwrap().text
    };
    assert_eq!(write(1), write(1));
    assert_ne!(write(1), write(2));
}

#[test]
fn a_text_is_the_same_alone_in_company_and_on_any_number_of_threads() {
    let tokenizer = tokenizer(TrainKind::ByteBpe);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let prompts: Vec<Vec<u32>> =
        ["the", "fox and", "狐狸", "a pear. the goose"].iter().map(|p| generator.encode_prompt(p).unwrap()).collect();
    let sampling = |seed: u64| free(Sampling { seed, top_logprobs: 2, ..Sampling::default() });
    let asked: Vec<_> = (0..24).map(|i| (&prompts[i as usize / 6][..], sampling(i))).collect();
    let said = |written: Written| (written.completion, written.top_logprobs, written.end);
    let generator = generator.keep_logprobs(true).with_stop_ids((100..110).collect());
    let write = |(prompt, sampling): &(&[u32], Sampling)| said(generator.write(prompt, sampling, &mut |_| {}).unwrap());
    let alone: Vec<_> = asked.iter().map(write).collect();
    assert!(alone.iter().any(|(_, _, end)| end.is_some()) && alone.iter().any(|(_, _, end)| end.is_none()));
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let together = pool.install(|| generator.write_all(&asked)).unwrap();
        assert_eq!(together.into_iter().map(said).collect::<Vec<_>>(), alone, "{threads} threads");
    }
}

#[test]
fn a_batch_with_a_prompt_that_cannot_be_continued_says_so_and_an_interrupted_one_is_cut_short() {
    let tokenizer = tokenizer(TrainKind::ByteBpe);
    let model = model("llama", &tokenizer);
    let stopped = std::sync::atomic::AtomicBool::new(true);
    let generator = Generator::new(&model, &tokenizer);
    let sampling = free(Sampling::default());
    let error = generator.write_batch(&[vec![1, 2], Vec::new()], &sampling).unwrap_err();
    assert!(matches!(error, loam_infer::Error::EmptyPrompt), "{error}");
    let cut = generator.with_interrupt(&stopped).write_batch(&[vec![1, 2]], &sampling).unwrap();
    assert_eq!(cut[0].tokens, [0; 0]);
}

#[test]
fn streamed_pieces_are_whole_characters_and_make_up_the_text() {
    // Random bytes of a byte-level vocabulary are seldom UTF-8: the hardest case for a stream.
    let tokenizer = tokenizer(TrainKind::ByteBpe);
    let model = model("gpt2", &tokenizer);
    let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    for seed in 0..20 {
        let mut streamed = String::new();
        let sampling = Sampling { seed, max_tokens: 40, ..Sampling::default() };
        let completion = generator.complete("狐", &sampling, &mut |piece| streamed.push_str(piece)).unwrap();
        assert_eq!(streamed, completion.text);
        // How many replacement characters stand for a broken one depends on where it is cut; all else is the same.
        let whole = |text: &str| text.replace('\u{fffd}', "");
        assert_eq!(whole(&completion.text), whole(&tokenizer.decode(&completion.tokens, true).unwrap()));
    }
}

#[test]
fn a_stop_text_ends_the_text_and_no_part_of_it_is_shown() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    let sampling = free(Sampling { seed: 2, ..Sampling::default() });
    let whole = generator.complete("the", &sampling, &mut |_| {}).unwrap();
    let chars: Vec<char> = whole.text.chars().collect();
    let stop: String = chars[5..8].iter().collect();
    let end = whole.text.find(&stop).unwrap();
    let stopping = Sampling { stop: vec![stop.clone()], ..sampling };
    let mut pieces = Vec::new();
    let stopped = generator.complete("the", &stopping, &mut |piece| pieces.push(piece.to_owned())).unwrap();
    assert_eq!(stopped.text, whole.text[..end]);
    assert_eq!(pieces.concat(), stopped.text);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    assert!(stopped.tokens.len() < whole.tokens.len());
}

#[test]
fn an_end_token_ends_the_text_and_is_not_part_of_it() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("gpt2", &tokenizer);
    let open = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    let prompt = open.encode_prompt("the").unwrap();
    let whole = open.tokens(&prompt, &free(Sampling::greedy()), &mut |_| true).unwrap();
    let end = whole.tokens[4];
    let at = whole.tokens.iter().position(|&token| token == end).unwrap();
    let closed = Generator::new(&model, &tokenizer).with_stop_ids(vec![end]);
    let found = closed.tokens(&prompt, &free(Sampling::greedy()), &mut |_| true).unwrap();
    assert_eq!((found.tokens, found.finish_reason), (whole.tokens[..at].to_vec(), FinishReason::Stop));
}

#[test]
fn a_full_context_ends_the_text_and_a_longer_prompt_is_refused() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("gpt2", &tokenizer);
    let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    let sampling = Sampling { max_tokens: 1000, ..Sampling::greedy() };
    let prompt = vec![5; 40];
    let found = generator.tokens(&prompt, &sampling, &mut |_| true).unwrap();
    assert_eq!((found.tokens.len(), found.finish_reason), (8, FinishReason::Length));
    let error = generator.tokens(&[5; 48], &sampling, &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("48 tokens") && error.hint().is_some(), "{error}");
    let error = generator.tokens(&[60_000], &sampling, &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("id 60000"), "{error}");
    assert!(matches!(generator.tokens(&[], &sampling, &mut |_| true), Err(Error::EmptyPrompt)));
}

#[test]
fn an_interrupt_ends_the_text_after_the_token_at_hand() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("llama", &tokenizer);
    let flag = AtomicBool::new(true);
    let generator = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new()).with_interrupt(&flag);
    let prompt = generator.encode_prompt("the").unwrap();
    let found = generator.tokens(&prompt, &free(Sampling::greedy()), &mut |_| true).unwrap();
    assert_eq!((found.tokens.len(), found.finish_reason), (1, FinishReason::Stop));
}

#[test]
fn a_conversation_goes_through_the_template_and_without_one_is_refused() {
    let tokenizer = tokenizer(TrainKind::ByteBpe);
    let model = model("llama", &tokenizer);
    let messages = [Message::user("fox")];
    let bare = Generator::new(&model, &tokenizer);
    let error = bare.encode_messages(&messages).unwrap_err();
    assert!(error.to_string().contains("no chat template") && error.hint().is_some());
    let chatml = ChatTemplate::chatml();
    let generator = Generator::new(&model, &tokenizer).with_template(&chatml);
    let ids = generator.encode_messages(&messages).unwrap();
    let text = tokenizer.decode(&ids, false).unwrap();
    assert_eq!(text, "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\n");
    let sampling = Sampling { max_tokens: 5, ..Sampling::greedy() };
    let completion = generator.generate(&messages, &sampling, &mut |_| {}).unwrap();
    assert!(completion.tokens.len() <= 5);
}

#[test]
fn a_likelihood_is_the_sum_over_the_continuation_and_greedy_text_is_known_as_such() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let greedy = Generator::new(&model, &tokenizer).with_stop_ids(Vec::new());
    let prompt = greedy.encode_prompt("the fox").unwrap();
    let sampling = Sampling { max_tokens: 6, ..Sampling::greedy() };
    let written = greedy.write(&prompt, &sampling, &mut |_| {}).unwrap().completion;
    let special = written.tokens.iter().any(|&id| tokenizer.is_special(id));
    if !special {
        let scored = generator.log_likelihood("the fox", &written.text).unwrap();
        assert!(scored.is_greedy && scored.tokens == 6);
    }
    let whole = generator.log_likelihood("the ", "fox ate").unwrap();
    let (a, b) =
        (generator.log_likelihood("the ", "fox").unwrap(), generator.log_likelihood("the fox", " ate").unwrap());
    assert!((whole.log_likelihood - a.log_likelihood - b.log_likelihood).abs() < 1e-3);
    assert_eq!((whole.tokens, a.tokens, b.tokens), (7, 3, 4));
    assert!(whole.log_likelihood < 0.0);
    assert_eq!(generator.log_likelihood("the", "").unwrap().tokens, 0);
}

#[test]
fn settings_without_meaning_are_refused() {
    let tokenizer = tokenizer(TrainKind::Char);
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let sampling = Sampling { top_p: 0.0, ..Sampling::default() };
    let error = generator.complete("the", &sampling, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("top_p"), "{error}");
}

#[test]
fn a_directory_without_a_tokenizer_is_one_clear_error() {
    assert!(!cases().is_empty());
    let error = OpenModel::open(golden_dir("llama-plain")).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(error.hint().is_some());
    let error = OpenModel::open("no-such-model").unwrap_err();
    assert!(error.to_string().contains("no-such-model"), "{error}");
}
