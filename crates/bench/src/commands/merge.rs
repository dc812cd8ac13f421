//! `mope merge`: several experts' parameters become one expert's.

use std::path::Path;

use anyhow::{Context, Result};
use experts::ExpertSpec;
use lm::load::Checkpoint;
use lm::source::hub::{self, Wanted, located_folder};
use mixing::merging::{Merged, Method, Recipe, Source};
use serde_json::json;

use super::Global;
use super::selection::{preference, sources};
use crate::cli::MergeArgs;
use harness::config::parse;
use harness::experiment::Experiment;
use harness::failure::usage;
use harness::models::Models;

pub fn merge(global: &Global, args: &MergeArgs) -> Result<()> {
    let mut models = Models::on(&Default::default(), Default::default())?;
    let (model, recipe, sources) = match &args.config {
        Some(file) => of_config(&mut models, file, args)?,
        None => of_flags(global, &mut models, args)?,
    };
    let path = models.path(&model)?;
    let merged = recipe
        .merge(Checkpoint::open(&path)?, sources)
        .map_err(|e| usage(e.to_string()))?;
    let kind = match merged {
        Merged::Adapter(adapter) if !args.whole => {
            let base = Checkpoint::open(&path)?;
            adapter.save(&args.out, base.config(), Some(&model), args.precision)?;
            "adapter"
        }
        Merged::Adapter(adapter) => {
            Checkpoint::open(&path)?.export(&args.out, args.precision, Some(&adapter))?;
            "model"
        }
        Merged::Model(merged) => {
            merged.export(&args.out, args.precision, None)?;
            "model"
        }
    };
    let out = args.out.display().to_string();
    let document = json!({
        "path": out,
        "kind": kind,
        "recipe": recipe,
        "precision": args.precision,
    });
    global.print(document, || format!("{out}: {kind}, {:?}", args.precision))
}

type Ingredients = (String, Recipe, Vec<Source>);

fn of_flags(global: &Global, models: &mut Models, args: &MergeArgs) -> Result<Ingredients> {
    let model = args.model.clone().context("no model")?;
    let method: Method = parse(Path::new("--method"), &args.method)?;
    let base = Checkpoint::open(&models.path(&model)?)?;
    let mut recipe = Recipe {
        method,
        experts: Vec::new(),
        weights: Vec::new(),
        seed: global.seed.unwrap_or(0),
    };
    let mut sources = Vec::new();
    for given in &args.expert {
        let wrong = |what: &str| usage(format!("--expert '{given}': {what}"));
        let (path, weight) = given
            .rsplit_once('=')
            .ok_or_else(|| wrong("not of the form PATH=WEIGHT"))?;
        let weight: f64 = weight
            .parse()
            .map_err(|_| wrong("the weight is not a number"))?;
        if !(0.0..=1.0).contains(&weight) {
            return Err(wrong("the weight is not between 0 and 1"));
        }
        // Of the hub it may be either.
        let folder = located_folder(Path::new(""), Path::new(path));
        let folder = hub::folder(&folder, Wanted::Any, &mut |_, _, _| {})?;
        let spec = match lm::Adapter::is_at(&folder) {
            true => ExpertSpec::Adapter(folder),
            false => ExpertSpec::Full(folder.to_string_lossy().into_owned()),
        };
        sources.push(models.source(path, &spec, base.config())?);
        recipe.experts.push(path.into());
        recipe.weights.push(weight);
    }
    let total: f64 = recipe.weights.iter().sum();
    // Digits of the sum's rounding say nothing.
    let total = (total * 1e9).round() / 1e9;
    if (total - 1.0).abs() > 1e-6 {
        let message = format!(
            "--expert: the weights sum to {total}, not to 1; to go further than the experts, take \
             --method 'TaskArithmetic(scale: {total})' with weights that do"
        );
        return Err(usage(message));
    }
    Ok((model, recipe, sources))
}

fn of_config(models: &mut Models, file: &Path, args: &MergeArgs) -> Result<Ingredients> {
    let mut experiment = Experiment::load(file)?;
    if let Some(model) = &args.model {
        experiment.model = model.clone();
    }
    let strategy = args.strategy.as_deref().context("no strategy")?;
    let stated = preference(&experiment, &args.stated)?;
    let plan = experiment
        .strategy(strategy)
        .and_then(|spec| experiment.resolve_strategy(spec, &stated))
        .map_err(|e| usage(format!("strategy '{strategy}': {e:#}")))?;
    let alone =
        (plan.experts.len() == 1 && plan.merged.len() == 1).then(|| plan.merged.into_values());
    let recipe = alone
        .and_then(|mut recipes| recipes.next())
        .ok_or_else(|| {
            usage(format!(
                "strategy '{strategy}' mixes outputs; only Merge(..) strategies can be written"
            ))
        })?;
    let base = Checkpoint::open(&models.path(&experiment.model)?)?;
    let sources = sources(models, &experiment, &recipe, base.config())?;
    Ok((experiment.model, recipe, sources))
}
