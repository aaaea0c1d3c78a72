//! `loam config`: defaults, checks and the schema of recipes.

use crate::Outcome;
use crate::args::ConfigVerb;
use crate::failure::Failure;
use crate::output;
use loam_train::{Recipe, Stage};

pub fn run(verb: ConfigVerb) -> Result<Outcome, Failure> {
    match verb {
        ConfigVerb::Default { stage } => {
            output::print(&loam_train::recipe::annotated(stage_by_name(&stage)?))?;
            Ok(Outcome::Done)
        }
        ConfigVerb::Check { file, set } => {
            let recipe = Recipe::open(&file, &set)?;
            recipe.validate(&file)?;
            output::line(&format!("{}: a valid {} recipe", file.display(), recipe.stage.name()))?;
            Ok(Outcome::Done)
        }
        ConfigVerb::Schema => {
            output::line(&format!("{:#}", loam_train::recipe::schema()))?;
            Ok(Outcome::Done)
        }
    }
}

fn stage_by_name(name: &str) -> Result<Stage, Failure> {
    Stage::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
        let known: Vec<_> = Stage::ALL.iter().map(|stage| stage.name()).collect();
        Failure::with_hint(format!("there is no stage `{name}`"), format!("stages are {}", known.join(", ")))
    })
}
