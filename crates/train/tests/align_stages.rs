//! Every stage of alignment, on the garden's data: it learns, resumes to the same bytes, and leaves a model that opens.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use common::Witness;
use loam_data::Garden;
use loam_data::garden::Sizes;
use loam_models::{LanguageModel, Task};
use loam_train::{Ending, Options, Outcome, Recipe, Result, train};
use tempfile::TempDir;

/// The garden's files and a tiny model that has read them, made once.
static GARDEN: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let sizes =
        Sizes { train_bytes: 40_000, valid_bytes: 4000, chats: 20, questions: 10, tasks: 60, tasks_held_out: 16 };
    Garden::new(1).write(dir.path(), sizes).unwrap();
    let text = format!(
        "stage = \"pretrain\"\n[model]\nfamily = \"llama\"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
         num_attention_heads = 2\nnum_key_value_heads = 2\nmax_position_embeddings = 160\n[tokenizer]\nvocab_size = 400\n\
         [data]\ntrain = [\"{}/train.txt\"]\nseq_len = 96\n[train]\nprecision = \"f32\"\nlr = 1e-2\nbatch = 8\nsteps = 30\n\
         sample_every = 0\n",
        dir.path().display()
    );
    let recipe = Recipe::parse(&text, Path::new("base.toml")).unwrap();
    let model = run_in(dir.path(), &recipe, "base", false, &mut Witness::default()).unwrap().model.unwrap();
    (dir, model)
});

fn run_in(base: &Path, recipe: &Recipe, to: &str, resume: bool, witness: &mut Witness) -> Result<Outcome> {
    let options = Options {
        dir: Some(base.join(to)),
        runs: base.join("runs"),
        name: "test".into(),
        resume,
        cache_dir: base.join("cache"),
        stop: witness.stop.clone(),
        observer: witness,
    };
    train(recipe, Path::new("test.toml"), options)
}

/// A recipe over a file of the garden; `more` comes at its end.
fn recipe(stage: &str, file: &str, steps: u64, more: &str) -> Recipe {
    let (garden, model) = (GARDEN.0.path().display(), GARDEN.1.display());
    let text = format!(
        "stage = \"{stage}\"\n[model]\npath = \"{model}\"\n[data]\ntrain = [\"{garden}/{file}-train.jsonl\"]\n\
         validation = [\"{garden}/{file}-valid.jsonl\"]\n[train]\nprecision = \"f32\"\nlr = 3e-3\nbatch = 8\n\
         micro_batch = 4\nsteps = {steps}\nsample_every = 0\nclip = 1.0\n{more}\n"
    );
    Recipe::parse(&text, Path::new("test.toml")).unwrap()
}

/// Trains, interrupts, resumes; the weights and metrics must be the same. Returns the model, the losses and the witness.
fn check(stage: &str, file: &str, more: &str) -> (PathBuf, Witness, TempDir) {
    check_recipe(&recipe(stage, file, 40, more))
}

fn check_recipe(recipe: &Recipe) -> (PathBuf, Witness, TempDir) {
    let (dir, stage) = (tempfile::tempdir().unwrap(), recipe.stage.name());
    let mut witness = Witness::default();
    let whole = run_in(dir.path(), recipe, "whole", false, &mut witness).unwrap();
    assert_eq!(whole.summary.ending, Ending::Finished);
    let part = run_in(dir.path(), recipe, "parts", false, &mut Witness::stopping_at(5)).unwrap();
    assert_eq!(part.summary.ending, Ending::Interrupted);
    let mut rest = Witness::default();
    let resumed = run_in(dir.path(), recipe, "parts", true, &mut rest).unwrap();
    let model = |outcome: &Outcome| outcome.model.clone().unwrap();
    let weights = |outcome: &Outcome| {
        let names = ["model.safetensors", "adapter_model.safetensors"];
        names.iter().find_map(|name| fs::read(model(outcome).join(name)).ok()).unwrap()
    };
    assert!(weights(&whole) == weights(&resumed), "{stage}: the weights differ after an interruption");
    assert_eq!(rest.rows.first().map(|row| row.step), Some(6));
    for (a, b) in witness.rows[5..].iter().zip(&rest.rows) {
        assert_eq!((a.loss.to_bits(), &a.metrics), (b.loss.to_bits(), &b.metrics), "{stage}: step {}", a.step);
    }
    (model(&whole), witness, dir)
}

#[test]
fn every_stage_of_preferences_learns_and_resumes_to_the_same_bytes() {
    for (stage, more) in [
        ("dpo", "[preference]\nloss = [\"sigmoid\", \"sft\"]\nloss_weights = [1.0, 0.1]"),
        ("kto", ""),
        ("orpo", ""),
        ("simpo", ""),
        ("cpo", ""),
    ] {
        let (model, witness, _dir) = check(stage, "preferences", more);
        let metric = |step: usize, name: &str| witness.rows[step].metrics[name];
        if matches!(stage, "dpo" | "kto") {
            // Where the policy is the reference, the reference was scored right.
            assert!(metric(0, "rewards/margins").abs() < 1e-4, "{stage}: {:?}", witness.rows[0].metrics);
        }
        assert!(metric(39, "rewards/margins") > metric(0, "rewards/margins"), "{stage}: {:?}", witness.rows[39]);
        let last = witness.evaluations.last().unwrap();
        assert!(last.metrics.contains_key("eval_rewards/chosen"), "{:?}", last.metrics);
        assert_eq!(LanguageModel::open(model).unwrap().spec().head.task, Task::LanguageModel);
    }
}

#[test]
fn adapters_learn_preferences_and_rewards_against_the_model_without_them() {
    let peft = "[peft]\nmethod = \"lora\"\nr = 4\ntargets = [\"all-linear\"]";
    let (adapter, witness, _dir) = check("dpo", "preferences", peft);
    let margins = |step: usize| witness.rows[step].metrics["rewards/margins"];
    assert!(margins(0).abs() < 1e-4 && margins(39) > 0.01, "{} and {}", margins(0), margins(39));
    assert!(adapter.join("adapter_config.json").is_file() && !adapter.join("model.safetensors").exists());
    let reward = "reward = { kind = \"match\", pattern = \"[0-9]\" }\nmax_new_tokens = 8";
    for (stage, more) in [("grpo", "samples = 4\nbeta = 0.04"), ("ppo", "iterations = 2")] {
        let (_, witness, dir) = check(stage, "prompts", &format!("{peft}\n[rl]\n{reward}\n{more}"));
        assert!(witness.rows.iter().all(|row| row.metrics["sampling/logp_difference"] < 1e-5), "{stage}");
        if stage == "ppo" {
            // The value head is trained, and resumed, beside the adapter.
            let steps: Vec<_> = fs::read_dir(dir.path().join("whole/checkpoints")).unwrap().flatten().collect();
            let file = steps.iter().map(|step| step.path().join("adapter.safetensors")).find(|file| file.is_file());
            let weights = loam_formats::SafeTensors::open(file.unwrap()).unwrap();
            assert!(weights.get("value_head.weight").unwrap().to_f32().unwrap().iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn an_adapter_is_trained_also_where_the_first_answers_all_got_the_same_reward() {
    let dir = tempfile::tempdir().unwrap();
    // The first two batches teach nothing; after them every second answer is a good one.
    let judge = dir.path().join("judge.sh");
    let script = r#"n=0; while read -r line; do n=$((n+1)); echo "{\"reward\": $((n > 16 ? n % 2 : 1))}"; done"#;
    fs::write(&judge, script).unwrap();
    let reward = format!("reward = {{ kind = \"program\", command = [\"sh\", \"{}\"] }}", judge.display());
    let more =
        format!("eval_every = 0\n[peft]\nmethod = \"lora\"\nr = 4\n[rl]\n{reward}\nsamples = 4\nmax_new_tokens = 8");
    let mut witness = Witness::default();
    run_in(dir.path(), &recipe("grpo", "prompts", 6, &more), "run", false, &mut witness).unwrap();
    let norms: Vec<bool> = witness.rows.iter().map(|row| row.grad_norm > 0.0).collect();
    assert_eq!(norms, [false, false, true, true, true, true]);
}

#[test]
fn reference_log_probabilities_are_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe("dpo", "preferences", 1, "[preference]\nbeta = 0.2");
    let said = |to: &str| {
        let mut witness = Witness::default();
        run_in(dir.path(), &recipe, to, false, &mut witness).unwrap();
        witness.messages.iter().filter(|message| message.starts_with("scoring")).count()
    };
    assert_eq!((said("first"), said("second")), (2, 0));
}

#[test]
fn a_reward_model_is_a_classifier_with_one_label_and_rewards_answers() {
    let (model, witness, dir) = check("reward", "preferences", "[preference]\ncentering = 0.01");
    assert!(witness.evaluations.last().unwrap().metrics.contains_key("eval_accuracy"));
    let opened = LanguageModel::open(&model).unwrap();
    assert_eq!((opened.spec().head.task, opened.spec().head.num_labels), (Task::SequenceClassification, 1));
    let weights = loam_formats::SafeTensors::open(model.join("model.safetensors")).unwrap();
    assert_eq!(weights.get("score.weight").unwrap().shape, [1, 32]);
    let more = format!(
        "[rl]\nreward = {{ kind = \"model\", path = \"{}\" }}\nsamples = 2\nmax_new_tokens = 8\n",
        model.display()
    );
    let mut witness = Witness::default();
    run_in(dir.path(), &recipe("rloo", "prompts", 2, &more), "rl", false, &mut witness).unwrap();
    assert!(witness.rows[0].metrics["reward_std"] > 0.0, "{:?}", witness.rows[0].metrics);
}

#[test]
fn every_stage_of_rewards_resumes_to_the_same_bytes_and_sampler_and_trainer_agree() {
    // Any digit is right: chance alone gives some rewards.
    let reward = "reward = { kind = \"match\", pattern = \"[0-9]\" }";
    for (stage, more) in [
        ("grpo", "samples = 4\nbeta = 0.04\nnormalisation = \"dr_grpo\""),
        ("grpo", "samples = 4\nnormalisation = \"gspo\"\nminibatches = 2\niterations = 2"),
        ("rloo", "samples = 2\ntemperature = 0.8"),
        ("reinforce", "samples = 2\nbeta = 0.01"),
        ("ppo", "iterations = 2\nminibatches = 2\ntarget_kl = 0.5\nmissing_end_penalty = 0.5"),
    ] {
        let more = format!("[rl]\n{reward}\nmax_new_tokens = 8\n{more}");
        let (model, witness, _dir) = check(stage, "prompts", &more);
        for row in &witness.rows {
            let difference = row.metrics["sampling/logp_difference"];
            assert!(difference < 1e-5, "{stage}: step {}: {difference:e}", row.step);
            assert!(row.metrics["completions/mean_length"] <= 8.0);
        }
        let last = witness.evaluations.last().unwrap();
        assert_eq!(last.metrics["eval_reward"], -last.eval_loss, "{stage}");
        LanguageModel::open(model).unwrap();
    }
}

/// A recipe whose answers are the chosen ones of the garden's preferences.
fn on_chosen(stage: &str, steps: u64, more: &str) -> Recipe {
    let mut recipe = recipe(stage, "preferences", steps, more);
    recipe.data.fields.insert("completion".into(), "chosen".into());
    recipe
}

#[test]
fn tuning_with_noise_on_the_embeddings_resumes_to_the_same_bytes_and_is_evaluated_without() {
    let (_, noisy, _dir) = check_recipe(&on_chosen("sft", 40, "neftune_alpha = 5.0"));
    let (_, plain, _dir) = check_recipe(&on_chosen("sft", 40, ""));
    assert_ne!(noisy.rows[0].loss, plain.rows[0].loss);
    assert!(plain.rows[39].loss < plain.rows[0].loss && noisy.rows[39].loss < noisy.rows[0].loss);
    // Before the first step the weights are the same: what is measured then is, too.
    let before = |alpha: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut recipe = on_chosen("sft", 1, alpha);
        recipe.train.lr = Some(1e-30);
        run_in(dir.path(), &recipe, "run", false, &mut Witness::default())
            .unwrap()
            .summary
            .evaluation
            .unwrap()
            .eval_loss
    };
    assert_eq!(before("neftune_alpha = 5.0"), before(""));
}

#[test]
fn a_student_comes_near_its_teacher_on_given_and_on_own_answers_and_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tuned = run_in(dir.path(), &on_chosen("sft", 60, ""), "teacher", false, &mut Witness::default()).unwrap();
    let teacher = tuned.model.unwrap();
    for more in
        ["beta = 0.0\non_policy = 0.0", "beta = 0.5\non_policy = 0.5", "beta = 1.0\non_policy = 1.0\ntemperature = 1.0"]
    {
        let more =
            format!("eval_every = 5\n[distill]\nteacher = \"{}\"\nmax_new_tokens = 8\n{more}", teacher.display());
        let (_, witness, _dir) = check_recipe(&on_chosen("distill", 40, &more));
        let losses: Vec<f64> = witness.evaluations.iter().map(|row| row.eval_loss).collect();
        assert!(losses.last().unwrap() < &(0.9 * losses[0]), "{more}: {losses:?}");
        assert!(witness.evaluations.last().unwrap().metrics["eval_agreement"] > 0.1, "{:?}", witness.evaluations);
    }
    let run = |recipe: &Recipe| {
        run_in(dir.path(), recipe, "refused", false, &mut Witness::default()).unwrap_err().to_string()
    };
    assert!(run(&on_chosen("distill", 1, "")).contains("`distill.teacher` must be set"));
    let reward = run_in(dir.path(), &recipe("reward", "preferences", 1, ""), "reward", false, &mut Witness::default());
    let reward = format!("[distill]\nteacher = \"{}\"", reward.unwrap().model.unwrap().display());
    assert!(run(&on_chosen("distill", 1, &reward)).contains("a teacher writes from left to right"));
}

#[test]
fn answers_that_teach_nothing_or_half_are_refused_with_their_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs.jsonl");
    let row = |chosen: &str| format!("{{\"prompt\": \"a?\", \"chosen\": \"{chosen}\", \"rejected\": \"no\"}}\n");
    for (line, problem) in [
        (row(&"word ".repeat(200)), "row 2: "),
        (row(""), "line 2: prompt, chosen and rejected need some text each"),
        (row("no"), "line 2: chosen and rejected are the same answer"),
        (
            "{\"prompt\": \"a?\", \"chosen\": [{\"role\": \"user\", \"content\": \"b\"}], \"rejected\": \"no\"}\n"
                .into(),
            "row 2: no token is trained on",
        ),
        ("{\"chosen\": \"a\"}\n".into(), "no field 'rejected'"),
    ] {
        fs::write(&file, row("yes") + &line).unwrap();
        let mut recipe = recipe("dpo", "preferences", 1, "");
        recipe.data.train = vec![file.display().to_string()];
        recipe.data.validation = Vec::new();
        recipe.data.validation_fraction = Some(0.0);
        let error = run_in(dir.path(), &recipe, "refused", false, &mut Witness::default()).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
        assert!(!dir.path().join("refused").exists(), "no directory is left of a run that could not start");
    }
}

#[test]
fn contradictions_of_alignment_are_reported_together() {
    let mut recipe = recipe("grpo", "prompts", 1, "[rl]\nsamples = 3\nreward = { kind = \"match\", pattern = \"(\" }");
    recipe.preference.centering = -1.0;
    let message = recipe.validate(Path::new("r.toml")).unwrap_err().to_string();
    for problem in ["`rl.samples` = 3", "no regular expression", "`preference.centering`"] {
        assert!(message.contains(problem), "{problem}: {message}");
    }
}
