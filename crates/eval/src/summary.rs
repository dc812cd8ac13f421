//! The tables that a comparison comes down to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use polars::prelude::*;

use crate::rows::ScoreRow;
use crate::statistics::{Estimate, clustered, win};
use crate::{Error, Result};

/// Scores of a run, by strategy.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// In the order of the config.
    strategies: Vec<String>,
    dimensions: Vec<String>,
    preferences: Vec<String>,
    rows: BTreeMap<&'a str, Vec<&'a ScoreRow>>,
}

/// Win rate of one strategy over another.
#[derive(Debug, Clone, PartialEq)]
pub struct WinRate {
    /// Who wins.
    pub strategy: String,
    /// Over whom.
    pub opponent: String,
    /// Share of pairs won, ties half.
    pub rate: Estimate,
}

impl<'a> Comparison<'a> {
    /// Sorts scores by strategy; `strategies` gives the order.
    ///
    /// # Errors
    /// No rows, a row of an unknown strategy, or a strategy without rows.
    pub fn new(rows: &'a [ScoreRow], strategies: &[String]) -> Result<Self> {
        let mut sorted: BTreeMap<&str, Vec<&ScoreRow>> = BTreeMap::new();
        for row in rows {
            sorted.entry(&row.identity.strategy).or_default().push(row);
        }
        for rows in sorted.values_mut() {
            rows.sort_by(|a, b| a.identity.cmp(&b.identity));
        }
        let known: BTreeSet<&str> = strategies.iter().map(String::as_str).collect();
        if !sorted.keys().copied().eq(known.iter().copied()) {
            let got: Vec<_> = sorted.keys().collect();
            let message = format!("scores of {got:?}, the config has {known:?}; run it again");
            return Err(Error::Argument(message));
        }
        let dimensions = rows.iter().flat_map(|r| r.dimensions.keys().cloned());
        let preferences = rows.iter().map(|r| r.identity.preference.clone());
        Ok(Self {
            dimensions: dimensions.collect::<BTreeSet<_>>().into_iter().collect(),
            preferences: preferences.collect::<BTreeSet<_>>().into_iter().collect(),
            strategies: strategies.to_vec(),
            rows: sorted,
        })
    }

    /// Strategies in order.
    pub fn strategies(&self) -> &[String] {
        &self.strategies
    }

    /// Dimensions in order.
    pub fn dimensions(&self) -> &[String] {
        &self.dimensions
    }

    /// A value of every response of a strategy, clustered by prompt.
    fn estimate(
        &self,
        strategy: &str,
        value: impl Fn(&ScoreRow) -> Option<f64>,
    ) -> Option<Estimate> {
        let mut clusters: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for row in self.rows.get(strategy)? {
            if let Some(value) = value(row) {
                clusters
                    .entry(&row.identity.prompt)
                    .or_default()
                    .push(value);
            }
        }
        clustered(&clusters.into_values().collect::<Vec<_>>())
    }

    /// Mean utility of a strategy.
    pub fn utility(&self, strategy: &str) -> Option<Estimate> {
        self.estimate(strategy, |r| Some(r.utility))
    }

    /// Mean normalised reward in a dimension over the responses whose preference states it, signed so
    /// that more is better.
    pub fn reward(&self, strategy: &str, dimension: &str) -> Option<Estimate> {
        self.estimate(strategy, |r| {
            let score = r.dimensions.get(dimension).filter(|s| s.stated != 0.0)?;
            Some(score.reward * score.stated.signum())
        })
    }

    /// A function of two strategies' scores on the same prompt, preference and sample.
    fn paired(&self, a: &str, b: &str, f: impl Fn(f64, f64) -> f64) -> Option<Estimate> {
        let place = |r: &ScoreRow| {
            let i = &r.identity;
            (i.preference.clone(), i.prompt.clone(), i.sample)
        };
        let other: BTreeMap<_, f64> = self
            .rows
            .get(b)?
            .iter()
            .map(|r| (place(r), r.utility))
            .collect();
        self.estimate(a, |r| other.get(&place(r)).map(|b| f(r.utility, *b)))
    }

    /// Every ordered pair of strategies.
    pub fn win_rates(&self) -> Vec<WinRate> {
        let mut out = Vec::new();
        for strategy in &self.strategies {
            for opponent in self.strategies.iter().filter(|o| *o != strategy) {
                if let Some(rate) = self.paired(strategy, opponent, win) {
                    let (strategy, opponent) = (strategy.clone(), opponent.clone());
                    out.push(WinRate {
                        strategy,
                        opponent,
                        rate,
                    });
                }
            }
        }
        out
    }

    /// `summary`: one row a strategy. Differences are against the first strategy of the config.
    ///
    /// # Errors
    /// What polars reports.
    pub fn summary(&self) -> Result<DataFrame> {
        let wins = self.win_rates();
        let win_rate = |strategy: &String| {
            let own: Vec<f64> = wins
                .iter()
                .filter(|w| w.strategy == *strategy)
                .map(|w| w.rate.mean)
                .collect();
            (!own.is_empty()).then(|| own.iter().sum::<f64>() / own.len() as f64)
        };
        let each = |f: &dyn Fn(&String) -> Option<f64>| -> Vec<Option<f64>> {
            self.strategies.iter().map(f).collect()
        };
        let first = self.strategies.first().cloned().unwrap_or_default();
        let difference = |s: &String| {
            (*s != first)
                .then(|| self.paired(s, &first, |a, b| a - b))
                .flatten()
        };
        let mut columns = vec![
            Column::new("strategy".into(), &self.strategies),
            Column::new("utility".into(), each(&|s| Some(self.utility(s)?.mean))),
            Column::new("utility_low".into(), each(&|s| Some(self.utility(s)?.low))),
            Column::new(
                "utility_high".into(),
                each(&|s| Some(self.utility(s)?.high)),
            ),
            Column::new("win_rate".into(), each(&win_rate)),
            Column::new("difference".into(), each(&|s| Some(difference(s)?.mean))),
            Column::new("difference_low".into(), each(&|s| Some(difference(s)?.low))),
            Column::new(
                "difference_high".into(),
                each(&|s| Some(difference(s)?.high)),
            ),
        ];
        for dimension in &self.dimensions {
            let values = each(&|s| Some(self.reward(s, dimension)?.mean));
            columns.push(Column::new(dimension.as_str().into(), values));
        }
        let mean =
            |get: fn(&ScoreRow) -> f64| each(&|s| Some(self.estimate(s, |r| Some(get(r)))?.mean));
        columns.push(Column::new("tokens".into(), mean(|r| f64::from(r.tokens))));
        columns.push(Column::new(
            "ended".into(),
            mean(|r| f64::from(u8::from(r.ended))),
        ));
        let counts = self
            .strategies
            .iter()
            .map(|s| self.rows[s.as_str()].len() as u32);
        columns.push(Column::new("responses".into(), counts.collect::<Vec<_>>()));
        frame("summary", columns)
    }

    /// `win_rates`: one row an ordered pair.
    ///
    /// # Errors
    /// What polars reports.
    pub fn win_rate_table(&self) -> Result<DataFrame> {
        let wins = self.win_rates();
        let text = |name: &str, get: fn(&WinRate) -> &str| {
            Column::new(name.into(), wins.iter().map(get).collect::<Vec<_>>())
        };
        let number = |name: &str, get: fn(&Estimate) -> f64| {
            Column::new(
                name.into(),
                wins.iter().map(|w| get(&w.rate)).collect::<Vec<_>>(),
            )
        };
        let pairs: Vec<u32> = wins.iter().map(|w| w.rate.count as u32).collect();
        let columns = vec![
            text("strategy", |w| &w.strategy),
            text("opponent", |w| &w.opponent),
            number("win_rate", |e| e.mean),
            number("low", |e| e.low),
            number("high", |e| e.high),
            Column::new("pairs".into(), pairs),
        ];
        frame("win_rates", columns)
    }

    /// `rewards`: every strategy and dimension, normalised (signed towards the preference, with its
    /// interval) and in the scorer's own unit (mean and standard deviation over all responses).
    ///
    /// # Errors
    /// What polars reports.
    pub fn reward_table(&self) -> Result<DataFrame> {
        let mut text = [Vec::new(), Vec::new()];
        let mut numbers: [Vec<Option<f64>>; 5] = Default::default();
        for strategy in &self.strategies {
            for dimension in &self.dimensions {
                text[0].push(strategy.clone());
                text[1].push(dimension.clone());
                let e = self.reward(strategy, dimension);
                let rows = self.rows[strategy.as_str()].iter();
                let raw: Vec<f64> = rows
                    .filter_map(|r| Some(r.dimensions.get(dimension)?.raw))
                    .collect();
                let mean = raw.iter().sum::<f64>() / raw.len() as f64;
                let squares = raw.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
                let sd = (raw.len() > 1).then(|| (squares / (raw.len() - 1) as f64).sqrt());
                let row = [
                    e.map(|e| e.mean),
                    e.map(|e| e.low),
                    e.map(|e| e.high),
                    Some(mean),
                    sd,
                ];
                numbers
                    .iter_mut()
                    .zip(row)
                    .for_each(|(column, v)| column.push(v));
            }
        }
        let names = ["reward", "low", "high", "raw_mean", "raw_sd"];
        let mut columns = vec![
            Column::new("strategy".into(), &text[0]),
            Column::new("dimension".into(), &text[1]),
        ];
        columns.extend(
            names
                .iter()
                .zip(&numbers)
                .map(|(n, v)| Column::new((*n).into(), v)),
        );
        frame("rewards", columns)
    }

    /// `preferences`: mean utility of every strategy for every preference.
    ///
    /// # Errors
    /// What polars reports.
    pub fn preference_table(&self) -> Result<DataFrame> {
        let mut columns = vec![Column::new("strategy".into(), &self.strategies)];
        for preference in &self.preferences {
            let own = |r: &ScoreRow| (r.identity.preference == *preference).then_some(r.utility);
            let values: Vec<Option<f64>> = self
                .strategies
                .iter()
                .map(|s| Some(self.estimate(s, own)?.mean))
                .collect();
            columns.push(Column::new(preference.as_str().into(), values));
        }
        frame("preferences", columns)
    }
}

fn frame(name: &str, columns: Vec<Column>) -> Result<DataFrame> {
    DataFrame::new_infer_height(columns).map_err(|e| Error::table(Path::new(name), e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::{DimensionScore, Identity};

    fn row(strategy: &str, prompt: &str, utility: f64) -> ScoreRow {
        let score = DimensionScore {
            raw: utility,
            reward: utility,
            reference: 0.0,
            stated: -1.0,
        };
        ScoreRow {
            identity: Identity {
                strategy: strategy.into(),
                preference: "p".into(),
                prompt: prompt.into(),
                sample: 0,
            },
            utility,
            tokens: 10,
            ended: true,
            dimensions: [("style".to_string(), score)].into(),
        }
    }

    #[test]
    fn wins_are_paired_and_complement_each_other() {
        let rows = [
            row("a", "1", 0.9),
            row("a", "2", 0.2),
            row("a", "3", 0.5),
            row("b", "3", 0.5),
            row("b", "1", 0.1),
            row("b", "2", 0.1),
        ];
        let names = ["b".to_string(), "a".to_string()];
        let comparison = Comparison::new(&rows, &names).unwrap();
        let wins = comparison.win_rates();
        assert_eq!((wins[0].strategy.as_str(), wins[0].rate.count), ("b", 3));
        assert!((wins[1].rate.mean - 2.5 / 3.0).abs() < 1e-12);
        assert!((wins[0].rate.mean + wins[1].rate.mean - 1.0).abs() < 1e-12);
        assert_eq!(
            comparison.reward("a", "style").unwrap().mean,
            -(0.9 + 0.2 + 0.5) / 3.0
        );
        let summary = comparison.summary().unwrap();
        let difference = summary.column("difference").unwrap().f64().unwrap();
        assert_eq!(difference.get(0), None);
        assert!((difference.get(1).unwrap() - 0.3).abs() < 1e-12);
        assert!(Comparison::new(&rows, &names[..1]).is_err());
    }
}
