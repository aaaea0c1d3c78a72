//! The steps against the reference implementations, and the rules they keep together.

use super::*;
use loam_chat::SamplerPreset;
use loam_testkit::samplers;

fn probabilities(logits: &[f32], seen: &[u32], sampling: &Sampling) -> Vec<f32> {
    Sampler::plain(sampling).probabilities(logits, seen, 0).unwrap()
}

#[test]
fn every_setting_gives_the_probabilities_of_its_engine() {
    let table = samplers();
    for case in &table.cases {
        let sampling: Sampling = serde_json::from_value(case.settings.clone()).unwrap();
        sampling.validate().unwrap();
        let mut sampler = Sampler { breakers: Breakers::of(&case.breakers), ..Sampler::plain(&sampling) };
        let found = sampler.probabilities(&table.logits[&case.logits], &case.seen, case.written as u64).unwrap();
        for (token, (a, b)) in found.iter().zip(&case.probabilities).enumerate() {
            assert!((a - b).abs() < 1e-6 && (*a == 0.0) == (*b == 0.0), "{}: token {token}: {a} and {b}", case.name);
        }
    }
}

#[test]
fn mirostat_follows_the_surprise_of_what_was_chosen() {
    let table = samplers();
    for run in &table.mirostat {
        let sampling: Sampling = serde_json::from_value(run.settings.clone()).unwrap();
        let mut sampler = Sampler::plain(&sampling);
        for (number, step) in run.steps.iter().enumerate() {
            assert!((sampler.mirostat.unwrap().mu - step.mu).abs() < 1e-5, "{sampling:?}, step {number}");
            let left = sampler.candidates(&table.logits[&step.logits], &[], number as u64).unwrap();
            let found = left.probabilities();
            let expected: Vec<f64> = step.probabilities.iter().copied().filter(|p| *p > 0.0).collect();
            assert_eq!(found.len(), expected.len(), "{sampling:?}, step {number}");
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{sampling:?}, step {number}");
            let at = left.list.iter().position(|c| c.token == step.token).unwrap();
            sampler.mirostat.as_mut().unwrap().learn(found[at]);
        }
        assert!((sampler.mirostat.unwrap().mu - run.mu).abs() < 1e-5, "{sampling:?}");
    }
}

#[test]
fn a_text_under_mirostat_comes_near_its_target_surprise() {
    let logits: Vec<f32> = (1..=2000).map(|rank| -(rank as f32).ln()).collect();
    for version in [1, 2] {
        let sampling = Sampling { mirostat: version, mirostat_tau: 3.0, seed: 11, ..Sampling::default() };
        let mut sampler = Sampler::plain(&sampling);
        let surprise: Vec<f64> = (0..600)
            .map(|step| {
                let found = sampler.probabilities(&logits, &[], step).unwrap();
                let token = sampler.choose(&logits, &[], step).unwrap().token;
                -f64::from(found[token as usize]).log2()
            })
            .collect();
        let mean = surprise[100..].iter().sum::<f64>() / 500.0;
        assert!((mean - 3.0).abs() < 0.15, "version {version}: {mean} bits");
    }
}

#[test]
fn xtc_drops_the_likely_as_often_as_it_says() {
    let sampling = Sampling { xtc_probability: 0.3, xtc_threshold: 0.2, seed: 5, ..Sampling::default() };
    let mut sampler = Sampler::plain(&sampling);
    let dropped = (0..4000).filter(|step| {
        let found = sampler.probabilities(&[2.0, 1.9, 1.8, 0.0], &[], *step).unwrap();
        assert_eq!(found[0] == 0.0, found[1] == 0.0);
        assert!(found[2] > 0.0 && found[3] > 0.0);
        found[0] == 0.0
    });
    let share = dropped.count() as f64 / 4000.0;
    assert!((share - 0.3).abs() < 0.04, "{share}");
}

#[test]
fn no_end_token_comes_too_early_unless_nothing_else_can() {
    let sampling = Sampling { min_tokens: 2, ..Sampling::greedy() };
    let mut sampler = Sampler { stop_ids: vec![1], ..Sampler::plain(&sampling) };
    let chosen = [0, 1, 2].map(|step| sampler.choose(&[0.0, 5.0, 1.0], &[], step).unwrap().token);
    assert_eq!(chosen, [2, 2, 1]);
    assert_eq!(sampler.choose(&[f32::NEG_INFINITY, 5.0], &[], 0).unwrap().token, 1);
}

#[test]
fn a_bias_of_minus_infinity_forbids() {
    let sampling = Sampling { logit_bias: [(2, f32::NEG_INFINITY)].into(), ..Sampling::default() };
    assert_eq!(probabilities(&[0.0, 0.0, 9.0], &[], &sampling), [0.5, 0.5, 0.0]);
}

#[test]
fn settings_that_need_a_sequence_are_refused_without_one() {
    for sampling in
        [Sampling { mirostat: 2, ..Sampling::default() }, Sampling { dry_multiplier: 1.0, ..Sampling::default() }]
    {
        assert!(choose(&[0.0, 1.0], &[], &sampling, 0).unwrap_err().to_string().contains("Sampler"));
    }
}

#[test]
fn alternatives_are_the_most_likely_tokens_of_the_model() {
    let logits = [1.0, 3.0, f32::NAN, 3.0, 2.0];
    let top = top_logprobs(&logits, 3);
    assert_eq!(top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 4]);
    for (token, found) in top {
        assert!((f64::from(found) - logprob(&logits, token)).abs() < 1e-6);
    }
    assert_eq!(top_logprobs(&logits, 9).len(), 4);
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    let sampling = Sampling { seed: 7, ..Sampling::default() };
    let expected = probabilities(&logits, &[], &sampling);
    let n = 20_000;
    let mut counts = [0_u32; 4];
    for step in 0..n {
        counts[choose(&logits, &[], &sampling, step).unwrap().token as usize] += 1;
    }
    for (count, p) in counts.iter().zip(expected) {
        // Five standard errors.
        assert!((f64::from(*count) / n as f64 - f64::from(p)).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{counts:?}");
    }
}

#[test]
fn the_draw_depends_on_seed_and_step_and_on_nothing_else() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
    let row = |seed| -> Vec<u32> {
        let sampling = Sampling { seed, ..Sampling::default() };
        (0..20).map(|step| choose(&logits, &[], &sampling, step).unwrap().token).collect()
    };
    assert_eq!(row(1), row(1));
    assert_ne!(row(1), row(2));
    assert!(row(1).windows(2).any(|w| w[0] != w[1]));
}

#[test]
fn greedy_takes_the_lowest_id_among_equals_and_top_k_of_llamacpp_keeps_the_lowest_ids() {
    let logits = [1.0, 3.0, 3.0, 3.0];
    assert_eq!(choose(&logits, &[], &Sampling::greedy(), 0).unwrap().token, 1);
    let two = Sampling { top_k: 2, preset: SamplerPreset::LlamaCpp, ..Sampling::default() };
    let two = probabilities(&logits, &[], &two);
    assert_eq!(two, [0.0, 0.5, 0.5, 0.0]);
}

#[test]
fn the_log_probability_is_the_models_own_whatever_the_settings() {
    let logits = [0.5, -1.0, 2.0];
    let choice = choose(&logits, &[2], &Sampling { repetition_penalty: 1.5, ..Sampling::greedy() }, 0).unwrap();
    let total: f64 = logits.iter().map(|&x: &f32| f64::from(x).exp()).sum();
    assert!((f64::from(choice.logprob) - (2.0 - total.ln())).abs() < 1e-6);
    assert!((logprob(&logits, 1) - (-1.0 - total.ln())).abs() < 1e-9);
}

#[test]
fn logits_that_are_not_numbers_never_win_and_all_of_them_is_an_error() {
    let some = [f32::NAN, 0.0, f32::NEG_INFINITY];
    for step in 0..20 {
        let choice = choose(&some, &[], &Sampling::default(), step).unwrap();
        assert_eq!((choice.token, choice.logprob), (1, 0.0));
    }
    let error = choose(&[f32::NAN; 3], &[], &Sampling::default(), 4).unwrap_err();
    assert!(error.to_string().contains("no finite logit") && error.hint().is_some());
}
