//! Stage "report": tables, plots and the HTML page, from the rows alone.

mod plots;
mod tables;

use std::collections::HashMap;

use anyhow::Result;
use eval::comparison::Comparison;
use eval::mixing_weights::MixingWeights;
use eval::report::Report;
use eval::rows::{self, GenerationRow, Identity, ScoreRow};
use eval::table::{write_all, write_csv};
use polars::prelude::{Column, DataFrame};

use crate::store::folder::RunFolder;
use crate::store::manifest::Manifest;
pub use crate::store::rows::read_rows;
use plots::Plots;

/// Prompts below which a run is called small (ours).
const FEW: usize = 20;

/// Writes tables, plots and `report.html`; returns the ranking.
///
/// # Errors
/// Rows that don't belong to the experiment, a folder that cannot be written.
pub fn report(
    manifest: &Manifest,
    generations: &[GenerationRow],
    scores: &[ScoreRow],
    retention: Option<DataFrame>,
    folder: &RunFolder,
) -> Result<DataFrame> {
    let experiment = &manifest.experiment;
    let names = experiment.strategies.names();
    let strategies: Vec<String> = names.iter().map(|s| s.to_string()).collect();
    let preference_names = experiment.preferences.names();
    let preference_names: Vec<String> = preference_names.iter().map(|p| p.to_string()).collect();
    let comparison = Comparison::new(scores, &strategies)?;

    let weights: Vec<(String, MixingWeights)> = strategies
        .iter()
        .filter_map(|s| Some((s.clone(), MixingWeights::of(s, generations)?)))
        .collect();
    let mut tables = tables::tables(manifest, &comparison, generations, &weights, retention)?;
    let folder_of_tables = folder.path("tables");
    for table in &mut tables {
        write_all(&folder_of_tables, table.file, &mut table.frame)?;
    }
    comparison.paper().write(&folder_of_tables, "paper")?;
    comparison
        .paper_preferences()
        .write(&folder_of_tables, "paper_preferences")?;
    let path = folder_of_tables.join("resamples.parquet");
    comparison.bootstrap().write(&path)?;
    write_csv(
        &folder_of_tables,
        "responses",
        &mut responses(generations, scores)?,
    )?;
    // Those of the file first, then what was merged from them.
    let experts = experiment.expert_names().into_iter().map(String::from);
    let mut experts: Vec<String> = experts.collect();
    for expert in generations.iter().flat_map(|g| &g.experts) {
        if !experts.contains(expert) {
            experts.push(expert.clone());
        }
    }
    let plots = Plots {
        manifest,
        comparison: &comparison,
        generations,
        weights: &weights,
        experts: &experts,
        folder: folder.path("plots"),
        drawn: Vec::new(),
    };
    let text = serde_json::to_string_pretty(manifest)?;
    let filled = tables.iter().filter(|t| t.frame.height() > 0);
    let page = Report {
        title: &experiment.name,
        facts: &facts(manifest),
        warnings: warnings(manifest, generations, scores),
        tables: filled
            .map(|t| (t.heading, t.hint.clone(), &t.frame))
            .collect(),
        plots: plots.draw()?,
        strategies: &strategies,
        preferences: &preference_names,
        experts: &experts,
        samples: samples(generations, scores),
        config: &manifest.source,
        manifest: &text,
    };
    let path = folder.path("report.html");
    eval::write_atomic(&path, page.html()?.as_bytes())?;
    // The ranking comes first.
    Ok(tables.swap_remove(0).frame)
}

/// What a reader must know before believing the tables.
fn warnings(
    manifest: &Manifest,
    generations: &[GenerationRow],
    scores: &[ScoreRow],
) -> Vec<String> {
    let mut out = manifest.warnings.clone();
    let missing = rows::missing(generations, scores);
    let lines = missing.iter().map(|w| format!("warning: {w}"));
    lines.for_each(|line| crate::progress::say(&line));
    out.extend(missing);
    if manifest.prompts < FEW {
        out.push(format!(
            "{} prompts are few: intervals and tests by prompt say little; see prompts_needed.",
            manifest.prompts
        ));
    }
    out
}

/// Every response with its utility, for people without a Parquet reader.
fn responses(generations: &[GenerationRow], scores: &[ScoreRow]) -> Result<DataFrame> {
    let by_identity: HashMap<&Identity, &ScoreRow> =
        scores.iter().map(|s| (&s.identity, s)).collect();
    let utility: Vec<Option<f64>> = generations
        .iter()
        .map(|g| by_identity.get(&g.identity).map(|s| s.utility))
        .map(|utility| utility.filter(|u| u.is_finite()))
        .collect();
    let tokens: Vec<u32> = generations.iter().map(|g| g.tokens.len() as u32).collect();
    let kept = [
        "strategy",
        "preference",
        "prompt",
        "sample",
        "question",
        "response",
        "ended",
    ];
    let mut frame = rows::generations_frame(generations)?.select(kept)?;
    frame.with_column(Column::new("tokens".into(), tokens))?;
    frame.with_column(Column::new("utility".into(), utility))?;
    Ok(frame)
}

fn facts(manifest: &Manifest) -> Vec<(String, String)> {
    let experiment = &manifest.experiment;
    let sampling = &experiment.generation.sampling;
    let pair = |term: &str, text: String| (term.to_string(), text);
    vec![
        pair("model", experiment.model.clone()),
        pair("experts", experiment.expert_names().join(", ")),
        pair("strategies", experiment.strategies.names().join(", ")),
        pair("preferences", experiment.preferences.names().join(", ")),
        pair(
            "responses",
            format!(
                "{} prompts, {} each, at most {} tokens, temperature {}",
                manifest.prompts,
                experiment.samples,
                experiment.generation.max_new_tokens,
                sampling.temperature
            ),
        ),
        pair("seed", experiment.seed.to_string()),
        pair(
            "device",
            format!("{}, weights {:?}", experiment.device, experiment.format),
        ),
    ]
}

/// Responses with their scores, as the report's browser orders them.
fn samples<'a>(
    generations: &'a [GenerationRow],
    scores: &'a [ScoreRow],
) -> Vec<(&'a GenerationRow, &'a ScoreRow)> {
    let by_identity: HashMap<&Identity, &ScoreRow> =
        scores.iter().map(|s| (&s.identity, s)).collect();
    let both = |g: &'a GenerationRow| Some((g, *by_identity.get(&g.identity)?));
    generations.iter().filter_map(both).collect()
}
