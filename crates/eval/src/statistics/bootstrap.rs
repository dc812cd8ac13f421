//! The bootstrap over clusters: draws of prompts with replacement, and of signs.

#[cfg(feature = "tables")]
use std::path::Path;

#[cfg(feature = "tables")]
use polars::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{Estimate, percentile};
#[cfg(feature = "tables")]
use crate::{Error, Result};

/// Draws, of prompts and of signs: 10,000 keep the noise of a percentile below a hundredth of the interval
/// (ours).
pub const RESAMPLES: usize = 10_000;

/// Draws of prompts with replacement, and of signs for tests: the same for everything that a run computes.
///
/// An interval runs from the 2.5 to the 97.5 percentile of a statistic over the draws (Efron's percentile
/// interval).
#[derive(Debug, Clone)]
pub struct Bootstrap {
    clusters: usize,
    /// `[RESAMPLES, clusters]`, indices of clusters.
    draws: Vec<u32>,
    /// `[RESAMPLES, clusters]`, whose sign is turned.
    turned: Vec<bool>,
}

impl Bootstrap {
    /// Draws for a number of clusters, from a fixed seed.
    pub fn new(clusters: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let cells = RESAMPLES * clusters;
        let below = clusters.max(1) as u64;
        let draws = (0..cells).map(|_| (random.next_u64() % below) as u32);
        let draws = draws.collect();
        let turned = (0..cells).map(|_| random.next_u32() >> 31 == 1).collect();
        Self {
            clusters,
            draws,
            turned,
        }
    }

    /// Number of clusters.
    pub fn clusters(&self) -> usize {
        self.clusters
    }

    /// Every draw: indices of clusters.
    pub fn draws(&self) -> impl Iterator<Item = &[u32]> {
        self.draws.chunks(self.clusters.max(1))
    }

    /// Every draw of signs: whose is turned.
    pub fn signs(&self) -> impl Iterator<Item = &[bool]> {
        self.turned.chunks(self.clusters.max(1))
    }

    /// Mean of values by cluster; `None` without values, and where mean or interval are no numbers.
    ///
    /// # Panics
    /// When there are other clusters than it was made for.
    pub fn mean(&self, clusters: &[Vec<f64>]) -> Option<Estimate> {
        let part = |values: &Vec<f64>| (values.iter().sum(), values.len() as f64);
        let parts: Vec<(f64, f64)> = clusters.iter().map(part).collect();
        let mut estimate = self.ratio(&parts)?;
        estimate.count = clusters.iter().map(Vec::len).sum();
        Some(estimate)
    }

    /// Sum of numerators over sum of denominators, by cluster; `None` where the denominators are all 0, and where
    /// ratio or interval are no numbers.
    /// [`Estimate::count`] is the number of clusters with a denominator.
    ///
    /// # Panics
    /// When there are other clusters than it was made for.
    pub fn ratio(&self, parts: &[(f64, f64)]) -> Option<Estimate> {
        assert_eq!(parts.len(), self.clusters, "clusters");
        let of = |parts: &mut dyn Iterator<Item = (f64, f64)>| {
            let add = |sum: (f64, f64), part: (f64, f64)| (sum.0 + part.0, sum.1 + part.1);
            let (numerator, denominator) = parts.fold((0.0, 0.0), add);
            (denominator > 0.0).then(|| numerator / denominator)
        };
        let mean = of(&mut parts.iter().copied())?;
        let draw = |draw: &[u32]| of(&mut draw.iter().map(|&i| parts[i as usize]));
        let (low, high) = self.interval(draw)?;
        let count = parts.iter().filter(|p| p.1 > 0.0).count();
        let estimate = Estimate {
            mean,
            low,
            high,
            count,
        };
        estimate.finite()
    }

    /// The interval of a statistic of drawn clusters; draws without value are left out.
    pub fn interval(&self, statistic: impl FnMut(&[u32]) -> Option<f64>) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = self.draws().filter_map(statistic).collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then(|| (percentile(&values, 0.025), percentile(&values, 0.975)))
    }

    /// The draws as a table, one row each: `prompts` (indices, with replacement) and `turned` (whose
    /// difference changes its sign).
    ///
    /// # Errors
    /// [`Error::Table`].
    #[cfg(feature = "tables")]
    pub fn frame(&self) -> Result<DataFrame> {
        // Also where there is nothing to draw from: as many draws, of nothing.
        let range = |i: usize| i * self.clusters..(i + 1) * self.clusters;
        let draws: Vec<Series> = (0..RESAMPLES)
            .map(|i| Series::new("".into(), &self.draws[range(i)]))
            .collect();
        let signs: Vec<Series> = (0..RESAMPLES)
            .map(|i| Series::new("".into(), &self.turned[range(i)]))
            .collect();
        let columns = vec![
            Column::new("prompts".into(), draws),
            Column::new("turned".into(), signs),
        ];
        DataFrame::new(RESAMPLES, columns).map_err(|e| Error::table(Path::new("resamples"), e))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_ratio_weighs_its_clusters() {
        let e = Bootstrap::new(3).ratio(&[(1.0, 1.0), (9.0, 3.0), (0.0, 0.0)]);
        let e = e.unwrap();
        assert_eq!((e.mean, e.low, e.high, e.count), (2.5, 1.0, 3.0, 2));
        assert!(Bootstrap::new(1).ratio(&[(1.0, 0.0)]).is_none());
    }

    #[cfg(feature = "tables")]
    #[test]
    fn draws_are_stored_as_they_are_used() {
        let bootstrap = Bootstrap::new(4);
        let frame = bootstrap.frame().unwrap();
        assert_eq!(frame.height(), RESAMPLES);
        let nothing = Bootstrap::new(0).frame().unwrap();
        assert_eq!(nothing.height(), RESAMPLES);
        assert_eq!(nothing.dtypes(), frame.dtypes());
        let list = frame.column("prompts").unwrap().list().unwrap();
        let last = list.get_as_series(RESAMPLES - 1).unwrap();
        let indices: Vec<u32> = last.u32().unwrap().iter().flatten().collect();
        assert_eq!(indices, bootstrap.draws().last().unwrap());
        let turned = bootstrap.signs().flatten().filter(|t| **t).count();
        let share = turned as f64 / (4 * RESAMPLES) as f64;
        assert!((share - 0.5).abs() < 0.01, "{share}");
    }
}
