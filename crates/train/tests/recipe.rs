//! Recipes: what is accepted, what is refused and how, and that the shipped ones and the reference page are right.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use loam_train::recipe::{ScheduleKind, reference_page, schema};
use loam_train::{Recipe, Stage};

const MINIMAL: &str = r#"
stage = "pretrain"
[model]
family = "gpt2"
n_layer = 2
[data]
train = ["a.txt"]
[train]
steps = 10
"#;

fn root() -> PathBuf {
    loam_testkit::workspace_root()
}

fn parse(text: &str) -> Result<Recipe, loam_train::Error> {
    Recipe::parse(text, Path::new("r.toml"))
}

/// The message of a recipe that is refused by parsing or by validation, and its hint.
fn refusal(text: &str) -> (String, String) {
    let error = match parse(text) {
        Err(error) => error,
        Ok(recipe) => recipe.validate(Path::new("r.toml")).expect_err("the recipe must be refused"),
    };
    (error.to_string(), error.hint().unwrap_or_default())
}

#[test]
fn a_minimal_recipe_is_valid_and_has_the_stated_defaults() {
    let recipe = parse(MINIMAL).unwrap();
    recipe.validate(Path::new("r.toml")).unwrap();
    assert_eq!((recipe.stage, recipe.seed), (Stage::Pretrain, 42));
    assert_eq!((recipe.train.schedule, recipe.train.clip), (ScheduleKind::Cosine, 1.0));
    assert_eq!(recipe.model.config["n_layer"], 2);
}

#[test]
fn fields_of_files_may_be_renamed_but_only_those_of_the_stage() {
    let text = |fields: &str| {
        format!(
            "stage = \"seq2seq\"\n[model]\nfamily = \"t5\"\n[data]\ntrain = [\"pairs.jsonl\"]\n\
             fields = {{ {fields} }}\n[train]\nsteps = 5\n"
        )
    };
    let recipe = parse(&text("source = \"question\", target = \"answer\"")).unwrap();
    recipe.validate(Path::new("r.toml")).unwrap();
    assert_eq!(recipe.data.fields["source"], "question");
    let (message, _) = refusal(&text("anchor = \"question\""));
    assert!(message.contains("`data.fields.anchor` is no field of stage `seq2seq`"), "{message}");
}

#[test]
fn a_misspelt_key_is_named_with_the_nearest_one() {
    let (message, hint) = refusal(&MINIMAL.replace("steps", "setps"));
    assert_eq!(message, "r.toml: unknown key `train.setps`");
    assert_eq!(hint, "did you mean `train.steps`?");
    let (message, hint) = refusal(&MINIMAL.replace("stage", "lr = 1.0\nstage"));
    assert!(message.contains("unknown key `lr`"), "{message}");
    assert_eq!(hint, "did you mean `train.lr`?");
    let (message, hint) = refusal(&MINIMAL.replace("n_layer", "n_layers"));
    assert!(message.contains("unknown key `model.n_layers`"), "{message}");
    assert_eq!(hint, "did you mean `model.n_layer`?");
    assert!(refusal(&MINIMAL.replace("[data]", "[dta]")).0.contains("unknown key `dta`"));
}

#[test]
fn a_wrong_type_is_named_with_its_key() {
    for (from, to, expected) in [
        ("steps = 10", "steps = \"ten\"", "`train.steps`"),
        ("steps = 10", "steps = 10\nlr = [1]", "`train.lr`"),
        ("steps = 10", "steps = -1", "`train.steps`"),
        ("train = [\"a.txt\"]", "train = 5", "`data.train`"),
        ("steps = 10", "steps = 10\nschedule = \"cosin\"", "unknown variant `cosin`"),
        ("n_layer = 2", "n_layer = \"two\"", "`model.n_layer` must be a whole number"),
        ("stage = \"pretrain\"", "", "missing field `stage`"),
        ("family = \"gpt2\"", "family = \"gpt9\"", "unknown model family `gpt9`"),
        ("[model]", "[model", "line 3"),
    ] {
        let (message, _) = refusal(&MINIMAL.replace(from, to));
        assert!(message.contains(expected), "{to}: {message}");
        assert!(message.starts_with("r.toml: "), "{message}");
    }
}

#[test]
fn an_unknown_optimizer_is_refused_with_the_known_ones() {
    let (message, _) = refusal(&MINIMAL.replace("steps = 10", "steps = 10\noptimizer = \"adamm\""));
    assert!(message.starts_with("r.toml: `train.optimizer`: unknown variant `adamm`, expected one of"), "{message}");
    for name in
        ["adamw", "adam", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adafactor", "lion", "muon", "adamw8bit"]
    {
        assert!(message.contains(&format!("`{name}`")), "{name} is missing in {message}");
        let recipe = parse(&MINIMAL.replace("steps = 10", &format!("steps = 10\noptimizer = \"{name}\""))).unwrap();
        recipe.validate(Path::new("r.toml")).unwrap();
    }
}

#[test]
fn a_key_of_another_schedule_or_optimizer_is_refused_with_its_owner() {
    for (line, expected) in [
        ("cycles = 2", "`train.cycles` belongs to `train.schedule = \"cosine_restarts\"`"),
        ("power = 2.0", "`train.power` belongs to `train.schedule = \"polynomial\"`"),
        (
            "momentum = 0.9",
            "`train.momentum` belongs to `train.optimizer = \"momentum\"`, `\"nesterov\"` and `\"muon\"`",
        ),
        ("optimizer = \"muon\"\nmomentum = 1.0", "`train.momentum` must be at least 0 and below 1"),
        ("schedule = \"cosine_restarts\"\ncycles = 0", "`train.cycles` must be above 0"),
        ("schedule = \"polynomial\"\npower = 0.0", "`train.power` must be above 0"),
    ] {
        let (message, _) = refusal(&MINIMAL.replace("steps = 10", &format!("steps = 10\n{line}")));
        assert!(message.contains(expected), "{line}: {message}");
    }
}

#[test]
fn every_contradiction_is_reported_at_once() {
    let text = r#"
stage = "sft"
[model]
path = "m"
family = "llama"
initializer = "orthogonal"
[tokenizer]
kind = "char"
path = "t"
[data]
validation = ["v.txt"]
validation_tail = 0.1
[train]
batch = 4
micro_batch = 8
batch_tokens = 100
steps = 5
epochs = 1
lr = -1.0
decay = 0.1
dropout = 1.5
label_smoothing = 1.0
z_loss = -1.0
ema_decay = 1.0
"#;
    let (message, _) = refusal(text);
    for part in [
        "`model.path` opens a model",
        "needs a pretrained model",
        "brings its own",
        "`tokenizer.path` opens one",
        "names no file",
        "`data.validation` and `data.validation_tail` exclude",
        "`train.batch` and `train.batch_tokens`",
        "`train.micro_batch` is 8",
        "`train.steps` and `train.epochs` exclude",
        "`train.lr` must be",
        "`train.dropout` must be",
        "`train.label_smoothing` must be",
        "`train.z_loss` must be",
        "`train.ema_decay` must be",
        "`model.initializer` is for a new model",
        "belongs to `train.schedule = \"wsd\"`",
    ] {
        assert!(message.contains(part), "{part} is missing in {message}");
    }
    assert!(message.contains("16 problems"), "{message}");
}

#[test]
fn settings_are_typed_and_checked() {
    let mut recipe = parse(MINIMAL).unwrap();
    for setting in [
        "train.lr=1e-4",
        "data.train=[\"x\", \"y\"]",
        "train.schedule=wsd",
        "train.name=2024",
        "model.n_embd=64",
        "train.early_stop.patience=3",
        "tokenizer.kind = char",
    ] {
        recipe.apply_set(setting).unwrap_or_else(|error| panic!("{setting}: {error}"));
    }
    assert_eq!(recipe.train.lr, Some(1e-4));
    assert_eq!(recipe.data.train, ["x", "y"]);
    assert_eq!(recipe.train.schedule, ScheduleKind::Wsd);
    assert_eq!(recipe.train.name.as_deref(), Some("2024"));
    assert_eq!(recipe.model.config["n_embd"], 64);
    assert_eq!(recipe.train.early_stop.map(|stop| stop.patience), Some(3));
    for (setting, expected) in [
        ("train.lr", "not of the form"),
        ("train.lr=fast", "`train.lr`"),
        ("train.lrr=1", "unknown key `train.lrr`"),
        ("train.lr.x=1", "`lr` is a value"),
        ("=1", "not a key"),
    ] {
        let error = recipe.apply_set(setting).expect_err(setting).to_string();
        assert!(error.contains(expected), "{setting}: {error}");
    }
}

#[test]
fn a_recipe_survives_being_written_and_read() {
    let recipe = parse(MINIMAL).unwrap();
    assert_eq!(parse(&recipe.to_toml()).unwrap(), recipe);
}

#[test]
fn the_default_recipe_of_every_stage_is_valid() {
    for stage in Stage::ALL {
        let recipe = Recipe::default_of(stage);
        assert_eq!(recipe.stage, stage);
        recipe.validate(Path::new("default")).unwrap();
        let annotated = loam_train::recipe::annotated(stage);
        assert_eq!(parse(&annotated).unwrap(), recipe, "the annotated form says the same");
        assert!(annotated.contains("# Highest learning rate"));
    }
}

#[test]
fn the_shipped_recipes_are_valid() {
    let mut found = 0;
    for entry in fs::read_dir(root().join("recipes")).unwrap() {
        let path = entry.unwrap().path();
        Recipe::open(&path, &[]).and_then(|recipe| recipe.validate(&path)).unwrap();
        found += 1;
    }
    assert!(found >= 3);
}

#[test]
fn the_reference_page_is_up_to_date_and_the_schema_names_every_section() {
    let path = root().join("docs/reference/recipe.md");
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == reference_page(), "run: cargo run -p loam-train --example reference > docs/reference/recipe.md");
    for key in ["`train.lr`", "`lr`", "`seq_len`", "`vocab_size`", "`early_stop.patience`"] {
        assert!(written.contains(key) || key == "`train.lr`", "{key}");
    }
    let schema = schema();
    for section in ["model", "tokenizer", "data", "train"] {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}
