//! Which candidate serves a preference best on the validation set.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use mixing::{BASE, Candidate};

use super::folder::RunFolder;
use super::generate::{Generate, Made};
use super::jobs::label;
use super::manifest::Session;
use super::score;
use crate::experiment::Experiment;
use crate::prompts::NamedPrompt;

/// Lets every candidate answer the validation prompts and returns the best one by strategy and preference.
/// Utility refers to the base's responses to the same prompts.
///
/// # Errors
/// What generating reports.
pub(super) fn choose(
    generate: &Generate<'_>,
    experiment: &Experiment,
    prompts: &[NamedPrompt],
    folder: &RunFolder,
    session: &mut Session,
) -> Result<BTreeMap<(String, String), Candidate>> {
    let jobs = generate.validation_jobs()?;
    if jobs.is_empty() {
        folder.keep_only("validation", &Default::default())?;
        return Ok(BTreeMap::new());
    }
    let mut rows = BTreeMap::new();
    generate.make(&["validation"], &jobs, folder, session, |made| {
        if let Made::Rows(batch, found) = made {
            let own: &mut Vec<_> = rows.entry(batch.job.preference.clone()).or_default();
            own.extend(found);
        }
        Ok(0.0)
    })?;
    let asked: BTreeMap<&str, &NamedPrompt> = prompts.iter().map(|p| (p.id.as_str(), p)).collect();
    let prompt = |id: &str| asked.get(id).with_context(|| format!("no prompt '{id}'"));
    let mut scorer = score::open(experiment)?;
    for row in rows.get(BASE).context("the base answered")? {
        let id = row.identity.prompt.as_str();
        scorer.set_reference(id, &prompt(id)?.prompt, &row.response)?;
    }
    let mut chosen = BTreeMap::new();
    for (strategy, _) in experiment.strategies.iter() {
        for (preference, _) in experiment.preferences.iter() {
            let plan = experiment.plan(strategy, preference)?;
            let mut best: Option<(f64, Candidate)> = None;
            for candidate in plan.candidates {
                let own = rows.get(&label(preference, &candidate.strategy));
                let own = own.context("every candidate answered")?;
                let mut total = 0.0;
                for row in own {
                    let id = row.identity.prompt.as_str();
                    let rewards = scorer.reward(&prompt(id)?.prompt, &row.response)?;
                    total += score::utility(experiment, &scorer, preference, id, &rewards)?;
                }
                let mean = total / own.len().max(1) as f64;
                eprintln!(
                    "{strategy} {preference}: {} has utility {mean:.4} on the validation set",
                    candidate.name
                );
                if best.as_ref().is_none_or(|(found, _)| mean > *found) {
                    best = Some((mean, candidate));
                }
            }
            if let Some((_, candidate)) = best {
                let place = (strategy.to_string(), preference.to_string());
                chosen.insert(place, candidate);
            }
        }
    }
    Ok(chosen)
}
