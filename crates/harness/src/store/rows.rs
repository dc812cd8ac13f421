//! The rows of a run as its folder has them, compared with what the run asked for before they are believed.

use std::path::Path;

use anyhow::{Result, ensure};
use eval::rows::{self, GenerationRow, Identity, ScoreRow, twice};
use eval::table::{Limits, read_parquet_within};
use mixing::Strategy;
use polars::prelude::DataFrame;

use super::folder::{RunFolder, parquet_files};
use super::manifest::Manifest;
use crate::experiment::Experiment;
use crate::recorded;

/// What a file with this many responses may hold: no list is longer than the weights, which every token has for every
/// expert, and for what is merged from them.
pub(crate) fn limits(experiment: &Experiment, responses: usize) -> Limits {
    let experts = 2 * experiment.expert_names().len() + 1;
    let recorded = |(_, strategy): (&str, &Strategy)| matches!(strategy, Strategy::Recorded(_));
    let longest = match experiment.strategies.iter().any(recorded) {
        true => recorded::LONGEST,
        false => 0,
    };
    let tokens = experiment.generation.max_new_tokens.max(longest);
    Limits {
        rows: responses,
        values: responses.saturating_mul(tokens).saturating_mul(experts),
    }
}

/// The rows of all Parquet files of a part, of which there are `most` at most.
fn read<T>(
    folder: &RunFolder,
    experiment: &Experiment,
    part: &str,
    most: usize,
    rows: impl Fn(&Path, &DataFrame) -> eval::Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for path in parquet_files(&folder.path(part))? {
        let frame = read_parquet_within(&path, limits(experiment, most - all.len()))?;
        all.extend(rows(&path, &frame)?);
    }
    Ok(all)
}

/// The responses of a run and their scores.
///
/// # Errors
/// A folder without manifest or rows; a file that is missing, damaged, changed since the run, or larger than the run;
/// a row that no experiment of this kind has, or that comes twice.
pub fn read_rows(folder: &RunFolder) -> Result<(Vec<GenerationRow>, Vec<ScoreRow>)> {
    let manifest = Manifest::load(folder.root())?;
    let experiment = &manifest.experiment;
    folder.verify(&manifest)?;
    let entries = experiment.strategies.names().len() * experiment.preferences.names().len();
    let most = [manifest.prompts, experiment.samples as usize];
    let most = most.into_iter().fold(entries, usize::saturating_mul);
    let generations = read(folder, experiment, "generations", most, rows::generations)?;
    let scores = read(folder, experiment, "scores", most, rows::scores)?;
    ensure!(
        !scores.is_empty() && !generations.is_empty(),
        "{}: there are no rows yet; `mope run` makes them",
        folder.root().display()
    );
    let generated = generations.iter().map(|row| &row.identity);
    check(folder, experiment, "generations", generated)?;
    let scored = scores.iter().map(|row| &row.identity);
    check(folder, experiment, "scores", scored)?;
    Ok((generations, scores))
}

/// Every row is one that the experiment asks for, and comes once.
fn check<'a>(
    folder: &RunFolder,
    experiment: &Experiment,
    part: &str,
    identities: impl Iterator<Item = &'a Identity> + Clone,
) -> Result<()> {
    let (strategies, preferences) = (
        experiment.strategies.names(),
        experiment.preferences.names(),
    );
    let known = |i: &&Identity| {
        strategies.contains(&i.strategy.as_str())
            && preferences.contains(&i.preference.as_str())
            && i.sample < experiment.samples
    };
    let named = |i: &Identity| {
        let Identity {
            strategy,
            preference,
            prompt,
            sample,
        } = i;
        format!(
            "strategy '{strategy}', preference '{preference}', prompt '{prompt}', sample {sample}"
        )
    };
    let path = folder.path(part);
    if let Some(other) = identities.clone().find(|i| !known(i)) {
        anyhow::bail!(
            "{}: a row is not of this run: {}",
            path.display(),
            named(other)
        );
    }
    if let Some(again) = twice(identities) {
        anyhow::bail!("{}: a row comes twice: {}", path.display(), named(again));
    }
    Ok(())
}
