//! Stage "score": what every response is worth in every dimension, and to its preference.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use eval::rows::{GenerationRow, scores_frame};
use eval::scoring::{ResponseScorer, Rewards};
use eval::table::{parquet, read_parquet};
use lm::chat::Prompt;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::folder::RunFolder;
use super::generate::{Generate, Rows};
use super::jobs::REFERENCE;
use crate::experiment::Experiment;
use crate::progress::Progress;
use crate::prompts::NamedPrompt;

/// Responses that are scored together: enough to fill the batches of a reward model (ours).
const TOGETHER: usize = 64;

/// The scorer of an experiment's dimensions, no references yet.
///
/// # Errors
/// A reward model that cannot be opened.
pub fn open(experiment: &Experiment) -> Result<ResponseScorer> {
    let dimensions = experiment.dimensions.iter();
    Ok(ResponseScorer::open(dimensions, experiment.utility)?)
}

/// Shares of the directions that a preference states.
///
/// # Errors
/// No such preference.
pub fn shares(experiment: &Experiment, preference: &str) -> Result<Vec<(String, f64)>> {
    let stated = experiment.preferences.get(preference);
    let stated = stated.with_context(|| format!("no preference '{preference}'"))?;
    Ok(stated.shares()?)
}

/// Utility of a response to the prompt called `id`, whose reference is set.
///
/// # Errors
/// No reference response to this prompt, no such preference.
pub fn utility(
    experiment: &Experiment,
    scorer: &ResponseScorer,
    preference: &str,
    id: &str,
    rewards: &Rewards,
) -> Result<f64> {
    let reference = &scorer.reference(id)?.normalised;
    let shares = shares(experiment, preference)?;
    Ok(scorer.utility(shares, &rewards.normalised, reference)?)
}

/// Scores all responses and writes `scores/<strategy>.<key>.parquet`; the key is one of all that the scores
/// follow from, so what has been scored is found again, in a neighbouring run, too.
///
/// # Errors
/// A response without reference, a folder that cannot be written.
pub fn score(
    generate: &Generate<'_>,
    prompts: &[NamedPrompt],
    rows: &Rows,
    folder: &RunFolder,
) -> Result<()> {
    let experiment = generate.experiment;
    let asked: HashMap<&str, &Prompt> =
        prompts.iter().map(|p| (p.id.as_str(), &p.prompt)).collect();
    let prompt = |row: &GenerationRow| -> Result<&Prompt> {
        let id = row.identity.prompt.as_str();
        let found = asked.get(id).copied();
        found.with_context(|| format!("no prompt '{id}'"))
    };
    let mut progress = Progress::new("score", "responses", rows.generations.len() as u64);
    let mut opened: Option<ResponseScorer> = None;
    let mut files = BTreeSet::new();
    for (strategy, _) in experiment.strategies.iter() {
        let own = rows.generations.iter();
        let own: Vec<&GenerationRow> = own.filter(|r| r.identity.strategy == strategy).collect();
        let from = [strategy, REFERENCE].map(|name| rows.files.get(name));
        let key = json!([
            env!("CARGO_PKG_VERSION"),
            generate.rewards_definition(),
            from
        ]);
        let key = lm::source::hex(&Sha256::digest(key.to_string().as_bytes())[..6]);
        let name = format!("{strategy}.{key}.parquet");
        let path = folder.path("scores").join(&name);
        let whole = |path: &Path| {
            let frame = read_parquet(path).ok()?;
            let found = eval::rows::scores(path, &frame).ok()?;
            (found.len() == own.len()).then_some(())
        };
        if folder.found("scores", &name, whole)?.is_some() {
            progress.skip(own.len() as u64);
        } else {
            if opened.is_none() {
                let mut scorer = open(experiment)?;
                for row in &rows.references {
                    scorer.set_reference(&row.identity.prompt, prompt(row)?, &row.response)?;
                }
                opened = Some(scorer);
            }
            let scorer = opened.as_ref().context("the scorer is open")?;
            let mut scores = Vec::with_capacity(own.len());
            for rows in own.chunks(TOGETHER) {
                let items = rows
                    .iter()
                    .map(|row| Ok((prompt(row)?, row.response.as_str())));
                let rewards = scorer.rewards(&items.collect::<Result<Vec<_>>>()?)?;
                for (row, rewards) in rows.iter().zip(rewards) {
                    let shares = shares(experiment, &row.identity.preference)?;
                    scores.push(scorer.score_row(row, shares, &rewards)?);
                }
                progress.advance(rows.len() as u64);
            }
            eval::write_atomic(&path, &parquet(&path, &mut scores_frame(&scores)?)?)?;
        }
        files.insert(name);
    }
    progress.finish();
    folder.keep_only("scores", &files)?;
    Ok(())
}
