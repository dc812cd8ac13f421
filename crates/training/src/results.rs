//! What a training writes besides its product: metrics, curves, samples and manifest.

use std::path::Path;

use anyhow::{Context, Result};
use eval::plots::{CurvePlot, save};
use eval::table::write_all;
use polars::prelude::{Column, DataFrame};
use serde_json::{Map, Value, json};

use super::Job;
use super::session::TrainingState;
use harness::store::manifest::commit;

/// Writes metrics, curves, samples and manifest into the training's folder.
///
/// # Errors
/// A folder that cannot be written.
pub(super) fn write(job: &Job<'_>, state: &TrainingState) -> Result<()> {
    let (training, out) = (job.training, job.out());
    let mut frame = frame(&state.metrics)?;
    write_all(out, "metrics", &mut frame)?;
    plot(&training.name, &state.metrics, &out.join("plots"))?;
    if !state.samples.is_empty() {
        eval::write_atomic(&out.join("samples.md"), state.samples.as_bytes())?;
    }
    let file = &job.options.source;
    let source = std::fs::read_to_string(file).unwrap_or_default();
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(file.parent().unwrap_or(Path::new("."))),
        "training": training,
        "source": source,
        "inputs": job.inputs,
        "sessions": state.sessions,
    });
    write_manifest(out, &manifest)
}

/// Writes `manifest.json` whole or not at all.
///
/// # Errors
/// A folder that cannot be written.
pub(super) fn write_manifest(out: &Path, manifest: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    Ok(eval::write_atomic(
        &out.join("manifest.json"),
        text.as_bytes(),
    )?)
}

/// Curves of a training: file name, columns, and what they are in.
const CURVES: [(&str, &[&str], &str); 9] = [
    ("utility", &["utility"], "utility"),
    ("entropy", &["entropy"], "nats"),
    ("divergence", &["kl", "divergence"], "nats per token"),
    (
        "reward",
        &["reward", "reward_sd"],
        "standard deviations of the base",
    ),
    ("kl", &["kl"], "nats per token"),
    ("length", &["length"], "tokens"),
    ("gradient", &["gradient"], "length before clipping"),
    ("residual", &["residual", "floor"], "nats"),
    ("loss", &["loss"], "loss"),
];

/// One plot for each of [`CURVES`] that the metrics have.
fn plot(training: &str, metrics: &[Map<String, Value>], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (name, columns, unit) in CURVES {
        let curves = columns
            .iter()
            .enumerate()
            .filter_map(|(i, column)| Some((column.to_string(), i, curve(metrics, column)?)));
        let curves: Vec<_> = curves.collect();
        if curves.is_empty() {
            continue;
        }
        let plot = CurvePlot {
            title: format!("{training}: {name}"),
            x: "iteration".into(),
            y: unit.into(),
            curves,
        };
        save(folder, name, &plot)?;
    }
    Ok(())
}

fn curve(metrics: &[Map<String, Value>], column: &str) -> Option<Vec<(f64, f64)>> {
    let points = metrics.iter().enumerate();
    points
        .map(|(i, row)| Some((i as f64, row.get(column)?.as_f64()?)))
        .collect()
}

/// One row an iteration or step, `step` its number; the first one's numbers are the columns.
fn frame(metrics: &[Map<String, Value>]) -> Result<DataFrame> {
    let names: Vec<&String> = metrics
        .first()
        .map(|m| m.keys().collect())
        .unwrap_or_default();
    let columns = names.into_iter().map(|name| {
        let values: Vec<f64> = metrics
            .iter()
            .map(|row| row.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN))
            .collect();
        Column::new(name.as_str().into(), values)
    });
    let mut all: Vec<Column> = columns.collect();
    if all.iter().all(|column| column.name() != "step") {
        let steps: Vec<u32> = (0..).take(metrics.len()).collect();
        all.insert(0, Column::new("step".into(), steps));
    }
    Ok(DataFrame::new_infer_height(all)?)
}
