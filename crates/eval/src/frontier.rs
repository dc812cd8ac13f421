//! Utility against divergence from the base: curves of strategies at several strengths, and their differences at equal
//! divergence.
//!
//! Points at different divergence cannot be compared: what goes further has more utility by that alone. A curve goes
//! through the base and the mean of every strength, linear in `√KL` between them, because small steps of a tilt gain with
//! the root of their divergence (arXiv 2210.10760). Beyond its last point nothing is said of it. Intervals and differences
//! draw prompts once for all curves, divergences included.
//!
//! ```
//! use std::collections::BTreeMap;
//! use mope_eval::frontier::{Curve, Frontier};
//! use mope_eval::rows::{Identity, ScoreRow};
//! let row = |strategy: &str, prompt: u32, utility, kl| ScoreRow {
//!     identity: Identity {
//!         strategy: strategy.into(),
//!         preference: "kind".into(),
//!         prompt: prompt.to_string(),
//!         sample: 0,
//!     },
//!     utility,
//!     tokens: 20,
//!     ended: true,
//!     repetition: 0.0,
//!     kl: Some(kl),
//!     base_nll: None,
//!     dimensions: Default::default(),
//! };
//! let rows: Vec<ScoreRow> = (0..8)
//!     .flat_map(|p| [row("base", p, 0.5, 0.0), row("dera-2", p, 0.6, 16.0)])
//!     .collect();
//! let dera = Curve { name: "dera".into(), arms: vec![(2.0, "dera-2".into())] };
//! let frontier = Frontier::new(&rows, "base", vec![dera], &BTreeMap::new()).unwrap();
//! // A quarter of the divergence is half of the way.
//! assert!((frontier.at(0, 4.0).unwrap().mean - 0.55).abs() < 1e-12);
//! assert_eq!(frontier.at(0, 17.0), None);
//! ```

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "tables")]
use polars::prelude::*;

use crate::comparison::Distance;
#[cfg(feature = "tables")]
use crate::comparison::interval;
use crate::rows::ScoreRow;
use crate::statistics::{Bootstrap, Estimate};
#[cfg(feature = "tables")]
use crate::{Error, Result};

/// Divergences in nats a response at which curves are compared (ours).
pub const NATS: [f64; 3] = [5.0, 10.0, 20.0];

/// Share of draws that must reach a divergence for an interval there (ours).
const REACHED: f64 = 0.95;

/// A strategy at several strengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Its name.
    pub name: String,
    /// Strengths, with the names of the strategies in the rows.
    pub arms: Vec<(f64, String)>,
}

/// Sums of one strategy by prompt: utility, responses with one, divergence, responses with one.
type Sums = Vec<[f64; 4]>;

/// Curves over the same prompts.
#[derive(Debug, Clone)]
pub struct Frontier {
    curves: Vec<Curve>,
    bootstrap: Bootstrap,
    base: Sums,
    /// `[curves][arms]`.
    sums: Vec<Vec<Sums>>,
    distances: Vec<Vec<Distance>>,
}

/// Mean utility and mean divergence over drawn prompts.
fn point(sums: &Sums, draw: &[u32]) -> Option<(f64, f64)> {
    let mut total = [0.0; 4];
    for &prompt in draw {
        let cell = &sums[prompt as usize];
        total.iter_mut().zip(cell).for_each(|(t, c)| *t += c);
    }
    let [utility, n, kl, m] = total;
    (n > 0.0 && m > 0.0).then(|| (utility / n, kl / m))
}

/// The utility of a curve through these points, (utility, divergence), at a divergence.
fn along(mut points: Vec<(f64, f64)>, nats: f64) -> Option<f64> {
    points.sort_by(|a, b| a.1.total_cmp(&b.1));
    let after = points.iter().position(|p| p.1 >= nats)?;
    let Some(before) = after.checked_sub(1) else {
        return (points[after].1 == nats).then(|| points[after].0);
    };
    let (low, high) = (points[before], points[after]);
    let root = |p: (f64, f64)| p.1.max(0.0).sqrt();
    let share = (nats.sqrt() - root(low)) / (root(high) - root(low));
    Some(low.0 + share * (high.0 - low.0))
}

impl Frontier {
    /// Gathers the rows of the base and of all arms; `None` without rows of the base, or where a row of these has no
    /// divergence.
    pub fn new(
        rows: &[ScoreRow],
        base: &str,
        curves: Vec<Curve>,
        distances: &BTreeMap<String, Distance>,
    ) -> Option<Self> {
        let prompts: BTreeSet<&String> = rows.iter().map(|r| &r.identity.prompt).collect();
        let index: BTreeMap<&String, usize> = prompts.into_iter().zip(0..).collect();
        let distance = |name: &String| distances.get(name).copied().unwrap_or_default();
        let mut all: BTreeMap<&str, Sums> = BTreeMap::new();
        let arms = curves
            .iter()
            .flat_map(|c| c.arms.iter().map(|a| a.1.as_str()));
        let wanted: BTreeSet<&str> = arms.chain([base]).collect();
        for row in rows
            .iter()
            .filter(|r| wanted.contains(r.identity.strategy.as_str()))
        {
            let sums = all.entry(&row.identity.strategy);
            let sums = sums.or_insert_with(|| vec![[0.0; 4]; index.len()]);
            let cell = &mut sums[index[&row.identity.prompt]];
            let kl = row.kl? + distance(&row.identity.strategy).added();
            for (at, value) in [(0, row.utility), (2, kl)] {
                if value.is_finite() {
                    cell[at] += value;
                    cell[at + 1] += 1.0;
                }
            }
        }
        let of = |(_, name): &(f64, String)| all.get(name.as_str()).cloned();
        let sums = curves.iter().map(|c| c.arms.iter().map(of).collect());
        Some(Self {
            bootstrap: Bootstrap::new(index.len()),
            base: all.get(base)?.clone(),
            sums: sums.collect::<Option<_>>()?,
            distances: curves
                .iter()
                .map(|c| c.arms.iter().map(|(_, name)| distance(name)).collect())
                .collect(),
            curves,
        })
    }

    /// The curves.
    pub fn curves(&self) -> &[Curve] {
        &self.curves
    }

    fn everything(&self) -> Vec<u32> {
        (0..self.bootstrap.clusters() as u32).collect()
    }

    /// An estimate with the draws in which it is one; `None` where these are too few.
    fn estimate(&self, of: impl Fn(&[u32]) -> Option<f64>) -> Option<Estimate> {
        let mean = of(&self.everything())?;
        let mut values = Vec::new();
        let mut draws = 0;
        self.bootstrap.each_draw(|draw| {
            draws += 1;
            values.extend(of(draw));
        });
        if (values.len() as f64) < REACHED * f64::from(draws) {
            return None;
        }
        let (low, high) = self.bootstrap.percentiles(values)?;
        let count = self.bootstrap.clusters();
        Some(Estimate {
            mean,
            low,
            high,
            count,
        })
    }

    /// Points of a curve, (utility, divergence), the base first.
    fn points(&self, curve: usize, draw: &[u32]) -> Option<Vec<(f64, f64)>> {
        let (utility, _) = point(&self.base, draw)?;
        let arms = self.sums[curve].iter().map(|sums| point(sums, draw));
        let arms = arms.collect::<Option<Vec<_>>>()?;
        Some([vec![(utility, 0.0)], arms].concat())
    }

    /// Mean points of a curve, (divergence, utility), in the order of divergence, the base first.
    pub fn line(&self, curve: usize) -> Vec<(f64, f64)> {
        let points = self.points(curve, &self.everything()).unwrap_or_default();
        let mut points: Vec<(f64, f64)> = points.iter().map(|p| (p.1, p.0)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// Utility of a curve at a divergence in nats a response; `None` beyond its last point.
    pub fn at(&self, curve: usize, nats: f64) -> Option<Estimate> {
        self.estimate(|draw| along(self.points(curve, draw)?, nats))
    }

    /// How much more utility a curve has than another at equal divergence; `None` where either does not reach it.
    pub fn difference(&self, curve: usize, other: usize, nats: f64) -> Option<Estimate> {
        self.estimate(|draw| {
            let at = |curve| along(self.points(curve, draw)?, nats);
            Some(at(curve)? - at(other)?)
        })
    }

    /// Two-sided p-value that two curves have the same utility at a divergence: twice the share of draws in which the
    /// difference is on the other side of 0, `(1 + hits) / (1 + draws)`; `None` where either does not reach it.
    pub fn p_value(&self, curve: usize, other: usize, nats: f64) -> Option<f64> {
        self.difference(curve, other, nats)?;
        let (mut below, mut above, mut draws) = (0usize, 0usize, 0usize);
        self.bootstrap.each_draw(|draw| {
            let at = |curve| along(self.points(curve, draw)?, nats);
            if let Some((a, b)) = at(curve).zip(at(other)) {
                draws += 1;
                below += usize::from(a <= b);
                above += usize::from(a >= b);
            }
        });
        Some((2.0 * (1 + below.min(above)) as f64 / (1 + draws) as f64).min(1.0))
    }

    /// Utility, divergence and gain per root of it, of one strength.
    fn arm(&self, curve: usize, arm: usize) -> [Option<Estimate>; 3] {
        let sums = &self.sums[curve][arm];
        let gain = |draw: &[u32]| {
            let (utility, kl) = point(sums, draw)?;
            let a = (utility - point(&self.base, draw)?.0) / kl.sqrt();
            a.is_finite().then_some(a)
        };
        [
            self.estimate(|draw| Some(point(sums, draw)?.0)),
            self.estimate(|draw| Some(point(sums, draw)?.1)),
            self.estimate(gain),
        ]
    }

    /// `frontier`: one row a curve and strength: utility, divergence per response in nats and what it is, and the utility
    /// gained over the base per root of it.
    ///
    /// # Errors
    /// [`Error::Table`].
    #[cfg(feature = "tables")]
    pub fn table(&self) -> Result<DataFrame> {
        let (mut names, mut strengths, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        let mut estimates: [Vec<Option<Estimate>>; 3] = Default::default();
        for (c, curve) in self.curves.iter().enumerate() {
            for (a, (strength, _)) in curve.arms.iter().enumerate() {
                names.push(curve.name.as_str());
                strengths.push(*strength);
                kinds.push(self.distances[c][a].name());
                let all = estimates.iter_mut().zip(self.arm(c, a));
                all.for_each(|(column, estimate)| column.push(estimate));
            }
        }
        let mut columns = vec![
            Column::new("curve".into(), names),
            Column::new("strength".into(), strengths),
        ];
        for (name, estimates) in ["utility", "kl", "a"].iter().zip(&estimates) {
            columns.extend(interval(name, estimates));
        }
        columns.push(Column::new("kl_is".into(), kinds));
        let frame = DataFrame::new_infer_height(columns);
        frame.map_err(|e| Error::table("frontier".as_ref(), e))
    }

    /// `frontier_differences`: one row a curve and divergence: its utility there, and how much more that is than the first
    /// curve's. Missing where a curve does not go that far.
    ///
    /// # Errors
    /// [`Error::Table`].
    #[cfg(feature = "tables")]
    pub fn difference_table(&self) -> Result<DataFrame> {
        let (mut names, mut nats) = (Vec::new(), Vec::new());
        let mut estimates: [Vec<Option<Estimate>>; 2] = Default::default();
        for (c, curve) in self.curves.iter().enumerate() {
            for at in NATS {
                names.push(curve.name.as_str());
                nats.push(at);
                estimates[0].push(self.at(c, at));
                let apart = (c > 0).then(|| self.difference(c, 0, at));
                estimates[1].push(apart.flatten());
            }
        }
        let first = self.curves.first().map_or("", |c| c.name.as_str());
        let height = names.len();
        let mut columns = vec![
            Column::new("curve".into(), names),
            Column::new("nats".into(), nats),
        ];
        columns.extend(interval("utility", &estimates[0]));
        columns.push(Column::new("opponent".into(), vec![first; height]));
        columns.extend(interval("difference", &estimates[1]));
        let frame = DataFrame::new_infer_height(columns);
        frame.map_err(|e| Error::table("frontier_differences".as_ref(), e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::Identity;

    fn row(strategy: &str, prompt: usize, utility: f64, kl: f64) -> ScoreRow {
        ScoreRow {
            identity: Identity {
                strategy: strategy.into(),
                preference: "p".into(),
                prompt: format!("{prompt:02}"),
                sample: 0,
            },
            utility,
            tokens: 10,
            ended: true,
            repetition: 0.0,
            kl: Some(kl),
            base_nll: None,
            dimensions: Default::default(),
        }
    }

    /// Two strategies with a = 0.03 and 0.04 at strengths of their own, and prompts that differ.
    fn frontier() -> Frontier {
        let mut rows = Vec::new();
        for prompt in 0..12 {
            let easy = 0.01 * (prompt % 4) as f64;
            let spread = 1.0 + 0.1 * (prompt % 3) as f64;
            rows.push(row("base", prompt, 0.5 + easy, 0.0));
            for (name, a, kl) in [
                ("slow-1", 0.03, 4.0),
                ("slow-2", 0.03, 16.0),
                ("slow-3", 0.03, 36.0),
                ("fast-1", 0.04, 9.0),
                ("fast-2", 0.04, 25.0f64),
            ] {
                let kl = kl * spread;
                rows.push(row(name, prompt, 0.5 + easy + a * kl.sqrt(), kl));
            }
        }
        let curve = |name: &str, n: usize| Curve {
            name: name.into(),
            arms: (1..=n).map(|i| (i as f64, format!("{name}-{i}"))).collect(),
        };
        let curves = vec![curve("slow", 3), curve("fast", 2)];
        Frontier::new(&rows, "base", curves, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn curves_are_compared_at_equal_divergence_and_not_beyond() {
        let frontier = frontier();
        for nats in [5.0f64, 10.0, 20.0] {
            let slow = frontier.at(0, nats).unwrap();
            let law = 0.515 + 0.03 * nats.sqrt();
            assert!((slow.mean - law).abs() < 5e-4, "{slow:?} {law}");
            let lead = frontier.difference(1, 0, nats).unwrap();
            assert!((lead.mean - 0.01 * nats.sqrt()).abs() < 5e-4, "{lead:?}");
            // What prompts share falls out of the difference.
            assert!(lead.low > 0.0 && lead.high - lead.low < 0.1 * (slow.high - slow.low));
            let turned = frontier.difference(0, 1, nats).unwrap();
            assert!((turned.mean + lead.mean).abs() < 1e-12);
        }
        // The last mean is 27.5 nats, which not every draw reaches.
        assert!(frontier.at(1, 27.5).is_none() && frontier.at(1, 30.0).is_none());
        assert!(frontier.at(0, 30.0).is_some());
        assert_eq!(frontier.line(1)[0], (0.0, 0.515));
        assert_eq!(frontier.at(0, 0.0).unwrap().mean, 0.515);
    }

    #[cfg(feature = "tables")]
    #[test]
    fn tables_say_what_is_known() {
        let frontier = frontier();
        let table = frontier.table().unwrap();
        let number = |table: &DataFrame, column: &str, row: usize| {
            table.column(column).unwrap().f64().unwrap().get(row)
        };
        assert_eq!(table.height(), 5);
        assert!((number(&table, "kl", 2).unwrap() - 39.6).abs() < 1e-9);
        assert!((number(&table, "a", 3).unwrap() - 0.04).abs() < 1e-3);
        let table = frontier.difference_table().unwrap();
        assert_eq!((table.height(), number(&table, "difference", 0)), (6, None));
        assert!(number(&table, "difference_low", 5).unwrap() > 0.0);
    }

    #[test]
    fn what_choosing_adds_is_part_of_the_divergence() {
        let rows: Vec<ScoreRow> = (0..4)
            .flat_map(|p| [row("base", p, 0.5, 0.0), row("best-4", p, 0.6, 0.0)])
            .collect();
        let curve = Curve {
            name: "best".into(),
            arms: vec![(4.0, "best-4".into())],
        };
        let bound = [("best-4".to_string(), Distance::best_of(4))].into();
        let frontier = Frontier::new(&rows, "base", vec![curve.clone()], &bound).unwrap();
        assert!((frontier.line(0)[1].0 - (4f64.ln() - 0.75)).abs() < 1e-12);
        let mut unmeasured = rows;
        unmeasured[1].kl = None;
        assert!(Frontier::new(&unmeasured, "base", vec![curve], &bound).is_none());
    }
}
