//! Stage "score": rewards of every response in every dimension, and its utility for its preference.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use eval::rows::{GenerationRow, scores_frame};
use eval::scoring::{ResponseScorer, TOGETHER};
use eval::table::{parquet, read_parquet_within};
use serde_json::json;

use super::bounds::Answer;
use super::generate::{Rows, RunBounds};
use super::scorer::{by_id, prompt_of, set_references};
use crate::plan::{Entry, RunPlan, key};
use crate::progress::Progress;
use crate::store::folder::RunFolder;
use crate::store::rows::limits;

/// Scores all responses and writes `scores/<strategy>.<key>.parquet`; the key is one of all that the scores
/// follow from, so what has been scored is found again, in a neighbouring run, too. The references are set where
/// something is left to score.
///
/// # Errors
/// A response without reference, a folder that cannot be written.
pub fn score(
    plan: &RunPlan<'_>,
    scorer: &mut ResponseScorer,
    rows: &Rows,
    folder: &RunFolder,
) -> Result<()> {
    let mut progress = Progress::new("score", "responses", rows.generations.len() as u64);
    let mut files = BTreeSet::new();
    let mut references_set = false;
    if scorer.measures() {
        set_references(scorer, &plan.splits.prompts, &rows.references)?;
        references_set = true;
    }
    let definition = plan.rewards_definition()?;
    let references = file_names(std::iter::once(&plan.references));
    for strategy in plan.experiment.strategies.names() {
        let responses = rows.generations.iter();
        let responses: Vec<&GenerationRow> = responses
            .filter(|r| r.identity.strategy == strategy)
            .collect();
        let generated = file_names(plan.entries.iter().filter(|e| e.strategy == strategy));
        let from = [&generated, &references];
        let key = key(&json!([env!("CARGO_PKG_VERSION"), definition, from]));
        let name = format!("{strategy}.{key}.parquet");
        let path = folder.path("scores").join(&name);
        let stored = |path: &Path| {
            let limits = limits(plan.experiment, responses.len());
            let frame = read_parquet_within(path, limits).ok()?;
            let scores = eval::rows::scores(path, &frame).ok()?;
            let same = scores.len() == responses.len()
                && scores.iter().zip(&responses).all(|(score, response)| {
                    score.identity == response.identity
                        && score.tokens as usize == response.tokens.len()
                        && score.ended == response.ended
                });
            same.then_some(())
        };
        if folder.found("scores", &name, stored)?.is_some() {
            progress.skip(responses.len() as u64);
        } else {
            if !references_set {
                set_references(scorer, &plan.splits.prompts, &rows.references)?;
                references_set = true;
            }
            let bounds = rows.bounds.as_ref();
            let scores = score_all(plan, scorer, bounds, &responses, &mut progress)?;
            eval::write_atomic(&path, &parquet(&path, &mut scores_frame(&scores)?)?)?;
        }
        files.insert(name);
    }
    progress.finish();
    folder.keep_only("scores", &files)?;
    Ok(())
}

fn score_all(
    plan: &RunPlan<'_>,
    scorer: &ResponseScorer,
    bounds: Option<&RunBounds>,
    responses: &[&GenerationRow],
    progress: &mut Progress,
) -> Result<Vec<eval::rows::ScoreRow>> {
    let prompts = by_id(&plan.splits.prompts);
    let mut scores = Vec::with_capacity(responses.len());
    for rows in responses.chunks(TOGETHER) {
        let items = rows
            .iter()
            .map(|row| Ok((prompt_of(&prompts, row)?, row.response.as_str())));
        let rewards = scorer.rewards(&items.collect::<Result<Vec<_>>>()?)?;
        let answers = rows.iter().map(|row| {
            Ok(Answer {
                prompt: prompt_of(&prompts, row)?,
                text: &row.response,
                tokens: &row.tokens,
                base_log_probs: &row.base_log_probs,
            })
        });
        let crossed = match bounds {
            Some(bounds) => bounds.crossed(&answers.collect::<Result<Vec<_>>>()?)?,
            None => Vec::new(),
        };
        let mut crossed = crossed.into_iter();
        for (row, rewards) in rows.iter().zip(rewards) {
            let preference = plan.experiment.preference(&row.identity.preference)?;
            let mut score = scorer.score_row(row, preference.shares()?, &rewards)?;
            if crossed.next().unwrap_or(false) {
                score.utility = 0.0;
            }
            scores.push(score);
        }
        progress.advance(rows.len() as u64);
    }
    Ok(scores)
}

/// The files of entries' rows, which say what the rows follow from.
fn file_names<'e>(entries: impl Iterator<Item = &'e Entry>) -> Vec<&'e str> {
    entries
        .flat_map(|entry| entry.batches.iter().map(|batch| batch.file.as_str()))
        .collect()
}
