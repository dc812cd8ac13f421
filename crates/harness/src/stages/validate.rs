//! Stage "validate": which candidate serves a preference best on the validation set.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::models::Pools;
//! use mope_harness::plan::RunPlan;
//! use mope_harness::stages::validate::validate;
//! use mope_harness::store::{folder::RunFolder, manifest::Session};
//!
//! let here = tempfile::tempdir()?;
//! std::fs::write(here.path().join("others.txt"), "How so?\n")?;
//! let file = pico::experiment(here.path());
//! let text = std::fs::read_to_string(&file)?;
//! let text = text.replace("Base()", "BestSingle()").replace("prompts:", "validation: \"others.txt\", prompts:");
//! std::fs::write(&file, text)?;
//! let experiment = Experiment::load(&file)?;
//! let mut pools = Pools::open(&experiment)?;
//! let plan = RunPlan::resolve(&experiment, &mut pools)?;
//! let folder = RunFolder::open(&here.path().join("run"))?;
//! let mut session = Session::start();
//! let choices = validate(&plan, &pools, &folder, &mut session)?;
//! let number = choices[&("base".to_string(), "kind".to_string())];
//! let candidate = plan.candidates("base", "kind").nth(number);
//! assert_eq!(candidate.unwrap().0, session.chosen["base"]["kind"]);
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use eval::rows::GenerationRow;
use eval::scoring::ResponseScorer;
use mixing::BASE;

use super::generate::{Batches, unrated};
use super::scorer::{by_id, open_scorer, prompt_of, set_references, utility};
use crate::models::Pools;
use crate::plan::{Choices, Entry, RunPlan, Stage};
use crate::progress::say;
use crate::store::folder::RunFolder;
use crate::store::manifest::Session;

/// Lets every candidate answer the validation prompts and returns the best one by strategy and preference.
/// Utility refers to the base's responses to the same prompts.
///
/// # Errors
/// A model or a reward that fails, a folder that cannot be written.
pub fn validate(
    plan: &RunPlan<'_>,
    pools: &Pools,
    folder: &RunFolder,
    session: &mut Session,
) -> Result<Choices> {
    let mut choices = Choices::new();
    if plan.validation.is_empty() {
        folder.keep_only(Stage::Validation.folder(), &Default::default())?;
        return Ok(choices);
    }
    let rows = answers(plan, pools, folder, session)?;
    let prompts = &plan.splits.validation;
    let mut scorer = open_scorer(plan.experiment)?;
    let base = rows.get(BASE).context("the base answered")?;
    set_references(&mut scorer, prompts, base)?;
    for entry in &plan.entries {
        let Entry {
            strategy,
            preference,
            ..
        } = entry;
        let mut best: Option<(f64, usize)> = None;
        let candidates = plan.candidates(strategy, preference);
        for (number, (name, label)) in candidates.enumerate() {
            let answers = rows.get(label).context("every candidate answered")?;
            let mean = mean_utility(plan, &scorer, preference, answers)?;
            say(&format!(
                "{strategy} {preference}: {name} has utility {mean:.4} on the validation set"
            ));
            if best.is_none_or(|(utility, _)| mean > utility || utility.is_nan()) {
                best = Some((mean, number));
            }
        }
        if let Some((_, number)) = best {
            let name = plan.candidates(strategy, preference).nth(number);
            let name = name.map_or(String::new(), |(name, _)| name.to_string());
            let by_preference = session.chosen.entry(strategy.clone()).or_default();
            by_preference.insert(preference.clone(), name);
            choices.insert((strategy.clone(), preference.clone()), number);
        }
    }
    Ok(choices)
}

/// The responses of the base and of every candidate, by [label](crate::plan::label).
fn answers(
    plan: &RunPlan<'_>,
    pools: &Pools,
    folder: &RunFolder,
    session: &mut Session,
) -> Result<BTreeMap<String, Vec<GenerationRow>>> {
    let entries: Vec<&Entry> = plan.validation.iter().collect();
    let mut batches = Batches::new("validate", plan, pools, folder, session, &entries, None)?;
    let rows = batches.rows(&unrated)?;
    batches.finish();
    let labels = entries.iter().map(|entry| entry.preference.clone());
    Ok(labels.zip(rows).collect())
}

fn mean_utility(
    plan: &RunPlan<'_>,
    scorer: &ResponseScorer,
    preference: &str,
    rows: &[GenerationRow],
) -> Result<f64> {
    let prompts = by_id(&plan.splits.validation);
    let mut total = 0.0;
    for row in rows {
        let rewards = scorer.reward(prompt_of(&prompts, row)?, &row.response)?;
        let id = &row.identity.prompt;
        total += utility(plan.experiment, scorer, preference, id, &rewards)?;
    }
    Ok(total / rows.len().max(1) as f64)
}
