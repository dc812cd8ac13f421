//! Rollouts as Parquet files.

use std::path::Path;

use polars::prelude::*;

use crate::rollout::{Prefixes, Rollout};
use crate::{Context, Error, Result};

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
        list("references", &|r| Series::new("".into(), &r.references)),
        list("cuts", &|r| Series::new("".into(), &r.prefixes.cuts)),
        list("cut_worth", &|r| {
            Series::new("".into(), &r.prefixes.utilities)
        }),
        list("cut_rewards", &|r| {
            Series::new("".into(), &r.prefixes.rewards)
        }),
        list("cut_references", &|r| {
            Series::new("".into(), &r.prefixes.references)
        }),
        list("cut_divergences", &|r| {
            Series::new("".into(), &r.prefixes.divergences)
        }),
        Column::new(
            "divergence".into(),
            rollouts.iter().map(|r| r.divergence).collect::<Vec<_>>(),
        ),
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
    let numbers = |name: &str, row: usize| -> Result<Vec<f64>> {
        let series = lists(name, row)?;
        Ok(series
            .f64()
            .map_err(|e| failed(&e))?
            .iter()
            .flatten()
            .collect())
    };
    let (prompts, utility) = (column("prompt")?, column("utility")?);
    let divergence = column("divergence")?.f64().map_err(|e| failed(&e))?;
    let prompts = prompts.str().map_err(|e| failed(&e))?;
    let utility = utility.f64().map_err(|e| failed(&e))?;
    let (temperature, seed) = (column("temperature")?, column("seed")?);
    let temperature = temperature.f32().map_err(|e| failed(&e))?;
    let seed = seed.u64().map_err(|e| failed(&e))?;
    let mut rollouts = Vec::new();
    for row in 0..frame.height() {
        let missing = || failed(&format!("row {row} has missing values"));
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
            rewards: numbers("rewards", row)?,
            references: numbers("references", row)?,
            divergence: divergence.get(row).ok_or_else(missing)?,
            utility: utility.get(row).ok_or_else(missing)?,
            prefixes: Prefixes {
                cuts: integers("cuts", row)?,
                utilities: numbers("cut_worth", row)?,
                rewards: numbers("cut_rewards", row)?,
                references: numbers("cut_references", row)?,
                divergences: numbers("cut_divergences", row)?,
            },
            temperature: temperature.get(row).ok_or_else(missing)?,
            seed: seed.get(row).ok_or_else(missing)?,
        });
    }
    Ok(rollouts)
}
