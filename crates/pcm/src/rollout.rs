use std::path::Path;

use polars::prelude::*;

use crate::output::{Output, Support, mixture};
use crate::{Context, Error, Result};

/// One sampled response and all that training needs to know of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rollout {
    /// Prompt by its id.
    pub prompt: String,
    /// What the PCM read.
    pub context: Context,
    /// The sampled tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under each expert in nats, at the temperature of sampling, `[tokens, experts]`;
    /// 0 for experts that the preference does not name.
    pub log_probs: Vec<f32>,
    /// Log-probability of each token under the base, in nats, at the same temperature; empty where the base takes
    /// no part.
    pub base: Vec<f32>,
    /// [`Support`] of each token, `[tokens, k + 1, named experts + 1]`; empty where probabilities are mixed.
    pub support: Vec<f32>,
    /// Log-probability of each token under the policy that sampled it, in nats.
    pub behaviour: Vec<f32>,
    /// Normalised reward by dimension, in the order of the training's dimensions.
    pub rewards: Vec<f64>,
    /// What the response is worth.
    pub utility: f64,
    /// Divides each expert's logits.
    pub temperature: f32,
    /// Seed of the training that sampled it.
    pub seed: u64,
}

impl Rollout {
    /// Log-probability of the whole response under the policy that sampled it, in nats.
    pub fn behaviour(&self) -> f64 {
        self.behaviour.iter().map(|v| f64::from(*v)).sum()
    }

    /// Log-probability of each token for logits of the weights, `[tokens, experts]`.
    pub fn mixed(&self, logits: &[f32], output: Output) -> Vec<f32> {
        let n = self.context.shares.len().max(1);
        let rows = logits.chunks(n).enumerate();
        rows.map(|(token, z)| self.chance(token, z, output).log_prob as f32)
            .collect()
    }

    /// Derivatives of a token's log-probability by the logits of the weights, `[experts]`; where probabilities are
    /// mixed, `∂ ln p(y) / ∂z_i = α_i (p_i(y)/p(y) − 1)`.
    pub fn slope(&self, token: usize, logits: &[f32], output: Output) -> Vec<f64> {
        self.chance(token, logits, output).slope
    }

    /// What a token's log-probability is for logits of the weights, `[experts]`.
    pub(crate) fn chance(&self, token: usize, logits: &[f32], output: Output) -> Chance {
        let shares = self.context.shares.as_slice();
        let n = shares.len();
        let log_probs = &self.log_probs[token * n..(token + 1) * n];
        let weights = output.weights(logits, shares);
        let mut by_weight = vec![0.0; n];
        let log_prob = match output {
            Output::Probabilities => {
                let log_prob = mixture(logits, log_probs);
                for (by, l) in by_weight.iter_mut().zip(log_probs) {
                    *by = (f64::from(*l) - log_prob).exp();
                }
                log_prob
            }
            Output::Logs | Output::Gates { .. } => {
                let named: Vec<usize> = (0..n).filter(|&i| shares[i] > 0.0).collect();
                let own: Vec<f64> = named.iter().map(|&i| weights[i]).collect();
                let width = self.support.len() / self.tokens.len();
                let support = Support {
                    rows: &self.support[token * width..(token + 1) * width],
                    experts: named.len(),
                };
                let (total, means) = support.total(&own);
                let base = self.base.get(token).map_or(0.0, |b| f64::from(*b));
                let mut log_prob = base - total;
                for (&i, mean) in named.iter().zip(means) {
                    let term = f64::from(log_probs[i]) - base;
                    log_prob += weights[i] * term;
                    by_weight[i] = term - mean;
                }
                log_prob
            }
        };
        Chance {
            log_prob,
            slope: output.back(&weights, shares, &by_weight),
            weights,
        }
    }

    /// The numbers belong to each other.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self, experts: usize, output: Output) -> Result<()> {
        let (tokens, n) = (self.tokens.len(), self.context.shares.len());
        if n != experts || self.log_probs.len() != tokens * n || self.behaviour.len() != tokens {
            return Err(Error::Argument(format!(
                "a rollout of {tokens} tokens with {} experts' and {} behaviour log-probabilities for {experts} \
                 experts",
                self.log_probs.len(),
                self.behaviour.len()
            )));
        }
        let named = self.context.shares.iter().filter(|s| **s > 0.0).count();
        let base = if output.reads_base() { tokens } else { 0 };
        let whole = match output.is_product() {
            true => {
                !self.support.is_empty() && self.support.len().is_multiple_of(tokens * (named + 1))
            }
            false => true,
        };
        if self.base.len() != base || !whole {
            return Err(Error::Argument(format!(
                "a rollout of {tokens} tokens with {} log-probabilities of the base and {} numbers for the others; \
                 it was recorded for another output than {output:?}",
                self.base.len(),
                self.support.len()
            )));
        }
        if tokens == 0 || !self.utility.is_finite() {
            return Err(Error::Argument(
                "a rollout without tokens or utility".into(),
            ));
        }
        Ok(())
    }
}

/// A token under some weights.
pub(crate) struct Chance {
    /// In nats.
    pub log_prob: f64,
    /// Its derivatives by the logits of the weights, `[experts]`.
    pub slope: Vec<f64>,
    /// The weights, `[experts]`.
    pub weights: Vec<f64>,
}

/// Writes rollouts to a Parquet file, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_rollouts(path: &Path, rollouts: &[Rollout]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::file(path, e.to_string());
    let list = |name: &str, get: &dyn Fn(&Rollout) -> Series| {
        let rows = rollouts.iter().map(get);
        Column::new(name.into(), rows.collect::<Vec<Series>>())
    };
    let prompts: Vec<&str> = rollouts.iter().map(|r| r.prompt.as_str()).collect();
    let columns = vec![
        Column::new("prompt".into(), prompts),
        list("context", &|r| Series::new("".into(), &r.context.tokens)),
        list("shares", &|r| Series::new("".into(), &r.context.shares)),
        list("statistics", &|r| {
            Series::new("".into(), &r.context.statistics)
        }),
        list("tokens", &|r| Series::new("".into(), &r.tokens)),
        list("log_probs", &|r| Series::new("".into(), &r.log_probs)),
        list("base", &|r| Series::new("".into(), &r.base)),
        list("support", &|r| Series::new("".into(), &r.support)),
        list("behaviour", &|r| Series::new("".into(), &r.behaviour)),
        list("rewards", &|r| Series::new("".into(), &r.rewards)),
        Column::new(
            "utility".into(),
            rollouts.iter().map(|r| r.utility).collect::<Vec<_>>(),
        ),
        Column::new(
            "temperature".into(),
            rollouts.iter().map(|r| r.temperature).collect::<Vec<_>>(),
        ),
        Column::new(
            "seed".into(),
            rollouts.iter().map(|r| r.seed).collect::<Vec<_>>(),
        ),
    ];
    let mut frame = DataFrame::new(rollouts.len(), columns).map_err(|e| failed(&e))?;
    let beside = path.with_extension("part");
    let file = std::fs::File::create(&beside).map_err(|e| failed(&e))?;
    ParquetWriter::new(file)
        .finish(&mut frame)
        .map_err(|e| failed(&e))?;
    std::fs::rename(&beside, path).map_err(|e| failed(&e))
}

/// Reads a file that [`write_rollouts`] wrote.
///
/// # Errors
/// A missing or damaged file, or one with other columns.
pub fn read_rollouts(path: &Path) -> Result<Vec<Rollout>> {
    let failed = |e: &dyn std::fmt::Display| Error::file(path, e.to_string());
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let frame = ParquetReader::new(file).finish().map_err(|e| failed(&e))?;
    let column = |name: &str| frame.column(name).map_err(|e| failed(&e));
    let lists = |name: &str, row: usize| -> Result<Series> {
        let list = column(name)?.list().map_err(|e| failed(&e))?;
        let empty = || Series::new_empty("".into(), list.inner_dtype());
        Ok(list.get_as_series(row).unwrap_or_else(empty))
    };
    let integers = |name: &str, row: usize| -> Result<Vec<u32>> {
        let series = lists(name, row)?;
        Ok(series
            .u32()
            .map_err(|e| failed(&e))?
            .iter()
            .flatten()
            .collect())
    };
    let floats = |name: &str, row: usize| -> Result<Vec<f32>> {
        let series = lists(name, row)?;
        Ok(series
            .f32()
            .map_err(|e| failed(&e))?
            .iter()
            .flatten()
            .collect())
    };
    let (prompts, utility) = (column("prompt")?, column("utility")?);
    let prompts = prompts.str().map_err(|e| failed(&e))?;
    let utility = utility.f64().map_err(|e| failed(&e))?;
    let (temperature, seed) = (column("temperature")?, column("seed")?);
    let temperature = temperature.f32().map_err(|e| failed(&e))?;
    let seed = seed.u64().map_err(|e| failed(&e))?;
    let mut rollouts = Vec::new();
    for row in 0..frame.height() {
        let missing = || failed(&format!("row {row} has missing values"));
        let rewards = lists("rewards", row)?;
        rollouts.push(Rollout {
            prompt: prompts.get(row).ok_or_else(missing)?.to_string(),
            context: Context {
                tokens: integers("context", row)?,
                shares: floats("shares", row)?,
                statistics: floats("statistics", row)?,
            },
            tokens: integers("tokens", row)?,
            log_probs: floats("log_probs", row)?,
            base: floats("base", row)?,
            support: floats("support", row)?,
            behaviour: floats("behaviour", row)?,
            rewards: rewards
                .f64()
                .map_err(|e| failed(&e))?
                .iter()
                .flatten()
                .collect(),
            utility: utility.get(row).ok_or_else(missing)?,
            temperature: temperature.get(row).ok_or_else(missing)?,
            seed: seed.get(row).ok_or_else(missing)?,
        });
    }
    Ok(rollouts)
}
