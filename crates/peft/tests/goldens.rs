//! Adapters of Python's `peft` and of AdapterHub (`scripts/goldens_peft.py`): opened here they compute the same, trained here
//! they have the same gradients, and merged they are the same plain model.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use loam_models::{Forward, Hooks, Input, LanguageModel};
use loam_peft::{Adapter, AdapterSet, Combination, Config, Method, Origin, RankAllocator, combine, merge};
use loam_tensor::{Tensor, no_grad};
use loam_testkit::{Golden, assert_close, golden_dir, workspace_root};

/// Largest difference of a logit.
const LOGITS: f32 = 2e-5;
/// The same where PyTorch takes singular vectors in f32, which here are taken in f64.
const SINGULAR: f32 = 1e-4;
/// The same once weights were changed, which rounds.
const MERGED: f32 = 1e-4;
/// Largest difference of a gradient, over the largest of its tensor.
const GRADIENTS: f32 = 1e-4;

fn dir(case: &str) -> PathBuf {
    workspace_root().join("crates/testkit/peft").join(case)
}

fn tolerance(case: &str) -> f32 {
    if case.contains("pissa") { SINGULAR } else { LOGITS }
}

fn golden(case: &str) -> Golden {
    Golden::read(&dir(case).join("golden.safetensors"))
}

fn cases() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(workspace_root().join("crates/testkit/peft"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["combine", "adalora-steps"].contains(&name.as_str()))
        .collect();
    names.sort();
    assert!(names.len() >= 30, "{names:?}");
    names
}

fn base(golden: &Golden) -> LanguageModel {
    LanguageModel::open(golden_dir(golden.metadata("base"))).unwrap()
}

fn tokens(golden: &Golden) -> Vec<u32> {
    golden.integers("tokens").values.iter().map(|&id| id as u32).collect()
}

fn logits(model: &LanguageModel, tokens: &[u32], hooks: Hooks) -> Vec<f32> {
    no_grad(|| model.logits(&Input::rows(tokens, 2), Forward { hooks, ..Forward::default() }).unwrap().to_vec())
}

/// Values of the training parameters, as the golden file has them.
fn set_parameters(adapter: &Adapter, golden: &Golden, prefix: &str) {
    for (name, parameter) in adapter.parameters().iter().filter(|(_, parameter)| parameter.is_trainable()) {
        let values = golden.floats(&format!("{prefix}.{name}"));
        assert_eq!(values.shape, parameter.shape()[..], "{name}");
        parameter.set(&values.values);
    }
}

/// A fresh adapter with the golden values: what training has, networks of prompts included.
fn fresh(model: &LanguageModel, case: &str, golden: &Golden) -> Adapter {
    let config = Config::open(&dir(case)).unwrap();
    let adapter = Adapter::new(model, &config, Origin::default()).unwrap();
    set_parameters(&adapter, golden, "parameter");
    if matches!(config.method, Method::Vera(_)) {
        let saved = Adapter::open(model, &dir(case)).unwrap();
        for ((name, own), (_, theirs)) in adapter.parameters().iter().zip(saved.parameters()) {
            if name.starts_with("base_model.vera_") {
                own.set(&theirs.to_vec());
            }
        }
    }
    adapter
}

#[test]
fn adapters_of_peft_and_adapterhub_open_and_give_the_same_logits() {
    for case in cases() {
        let golden = golden(&case);
        let model = base(&golden);
        let plain = logits(&model, &tokens(&golden), Hooks::On);
        let adapter = Arc::new(Adapter::open(&model, &dir(&case)).unwrap_or_else(|e| panic!("{case}: {e}")));
        let set = AdapterSet::attach(&model, vec![adapter]);
        let with = logits(&model, &tokens(&golden), Hooks::On);
        assert_close(&format!("{case}: logits"), &with, &golden.floats("logits").values, tolerance(&case));
        assert!(plain.iter().zip(&with).any(|(a, b)| (a - b).abs() > 1e-2), "{case}: the adapter does nothing");
        assert_eq!(logits(&model, &tokens(&golden), Hooks::Off), plain, "{case}: adapters off is the model itself");
        set.detach();
        assert_eq!(logits(&model, &tokens(&golden), Hooks::On), plain, "{case}: detached is the model itself");
    }
}

#[test]
fn every_adapter_parameter_has_pytorchs_gradient_and_their_number_is_the_same() {
    for case in cases() {
        let golden = golden(&case);
        let targets: Vec<i32> = golden.integers("targets").values.iter().map(|&id| id as i32).collect();
        let counted = targets.iter().filter(|&&target| target >= 0).count();
        for recompute in [false, true] {
            let model = base(&golden);
            model.parameters().iter().for_each(|(_, parameter)| parameter.set_trainable(false));
            let adapter = Arc::new(fresh(&model, &case, &golden));
            assert_eq!(adapter.num_parameters().to_string(), golden.metadata("trained"), "{case}");
            let set = AdapterSet::attach(&model, vec![adapter.clone()]);
            let forward = Forward { recompute, ..Forward::default() };
            let tokens = tokens(&golden);
            let loss = model.loss(&Input::rows(&tokens, 2), &targets, 1.0 / counted as f32, forward).unwrap();
            loss.backward();
            let mut compared = 0;
            for (name, parameter) in adapter.parameters().iter().filter(|(_, parameter)| parameter.is_trainable()) {
                let expected = golden.floats(&format!("gradient.{name}"));
                let got = parameter.grad().map_or(vec![0.0; parameter.count()], |grad| grad.f32().to_vec());
                let largest = expected.values.iter().fold(1e-4f32, |largest, x| largest.max(x.abs()));
                assert_close(&format!("{case}: gradient of {name}"), &got, &expected.values, GRADIENTS * largest);
                compared += 1;
            }
            assert_eq!(compared, golden.gradients().count(), "{case}");
            assert!(
                model.parameters().iter().all(|(_, parameter)| parameter.grad().is_none()),
                "{case}: the base is frozen"
            );
            let with = logits(&model, &tokens, Hooks::On);
            assert_close(
                &format!("{case}: logits of training"),
                &with,
                &golden.floats("logits").values,
                tolerance(&case),
            );
            set.detach();
        }
    }
}

#[test]
fn a_merged_adapter_is_the_plain_model_of_peft_and_unmerging_is_exact() {
    let mut merged_cases = 0;
    for case in cases() {
        let golden = golden(&case);
        let model = base(&golden);
        let before: Vec<Vec<f32>> = model.parameters().iter().map(|(_, parameter)| parameter.to_vec()).collect();
        let adapter = Adapter::open(&model, &dir(&case)).unwrap();
        if !golden.has("merged") {
            let error = merge(&model, &adapter).err().unwrap().to_string();
            assert!(error.contains("cannot be merged"), "{case}: {error}");
            continue;
        }
        let merged = merge(&model, &adapter).unwrap_or_else(|e| panic!("{case}: {e}"));
        merged_cases += 1;
        let got = logits(&model, &tokens(&golden), Hooks::On);
        assert_close(&format!("{case}: merged"), &got, &golden.floats("merged").values, MERGED);
        assert_close(&format!("{case}: merged beside unmerged"), &got, &golden.floats("logits").values, MERGED);
        merged.unmerge();
        let after: Vec<Vec<f32>> = model.parameters().iter().map(|(_, parameter)| parameter.to_vec()).collect();
        assert!(before == after, "{case}: unmerging restores every bit");
    }
    assert!(merged_cases >= 18, "{merged_cases}");
}

#[test]
fn what_is_saved_opens_again_with_the_same_logits() {
    for case in cases() {
        let golden = golden(&case);
        let model = base(&golden);
        let out = tempfile::tempdir().unwrap();
        fresh(&model, &case, &golden).save(&model, &out.path().join("adapter")).unwrap();
        let again =
            Arc::new(Adapter::open(&model, &out.path().join("adapter")).unwrap_or_else(|e| panic!("{case}: {e}")));
        let set = AdapterSet::attach(&model, vec![again]);
        let got = logits(&model, &tokens(&golden), Hooks::On);
        assert_close(&format!("{case}: saved"), &got, &golden.floats("logits").values, tolerance(&case));
        set.detach();
    }
}

#[test]
fn methods_that_start_at_zero_start_as_the_model_itself() {
    let mut identities = 0;
    for case in cases() {
        // Random on purpose, or of the kind that nothing cancels.
        let changes = ["regex", "prefix", "prompt", "p-tuning", "houlsby", "pfeiffer"];
        if changes.iter().any(|kind| case.contains(kind)) {
            continue;
        }
        let golden = golden(&case);
        let model = base(&golden);
        let plain = logits(&model, &tokens(&golden), Hooks::Off);
        let config = Config::open(&dir(&case)).unwrap();
        let adapter = Arc::new(Adapter::new(&model, &config, Origin { seed: 7, ..Origin::default() }).unwrap());
        let set = AdapterSet::attach(&model, vec![adapter]);
        assert_close(&format!("{case}: identity"), &logits(&model, &tokens(&golden), Hooks::On), &plain, 1e-6);
        set.detach();
        identities += 1;
    }
    assert!(identities >= 17, "{identities}");
}

#[test]
fn combined_adapters_are_those_of_peft() {
    let golden = golden("combine");
    let model = base(&golden);
    let [first, second] = ["first", "second"].map(|name| Adapter::open(&model, &dir("combine").join(name)).unwrap());
    let ways = [
        ("linear", Combination::Linear),
        ("cat", Combination::Cat),
        ("svd", Combination::Svd { rank: Some(2) }),
        ("ties", Combination::Ties { density: 0.5 }),
        ("magnitude_prune", Combination::MagnitudePrune { density: 0.4 }),
        ("dare_linear", Combination::DareLinear { density: 1.0, seed: 1 }),
        ("dare_ties", Combination::DareTies { density: 1.0, seed: 1 }),
    ];
    for (name, way) in ways {
        let combined = combine(&model, &[(&first, 0.7), (&second, -0.4)], way).unwrap();
        let set = AdapterSet::attach(&model, vec![Arc::new(combined)]);
        let got = logits(&model, &tokens(&golden), Hooks::On);
        assert_close(name, &got, &golden.floats(&format!("combined.{name}")).values, MERGED);
        set.detach();
    }
    // What is dropped at random is made up for by what stays: many draws are near the whole.
    let whole = logits_of(&model, &combine(&model, &[(&first, 0.5)], Combination::Linear).unwrap(), &golden);
    let mut sum = vec![0.0f64; whole.len()];
    let draws = 40;
    for seed in 0..draws {
        let how = Combination::DareLinear { density: 0.8, seed };
        let one = logits_of(&model, &combine(&model, &[(&first, 0.5)], how).unwrap(), &golden);
        assert!(one != whole);
        sum.iter_mut().zip(one).for_each(|(s, x)| *s += f64::from(x));
    }
    let plain = logits(&model, &tokens(&golden), Hooks::Off);
    let gap = |a: &dyn Fn(usize) -> f64| (0..whole.len()).map(|i| (a(i) - f64::from(whole[i])).abs()).sum::<f64>();
    let mean = gap(&|i| sum[i] / draws as f64);
    assert!(mean < 0.3 * gap(&|i| f64::from(plain[i])), "{mean}");
}

fn logits_of(model: &LanguageModel, adapter: &Adapter, golden: &Golden) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    adapter.save(model, &dir.path().join("a")).unwrap();
    let set = AdapterSet::attach(model, vec![Arc::new(Adapter::open(model, &dir.path().join("a")).unwrap())]);
    let got = logits(model, &tokens(golden), Hooks::On);
    set.detach();
    got
}

#[test]
fn rows_of_a_batch_go_through_adapters_of_their_own() {
    let golden = golden("combine");
    let model = base(&golden);
    let adapters: Vec<Arc<Adapter>> = ["first", "second"]
        .map(|name| Arc::new(Adapter::open(&model, &dir("combine").join(name)).unwrap()))
        .into_iter()
        .chain([Arc::new(Adapter::open(&model, &dir("llama-houlsby")).unwrap())])
        .collect();
    let set = AdapterSet::attach(&model, adapters);
    let ids = tokens(&golden);
    let half = ids.len() / 2;
    let alone: Vec<Vec<f32>> = (0..3)
        .map(|number| {
            set.activate(number).unwrap();
            logits(&model, &ids, Hooks::On)
        })
        .collect();
    assert_close("first", &alone[0], &golden.floats("first").values, LOGITS);
    assert_close("second", &alone[1], &golden.floats("second").values, LOGITS);
    let plain = logits(&model, &ids, Hooks::Off);
    for (a, b) in [(Some(0), Some(1)), (Some(2), Some(0)), (None, Some(1)), (Some(1), Some(1)), (None, None)] {
        let mixed = logits(&model, &ids, set.rows(&[a, b]).unwrap());
        let of = |id: Option<usize>| id.map_or(&plain, |id| &alone[id]);
        let row = plain.len() / 2;
        // To the bit: a row does not depend on those beside it.
        assert!(mixed[..row] == of(a)[..row] && mixed[row..] == of(b)[row..], "{a:?} {b:?}");
    }
    assert!(set.rows(&[Some(3)]).unwrap_err().to_string().contains("no adapter 3"));
    let wrong = Forward { hooks: set.rows(&[Some(0)]).unwrap(), ..Forward::default() };
    assert!(model.logits(&Input::rows(&ids[..2 * half], 2), wrong).unwrap_err().to_string().contains("batch of 2"));
    let mut all = set.detach();
    all.push(Arc::new(Adapter::open(&model, &dir("llama-prompt")).unwrap()));
    let set = AdapterSet::attach(&model, all);
    assert!(set.rows(&[Some(0), Some(3)]).unwrap_err().to_string().contains("soft prompts"));
    set.detach();
}

#[test]
fn step_by_step_decoding_with_an_adapter_is_the_whole_pass() {
    for case in ["llama-prefix", "gpt2-prefix", "llama-prompt", "gpt2-lora", "llama-tokens", "llama-pfeiffer"] {
        let golden = golden(case);
        let model = base(&golden);
        let set = AdapterSet::attach(&model, vec![Arc::new(Adapter::open(&model, &dir(case)).unwrap())]);
        let ids = &tokens(&golden)[..9];
        let whole = no_grad(|| model.logits(&Input::rows(ids, 1), Forward::default()).unwrap().to_vec());
        let mut cache = model.new_cache();
        let mut steps = Vec::new();
        for part in [&ids[..4], &ids[4..5], &ids[5..]] {
            let forward = Forward { cache: Some(&mut cache), ..Forward::default() };
            steps.extend(no_grad(|| model.logits(&Input::rows(part, 1), forward).unwrap().to_vec()));
        }
        assert_close(case, &steps, &whole, 1e-5);
        set.detach();
    }
}

#[test]
fn packed_documents_each_have_the_prompt_in_front() {
    for case in ["llama-prefix", "llama-prompt", "gpt2-prompt"] {
        let golden = golden(case);
        let model = base(&golden);
        let set = AdapterSet::attach(&model, vec![Arc::new(Adapter::open(&model, &dir(case)).unwrap())]);
        let ids = &tokens(&golden)[..9];
        let alone = |ids: &[u32]| no_grad(|| model.logits(&Input::rows(ids, 1), Forward::default()).unwrap().to_vec());
        let positions: Vec<u32> = (0..4).chain(0..5).collect();
        let packed = Input {
            positions: Some(&positions),
            segments: Some(vec![0, 0, 0, 0, 1, 1, 1, 1, 1].into()),
            ..Input::rows(ids, 1)
        };
        let got = no_grad(|| model.logits(&packed, Forward::default()).unwrap().to_vec());
        let expected = [alone(&ids[..4]), alone(&ids[4..])].concat();
        assert_close(case, &got, &expected, 1e-5);
        set.detach();
    }
}

#[test]
fn adalora_takes_ranks_away_step_by_step_as_peft_does() {
    let golden = golden("adalora-steps");
    let model = base(&golden);
    model.parameters().iter().for_each(|(_, parameter)| parameter.set_trainable(false));
    let mut config = Config::open(&dir("adalora-steps")).unwrap();
    let Method::AdaLora(settled) = &config.method else { panic!("another method") };
    let expected: BTreeMap<String, Vec<bool>> = settled.rank_pattern.iter().cloned().collect();
    assert_eq!(expected.values().flatten().filter(|left| **left).count(), 4, "four layers, one rank each on average");
    if let Method::AdaLora(adalora) = &mut config.method {
        adalora.rank_pattern.clear();
    }
    let adapter = Arc::new(Adapter::new(&model, &config, Origin::default()).unwrap());
    set_parameters(&adapter, &golden, "start");
    let allocator = RankAllocator::new(&adapter).unwrap();
    let set = AdapterSet::attach(&model, vec![adapter.clone()]);
    // PEFT's loss looks at the next token of what it is given: the last position has none.
    let mut targets: Vec<i32> = golden.integers("targets").values.iter().map(|&id| id as i32).collect();
    (targets[8], targets[17]) = (-100, -100);
    let counted = targets.iter().filter(|&&target| target >= 0).count();
    let tokens = tokens(&golden);
    for (step, expected) in (1..).zip(&golden.floats("losses").values) {
        let scale = 1.0 / counted as f32;
        let likelihood = model.loss(&Input::rows(&tokens, 2), &targets, scale, Forward::default()).unwrap();
        let loss: Tensor = &likelihood + &allocator.regularisation();
        assert_close(&format!("loss of step {step}"), &[loss.item()], &[*expected], 1e-4);
        loss.backward();
        let gradients = allocator.gradients();
        for (_, parameter) in adapter.parameters() {
            parameter.step(|value, grad| value.f32_mut().iter_mut().zip(grad.f32()).for_each(|(x, g)| *x -= 0.5 * g));
        }
        allocator.after_step(step, &gradients);
        adapter.parameters().iter().for_each(|(_, parameter)| parameter.clear_grad());
    }
    for (name, parameter) in adapter.parameters() {
        assert_close(name, &parameter.to_vec(), &golden.floats(&format!("end.{name}")).values, 1e-4);
    }
    let Method::AdaLora(left) = allocator.settled(&config).method else { panic!("another method") };
    assert_eq!(left.rank_pattern.into_iter().collect::<BTreeMap<_, _>>(), expected);
    set.detach();
    // The file has only the ranks that are left.
    let saved = Arc::new(Adapter::open(&model, &dir("adalora-steps")).unwrap());
    let set = AdapterSet::attach(&model, vec![saved]);
    let got = no_grad(|| model.logits(&Input::rows(&tokens, 2), Forward::default()).unwrap().to_vec());
    assert_close("settled", &got, &golden.floats("logits").values, MERGED);
    set.detach();
}
