//! Stage "report": tables, plots and the HTML page, from the rows alone.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use eval::comparison::{Comparison, Measure};
use eval::plots::{
    CurvePlot, FrontPlot, HeatPlot, RadarPlot, RewardPlot, ScatterPlot, UtilityPlot, WeightPlot,
    save,
};
use eval::report::Report;
use eval::rows::{self, GenerationRow, Identity, ScoreRow};
use eval::statistics::{Estimate, RESAMPLES};
use eval::table::{parquet, read_parquet, write_all, write_csv};
use eval::utility::Utility;
use eval::weights::Weights;
use polars::prelude::{Column, DataFrame};

use super::folder::RunFolder;
use super::manifest::Manifest;

/// Outlines of the radar plot; more can't be told apart (ours).
const OUTLINES: usize = 5;

/// Prompts below which a run is called small: the share of draws that a percentile interval needs (ours).
const FEW: usize = 20;

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
    mut retention: Option<DataFrame>,
    folder: &RunFolder,
) -> Result<DataFrame> {
    let experiment = &manifest.experiment;
    let names = experiment.strategies.names();
    let strategies: Vec<String> = names.iter().map(|s| s.to_string()).collect();
    let preference_names = experiment.preferences.names();
    let preference_names: Vec<String> = preference_names.iter().map(|p| p.to_string()).collect();
    let comparison = Comparison::new(scores, &strategies)?;

    let weights: Vec<(String, Weights)> = strategies
        .iter()
        .filter_map(|s| Some((s.clone(), Weights::of(s, generations)?)))
        .collect();
    let mut ranking = comparison.ranking()?;
    let mut quality = comparison.quality_table(generations)?;
    let mut cost = cost(manifest)?;
    let mut rewards = comparison.reward_table()?;
    let mut preferences = comparison.preference_table()?;
    let mut wins = comparison.win_rate_table()?;
    let mut differences = comparison.difference_table()?;
    let mut fronts = comparison.front_table(experiment.reference_point)?;
    let mut weight_table = eval::weights::table(&weights)?;
    let tables = folder.path("tables");
    for (name, frame) in [
        ("ranking", &mut ranking),
        ("quality", &mut quality),
        ("cost", &mut cost),
        ("rewards", &mut rewards),
        ("preferences", &mut preferences),
        ("win_rates", &mut wins),
        ("differences", &mut differences),
        ("fronts", &mut fronts),
        ("weights", &mut weight_table),
    ] {
        write_all(&tables, name, frame)?;
    }
    if let Some(retention) = &mut retention {
        write_all(&tables, "retention", retention)?;
    }
    comparison.paper().write(&tables, "paper")?;
    comparison
        .paper_preferences()
        .write(&tables, "paper_preferences")?;
    let path = tables.join("resamples.parquet");
    let draws = parquet(&path, &mut comparison.bootstrap().frame()?)?;
    eval::write_atomic(&path, &draws)?;
    write_csv(&tables, "responses", &mut responses(generations, scores)?)?;

    let first = strategies.first().map_or("", String::as_str);
    let mut shown = vec![
        (
            "Ranking",
            format!(
                "By Bradley-Terry strength: the log-odds of winning against the average strategy. A win is a \
                 higher utility on the same prompt, preference and sample, a tie half; win_rate is the mean \
                 over all others. Differences in utility are against '{first}', tested by permutation and \
                 corrected for all pairs (Holm). Intervals are 95 %, from {RESAMPLES} draws of prompts. \
                 prompts_needed: for a difference of two points of utility to '{first}' to show in four of \
                 five experiments."
            ),
            &ranking,
        ),
        (
            "Quality",
            "kl: divergence of the mixture from the base, in nats; base_perplexity: of the responses under \
             the base; worst_dimension: the smallest reward among those stated, on average; repetition: share \
             of token trigrams that came before in the response; distinct: different n-grams of words over \
             all; self_bleu: of each response against those to other prompts (100: all alike)."
                .into(),
            &quality,
        ),
        (
            "Cost",
            match experiment.kl {
                true => "Forward passes of experts per token that is kept; time over all sequences of a batch, \
                         which includes the base's pass for kl where the base is no expert.",
                false => "Forward passes of experts per token that is kept; time over all sequences of a batch.",
            }
            .into(),
            &cost,
        ),
        (
            "Rewards",
            "Normalised rewards with intervals, signed so that more is better, where the preference states \
             the dimension; bradley_terry: mean probability of beating the reference; mean and standard \
             deviation of the raw scores over all responses."
                .into(),
            &rewards,
        ),
        (
            "Preferences",
            "Mean utility of every strategy for every preference.".into(),
            &preferences,
        ),
        (
            "Differences",
            "Mean difference in utility of every pair on the same prompt, preference and sample.".into(),
            &differences,
        ),
        (
            "Win rates",
            "By utility, and by each reward where the preference states its dimension; a tie is half.".into(),
            &wins,
        ),
    ];
    if fronts.height() > 0 {
        shown.push((
            "Fronts",
            format!(
                "For preferences that weigh the same directions differently: the volume of mean rewards \
                 above {} in every direction, points that no strategy's point exceeds, and the mean inner \
                 product of shares and rewards.",
                experiment.reference_point
            ),
            &fronts,
        ));
    }
    if weight_table.height() > 0 {
        shown.push((
            "Weights",
            "Mutual information of the chosen expert with the preference and with the position in a \
             response, in nats, and mean weights."
                .into(),
            &weight_table,
        ));
    }
    if let Some(retention) = &retention {
        shown.push((
            "Retention",
            "What the strategies still know: perplexity of held-out prose as a response, and share of \
             questions whose right option is the likeliest; intervals over passages and questions."
                .into(),
            retention,
        ));
    }
    let text = serde_json::to_string_pretty(manifest)?;
    let page = Report {
        title: &experiment.name,
        facts: &facts(manifest),
        warnings: warnings(manifest),
        tables: shown,
        plots: plots(manifest, &comparison, generations, &weights, folder)?,
        strategies: &strategies,
        preferences: &preference_names,
        samples: samples(generations, scores),
        config: &manifest.source,
        manifest: &text,
    };
    let path = folder.path("report.html");
    eval::write_atomic(&path, page.html()?.as_bytes())?;
    Ok(ranking)
}

/// `cost`: what a token costs, by strategy.
fn cost(manifest: &Manifest) -> Result<DataFrame> {
    let names = manifest.experiment.strategies.names();
    let passes: Vec<Option<f64>> = names
        .iter()
        .map(|s| manifest.passes.get(*s).copied())
        .collect();
    let seconds: Vec<Option<f64>> = names
        .iter()
        .map(|s| manifest.seconds_per_token(s))
        .collect();
    let rates: Vec<Option<f64>> = seconds.iter().map(|s| s.map(|s| 1.0 / s)).collect();
    let columns = vec![
        Column::new("strategy".into(), names),
        Column::new("passes_per_token".into(), passes),
        Column::new("seconds_per_token".into(), seconds),
        Column::new("tokens_per_second".into(), rates),
    ];
    Ok(DataFrame::new_infer_height(columns)?)
}

/// What a reader must know before believing the tables.
fn warnings(manifest: &Manifest) -> Vec<String> {
    let mut out = manifest.warnings.clone();
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
    weights: &[(String, Weights)],
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

    let mut heat = |name: &str, caption: &str, plot: HeatPlot| -> Result<()> {
        drawn.push((caption.into(), save(&plots, name, &plot)?));
        Ok(())
    };
    let n = strategies.len();
    let mut rates = vec![None; n * n];
    let place = |name: &str| strategies.iter().position(|s| s == name);
    let wins = comparison.win_rates().iter();
    for win in wins.filter(|w| w.measure == Measure::Utility) {
        if let (Some(row), Some(column)) = (place(&win.strategy), place(&win.opponent)) {
            rates[row * n + column] = Some(win.rate.mean);
        }
    }
    let matrix = HeatPlot {
        title: "Win rate of the row over the column".into(),
        rows: strategies.clone(),
        columns: strategies.clone(),
        values: rates,
        middle: 0.5,
    };
    heat(
        "win_rates",
        "Share of pairs that the row's strategy wins.",
        matrix,
    )?;
    let preferences = comparison.preferences();
    let of = |s: &String, p: &String| comparison.utility_for(s, p).map(|e| e.mean);
    let cells = strategies
        .iter()
        .flat_map(|s| preferences.iter().map(move |p| of(s, p)));
    let by_preference = HeatPlot {
        title: "Utility by preference".into(),
        rows: strategies.clone(),
        columns: preferences.to_vec(),
        values: cells.collect(),
        middle: utility.neutral,
    };
    heat("preferences", "Mean utility by preference.", by_preference)?;
    for (strategy, weights) in weights
        .iter()
        .filter(|(_, w)| w.preference_information > 1e-6)
    {
        let own = weights.by_preference.values().flatten();
        let plot = HeatPlot {
            title: format!("{strategy}: mean weights"),
            rows: weights.by_preference.keys().cloned().collect(),
            columns: weights.experts.clone(),
            values: own.map(|w| Some(*w)).collect(),
            middle: 0.0,
        };
        let caption = format!("Mean weights of the experts under '{strategy}', by preference.");
        heat(&format!("weights_by_preference_{strategy}"), &caption, plot)?;
    }

    if preferences.len() > 2 {
        let mut shown: Vec<usize> = comparison.order().into_iter().take(OUTLINES).collect();
        if !shown.contains(&0) {
            shown.push(0);
        }
        let outline = |&i: &usize| {
            let values: Option<Vec<f64>> =
                preferences.iter().map(|p| of(&strategies[i], p)).collect();
            Some((strategies[i].clone(), values?))
        };
        let radar = RadarPlot {
            title: "Utility by preference".into(),
            axes: preferences.to_vec(),
            outlines: shown.iter().filter_map(outline).collect(),
        };
        drawn.push((
            "Utility by preference: the strongest strategies, and the one that differences are against."
                .into(),
            save(&plots, "radar", &radar)?,
        ));
    }
    let against = |x: &dyn Fn(&String) -> Option<Estimate>| -> Vec<(String, Estimate, Estimate)> {
        let point = |s: &String| Some((s.clone(), x(s)?, comparison.utility(s)?));
        strategies.iter().filter_map(point).collect()
    };
    let mut scatter = |name: &str, caption: &str, x: &str, points: Vec<_>| -> Result<()> {
        if points.len() < 2 {
            return Ok(());
        }
        let plot = ScatterPlot {
            title: format!("Utility against {name}"),
            x: x.into(),
            y: "utility".into(),
            points,
        };
        let file = format!("utility_by_{name}");
        drawn.push((caption.into(), save(&plots, &file, &plot)?));
        Ok(())
    };
    scatter(
        "divergence",
        "What utility costs in divergence from the base.",
        "KL to the base, nats per token",
        against(&|s| comparison.kl(s)),
    )?;
    let exact = |mean: f64| Estimate {
        mean,
        low: mean,
        high: mean,
        count: 1,
    };
    scatter(
        "cost",
        "What utility costs in time.",
        "milliseconds per token",
        against(&|s| Some(exact(manifest.seconds_per_token(s)? * 1000.0))),
    )?;
    for (i, sweep) in comparison.sweeps().iter().enumerate() {
        let [first, second] = sweep.directions.as_slice() else {
            continue;
        };
        let sign = |s: f64| if s > 0.0 { '+' } else { '−' };
        let fronts = strategies.iter().filter_map(|s| {
            let mut points = comparison.front(s, sweep)?;
            let mut order: Vec<usize> = (0..points.len()).collect();
            let share = |i: &usize| sweep.preferences[*i].1[0];
            order.sort_by(|a, b| share(a).total_cmp(&share(b)));
            let path = order.iter().map(|&i| {
                let point = std::mem::take(&mut points[i]);
                [point[0], point[1]]
            });
            Some((s.clone(), path.collect()))
        });
        let plot = FrontPlot {
            title: "Rewards over a sweep of preferences".into(),
            directions: [first, second].map(|(d, s)| format!("{}{d}", sign(*s))),
            fronts: fronts.collect(),
            reference: [manifest.experiment.reference_point; 2],
        };
        drawn.push((
            format!(
                "Mean rewards over the preferences of the sweep '{}'.",
                sweep.name()
            ),
            save(&plots, &format!("front_{i}"), &plot)?,
        ));
    }

    // Where weights never change there is nothing to see.
    for (strategy, weights) in weights.iter().filter(|(_, w)| w.token_information > 1e-6) {
        let curve = |e: usize| {
            let points = weights.by_position.iter().enumerate();
            points.map(|(t, w)| (t as f64 + 1.0, w[e])).collect()
        };
        let names = weights.experts.iter().enumerate();
        let plot = CurvePlot {
            title: format!("{strategy}: mean weight by position"),
            x: "token".into(),
            y: "weight".into(),
            curves: names.map(|(e, name)| (name.clone(), curve(e))).collect(),
        };
        drawn.push((
            format!("Mean weights of the experts under '{strategy}', by position in the response."),
            save(&plots, &format!("weights_by_position_{strategy}"), &plot)?,
        ));
        let Some(row) = generations
            .iter()
            .find(|g| g.identity.strategy == *strategy)
        else {
            continue;
        };
        let Identity {
            preference, prompt, ..
        } = &row.identity;
        let trace = WeightPlot {
            title: format!("{strategy}: {preference}, prompt {prompt}"),
            experts: row.experts.clone(),
            weights: row.weights.clone(),
        };
        drawn.push((
            format!("Weights of the experts over one response of '{strategy}'."),
            save(&plots, &format!("weights_{strategy}"), &trace)?,
        ));
    }
    Ok(drawn)
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
