//! Stage "score": what every response is worth in every dimension, and to its preference.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use eval::dimension::locate;
use eval::rewards::{Normaliser, Reward};
use eval::rows::{DimensionScore, GenerationRow, ScoreRow, scores_frame};
use eval::table::parquet;
use eval::utility::Stated;
use lm::chat::Prompt;
use mixing::Named;

use super::folder::RunFolder;
use super::generate::Rows;
use crate::experiment::Experiment;
use crate::progress::Progress;
use crate::prompts::NamedPrompt;

struct Scale {
    reward: Box<dyn Reward>,
    normaliser: Normaliser,
}

impl Scale {
    /// Raw and normalised.
    fn of(&self, prompt: &Prompt, response: &str) -> (f64, f64) {
        let raw = self.reward.score(prompt, response);
        (raw, self.normaliser.apply(raw))
    }
}

/// Scores all responses and writes `scores/<strategy>.parquet`.
///
/// # Errors
/// A response without reference, a folder that cannot be written.
pub fn score(
    experiment: &Experiment,
    prompts: &[NamedPrompt],
    rows: &Rows,
    folder: &RunFolder,
) -> Result<()> {
    let scales: Named<Scale> = experiment
        .dimensions
        .iter()
        .map(|(name, dimension)| {
            let reward = dimension.scorer.open()?;
            let normaliser = dimension.normaliser.unwrap_or(reward.normaliser());
            Ok((name.to_string(), Scale { reward, normaliser }))
        })
        .collect::<Result<_>>()?;
    let asked: HashMap<&str, &Prompt> =
        prompts.iter().map(|p| (p.id.as_str(), &p.prompt)).collect();
    let total = rows.references.len() + rows.generations.len();
    let mut progress = Progress::new("score", "responses", total as u64);
    let mut rewards = |row: &GenerationRow| -> Result<BTreeMap<String, (f64, f64)>> {
        let id = row.identity.prompt.as_str();
        let prompt = asked.get(id).with_context(|| format!("no prompt '{id}'"))?;
        progress.advance(1);
        let each = scales.iter();
        Ok(each
            .map(|(name, scale)| (name.to_string(), scale.of(prompt, &row.response)))
            .collect())
    };
    let mut references = HashMap::new();
    for row in &rows.references {
        references.insert(row.identity.prompt.clone(), rewards(row)?);
    }
    let mut scores = Vec::with_capacity(rows.generations.len());
    for row in &rows.generations {
        let own = rewards(row)?;
        let reference = references
            .get(&row.identity.prompt)
            .with_context(|| format!("no reference for prompt '{}'", row.identity.prompt))?;
        scores.push(worth(experiment, row, own, reference)?);
    }
    progress.finish();
    let mut files = BTreeSet::new();
    for (strategy, _) in experiment.strategies.iter() {
        let own = scores.iter().filter(|s| s.identity.strategy == strategy);
        let own: Vec<ScoreRow> = own.cloned().collect();
        let name = format!("{strategy}.parquet");
        let path = folder.path("scores").join(&name);
        eval::write_atomic(&path, &parquet(&path, &mut scores_frame(&own)?)?)?;
        files.insert(name);
    }
    folder.keep_only("scores", &files)?;
    Ok(())
}

fn worth(
    experiment: &Experiment,
    row: &GenerationRow,
    own: BTreeMap<String, (f64, f64)>,
    reference: &BTreeMap<String, (f64, f64)>,
) -> Result<ScoreRow> {
    let name = &row.identity.preference;
    let preference = experiment
        .preferences
        .get(name)
        .with_context(|| format!("no preference '{name}'"))?;
    let dimensions = experiment.dimensions();
    let mut shares: BTreeMap<&str, f64> = BTreeMap::new();
    let mut stated = Vec::new();
    for (direction, share) in preference.shares()? {
        let (dimension, sign) = locate(&dimensions, &direction)?;
        *shares.entry(dimension).or_default() += sign * share;
        stated.push(Stated {
            share,
            reward: sign * own[dimension].1,
            reference: sign * reference[dimension].1,
        });
    }
    let scores = own.iter().map(|(dimension, &(raw, reward))| {
        let score = DimensionScore {
            raw,
            reward,
            reference: reference[dimension].1,
            stated: shares.get(dimension.as_str()).copied().unwrap_or(0.0),
        };
        (dimension.clone(), score)
    });
    Ok(ScoreRow {
        identity: row.identity.clone(),
        utility: experiment.utility.of(&stated),
        tokens: row.tokens.len() as u32,
        ended: row.ended,
        dimensions: scores.collect(),
    })
}
