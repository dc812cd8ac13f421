//! The tables of a report.

use anyhow::Result;
use eval::comparison::{Comparison, LEVEL, interval};
use eval::frontier::Frontier;
use eval::mixing_weights::MixingWeights;
use eval::rounding::{decimals, number};
use eval::rows::GenerationRow;
use eval::statistics::RESAMPLES;
use eval::statistics::permutation::holm;
use eval::table::read_parquet;
use polars::prelude::{Column, DataFrame};

use crate::experiment::{Experiment, Hypothesis};
use crate::store::folder::RunFolder;
use crate::store::manifest::Manifest;

/// A table, where it is written and how it is read.
pub(super) struct Table {
    /// Its files in the run folder, without ending.
    pub file: &'static str,
    pub heading: &'static str,
    pub hint: String,
    pub frame: DataFrame,
}

/// All of them, in the order of the report; long because it lists them.
pub(super) fn tables(
    manifest: &Manifest,
    comparison: &Comparison<'_>,
    generations: &[GenerationRow],
    weights: &[(String, MixingWeights)],
    retention: Option<DataFrame>,
) -> Result<Vec<Table>> {
    let experiment = &manifest.experiment;
    let first = comparison.strategies().first().map_or("", String::as_str);
    let least = comparison.least_p();
    let least = number(least, decimals(least));
    let table = |file, heading, hint: String, frame| Table {
        file,
        heading,
        hint,
        frame,
    };
    let mut tables = Vec::new();
    if experiment.kl {
        tables.push(table(
            "tables/ranking",
            "Ranking",
            format!(
                "kl: divergence from the base per response, in nats; kl_is: measured, a bound (best of n) or that of fixed \
                 texts. a: utility gained over the base per root of it, which does not grow with the strength. Ranked by \
                 Bradley-Terry strength: the log-odds of winning against the average strategy. A win is a \
                 higher utility on the same prompt, preference and sample, a tie half; win_rate is the mean \
                 over all others. Differences in utility are against '{first}', tested by permutation and \
                 corrected for the differences to it (Holm); no p here can be below {least}. Intervals are 95 %, from \
                 {RESAMPLES} draws of prompts, wider where prompts are few. \
                 prompts_needed: for a difference of two points of utility to '{first}' to show in four of \
                 five experiments."
            ),
            comparison.ranking()?,
        ));
    }
    tables.extend([
        table(
            "tables/rewards",
            "Rewards",
            "Normalised rewards with intervals, signed so that more is better, where the preference states \
             the dimension; bradley_terry: mean probability of beating the reference; mean and standard \
             deviation of the raw scores over all responses."
                .into(),
            comparison.reward_table()?,
        ),
        table(
            "tables/quality",
            "Quality",
            "What the responses are like, whatever they are worth; headings say what they mean.".into(),
            comparison.quality_table(generations)?,
        ),
        table("tables/cost", "Cost", cost_hint(experiment.kl), cost(manifest)?),
        table(
            "tables/preferences",
            "Preferences",
            "Mean utility of every strategy for every preference.".into(),
            comparison.preference_table()?,
        ),
        table(
            "tables/differences",
            "Differences",
            "Mean difference in utility of every pair on the same prompt, preference and sample.".into(),
            comparison.difference_table()?,
        ),
        table(
            "tables/win_rates",
            "Win rates",
            "By utility, and by each reward where the preference states its dimension; a tie is half."
                .into(),
            comparison.win_rate_table()?,
        ),
        table(
            "tables/seeds",
            "Seeds",
            format!(
                "Strategies with several samples, and methods that were trained with several seeds: utility and \
                 its difference to '{first}' over all repetitions, which stay with their prompt in intervals and \
                 tests; standard deviation, smallest and largest of the repetitions' means."
            ),
            comparison.seed_table(&experiment.repeated())?,
        ),
        table(
            "tables/fronts",
            "Fronts",
            format!(
                "For preferences that weigh the same directions differently: the volume of mean rewards \
                 above {} in every direction, points that no strategy's point exceeds, and the mean inner \
                 product of shares and rewards.",
                experiment.reference_point
            ),
            comparison.front_table(experiment.reference_point)?,
        ),
        table(
            "tables/weights",
            "Weights",
            "Mutual information of the chosen expert with the preference and with the position in a \
             response, in nats; preference_excess is what the former has beyond equal weights for the experts that \
             run. level_variance: of the log of the weights' sum within a response. Then each expert's mean share, and \
             the variance of its weight within a response."
                .into(),
            eval::mixing_weights::table(weights)?,
        ),
    ]);
    let chosen = chosen(manifest)?;
    if chosen.height() > 0 {
        let hint =
            "What each strategy that chooses on the validation prompts took for each preference.";
        tables.push(table("tables/chosen", "Chosen", hint.into(), chosen));
    }
    if let Some(retention) = retention {
        tables.push(table(
            "tables/retention",
            "Retention",
            "What the strategies still know: perplexity of held-out prose as a response, and share of \
             questions whose right option is the likeliest; intervals over passages and questions."
                .into(),
            retention,
        ));
    }
    Ok(tables)
}

/// The tables of curves, where there are some.
pub(super) fn frontier(frontier: Option<&Frontier>) -> Result<Vec<Table>> {
    let Some(frontier) = frontier else {
        return Ok(Vec::new());
    };
    let points = Table {
        file: "tables/frontier",
        heading: "Frontier",
        hint: "Every curve at each of its strengths: utility, divergence from the base per response in nats, and a, the \
               utility gained over the base per root of it."
            .into(),
        frame: frontier.table()?,
    };
    let differences = Table {
        file: "tables/frontier_differences",
        heading: "At equal divergence",
        hint: "Utility of every curve at the same divergence, linear in √KL between its strengths, and how much more it is \
               than the first curve's; intervals draw prompts for all curves together. Empty where a curve does not go so \
               far."
            .into(),
        frame: frontier.difference_table()?,
    };
    Ok(vec![points, differences])
}

/// What became of the hypotheses, where there are some.
pub(super) fn hypotheses(
    experiment: &Experiment,
    comparison: &Comparison<'_>,
    frontier: Option<&Frontier>,
) -> Result<Option<Table>> {
    if experiment.hypotheses.is_empty() {
        return Ok(None);
    }
    let curve = |name: &String| {
        let mut curves = frontier.iter().flat_map(|f| f.curves());
        curves.position(|curve| curve.name == *name)
    };
    let mut estimates = Vec::new();
    let mut p: Vec<Option<f64>> = Vec::new();
    for (_, hypothesis) in experiment.hypotheses.iter() {
        let Hypothesis {
            better, than, nats, ..
        } = hypothesis;
        match nats {
            None => {
                let difference = comparison.between(better, than);
                p.push(difference.as_ref().map(|d| d.p));
                estimates.push(difference.map(|d| d.difference));
            }
            Some(nats) => {
                let both = curve(better).zip(curve(than));
                let told = frontier.zip(both);
                p.push(told.and_then(|(f, (a, b))| f.p_value(a, b, *nats)));
                estimates.push(told.and_then(|(f, (a, b))| f.difference(a, b, *nats)));
            }
        }
    }
    // What could not be tested counts as not shown.
    let family: Vec<f64> = p.iter().map(|p| p.unwrap_or(1.0)).collect();
    let corrected = holm(&family);
    let all = || {
        experiment
            .hypotheses
            .iter()
            .map(|(_, hypothesis)| hypothesis)
    };
    let verdict = all()
        .zip(&estimates)
        .zip(&corrected)
        .map(|((hypothesis, e), p)| match e {
            None => "not tested",
            Some(e) if *p < LEVEL && e.low >= hypothesis.smallest => "shown, and it matters",
            Some(e) if *p < LEVEL && e.mean > 0.0 => "shown",
            Some(e) if *p < LEVEL && e.mean < 0.0 => "the opposite is shown",
            Some(e) if e.high < hypothesis.smallest => "less than what matters",
            Some(_) => "open",
        });
    let mut columns = vec![
        Column::new("hypothesis".into(), experiment.hypotheses.names()),
        Column::new(
            "better".into(),
            all().map(|h| h.better.as_str()).collect::<Vec<_>>(),
        ),
        Column::new(
            "than".into(),
            all().map(|h| h.than.as_str()).collect::<Vec<_>>(),
        ),
        Column::new("nats".into(), all().map(|h| h.nats).collect::<Vec<_>>()),
        Column::new(
            "smallest".into(),
            all().map(|h| h.smallest).collect::<Vec<_>>(),
        ),
    ];
    let verdicts: Vec<&str> = verdict.collect();
    columns.extend(interval("difference", &estimates));
    columns.push(Column::new("p".into(), p));
    columns.push(Column::new("p_holm".into(), corrected.clone()));
    columns.push(Column::new("verdict".into(), verdicts));
    Ok(Some(Table {
        file: "tables/hypotheses",
        heading: "Hypotheses",
        hint: "What the file says that the run is to show: differences in utility, those with nats at equal divergence, \
               corrected for the hypotheses (Holm)."
            .into(),
        frame: DataFrame::new_infer_height(columns)?,
    }))
}

/// What judges said of the run, if it was asked: `mope judge` writes these tables.
pub(super) fn judged(folder: &RunFolder) -> Result<Vec<Table>> {
    let all = [
        (
            "judgements/verdicts",
            "Judges",
            "Who wins in the eyes of the judges, by criterion; a judge whose two verdicts contradict counts as a tie.",
        ),
        (
            "judgements/agreement",
            "Agreement of judges",
            "How often two judges, or a judge and the utility, prefer the same response.",
        ),
    ];
    let mut tables = Vec::new();
    for (file, heading, hint) in all {
        let path = folder.path(&format!("{file}.parquet"));
        if path.exists() {
            let (frame, hint) = (read_parquet(&path)?, hint.into());
            tables.push(Table {
                file,
                heading,
                hint,
                frame,
            });
        }
    }
    Ok(tables)
}

/// What was chosen on the validation set, by strategy and preference.
fn chosen(manifest: &Manifest) -> Result<DataFrame> {
    let (experiment, chosen) = (&manifest.experiment, manifest.chosen());
    let mut rows = [Vec::new(), Vec::new(), Vec::new()];
    for strategy in experiment.strategies.names() {
        for preference in experiment.preferences.names() {
            let choice = chosen.and_then(|c| c.get(strategy)?.get(preference));
            if let Some(name) = choice {
                let row = [strategy, preference, name.as_str()];
                rows.iter_mut()
                    .zip(row)
                    .for_each(|(all, one)| all.push(one));
            }
        }
    }
    let [strategies, preferences, names] = rows;
    Ok(DataFrame::new_infer_height(vec![
        Column::new("strategy".into(), strategies),
        Column::new("preference".into(), preferences),
        Column::new("chosen".into(), names),
    ])?)
}

fn cost_hint(kl: bool) -> String {
    let beside = match kl {
        true => ", which includes the base's pass for kl where the base is no expert",
        false => "",
    };
    format!(
        "Forward passes of experts per token that is kept; time over all sequences of a batch{beside}; largest \
         resident memory of the process meanwhile, the base and all experts of the experiment included, so that \
         differences are what the strategies need."
    )
}

/// What a token costs, by strategy.
fn cost(manifest: &Manifest) -> Result<DataFrame> {
    let names = manifest.experiment.compared();
    let passes: Vec<Option<f64>> = names
        .iter()
        .map(|s| manifest.passes.get(*s).copied())
        .collect();
    let seconds: Vec<Option<f64>> = names
        .iter()
        .map(|s| manifest.seconds_per_token(s))
        .collect();
    let rates: Vec<Option<f64>> = seconds.iter().map(|s| s.map(|s| 1.0 / s)).collect();
    let memory: Vec<Option<u64>> = names.iter().map(|s| manifest.peak_bytes(s)).collect();
    let columns = vec![
        Column::new("strategy".into(), names),
        Column::new("passes_per_token".into(), passes),
        Column::new("seconds_per_token".into(), seconds),
        Column::new("tokens_per_second".into(), rates),
        Column::new("peak_bytes".into(), memory),
    ];
    Ok(DataFrame::new_infer_height(columns)?)
}
