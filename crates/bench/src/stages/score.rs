//! Stage "score": what every response is worth in every dimension, and to its preference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use eval::dimension::locate;
use eval::metrics::repetition;
use eval::rewards::{Normaliser, Reward};
use eval::rows::{DimensionScore, GenerationRow, ScoreRow, scores_frame};
use eval::table::{parquet, read_parquet};
use eval::utility::Stated;
use lm::chat::Prompt;
use mixing::Named;
use serde_json::json;

use super::generate::{Rows, by_id, prompt_of, set_references};
use crate::experiment::Experiment;
use crate::plan::{Entry, RunPlan, key};
use crate::progress::Progress;
use crate::store::folder::RunFolder;

/// Responses that are scored together: enough to fill the batches of a reward model (ours).
const TOGETHER: usize = 64;

/// Raw and normalised reward by dimension.
type Rewards = BTreeMap<String, (f64, f64)>;

struct Scale {
    reward: Box<dyn Reward>,
    normaliser: Normaliser,
}

/// What responses are worth, beside the references to the same prompts.
pub struct Scorer<'a> {
    experiment: &'a Experiment,
    scales: Named<Scale>,
    /// By the prompt's id.
    references: HashMap<String, Rewards>,
}

impl<'a> Scorer<'a> {
    /// The experiment's dimensions, no references yet.
    ///
    /// # Errors
    /// A reward model that cannot be opened.
    pub fn new(experiment: &'a Experiment) -> Result<Self> {
        let scales = experiment.dimensions.iter();
        let scales = scales.map(|(name, dimension)| {
            let reward = dimension.scorer.open()?;
            let normaliser = dimension.normaliser.unwrap_or(reward.normaliser());
            Ok((name.to_string(), Scale { reward, normaliser }))
        });
        Ok(Self {
            experiment,
            scales: scales.collect::<Result<_>>()?,
            references: HashMap::new(),
        })
    }

    /// What rewards are normalised by, by dimension.
    pub fn normalisers(&self) -> BTreeMap<String, Normaliser> {
        let each = self.scales.iter();
        each.map(|(name, scale)| (name.to_string(), scale.normaliser))
            .collect()
    }

    /// Rewards of responses, each to its prompt.
    ///
    /// # Errors
    /// A reward model that fails.
    pub fn rewards(&self, items: &[(&Prompt, &str)]) -> Result<Vec<Rewards>> {
        let mut rewards = vec![Rewards::new(); items.len()];
        for (name, scale) in self.scales.iter() {
            let raw = scale.reward.score_all(items);
            let raw = raw.with_context(|| format!("dimension '{name}'"))?;
            for (own, raw) in rewards.iter_mut().zip(raw) {
                own.insert(name.into(), (raw, scale.normaliser.apply(raw)));
            }
        }
        Ok(rewards)
    }

    /// Rewards of one response.
    ///
    /// # Errors
    /// A reward model that fails.
    pub fn reward(&self, prompt: &Prompt, response: &str) -> Result<Rewards> {
        Ok(self.rewards(&[(prompt, response)])?.swap_remove(0))
    }

    /// Keeps the reference response to a prompt.
    ///
    /// # Errors
    /// A reward model that fails.
    pub fn refer(&mut self, id: &str, prompt: &Prompt, response: &str) -> Result<()> {
        let own = self.reward(prompt, response)?;
        self.references.insert(id.into(), own);
        Ok(())
    }

    /// What a response is worth to a preference.
    ///
    /// # Errors
    /// No reference response to this prompt, no such preference.
    pub fn utility(&self, preference: &str, id: &str, own: &Rewards) -> Result<f64> {
        Ok(self.worth(preference, id, own)?.0)
    }

    /// Utility, and the signed shares of the dimensions.
    fn worth(&self, name: &str, id: &str, own: &Rewards) -> Result<(f64, BTreeMap<String, f64>)> {
        let preference = self.experiment.preferences.get(name);
        let preference = preference.with_context(|| format!("no preference '{name}'"))?;
        let reference = self.reference(id)?;
        let dimensions = self.experiment.dimensions();
        let mut shares: BTreeMap<String, f64> = BTreeMap::new();
        let mut stated = Vec::new();
        for (direction, share) in preference.shares()? {
            let (dimension, sign) = locate(&dimensions, &direction)?;
            *shares.entry(dimension.into()).or_default() += sign * share;
            stated.push(Stated {
                share,
                reward: sign * own[dimension].1,
                reference: sign * reference[dimension].1,
            });
        }
        Ok((self.experiment.utility.of(&stated), shares))
    }

    /// It was told the base's responses.
    pub fn has_references(&self) -> bool {
        !self.references.is_empty()
    }

    fn reference(&self, id: &str) -> Result<&Rewards> {
        let found = self.references.get(id);
        found.with_context(|| format!("no reference for prompt '{id}'"))
    }
}

/// Scores all responses and writes `scores/<strategy>.<key>.parquet`; the key is one of all that the scores
/// follow from, so what has been scored is found again, in a neighbouring run, too.
///
/// # Errors
/// A response without reference, a folder that cannot be written.
pub fn score(
    plan: &RunPlan<'_>,
    scorer: &mut Scorer<'_>,
    rows: &Rows,
    folder: &RunFolder,
) -> Result<()> {
    let prompts = by_id(&plan.splits.prompts);
    let mut progress = Progress::new("score", "responses", rows.generations.len() as u64);
    let mut files = BTreeSet::new();
    let rewards = plan.rewards_definition()?;
    let references: Vec<&str> = file_names(std::iter::once(&plan.references));
    for strategy in plan.experiment.strategies.names() {
        let responses = rows.generations.iter();
        let responses: Vec<&GenerationRow> = responses
            .filter(|r| r.identity.strategy == strategy)
            .collect();
        let generated = file_names(plan.entries.iter().filter(|e| e.strategy == strategy));
        let from = [generated, references.clone()];
        let key = key(&json!([env!("CARGO_PKG_VERSION"), rewards, from]));
        let name = format!("{strategy}.{key}.parquet");
        let path = folder.path("scores").join(&name);
        let stored = |path: &Path| {
            let frame = read_parquet(path).ok()?;
            let scores = eval::rows::scores(path, &frame).ok()?;
            (scores.len() == responses.len()).then_some(())
        };
        if folder.found("scores", &name, stored)?.is_some() {
            progress.skip(responses.len() as u64);
        } else {
            if !scorer.has_references() {
                set_references(scorer, &plan.splits.prompts, &rows.references)?;
            }
            let mut scores = Vec::with_capacity(responses.len());
            for rows in responses.chunks(TOGETHER) {
                let items = rows
                    .iter()
                    .map(|row| Ok((prompt_of(&prompts, row)?, row.response.as_str())));
                let rewards = scorer.rewards(&items.collect::<Result<Vec<_>>>()?)?;
                for (row, rewards) in rows.iter().zip(rewards) {
                    scores.push(score_row(scorer, row, rewards)?);
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

/// The files of entries' rows, which say what the rows follow from.
fn file_names<'e>(entries: impl Iterator<Item = &'e Entry>) -> Vec<&'e str> {
    entries
        .flat_map(|entry| entry.batches.iter().map(|batch| batch.file.as_str()))
        .collect()
}

fn score_row(scorer: &Scorer<'_>, row: &GenerationRow, own: Rewards) -> Result<ScoreRow> {
    let id = &row.identity.prompt;
    let (utility, shares) = scorer.worth(&row.identity.preference, id, &own)?;
    let reference = scorer.reference(id)?;
    let scores = own.into_iter().map(|(dimension, (raw, reward))| {
        let score = DimensionScore {
            raw,
            reward,
            reference: reference[&dimension].1,
            stated: shares.get(&dimension).copied().unwrap_or(0.0),
        };
        (dimension, score)
    });
    let sum = |values: &[f32]| -> Option<f64> {
        let known = values.len() == row.tokens.len();
        known.then(|| values.iter().map(|v| f64::from(*v)).sum())
    };
    Ok(ScoreRow {
        identity: row.identity.clone(),
        utility,
        tokens: row.tokens.len() as u32,
        ended: row.ended,
        repetition: repetition(&row.tokens),
        kl: sum(&row.kl),
        base_nll: sum(&row.base_log_probs).map(|v| -v),
        dimensions: scores.collect(),
    })
}
