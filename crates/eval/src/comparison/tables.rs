//! Estimates as data frames, one function a table.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude::*;

use super::{Comparison, Difference, Measure, WinRate};
use crate::rows::ScoreRow;
use crate::statistics::Estimate;
use crate::{Error, Result};

/// Columns `name`, `name_low` and `name_high`; an estimate that is no number is missing.
pub fn interval(name: &str, values: &[Option<Estimate>]) -> [Column; 3] {
    let column = |suffix: &str, get: fn(&Estimate) -> f64| {
        let known = |e: &Option<Estimate>| e.and_then(Estimate::finite);
        let values: Vec<Option<f64>> = values.iter().map(|e| known(e).as_ref().map(get)).collect();
        Column::new(format!("{name}{suffix}").into(), values)
    };
    [
        column("", |e| e.mean),
        column("_low", |e| e.low),
        column("_high", |e| e.high),
    ]
}

impl Comparison<'_> {
    /// `ranking`: one row a strategy, the strongest first. `kl` is the divergence per response in nats, `kl_is` what it is,
    /// `a` the utility gained over the base per root of it. Differences are against the first strategy of the config.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn ranking(&self) -> Result<DataFrame> {
        let order = self.order();
        let names: Vec<&String> = order.iter().map(|&i| &self.strategies[i]).collect();
        let to_first = |s: &&String| self.to_first(s);
        let of_all = |f: &dyn Fn(&&String) -> Option<Estimate>| -> Vec<Option<Estimate>> {
            names.iter().map(f).collect()
        };
        let ranks: Vec<u32> = (1..=names.len() as u32).collect();
        let strengths: Vec<Option<Estimate>> = order
            .iter()
            .map(|&i| Some(self.strengths[i]).filter(|_| self.has_utility(&self.strategies[i])))
            .collect();
        let mut columns = vec![
            Column::new("rank".into(), ranks),
            Column::new(
                "strategy".into(),
                names.iter().map(|n| n.as_str()).collect::<Vec<_>>(),
            ),
        ];
        columns.extend(interval("utility", &of_all(&|s| self.utility(s))));
        columns.extend(interval("kl", &of_all(&|s| self.kl_per_response(s))));
        let kinds = names.iter().map(|s| self.distance(s).name());
        columns.push(Column::new("kl_is".into(), kinds.collect::<Vec<_>>()));
        columns.extend(interval("a", &of_all(&|s| self.gain_per_root(s))));
        columns.extend(interval("strength", &strengths));
        let win_rates: Vec<Option<f64>> = names.iter().map(|s| self.win_rate(s)).collect();
        columns.push(Column::new("win_rate".into(), win_rates));
        let differences = of_all(&|s| Some(to_first(s)?.difference));
        columns.extend(interval("difference", &differences));
        let number = |name: &str, get: fn(&Difference) -> Option<f64>| {
            let values: Vec<Option<f64>> = names.iter().map(|s| get(to_first(s)?)).collect();
            Column::new(name.into(), values)
        };
        columns.push(number("p_holm", |d| Some(d.p_holm)));
        columns.push(prompts_needed(
            names.iter().map(|s| to_first(s)?.prompts_needed),
        ));
        let counts = names.iter().map(|s| self.rows[s.as_str()].len() as u32);
        columns.push(Column::new("responses".into(), counts.collect::<Vec<_>>()));
        frame("ranking", columns)
    }

    /// `win_rates`: one row an ordered pair and measure.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn win_rate_table(&self) -> Result<DataFrame> {
        let wins = &self.wins;
        let text = |name: &str, get: fn(&WinRate) -> &str| {
            Column::new(name.into(), wins.iter().map(get).collect::<Vec<_>>())
        };
        let number = |name: &str, get: fn(&WinRate) -> f64| {
            Column::new(name.into(), wins.iter().map(get).collect::<Vec<_>>())
        };
        let pairs: Vec<u32> = wins.iter().map(|w| w.rate.count as u32).collect();
        let columns = vec![
            text("strategy", |w| &w.strategy),
            text("opponent", |w| &w.opponent),
            text("measure", |w| w.measure.name()),
            number("win_rate", |w| w.rate.mean),
            number("low", |w| w.rate.low),
            number("high", |w| w.rate.high),
            number("ties", |w| w.ties),
            Column::new("pairs".into(), pairs),
        ];
        frame("win_rates", columns)
    }

    /// `differences`: utility of every pair of strategies, with tests.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn difference_table(&self) -> Result<DataFrame> {
        let all = &self.differences;
        let text = |name: &str, get: fn(&Difference) -> &str| {
            Column::new(name.into(), all.iter().map(get).collect::<Vec<_>>())
        };
        let number = |name: &str, get: fn(&Difference) -> Option<f64>| {
            Column::new(name.into(), all.iter().map(get).collect::<Vec<_>>())
        };
        let columns = vec![
            text("strategy", |d| &d.strategy),
            text("opponent", |d| &d.opponent),
            number("difference", |d| Some(d.difference.mean)),
            number("low", |d| Some(d.difference.low)),
            number("high", |d| Some(d.difference.high)),
            number("p", |d| Some(d.p)),
            number("p_holm", |d| Some(d.p_holm)),
            prompts_needed(all.iter().map(|d| d.prompts_needed)),
        ];
        frame("differences", columns)
    }

    /// Every pair of strategies once: the difference in utility, and who wins by what. It is what `differences` and
    /// `win_rates` hold, for reading.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn pair_table(&self) -> Result<DataFrame> {
        let all = &self.differences;
        let names: Vec<String> = all
            .iter()
            .map(|d| format!("{} − {}", d.strategy, d.opponent))
            .collect();
        let mut columns = vec![Column::new("pair".into(), names)];
        let differences: Vec<Option<Estimate>> = all.iter().map(|d| Some(d.difference)).collect();
        columns.extend(interval("difference", &differences));
        let p: Vec<f64> = all.iter().map(|d| d.p_holm).collect();
        columns.push(Column::new("p_holm".into(), p));
        let mut measures = vec![Measure::Utility];
        measures.extend(self.dimensions.iter().cloned().map(Measure::Reward));
        let rates: HashMap<(&str, &str, &str), f64> = self
            .wins
            .iter()
            .map(|w| {
                (
                    (w.strategy.as_str(), w.opponent.as_str(), w.measure.name()),
                    w.rate.mean,
                )
            })
            .collect();
        for measure in &measures {
            let name = measure.name();
            let key = |d: &Difference| rates.get(&(&*d.strategy, &*d.opponent, name)).copied();
            let values: Vec<Option<f64>> = all.iter().map(key).collect();
            columns.push(Column::new(format!("wins by {name}").into(), values));
        }
        columns.push(prompts_needed(all.iter().map(|d| d.prompts_needed)));
        frame("pairs", columns)
    }

    /// `rewards`: every strategy and dimension, normalised (signed towards the preference, with its
    /// interval), as mean probability of beating the reference (Bradley-Terry), and in the scorer's own unit
    /// (mean and standard deviation over all responses).
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn reward_table(&self) -> Result<DataFrame> {
        let mut text = [Vec::new(), Vec::new()];
        let mut rewards = Vec::new();
        let mut numbers: [Vec<Option<f64>>; 3] = Default::default();
        for strategy in &self.strategies {
            for dimension in &self.dimensions {
                text[0].push(strategy.clone());
                text[1].push(dimension.clone());
                rewards.push(self.reward(strategy, dimension));
                let beats = self.estimate(strategy, |r| {
                    let score = r.dimensions.get(dimension).filter(|s| s.stated != 0.0)?;
                    let ahead = (score.reward - score.reference) * score.stated.signum();
                    Some(1.0 / (1.0 + (-ahead).exp()))
                });
                let rows = self.rows[strategy.as_str()].iter();
                let raw: Vec<f64> = rows
                    .filter_map(|(_, r)| Some(r.dimensions.get(dimension)?.raw))
                    .filter(|raw| raw.is_finite())
                    .collect();
                let (mean, sd) = mean_and_sd(&raw);
                let finite = |v: &f64| v.is_finite();
                let row = [
                    beats.map(|e| e.mean),
                    Some(mean).filter(finite),
                    sd.filter(finite),
                ];
                numbers
                    .iter_mut()
                    .zip(row)
                    .for_each(|(column, v)| column.push(v));
            }
        }
        let mut columns = vec![
            Column::new("strategy".into(), &text[0]),
            Column::new("dimension".into(), &text[1]),
        ];
        columns.extend(interval("reward", &rewards));
        let names = ["bradley_terry", "raw_mean", "raw_sd"];
        columns.extend(
            names
                .iter()
                .zip(&numbers)
                .map(|(n, v)| Column::new((*n).into(), v)),
        );
        frame("rewards", columns)
    }

    /// `preferences`: mean utility of every strategy for every preference, with its interval.
    ///
    /// # Errors
    /// [`Error::Table`].
    pub fn preference_table(&self) -> Result<DataFrame> {
        let mut columns = vec![Column::new("strategy".into(), &self.strategies)];
        for preference in &self.preferences {
            let values: Vec<Option<Estimate>> = self
                .strategies
                .iter()
                .map(|s| self.utility_for(s, preference))
                .collect();
            columns.extend(interval(preference, &values));
        }
        frame("preferences", columns)
    }

    /// The smallest signed reward of a response over the dimensions that its preference states.
    pub(super) fn worst(row: &ScoreRow) -> Option<f64> {
        let stated = row.dimensions.values().filter(|s| s.stated != 0.0);
        let signed = stated.map(|s| s.reward * s.stated.signum());
        signed.min_by(f64::total_cmp)
    }
}

/// Column `prompts_needed`, rounded up.
fn prompts_needed(values: impl Iterator<Item = Option<f64>>) -> Column {
    let counts = values.map(|v| v.map(|v| v.ceil() as u32));
    Column::new("prompts_needed".into(), counts.collect::<Vec<_>>())
}

/// Mean, and standard deviation of at least two values.
pub(super) fn mean_and_sd(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (
        mean,
        (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()),
    )
}

/// A table; its name is for errors.
pub(super) fn frame(name: &str, columns: Vec<Column>) -> Result<DataFrame> {
    DataFrame::new_infer_height(columns).map_err(|e| Error::table(Path::new(name), e))
}
