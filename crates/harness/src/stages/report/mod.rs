//! Stage "report": tables, plots and the HTML page, from the rows alone.
//!
//! ```
//! use mope_harness::stages::report::read_rows;
//! use mope_harness::store::folder::RunFolder;
//!
//! let here = tempfile::tempdir()?;
//! let folder = RunFolder::open(&here.path().join("run"))?;
//! let error = read_rows(&folder).err().map(|e| e.to_string());
//! assert!(error.is_some_and(|e| e.contains("is this a run folder?")));
//! # anyhow::Ok(())
//! ```

mod plots;
mod question;
mod tables;

use std::collections::HashMap;

use anyhow::Result;
use eval::comparison::Comparison;
use eval::frontier::Frontier;
use eval::mixing_weights::MixingWeights;
use eval::report::{Report, Table};
use eval::rounding::number;
use eval::rows::{self, GenerationRow, Identity, ScoreRow};
use eval::table::{write_all, write_csv};
use eval::utility::Utility;
use mixing::Strategy;
use polars::prelude::{Column, DataFrame};

use crate::experiment::Experiment;
use crate::store::folder::RunFolder;
use crate::store::manifest::Manifest;
pub use crate::store::rows::read_rows;
use plots::Plots;

/// Prompts below which a run is called small (ours).
const FEW: usize = 20;

/// Writes tables, plots and `report.html`; returns the ranking, or where no divergence was measured the rewards.
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
    let names = experiment.compared();
    let strategies: Vec<String> = names.iter().map(|s| s.to_string()).collect();
    let frontier = frontier(experiment, scores);
    write_csv(
        &folder.path("tables"),
        "responses",
        &mut responses(generations, scores)?,
    )?;
    // Curves have tables of their own.
    let (mut kept_generations, mut kept_scores) = (Vec::new(), Vec::new());
    let (generations, scores) = match experiment.frontier.is_empty() {
        true => (generations, scores),
        false => {
            let kept = |i: &Identity| names.contains(&i.strategy.as_str());
            kept_generations.extend(generations.iter().filter(|g| kept(&g.identity)).cloned());
            kept_scores.extend(scores.iter().filter(|s| kept(&s.identity)).cloned());
            (&kept_generations[..], &kept_scores[..])
        }
    };
    let preferences = experiment.preferences.iter();
    let preferences: Vec<(String, String)> = preferences
        .map(|(name, p)| (name.to_string(), p.text.clone()))
        .collect();
    let comparison = Comparison::new(scores, &strategies)?.with_distances(experiment.distances());

    let weights: Vec<(String, MixingWeights)> = strategies
        .iter()
        .filter_map(|s| Some((s.clone(), MixingWeights::of(s, generations)?)))
        .collect();
    let mut tables = tables::tables(manifest, &comparison, generations, &weights, retention)?;
    tables.extend(tables::frontier(frontier.as_ref())?);
    tables.extend(tables::hypotheses(
        experiment,
        &comparison,
        frontier.as_ref(),
    )?);
    let folder_of_tables = folder.path("tables");
    for table in &mut tables {
        write_all(folder.root(), table.file, &mut table.frame)?;
    }
    if experiment.kl {
        comparison.paper().write(&folder_of_tables, "paper")?;
        comparison
            .paper_preferences()
            .write(&folder_of_tables, "paper_preferences")?;
    }
    let path = folder_of_tables.join("resamples.parquet");
    comparison.bootstrap().write(&path)?;
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
        frontier: frontier.as_ref(),
        comparison: &comparison,
        generations,
        weights: &weights,
        experts: &experts,
        neutral: neutral(manifest),
        folder: folder.path("plots"),
        drawn: Vec::new(),
    };
    let text = serde_json::to_string_pretty(manifest)?;
    let judged = tables::judged(folder)?;
    let pairs = comparison.pair_table()?;
    let page = Report {
        title: &experiment.name,
        question: experiment
            .question
            .clone()
            .or_else(|| question::question(&manifest.source)),
        findings: match experiment.kl {
            true => comparison.findings(),
            false => Vec::new(),
        },
        warnings: warnings(manifest, generations, scores, &comparison),
        summaries: match experiment.kl {
            true => comparison.summaries(),
            false => Vec::new(),
        },
        neutral: neutral(manifest),
        figures: plots.draw()?,
        strategies: &strategies,
        preferences: &preferences,
        experts: &experts,
        samples: samples(generations, scores),
        tables: folded(&tables, &pairs, &judged),
        facts: facts(manifest),
        config: &manifest.source,
        manifest: &text,
    };
    let path = folder.path("report.html");
    eval::write_atomic(&path, page.html()?.as_bytes())?;
    // The ranking comes first, or the rewards.
    Ok(tables.swap_remove(0).frame)
}

/// The curves of an experiment that has some.
fn frontier(experiment: &Experiment, scores: &[ScoreRow]) -> Option<Frontier> {
    let base = experiment
        .base()
        .filter(|_| !experiment.frontier.is_empty())?;
    Frontier::new(scores, base, experiment.curves(), &experiment.distances())
}

/// Utility of a response that is as good as the reference.
fn neutral(manifest: &Manifest) -> f64 {
    match manifest.experiment.utility {
        Utility::BradleyTerry => 0.5,
        Utility::Mean => 0.0,
    }
}

/// The tables below the first, in which every pair stands once.
fn folded<'a>(
    tables: &'a [tables::Table],
    pairs: &'a DataFrame,
    judged: &'a [tables::Table],
) -> Vec<Table<'a>> {
    let mut out = Vec::new();
    for table in tables.iter().chain(judged) {
        let (heading, hint, frame) = match table.file {
            // The opening has it.
            "tables/ranking" | "tables/win_rates" => continue,
            "tables/differences" => (
                "Pairs",
                "Every pair of strategies once, on the same prompt, preference and sample: the mean difference in \
                 utility, and the share of pairs that the first wins, by utility and by each reward where the preference \
                 states its dimension, a tie half. Win rates with intervals: tables/win_rates.csv.",
                pairs,
            ),
            _ => (table.heading, table.hint.as_str(), &table.frame),
        };
        if frame.height() > 0 {
            out.push(Table {
                file: table.file,
                heading,
                hint: hint.into(),
                frame,
            });
        }
    }
    out
}

/// What a reader must know before believing the tables.
fn warnings(
    manifest: &Manifest,
    generations: &[GenerationRow],
    scores: &[ScoreRow],
    comparison: &Comparison<'_>,
) -> Vec<String> {
    let mut out = manifest.warnings.clone();
    out.extend(wrong_bounds(&manifest.experiment, comparison));
    out.extend(pleased_by_fools(&manifest.experiment, comparison));
    if !manifest.experiment.kl {
        out.push(
            "No divergence was measured (kl: false), so strategies are not ranked: what is further from the base has more \
             utility by that alone."
                .into(),
        );
    }
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

/// Responses of prompts and of single experts that may cross a bound, at most: they answer (ours).
const LOST: f64 = 0.05;

/// Bounds that strategies cross which only answer.
fn wrong_bounds(experiment: &Experiment, comparison: &Comparison<'_>) -> Vec<String> {
    let answers = |s: &Strategy| matches!(s, Strategy::Prompting(_) | Strategy::Single(_));
    let strategies = experiment.strategies.iter().filter(|(_, s)| answers(s));
    let lost = strategies.filter_map(|(name, _)| {
        experiment.bounds.as_ref()?;
        let lost = |r: &ScoreRow| Some(f64::from(u8::from(r.utility == 0.0)));
        let share = comparison.estimate(name, lost)?.mean;
        (share > LOST).then(|| {
            format!(
                "{:.0} % of the responses of '{name}', which only answers, cross a bound, more than {:.0} %: the bounds are \
                 wrong here.",
                100.0 * share,
                100.0 * LOST
            )
        })
    });
    lost.collect()
}

/// Texts that take no notice of the question and yet have more utility than something that does.
fn pleased_by_fools(experiment: &Experiment, comparison: &Comparison<'_>) -> Vec<String> {
    let text = |name: &str| {
        experiment
            .strategies
            .get(name)
            .is_some_and(Strategy::is_text)
    };
    let strategies = comparison.strategies().iter();
    let (texts, answers): (Vec<&String>, Vec<&String>) = strategies.partition(|s| text(s));
    let utility = |s: &&String| Some(comparison.utility(s)?.mean);
    let least = answers.iter().filter_map(utility).reduce(f64::min);
    let pleased = texts.into_iter().filter_map(|name| {
        let mean = utility(&name)?;
        (mean > least?).then(|| {
            format!(
                "'{name}' takes no notice of the question and has a utility of {}, more than a strategy that does: the \
                 utility measures something else than good answers.",
                number(mean, 3)
            )
        })
    });
    pleased.collect()
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
        pair("strategies", experiment.compared().join(", ")),
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
            "registered",
            match &manifest.preregistration {
                Some(registered) => format!(
                    "before the run, {} ({})",
                    registered.file,
                    &registered.sha256[..12]
                ),
                None => "no".into(),
            },
        ),
        pair(
            "openings of the prompts",
            match manifest.openings {
                0 => "not counted".into(),
                n => n.to_string(),
            },
        ),
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
