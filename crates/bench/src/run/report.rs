//! Stage "report": tables, plots and the HTML page, from the rows alone.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use eval::plots::{RewardPlot, UtilityPlot, WeightPlot, WinRatePlot, save};
use eval::report::Report;
use eval::rows::{self, GenerationRow, Identity, ScoreRow};
use eval::summary::Comparison;
use eval::table::{read_parquet, write_all, write_csv};
use eval::utility::Utility;
use polars::prelude::{Column, DataFrame};

use super::folder::RunFolder;
use super::manifest::Manifest;

/// Prompts whose responses the report shows.
const SHOWN_PROMPTS: usize = 4;

/// Rows of a run folder, as its Parquet files have them.
///
/// # Errors
/// A file that is missing or damaged.
pub fn read_rows(folder: &RunFolder) -> Result<(Vec<GenerationRow>, Vec<ScoreRow>)> {
    let mut generations = Vec::new();
    for path in parquet_files(&folder.path("generations"))? {
        generations.extend(rows::generations(&path, &read_parquet(&path)?)?);
    }
    let mut scores = Vec::new();
    for path in parquet_files(&folder.path("scores"))? {
        scores.extend(rows::scores(&path, &read_parquet(&path)?)?);
    }
    ensure!(
        !scores.is_empty() && !generations.is_empty(),
        "{}: there are no rows yet; `mope run` makes them",
        folder.root().display()
    );
    Ok((generations, scores))
}

fn parquet_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths: Result<Vec<_>, _> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "parquet"));
    paths.sort();
    Ok(paths)
}

/// Writes tables, plots and `report.html`; returns the summary.
///
/// # Errors
/// Rows that don't belong to the experiment, a folder that cannot be written.
pub fn report(
    manifest: &Manifest,
    generations: &[GenerationRow],
    scores: &[ScoreRow],
    folder: &RunFolder,
) -> Result<DataFrame> {
    let experiment = &manifest.experiment;
    let names = experiment.strategies.names();
    let strategies: Vec<String> = names.iter().map(|s| s.to_string()).collect();
    let comparison = Comparison::new(scores, &strategies)?;

    let mut summary = comparison.summary()?;
    let mut wins = comparison.win_rate_table()?;
    let mut rewards = comparison.reward_table()?;
    let mut preferences = comparison.preference_table()?;
    let tables = folder.path("tables");
    for (name, frame) in [
        ("summary", &mut summary),
        ("win_rates", &mut wins),
        ("rewards", &mut rewards),
        ("preferences", &mut preferences),
    ] {
        write_all(&tables, name, frame)?;
    }
    write_csv(&tables, "responses", &mut responses(generations, scores)?)?;

    let first = strategies.first().map_or("", String::as_str);
    let page = Report {
        title: &experiment.name,
        facts: &facts(manifest),
        tables: vec![
            (
                "Summary",
                format!(
                    "Utility with its 95 % interval (bootstrap over prompts, paired); win rate over \
                     the other strategies; difference of utility from '{first}'; mean normalised \
                     reward of each dimension over the responses whose preference states it, signed \
                     so that more is better."
                ),
                &summary,
            ),
            (
                "Win rates",
                "A win is a higher utility on the same prompt, preference and sample; a tie is half."
                    .into(),
                &wins,
            ),
            (
                "Rewards",
                "Normalised rewards with intervals, and mean and standard deviation of the raw scores \
                 over all responses."
                    .into(),
                &rewards,
            ),
            (
                "Preferences",
                "Mean utility of every strategy for every preference.".into(),
                &preferences,
            ),
        ],
        plots: plots(manifest, &comparison, generations, folder)?,
        samples: samples(manifest, generations, scores),
        config: &manifest.source,
    };
    let path = folder.path("report.html");
    eval::write_atomic(&path, page.html()?.as_bytes())?;
    Ok(summary)
}

/// Every response with its utility, for people without a Parquet reader.
fn responses(generations: &[GenerationRow], scores: &[ScoreRow]) -> Result<DataFrame> {
    let by_identity: HashMap<&Identity, &ScoreRow> =
        scores.iter().map(|s| (&s.identity, s)).collect();
    let utility: Vec<Option<f64>> = generations
        .iter()
        .map(|g| by_identity.get(&g.identity).map(|s| s.utility))
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
            format!("{}, weights {:?}", experiment.device, experiment.weights),
        ),
    ]
}

fn plots(
    manifest: &Manifest,
    comparison: &Comparison<'_>,
    generations: &[GenerationRow],
    folder: &RunFolder,
) -> Result<Vec<(String, String)>> {
    let plots = folder.path("plots");
    let strategies = comparison.strategies().to_vec();
    let utility = UtilityPlot {
        utilities: strategies.iter().map(|s| comparison.utility(s)).collect(),
        neutral: match manifest.experiment.utility {
            Utility::BradleyTerry => 0.5,
            Utility::Mean => 0.0,
        },
        strategies: strategies.clone(),
    };
    let mut drawn = vec![(
        "Utility by strategy; the dashed line is a response as good as the reference.".into(),
        save(&plots, "utility", &utility)?,
    )];

    let stated = |dimension: &&String| {
        let of = |s: &String| comparison.reward(s, dimension);
        strategies.iter().any(|s| of(s).is_some())
    };
    let rewards = RewardPlot {
        rewards: comparison
            .dimensions()
            .iter()
            .filter(stated)
            .map(|d| {
                let estimates = strategies.iter().map(|s| comparison.reward(s, d));
                (d.clone(), estimates.collect())
            })
            .collect(),
        strategies: strategies.clone(),
    };
    drawn.push((
        "Reward in each dimension that a preference states; zero is the base's mean.".into(),
        save(&plots, "rewards", &rewards)?,
    ));

    let n = strategies.len();
    let mut rates = vec![None; n * n];
    let place = |name: &str| strategies.iter().position(|s| s == name);
    for win in comparison.win_rates() {
        if let (Some(row), Some(column)) = (place(&win.strategy), place(&win.opponent)) {
            rates[row * n + column] = Some(win.rate.mean);
        }
    }
    let matrix = WinRatePlot {
        strategies: strategies.clone(),
        rates,
    };
    drawn.push((
        "Share of pairs that the row's strategy wins.".into(),
        save(&plots, "win_rates", &matrix)?,
    ));

    for strategy in &strategies {
        let mut own = generations.iter();
        let mixed = |g: &&GenerationRow| g.identity.strategy == *strategy && g.experts.len() > 1;
        let Some(row) = own.find(mixed) else {
            continue;
        };
        let Identity {
            preference, prompt, ..
        } = &row.identity;
        let weights = WeightPlot {
            title: format!("{strategy}: {preference}, prompt {prompt}"),
            experts: row.experts.clone(),
            weights: row.weights.clone(),
        };
        drawn.push((
            format!("Weights of the experts over one response of '{strategy}'."),
            save(&plots, &format!("weights_{strategy}"), &weights)?,
        ));
    }
    Ok(drawn)
}

/// The first prompts' responses, strategy by strategy.
fn samples<'a>(
    manifest: &Manifest,
    generations: &'a [GenerationRow],
    scores: &'a [ScoreRow],
) -> Vec<(&'a GenerationRow, &'a ScoreRow)> {
    let by_identity: HashMap<&Identity, &ScoreRow> =
        scores.iter().map(|s| (&s.identity, s)).collect();
    let mut prompts: Vec<&str> = Vec::new();
    for row in generations {
        let id = row.identity.prompt.as_str();
        if !prompts.contains(&id) && prompts.len() < SHOWN_PROMPTS {
            prompts.push(id);
        }
    }
    let place = |names: &[&str], name: &str| names.iter().position(|n| *n == name);
    let strategies = manifest.experiment.strategies.names();
    let preferences = manifest.experiment.preferences.names();
    let mut shown: Vec<_> = generations
        .iter()
        .filter(|g| g.identity.sample == 0 && prompts.contains(&g.identity.prompt.as_str()))
        .filter_map(|g| Some((g, *by_identity.get(&g.identity)?)))
        .collect();
    shown.sort_by_key(|(g, _)| {
        let i = &g.identity;
        (
            place(&prompts, &i.prompt),
            place(&preferences, &i.preference),
            place(&strategies, &i.strategy),
        )
    });
    shown
}
