//! What a run comes down to: strategies compared on the same prompts, preferences and samples.
//!
//! [`Comparison`] estimates; `tables` puts the estimates into data frames.
//!
//! ```
//! use mope_eval::comparison::Comparison;
//! use mope_eval::rows::{Identity, ScoreRow};
//! let score = |strategy: &str, prompt: &str, utility| ScoreRow {
//!     identity: Identity {
//!         strategy: strategy.into(),
//!         preference: "friendly".into(),
//!         prompt: prompt.into(),
//!         sample: 0,
//!     },
//!     utility,
//!     tokens: 20,
//!     ended: true,
//!     repetition: 0.0,
//!     kl: None,
//!     base_nll: None,
//!     dimensions: Default::default(),
//! };
//! let rows = [
//!     score("base", "sky", 0.5),
//!     score("base", "bees", 0.4),
//!     score("pcm", "sky", 0.75),
//!     score("pcm", "bees", 0.65),
//! ];
//! let comparison = Comparison::new(&rows, &["base".into(), "pcm".into()])?;
//! let difference = comparison.to_first("pcm").unwrap().difference;
//! assert!((difference.mean - 0.25).abs() < 1e-12);
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod divergence;
mod fronts;
mod paper;
#[cfg(feature = "tables")]
mod quality;
#[cfg(feature = "tables")]
mod seeds;
mod summary;
#[cfg(feature = "tables")]
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use divergence::Distance;
pub use fronts::Sweep;
pub use summary::Summary;
#[cfg(feature = "tables")]
pub use tables::interval;

use crate::rows::ScoreRow;
use crate::statistics::{Bootstrap, Estimate, permutation, power, ranking, win};
use crate::{Error, Result};

/// Level of the tests that marks and sentences stand for.
pub const LEVEL: f64 = 0.05;

/// Scores of a run, by strategy.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// In the order of the config.
    strategies: Vec<String>,
    dimensions: Vec<String>,
    preferences: Vec<String>,
    /// The clusters, sorted: a draw's indices are places in this list.
    prompts: Vec<String>,
    bootstrap: Bootstrap,
    /// With the index of the prompt.
    rows: BTreeMap<&'a str, Vec<(usize, &'a ScoreRow)>>,
    wins: Vec<WinRate>,
    /// As many as strategies.
    strengths: Vec<Estimate>,
    differences: Vec<Difference>,
    /// By strategy, where it is not simply measured.
    distances: BTreeMap<String, Distance>,
}

/// What two responses are compared by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Measure {
    /// Their utility for the preference.
    Utility,
    /// Reward in a dimension, where the preference states it, signed so that more is better.
    Reward(String),
}

impl Measure {
    /// `utility`, or the dimension's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Utility => "utility",
            Self::Reward(dimension) => dimension,
        }
    }

    /// What is no number is missing.
    fn of(&self, row: &ScoreRow) -> Option<f64> {
        let value = match self {
            Self::Utility => row.utility,
            Self::Reward(dimension) => {
                let score = row.dimensions.get(dimension).filter(|s| s.stated != 0.0)?;
                score.reward * score.stated.signum()
            }
        };
        value.is_finite().then_some(value)
    }
}

/// Win rate of one strategy over another.
#[derive(Debug, Clone, PartialEq)]
pub struct WinRate {
    /// The strategy that wins.
    pub strategy: String,
    /// The strategy that loses.
    pub opponent: String,
    /// What they are compared by.
    pub measure: Measure,
    /// Share of pairs won, ties half.
    pub rate: Estimate,
    /// Share of ties.
    pub ties: f64,
}

/// Difference in utility of two strategies.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The strategy whose utility counts positive.
    pub strategy: String,
    /// The strategy whose utility counts negative.
    pub opponent: String,
    /// Mean of the paired differences.
    pub difference: Estimate,
    /// Two-sided permutation test.
    pub p: f64,
    /// Corrected (Holm): of pairs with the first strategy for these, which are what a run tests; of others, which a reader
    /// picks from all, for all pairs.
    pub p_holm: f64,
    /// Prompts that a difference of [`power::DIFFERENCE`] between these two needs.
    pub prompts_needed: Option<f64>,
}

impl<'a> Comparison<'a> {
    /// Sorts scores by strategy; `strategies` gives the order.
    ///
    /// # Errors
    /// [`Error::OtherStrategies`]: a row of an unknown strategy, or a strategy without rows.
    pub fn new(rows: &'a [ScoreRow], strategies: &[String]) -> Result<Self> {
        let prompts: BTreeSet<&String> = rows.iter().map(|r| &r.identity.prompt).collect();
        let prompts: Vec<String> = prompts.into_iter().cloned().collect();
        let index: HashMap<&String, usize> = prompts.iter().zip(0..).collect();
        let mut sorted: BTreeMap<&str, Vec<(usize, &ScoreRow)>> = BTreeMap::new();
        for row in rows {
            let of_strategy = sorted.entry(&row.identity.strategy).or_default();
            of_strategy.push((index[&row.identity.prompt], row));
        }
        for rows in sorted.values_mut() {
            rows.sort_by(|(_, a), (_, b)| a.identity.cmp(&b.identity));
        }
        let configured: BTreeSet<String> = strategies.iter().cloned().collect();
        if !sorted.keys().copied().eq(configured.iter()) {
            let scored = sorted.keys().map(|name| name.to_string()).collect();
            return Err(Error::OtherStrategies { scored, configured });
        }
        let dimensions = rows.iter().flat_map(|r| r.dimensions.keys().cloned());
        let preferences = rows.iter().map(|r| r.identity.preference.clone());
        let mut comparison = Self {
            dimensions: dimensions.collect::<BTreeSet<_>>().into_iter().collect(),
            preferences: preferences.collect::<BTreeSet<_>>().into_iter().collect(),
            strategies: strategies.to_vec(),
            bootstrap: Bootstrap::new(prompts.len()),
            prompts,
            rows: sorted,
            wins: Vec::new(),
            strengths: Vec::new(),
            differences: Vec::new(),
            distances: BTreeMap::new(),
        };
        comparison.wins = comparison.count_wins();
        comparison.strengths = comparison.rank();
        comparison.differences = comparison.compare();
        Ok(comparison)
    }

    /// Says what the divergence of some strategies is; that of all others is measured.
    pub fn with_distances(mut self, distances: BTreeMap<String, Distance>) -> Self {
        self.distances = distances;
        self
    }

    /// Strategies in order.
    pub fn strategies(&self) -> &[String] {
        &self.strategies
    }

    /// Dimensions in order.
    pub fn dimensions(&self) -> &[String] {
        &self.dimensions
    }

    /// Preferences in order.
    pub fn preferences(&self) -> &[String] {
        &self.preferences
    }

    /// The prompts' ids in the order that draws refer to.
    pub fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// The draws behind every interval and test.
    pub fn bootstrap(&self) -> &Bootstrap {
        &self.bootstrap
    }

    /// A value of every response of a strategy, clustered by prompt; what is NaN or infinite is missing.
    pub fn estimate(
        &self,
        strategy: &str,
        value: impl Fn(&ScoreRow) -> Option<f64>,
    ) -> Option<Estimate> {
        let mut clusters = vec![Vec::new(); self.prompts.len()];
        for (prompt, row) in self.rows.get(strategy)? {
            clusters[*prompt].extend(value(row).filter(|v| v.is_finite()));
        }
        self.bootstrap.mean(&clusters)
    }

    /// A ratio of two sums over the responses of a strategy, clustered by prompt; what is NaN or infinite is missing.
    pub fn ratio(
        &self,
        strategy: &str,
        parts: impl Fn(&ScoreRow) -> Option<(f64, f64)>,
    ) -> Option<Estimate> {
        let mut clusters = vec![(0.0, 0.0); self.prompts.len()];
        for (prompt, row) in self.rows.get(strategy)? {
            let (numerator, denominator) = parts(row)?;
            if !(numerator.is_finite() && denominator.is_finite()) {
                continue;
            }
            clusters[*prompt].0 += numerator;
            clusters[*prompt].1 += denominator;
        }
        self.bootstrap.ratio(&clusters)
    }

    /// Mean utility of a strategy.
    pub fn utility(&self, strategy: &str) -> Option<Estimate> {
        self.estimate(strategy, |r| Some(r.utility))
    }

    /// Some response of the strategy has a utility.
    fn has_utility(&self, strategy: &str) -> bool {
        let mut rows = self.rows.get(strategy).into_iter().flatten();
        rows.any(|(_, row)| row.utility.is_finite())
    }

    /// Mean utility of a strategy for one preference.
    pub fn utility_for(&self, strategy: &str, preference: &str) -> Option<Estimate> {
        let utility = |r: &ScoreRow| (r.identity.preference == preference).then_some(r.utility);
        self.estimate(strategy, utility)
    }

    /// Mean normalised reward in a dimension over the responses whose preference states it, signed so
    /// that more is better.
    pub fn reward(&self, strategy: &str, dimension: &str) -> Option<Estimate> {
        let measure = Measure::Reward(dimension.into());
        self.estimate(strategy, |r| measure.of(r))
    }

    /// Bradley-Terry log-strength of every strategy.
    pub fn strengths(&self) -> &[Estimate] {
        &self.strengths
    }

    /// Every ordered pair of strategies, by utility first and then by each dimension.
    pub fn win_rates(&self) -> &[WinRate] {
        &self.wins
    }

    /// Every pair of strategies, the later one against the earlier.
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }

    /// Mean win rate of a strategy over all others, by utility; `None` where it is alone.
    pub fn win_rate(&self, strategy: &str) -> Option<f64> {
        let by_utility = |w: &&WinRate| w.strategy == strategy && w.measure == Measure::Utility;
        let wins = self.wins.iter().filter(by_utility);
        let rates: Vec<f64> = wins.map(|w| w.rate.mean).collect();
        (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
    }

    /// The measure of two strategies on the same prompt, preference and sample, by prompt.
    fn pairs(&self, a: &str, b: &str, measure: &Measure) -> Vec<Vec<(f64, f64)>> {
        self.pairs_where(a, b, measure, |_| true)
    }

    /// [`Self::pairs`] of those responses of `a` that are kept.
    fn pairs_where(
        &self,
        a: &str,
        b: &str,
        measure: &Measure,
        keep: impl Fn(&ScoreRow) -> bool,
    ) -> Vec<Vec<(f64, f64)>> {
        let key = |prompt: usize, r: &'a ScoreRow| {
            (prompt, r.identity.preference.as_str(), r.identity.sample)
        };
        let rows = |name: &str| self.rows.get(name).into_iter().flatten();
        let other: HashMap<_, f64> = rows(b)
            .filter_map(|(prompt, r)| Some((key(*prompt, r), measure.of(r)?)))
            .collect();
        let mut clusters = vec![Vec::new(); self.prompts.len()];
        for (prompt, row) in rows(a).filter(|(_, row)| keep(row)) {
            let both = measure.of(row).zip(other.get(&key(*prompt, row)).copied());
            clusters[*prompt].extend(both);
        }
        clusters
    }

    fn count_wins(&self) -> Vec<WinRate> {
        let mut out = Vec::new();
        let dimensions = self.dimensions.iter().cloned().map(Measure::Reward);
        for measure in [Measure::Utility].into_iter().chain(dimensions) {
            for strategy in &self.strategies {
                for opponent in self.strategies.iter().filter(|o| *o != strategy) {
                    let pairs = self.pairs(strategy, opponent, &measure);
                    let wins = |pairs: &Vec<(f64, f64)>| -> Vec<f64> {
                        pairs.iter().map(|(a, b)| win(*a, *b)).collect()
                    };
                    let wins: Vec<Vec<f64>> = pairs.iter().map(wins).collect();
                    let Some(rate) = self.bootstrap.mean(&wins) else {
                        continue;
                    };
                    let ties = wins.iter().flatten().filter(|w| **w == 0.5).count();
                    out.push(WinRate {
                        strategy: strategy.clone(),
                        opponent: opponent.clone(),
                        measure: measure.clone(),
                        rate,
                        ties: ties as f64 / rate.count as f64,
                    });
                }
            }
        }
        out
    }

    /// Strengths of the strategies by their wins in utility.
    fn rank(&self) -> Vec<Estimate> {
        let n = self.strategies.len();
        // Wins of every pair, by prompt.
        let mut wins = vec![vec![0.0; n * n]; self.prompts.len()];
        for (i, a) in self.strategies.iter().enumerate() {
            for (j, b) in self.strategies.iter().enumerate().filter(|(j, _)| *j != i) {
                let pairs = self.pairs(a, b, &Measure::Utility);
                for (wins, pairs) in wins.iter_mut().zip(pairs) {
                    wins[i * n + j] += pairs.iter().map(|(a, b)| win(*a, *b)).sum::<f64>();
                }
            }
        }
        ranking::estimate(&self.bootstrap, &wins, n)
    }

    fn compare(&self) -> Vec<Difference> {
        let mut out = Vec::new();
        for (j, strategy) in self.strategies.iter().enumerate() {
            for opponent in &self.strategies[..j] {
                let pairs = self.pairs(strategy, opponent, &Measure::Utility);
                let apart = |pairs: &Vec<(f64, f64)>| pairs.iter().map(|(a, b)| a - b).collect();
                let differences: Vec<Vec<f64>> = pairs.iter().map(apart).collect();
                let Some(difference) = self.bootstrap.mean(&differences) else {
                    continue;
                };
                let sums: Vec<f64> = differences.iter().map(|d| d.iter().sum()).collect();
                let filled = differences.iter().filter(|d| !d.is_empty());
                let means: Vec<f64> = filled
                    .map(|d| d.iter().sum::<f64>() / d.len() as f64)
                    .collect();
                out.push(Difference {
                    strategy: strategy.clone(),
                    opponent: opponent.clone(),
                    difference,
                    p: permutation::p_value(&sums),
                    p_holm: 1.0,
                    prompts_needed: power::prompts_needed(&means, power::DIFFERENCE),
                });
            }
        }
        let all: Vec<f64> = out.iter().map(|d| d.p).collect();
        let first = |d: &Difference| self.strategies.first() == Some(&d.opponent);
        let family: Vec<f64> = out.iter().filter(|d| first(d)).map(|d| d.p).collect();
        let mut family = permutation::holm(&family).into_iter();
        for (difference, p_holm) in out.iter_mut().zip(permutation::holm(&all)) {
            let tested = if first(difference) {
                family.next()
            } else {
                None
            };
            difference.p_holm = tested.unwrap_or(p_holm);
        }
        out
    }

    /// The least corrected p-value that a pair with the first strategy can have.
    pub fn least_p(&self) -> f64 {
        let family = self.strategies.len().saturating_sub(1).max(1);
        (permutation::least_p(self.prompts.len()) * family as f64).min(1.0)
    }

    /// Difference of a strategy to the first one.
    pub fn to_first(&self, strategy: &str) -> Option<&Difference> {
        let first = self.strategies.first()?;
        let mut all = self.differences.iter();
        all.find(|d| d.strategy == strategy && d.opponent == *first)
    }

    /// Indices of the strategies, the strongest first; those without a utility last.
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.strategies.len()).collect();
        let strength = |i: &usize| match self.has_utility(&self.strategies[*i]) {
            true => self.strengths[*i].mean,
            false => f64::NEG_INFINITY,
        };
        order.sort_by(|a, b| strength(b).total_cmp(&strength(a)));
        order
    }
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
            repetition: 0.0,
            kl: Some(if prompt == "1" { 4.0 } else { 1.0 }),
            base_nll: Some(20.0),
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
        assert_eq!(wins.len(), 4);
        assert_eq!((wins[0].strategy.as_str(), wins[0].rate.count), ("b", 3));
        assert!((wins[1].rate.mean - 2.5 / 3.0).abs() < 1e-12);
        assert!((wins[1].ties - 1.0 / 3.0).abs() < 1e-12);
        assert!((wins[0].rate.mean + wins[1].rate.mean - 1.0).abs() < 1e-12);
        // The dimension is stated the other way round.
        assert!((wins[3].rate.mean - 0.5 / 3.0).abs() < 1e-12);
        assert_eq!(
            comparison.reward("a", "style").unwrap().mean,
            -(0.9 + 0.2 + 0.5) / 3.0
        );
        let difference = comparison.to_first("a").unwrap();
        assert!((difference.difference.mean - 0.3).abs() < 1e-12);
        assert_eq!(comparison.to_first("b"), None);
        assert_eq!(comparison.order(), [1, 0]);
        assert!((comparison.kl("a").unwrap().mean - 6.0 / 30.0).abs() < 1e-12);
        let strengths = comparison.strengths();
        // 2.5 wins to 0.5, half a win added each way.
        let expected = (3.0f64 / 1.0).ln() / 2.0;
        assert!((strengths[1].mean - expected).abs() < 1e-9);
        assert!(strengths[1].low < expected && expected < strengths[1].high);
        #[cfg(feature = "tables")]
        {
            let ranking = comparison.ranking().unwrap();
            let first = ranking.column("strategy").unwrap().str().unwrap().get(0);
            assert_eq!(first, Some("a"));
        }
        assert!(Comparison::new(&rows, &names[..1]).is_err());
    }
}
