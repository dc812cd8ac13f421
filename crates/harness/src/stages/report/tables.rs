//! The tables of a report.

use anyhow::Result;
use eval::comparison::Comparison;
use eval::mixing_weights::MixingWeights;
use eval::rows::GenerationRow;
use eval::statistics::RESAMPLES;
use eval::table::read_parquet;
use polars::prelude::{Column, DataFrame};

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
    let table = |file, heading, hint: String, frame| Table {
        file,
        heading,
        hint,
        frame,
    };
    let mut tables = vec![
        table(
            "tables/ranking",
            "Ranking",
            format!(
                "By Bradley-Terry strength: the log-odds of winning against the average strategy. A win is a \
                 higher utility on the same prompt, preference and sample, a tie half; win_rate is the mean \
                 over all others. Differences in utility are against '{first}', tested by permutation and \
                 corrected for all pairs (Holm). Intervals are 95 %, from {RESAMPLES} draws of prompts. \
                 prompts_needed: for a difference of two points of utility to '{first}' to show in four of \
                 five experiments."
            ),
            comparison.ranking()?,
        ),
        table(
            "tables/quality",
            "Quality",
            "What the responses are like, whatever they are worth; headings say what they mean.".into(),
            comparison.quality_table(generations)?,
        ),
        table("tables/cost", "Cost", cost_hint(experiment.kl), cost(manifest)?),
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
             response, in nats, and mean weights."
                .into(),
            eval::mixing_weights::table(weights)?,
        ),
    ];
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
