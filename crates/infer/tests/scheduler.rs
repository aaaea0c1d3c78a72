//! Many texts at once are, to the bit, the same texts one by one.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

use loam_chat::{FinishReason, Sampling};
use loam_infer::scheduler::{Event, Listener, SchedulerStats};
use loam_infer::{
    Constraint, ConstraintCompiler, Error, Generator, Grammar, Request, Scheduler, SchedulerSettings, Token, Written,
};
use loam_models::{KvType, LanguageModel};
use loam_testkit::Random;
use loam_tokenizer::{Tokenizer, TrainConfig, TrainKind, train};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const TEXT: &str = "the fox and the goose ate a pear. 狐狸和鹅吃了一个梨。é {\"name\": 1.5, \"on\": true}";

fn tokenizer() -> Tokenizer {
    let config = TrainConfig { vocab_size: 300, ..TrainConfig::new(TrainKind::ByteBpe) };
    train([Ok::<_, std::io::Error>(TEXT.to_owned())], &config, &mut |_| {}).unwrap()
}

/// Fresh weights that are large enough for clear favourites, and not always the same ones.
fn model(family: &str, tokenizer: &Tokenizer) -> LanguageModel {
    let mut config = json!({
        "model_type": family, "vocab_size": tokenizer.vocab_size(), "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 400, "initializer_range": 0.6,
    });
    let more = match family {
        "gpt2" => json!({"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 400}),
        "gemma2" => {
            json!({"sliding_window": 24, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]})
        }
        "mixtral" => json!({"num_local_experts": 4, "num_experts_per_tok": 2}),
        "t5" => json!({
            "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
            "initializer_factor": 1.0, "n_positions": 400,
        }),
        _ => json!({}),
    };
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    LanguageModel::new(&config, 7).unwrap()
}

/// What a listener has heard.
#[derive(Default)]
struct Heard {
    cached: Option<usize>,
    prompt: Option<Vec<Token>>,
    tokens: Vec<Token>,
    text: String,
    end: Option<Result<FinishReason, Arc<Error>>>,
}

#[derive(Clone, Default)]
struct Ear {
    heard: Arc<Mutex<Heard>>,
    gone: Arc<AtomicBool>,
}

impl Listener for Ear {
    fn hear(&mut self, event: Event) {
        let mut heard = self.heard.lock().unwrap();
        assert!(heard.end.is_none(), "news after the end: {event:?}");
        match event {
            Event::Started { cached_tokens } => assert!(heard.cached.replace(cached_tokens).is_none()),
            Event::Prompt(tokens) => heard.prompt = Some(tokens),
            Event::Token { token, text } => {
                heard.tokens.push(token);
                heard.text.push_str(&text);
            }
            Event::Done { text, finish_reason, .. } => {
                heard.text.push_str(&text);
                heard.end = Some(Ok(finish_reason));
            }
            Event::Failed(error) => heard.end = Some(Err(error)),
        }
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// A request of its own kind.
fn request(random: &mut Random, tokenizer: &Tokenizer, schema: &Constraint) -> Request {
    let pick = |random: &mut Random, n: usize| random.range(0, n);
    let systems: [String; 3] =
        ["the fox and the goose ".repeat(4), "the fox and the pear. ".repeat(6), "狐狸和鹅".repeat(5)];
    let mut text = systems[pick(random, 3)].clone();
    let letters: Vec<char> = TEXT.chars().collect();
    text.extend((0..1 + pick(random, 40)).map(|_| letters[pick(random, letters.len())]));
    let stop = if pick(random, 3) == 0 { vec!["e".into(), " a".into()] } else { Vec::new() };
    let base = Sampling { max_tokens: 1 + pick(random, 24), seed: pick(random, 5) as u64, ..Sampling::default() };
    let sampling = match pick(random, 5) {
        0 => Sampling { temperature: 0.0, stop, ..base },
        1 => Sampling { top_k: 20, repetition_penalty: 1.2, stop, ..base },
        2 => Sampling { mirostat: 2, top_logprobs: 3, ..base },
        3 => Sampling { dry_multiplier: 0.8, min_p: 0.02, stop, ..base },
        _ => Sampling { top_logprobs: 2, logit_bias: [(40, 3.0)].into(), ..base },
    };
    let prompt = tokenizer.encode(&text, loam_tokenizer::Special::Parse).unwrap();
    let constraint = (pick(random, 4) == 0).then(|| schema.clone());
    let stop_ids = (pick(random, 3) == 0).then(|| vec![prompt[0], prompt[1]]).filter(|_| constraint.is_none());
    let prompt_logprobs = pick(random, 5) == 0;
    Request { constraint, stop_ids, prompt_logprobs, ..Request::new(prompt, sampling) }
}

fn alone(generator: &Generator<'_>, request: &Request) -> Written {
    let mut generator = generator.clone().keep_logprobs(true);
    if let Some(stop_ids) = &request.stop_ids {
        generator = generator.with_stop_ids(stop_ids.clone());
    }
    if let Some(constraint) = &request.constraint {
        generator = generator.with_constraint(constraint);
    }
    generator.write(&request.prompt, &request.sampling, &mut |_| {}).unwrap()
}

fn assert_same(heard: &Heard, expected: &Written, what: &str) {
    let tokens: Vec<u32> = heard.tokens.iter().map(|t| t.id).collect();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let logprobs: Vec<f32> = heard.tokens.iter().map(|t| t.logprob).collect();
    let top: Vec<_> = heard.tokens.iter().map(|t| t.top_logprobs.clone()).collect();
    assert_eq!(tokens, expected.completion.tokens, "{what}");
    assert_eq!(heard.text, expected.completion.text, "{what}");
    assert_eq!(bits(&logprobs), bits(expected.completion.logprobs.as_ref().unwrap()), "{what}");
    assert_eq!(top, expected.top_logprobs, "{what}");
    assert_eq!(heard.end.as_ref().unwrap().as_ref().unwrap(), &expected.completion.finish_reason, "{what}");
}

/// Requests that arrive and are given up at random.
fn storm(generator: &Generator<'_>, settings: &SchedulerSettings, requests: &[Request], seed: u64) -> SchedulerStats {
    storm_with(generator, None, settings, requests, seed)
}

/// The same, with a model that guesses.
fn storm_with(
    generator: &Generator<'_>,
    draft: Option<&LanguageModel>,
    settings: &SchedulerSettings,
    requests: &[Request],
    seed: u64,
) -> SchedulerStats {
    let expected: Vec<Written> = requests.iter().map(|request| alone(generator, request)).collect();
    let mut random = Random::new(seed);
    let mut scheduler = Scheduler::new(generator.clone(), settings.clone()).unwrap();
    if let Some(draft) = draft {
        scheduler = scheduler.with_draft(draft).unwrap();
    }
    let (mut ears, mut cancelled, mut next) = (Vec::new(), Vec::new(), 0);
    while next < requests.len() || !scheduler.is_idle() {
        while next < requests.len() && (scheduler.is_idle() || random.range(0, 2) == 0) {
            let ear = Ear::default();
            let id = scheduler.submit(requests[next].clone(), Box::new(ear.clone())).unwrap();
            ears.push((id, ear));
            next += 1;
        }
        if random.range(0, 12) == 0 && cancelled.len() < requests.len() / 4 {
            let at = random.range(0, ears.len());
            match random.range(0, 2) {
                0 => drop(scheduler.cancel(ears[at].0)),
                _ => ears[at].1.gone.store(true, Ordering::Relaxed),
            }
            cancelled.push(at);
        }
        scheduler.step();
        let stats = scheduler.stats();
        assert!(stats.running <= settings.max_running && stats.kv_tokens <= settings.kv_tokens, "{stats:?}");
    }
    for (index, (_, ear)) in ears.iter().enumerate() {
        let heard = ear.heard.lock().unwrap();
        let what = format!("request {index}: {:?}", requests[index]);
        match &heard.end {
            Some(_) => assert_same(&heard, &expected[index], &what),
            None => assert!(cancelled.contains(&index), "{what} was lost"),
        }
        if let (Some(prompt), false) = (&heard.prompt, generator.model().spec().encoder.is_some()) {
            let scored = generator.score_tokens(&requests[index].prompt, 1).unwrap();
            let found: Vec<u32> = prompt.iter().map(|t| t.logprob.to_bits()).collect();
            assert_eq!(found, scored.iter().map(|(x, _)| (*x as f32).to_bits()).collect::<Vec<_>>(), "{what}");
        }
    }
    scheduler.stats()
}

fn schema(tokenizer: &Tokenizer) -> Constraint {
    let schema = json!({"type": "object", "properties": {"name": {"type": "integer"}, "on": {"type": "boolean"}},
        "required": ["name", "on"]});
    let compiler = ConstraintCompiler::new(tokenizer, &tokenizer.stop_ids()).unwrap();
    compiler.compile(&Grammar::JsonSchema(schema)).unwrap()
}

#[test]
fn many_texts_at_once_are_the_same_texts_as_alone() {
    let tokenizer = tokenizer();
    let schema = schema(&tokenizer);
    let settings = [
        SchedulerSettings { max_running: 5, kv_tokens: 600, step_tokens: 7, prefix_block: 4, guess_tokens: 0 },
        SchedulerSettings { max_running: 16, kv_tokens: 4000, step_tokens: 64, prefix_block: 16, guess_tokens: 0 },
        SchedulerSettings { max_running: 3, kv_tokens: 300, step_tokens: 1, prefix_block: 0, guess_tokens: 0 },
    ];
    for family in ["llama", "gpt2", "gemma2", "mixtral"] {
        let model = model(family, &tokenizer);
        let generator = Generator::new(&model, &tokenizer);
        for (round, (settings, threads)) in settings.iter().zip([2, 1, 3]).enumerate() {
            let mut random = Random::new(100 + round as u64);
            let requests: Vec<Request> = (0..40).map(|_| request(&mut random, &tokenizer, &schema)).collect();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let stats = pool.install(|| storm(&generator, settings, &requests, round as u64));
            let shares = settings.prefix_block > 0;
            assert_eq!(stats.prefix_hits > 0, shares, "{family} {stats:?}");
        }
    }
}

#[test]
fn guesses_change_no_text_whoever_makes_them() {
    let tokenizer = tokenizer();
    let schema = schema(&tokenizer);
    for (index, family) in ["llama", "gemma2", "mixtral"].into_iter().enumerate() {
        let model = model(family, &tokenizer);
        let generator = Generator::new(&model, &tokenizer);
        let mut random = Random::new(40 + index as u64);
        let requests: Vec<Request> = (0..14).map(|_| request(&mut random, &tokenizer, &schema)).collect();
        let settings = SchedulerSettings {
            max_running: 5,
            kv_tokens: 700,
            step_tokens: 24,
            guess_tokens: 6,
            ..SchedulerSettings::default()
        };
        let found = storm_with(&generator, None, &settings, &requests, 3);
        // The model itself guesses right but where a constraint or the end says otherwise; another one, now and then.
        let other = LanguageModel::new(model.config(), 8).unwrap();
        let own = storm_with(&generator, Some(&model), &settings, &requests, 3);
        assert!(own.accepted_tokens * 2 > own.guessed_tokens && own.steps < found.steps, "{own:?} {found:?}");
        let strange = storm_with(&generator, Some(&other), &settings, &requests, 3);
        assert!(strange.guessed_tokens > 0 && strange.steps > own.steps, "{strange:?} {own:?}");
    }
}

#[test]
fn however_keys_and_values_are_kept_a_text_is_the_same_in_company() {
    let tokenizer = tokenizer();
    let schema = schema(&tokenizer);
    let mut config = model("llama", &tokenizer).config().clone();
    config["head_dim"] = json!(32);
    let model = LanguageModel::new(&config, 7).unwrap();
    let settings = SchedulerSettings {
        max_running: 5,
        kv_tokens: 700,
        step_tokens: 24,
        guess_tokens: 3,
        ..SchedulerSettings::default()
    };
    let mut random = Random::new(60);
    // How likely a prompt is would be asked of the model without a cache.
    let ask = |_| Request { prompt_logprobs: false, ..request(&mut random, &tokenizer, &schema) };
    let requests: Vec<Request> = (0..8).map(ask).collect();
    let mut logprobs = Vec::new();
    for kind in KvType::ALL {
        let generator = Generator::new(&model, &tokenizer).with_kv_type(kind).unwrap();
        // Its prompts and texts have beginnings in common, which are kept and taken as they are.
        let stats = storm(&generator, &settings, &requests, 5);
        assert!(stats.prefix_hits > 0 && stats.accepted_tokens <= stats.guessed_tokens, "{kind:?}: {stats:?}");
        let sampling = Sampling { max_tokens: 1, ..Sampling::default() };
        let written = generator.keep_logprobs(true).write(&requests[0].prompt, &sampling, &mut |_| {}).unwrap();
        logprobs.push(written.completion.logprobs.unwrap()[0].to_bits());
    }
    // They are really kept in so many ways.
    let (mut different, count) = (logprobs.clone(), logprobs.len());
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), count, "{logprobs:?}");
    let narrow = self::model("llama", &tokenizer);
    let refused = Generator::new(&narrow, &tokenizer).with_kv_type(KvType::Q8_0);
    assert!(matches!(refused, Err(Error::Setting { key: "kv_type", .. })));
}

#[test]
fn what_a_sliding_window_has_left_behind_is_forgotten_and_texts_are_the_same() {
    let tokenizer = tokenizer();
    let mut config = model("gemma2", &tokenizer).config().clone();
    config["max_position_embeddings"] = json!(2000);
    let model = LanguageModel::new(&config, 7).unwrap();
    let common =
        tokenizer.encode(&"the fox and the goose ate a pear. ".repeat(24), loam_tokenizer::Special::Parse).unwrap();
    assert!(common.len() > 300);
    let request = |rest: &[u32], seed| {
        let sampling = Sampling { max_tokens: 330, seed, ..Sampling::default() };
        let prompt = [&common, rest].concat();
        Request { stop_ids: Some(Vec::new()), ..Request::new(prompt, sampling) }
    };
    let requests = [request(&[5], 1), request(&[6, 7], 2), request(&[5], 3), request(&[5, 9, 11], 4)];
    for kind in [KvType::Full, KvType::F16] {
        let generator = Generator::new(&model, &tokenizer).with_kv_type(kind).unwrap();
        for guess_tokens in [0, 4] {
            let settings = SchedulerSettings {
                max_running: 3,
                kv_tokens: 4000,
                step_tokens: 50,
                guess_tokens,
                ..SchedulerSettings::default()
            };
            let stats = storm(&generator, &settings, &requests, 8);
            assert!(stats.prefix_hits > 250, "{stats:?}");
        }
    }
}

#[test]
fn a_draft_of_another_vocabulary_is_refused() {
    let tokenizer = tokenizer();
    let llama = model("llama", &tokenizer);
    let mut config = llama.config().clone();
    config["vocab_size"] = json!(tokenizer.vocab_size() + 1);
    let other = LanguageModel::new(&config, 1).unwrap();
    let generator = Generator::new(&llama, &tokenizer);
    let scheduler = Scheduler::new(generator, SchedulerSettings::default()).unwrap();
    assert!(matches!(scheduler.with_draft(&other), Err(Error::Setting { key: "draft", .. })));
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_passes() {
    let tokenizer = tokenizer();
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let prompt = tokenizer.encode(&"the fox and the goose ".repeat(3), loam_tokenizer::Special::Parse).unwrap();
    // One token above all others.
    let sampling = Sampling { max_tokens: 200, logit_bias: [(40, 100.0)].into(), ..Sampling::default() };
    let request = Request { stop_ids: Some(Vec::new()), ..Request::new(prompt, sampling) };
    let steps = [0, 8].map(|guess_tokens| {
        let settings = SchedulerSettings { guess_tokens, ..SchedulerSettings::default() };
        storm_with(&generator, None, &settings, std::slice::from_ref(&request), 1)
    });
    assert!(steps[1].steps * 4 < steps[0].steps && steps[1].accepted_tokens > 100, "{steps:?}");
}

#[test]
fn models_with_a_source_write_at_the_same_time_too() {
    let tokenizer = tokenizer();
    let schema = schema(&tokenizer);
    let model = model("t5", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let mut random = Random::new(5);
    let mut requests: Vec<Request> = (0..12).map(|_| request(&mut random, &tokenizer, &schema)).collect();
    requests.iter_mut().for_each(|request| request.prompt_logprobs = false);
    let settings =
        SchedulerSettings { max_running: 4, kv_tokens: 200, step_tokens: 8, prefix_block: 4, guess_tokens: 0 };
    storm(&generator, &settings, &requests, 1);
}

#[test]
fn a_common_beginning_is_read_once_and_kept_within_the_budget() {
    let tokenizer = tokenizer();
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let settings =
        SchedulerSettings { max_running: 8, kv_tokens: 400, step_tokens: 32, prefix_block: 8, guess_tokens: 0 };
    let mut scheduler = Scheduler::new(generator.clone(), settings).unwrap();
    let prompt: Vec<u32> = (0..80).map(|i| 20 + i % 50).collect();
    let sampling = |seed| Sampling { seed, max_tokens: 6, ..Sampling::default() };
    // All at once: the later ones wait for the first to have read what they share.
    let ears: Vec<Ear> = (0..4).map(|_| Ear::default()).collect();
    for (seed, ear) in (0..).zip(&ears) {
        let request = Request { stop_ids: Some(Vec::new()), ..Request::new(prompt.clone(), sampling(seed)) };
        scheduler.submit(request, Box::new(ear.clone())).unwrap();
    }
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let cached: Vec<_> = ears.iter().map(|ear| ear.heard.lock().unwrap().cached.unwrap()).collect();
    // The last token is read in any case, so nine of ten blocks are known.
    assert_eq!(cached, [0, 72, 72, 72]);
    assert_eq!(scheduler.stats().prompt_tokens, 80 + 3 * 8);
    assert!(scheduler.stats().prefix_tokens >= 80);
    // What follows on an answer begins with prompt and answer.
    let first: Vec<u32> = ears[0].heard.lock().unwrap().tokens.iter().map(|t| t.id).collect();
    let next: Vec<u32> = prompt.iter().chain(&first).chain(&[7, 8, 9]).copied().collect();
    let ear = Ear::default();
    let request = Request { stop_ids: Some(Vec::new()), ..Request::new(next, sampling(1)) };
    scheduler.submit(request.clone(), Box::new(ear.clone())).unwrap();
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert_eq!(ear.heard.lock().unwrap().cached, Some(80));
    assert_same(&ear.heard.lock().unwrap(), &alone(&generator, &request), "the next turn");
    // A long text needs the room of what is kept.
    let long = Request::new((0..300).map(|i| 20 + i % 61).collect(), Sampling { max_tokens: 90, ..Sampling::greedy() });
    scheduler.submit(long, Box::new(Ear::default())).unwrap();
    scheduler.step();
    assert!(scheduler.stats().kv_tokens <= 400 && scheduler.stats().prefix_tokens <= 11, "{:?}", scheduler.stats());
    scheduler.forget_prefixes();
    assert_eq!(scheduler.stats().prefix_tokens, 0);
}

#[test]
fn texts_with_a_common_beginning_hold_its_pages_together() {
    let tokenizer = tokenizer();
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    // Each may come to 319 positions; of two that share nothing one would have to wait.
    let settings =
        SchedulerSettings { max_running: 8, kv_tokens: 520, step_tokens: 400, prefix_block: 8, guess_tokens: 0 };
    let mut scheduler = Scheduler::new(generator.clone(), settings).unwrap();
    let prompt: Vec<u32> = (0..300).map(|i| 20 + i % 61).collect();
    let request = |seed| {
        let sampling = Sampling { seed, max_tokens: 20, ..Sampling::default() };
        Request { stop_ids: Some(Vec::new()), ..Request::new(prompt.clone(), sampling) }
    };
    let ears: Vec<Ear> = (0..6).map(|_| Ear::default()).collect();
    for (seed, ear) in (0..).zip(&ears) {
        scheduler.submit(request(seed), Box::new(ear.clone())).unwrap();
    }
    let mut most = 0;
    while !scheduler.is_idle() {
        scheduler.step();
        most = most.max(scheduler.stats().running);
        assert!(scheduler.stats().kv_tokens <= 520, "{:?}", scheduler.stats());
    }
    // Two whole pages of 128 are shared: 256 once and 63 for each.
    assert_eq!(most, 4);
    for (seed, ear) in (0..).zip(&ears) {
        assert_same(&ear.heard.lock().unwrap(), &alone(&generator, &request(seed)), "among others");
    }
    // Nobody holds them any more.
    scheduler.forget_prefixes();
    assert_eq!(scheduler.stats().kv_tokens, 0);
}

#[test]
fn what_never_fits_is_refused_and_what_does_not_fit_yet_waits() {
    let tokenizer = tokenizer();
    let model = model("llama", &tokenizer);
    let generator = Generator::new(&model, &tokenizer);
    let settings =
        SchedulerSettings { max_running: 8, kv_tokens: 100, step_tokens: 32, prefix_block: 8, guess_tokens: 0 };
    let mut scheduler = Scheduler::new(generator.clone(), settings.clone()).unwrap();
    let sampling = |max_tokens| Sampling { max_tokens, ..Sampling::greedy() };
    let nobody = || Box::new(|_: Event| {});
    let error = scheduler.submit(Request::new(vec![5; 60], sampling(60)), nobody()).unwrap_err();
    assert!(matches!(error, Error::BudgetTooSmall { needed: 119, budget: 100 }), "{error}");
    assert!(scheduler.submit(Request::new(vec![5; 400], sampling(6)), nobody()).unwrap_err().hint().is_some());
    assert!(scheduler.submit(Request::new(Vec::new(), sampling(6)), nobody()).is_err());
    for _ in 0..3 {
        let request = Request { stop_ids: Some(Vec::new()), ..Request::new(vec![5; 30], sampling(21)) };
        scheduler.submit(request, nobody()).unwrap();
    }
    scheduler.step();
    // The second waits for what the first reads, the third for room.
    let most = (0..200)
        .map(|_| {
            scheduler.step();
            scheduler.stats().running
        })
        .max()
        .unwrap();
    assert_eq!(most, 2);
    assert!(scheduler.is_idle());
    for bad in ["max_running", "kv_tokens", "step_tokens", "prefix_block"] {
        let mut settings = settings.clone();
        match bad {
            "max_running" => settings.max_running = 0,
            "kv_tokens" => settings.kv_tokens = 0,
            "prefix_block" => settings.prefix_block = 24,
            _ => settings.step_tokens = 0,
        }
        let error = Scheduler::new(generator.clone(), settings).unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
}
