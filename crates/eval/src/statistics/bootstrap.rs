//! The bootstrap over clusters: draws of prompts with replacement.

#[cfg(feature = "tables")]
use std::path::Path;

#[cfg(feature = "tables")]
use polars::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::quantiles::{tail, widening};
use super::{Estimate, percentile};
#[cfg(feature = "tables")]
use crate::table::{parquet, write_parquet_pieces};
#[cfg(feature = "tables")]
use crate::{Error, Result};

/// Draws of prompts: 10,000 keep the noise of a percentile below a hundredth of the interval (ours).
pub const RESAMPLES: usize = 10_000;

/// Cells of draws that are kept at most, `RESAMPLES × clusters`: 120 MB at two bytes each. Beyond that (6,000
/// prompts) every statistic draws them again, which takes a second for 100 million.
const KEPT: usize = 60_000_000;

/// Cells up to which the table of draws is one piece, as it has been for every run so far.
#[cfg(feature = "tables")]
const ONE_PIECE: usize = 10_000_000;

/// Cells of a piece beyond that.
#[cfg(feature = "tables")]
const PIECE: usize = 2_000_000;

/// Draws that are taken together: their sums do not wait for each other.
const TOGETHER: usize = 4;

/// Draws of prompts with replacement: the same for everything that a run computes.
///
/// An interval is Hesterberg's expanded percentile interval (2015): the percentiles `Φ(∓√(n/(n − 1)) t)` of a statistic
/// over the draws, for n clusters and Student's t with n − 1 degrees. They are the 2.5 and the 97.5 for very many clusters;
/// of 8 the 0.6 and the 99.4, where the plain ones would hold the truth in 89 of 100 cases only.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    clusters: usize,
    /// Where there are not too many of them, `[RESAMPLES, clusters]`, indices of clusters.
    kept: Option<Vec<u16>>,
}

/// The generator of draws, from a cell on.
fn generator(cell: usize) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    // Words of 32 bits, two an index.
    random.set_word_pos(2 * cell as u128);
    random
}

/// The next index of a cluster.
fn index(random: &mut ChaCha8Rng, clusters: usize) -> u32 {
    (random.next_u64() % clusters.max(1) as u64) as u32
}

impl Bootstrap {
    /// Draws for a number of clusters, from a fixed seed.
    pub fn new(clusters: usize) -> Self {
        let cells = RESAMPLES.saturating_mul(clusters);
        let few = cells <= KEPT && clusters <= 1 << 16;
        Self {
            clusters,
            kept: few.then(|| {
                let mut random = generator(0);
                let draws = (0..cells).map(|_| index(&mut random, clusters) as u16);
                draws.collect()
            }),
        }
    }

    /// Number of clusters.
    pub fn clusters(&self) -> usize {
        self.clusters
    }

    /// Tells every draw in turn: indices of clusters. Without clusters there is none.
    pub fn each_draw(&self, mut tell: impl FnMut(&[u32])) {
        self.each_together(|draws| draws.chunks(self.clusters).for_each(&mut tell));
    }

    /// [`TOGETHER`] draws at a time, `[draws, clusters]`.
    fn each_together(&self, mut tell: impl FnMut(&[u32])) {
        const { assert!(RESAMPLES.is_multiple_of(TOGETHER)) }
        let cells = TOGETHER * self.clusters;
        if cells == 0 {
            return;
        }
        let mut draws = vec![0; cells];
        for first in (0..RESAMPLES * self.clusters).step_by(cells) {
            match &self.kept {
                Some(kept) => {
                    let kept = &kept[first..first + cells];
                    draws
                        .iter_mut()
                        .zip(kept)
                        .for_each(|(to, from)| *to = u32::from(*from));
                }
                None => {
                    let mut random = generator(first);
                    draws.fill_with(|| index(&mut random, self.clusters));
                }
            }
            tell(&draws);
        }
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
        let of = |(numerator, denominator): (f64, f64)| {
            (denominator > 0.0).then(|| numerator / denominator)
        };
        let add = |sum: (f64, f64), part: (f64, f64)| (sum.0 + part.0, sum.1 + part.1);
        let mean = of(parts.iter().copied().fold((0.0, 0.0), add))?;
        let mut values = Vec::with_capacity(RESAMPLES);
        self.each_together(|draws| {
            let mut draws = draws.chunks(self.clusters);
            let draws: [&[u32]; TOGETHER] =
                std::array::from_fn(|_| draws.next().unwrap_or_default());
            let mut sums = [(0.0, 0.0); TOGETHER];
            for i in 0..self.clusters {
                for (sum, draw) in sums.iter_mut().zip(draws) {
                    *sum = add(*sum, parts[draw[i] as usize]);
                }
            }
            values.extend(sums.into_iter().filter_map(of));
        });
        let (low, high) = self.percentiles(values)?;
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
    pub fn interval(&self, mut statistic: impl FnMut(&[u32]) -> Option<f64>) -> Option<(f64, f64)> {
        let mut values = Vec::with_capacity(RESAMPLES);
        self.each_draw(|draw| values.extend(statistic(draw)));
        self.percentiles(values)
    }

    /// The ends of the interval of a statistic's values over the draws; `None` without values.
    pub fn percentiles(&self, mut values: Vec<f64>) -> Option<(f64, f64)> {
        values.sort_by(f64::total_cmp);
        let tail = tail(self.clusters);
        (!values.is_empty()).then(|| (percentile(&values, tail), percentile(&values, 1.0 - tail)))
    }

    /// A statistic that its own noise raises or lowers, as a maximum does: `estimate` is its value over all clusters. The
    /// bias, which the draws repeat, is taken off: `2 estimate − mean over the draws`. The interval is that of Student's t
    /// around it, with the draws' standard deviation (percentiles would have the bias twice).
    pub fn corrected(
        &self,
        estimate: f64,
        mut statistic: impl FnMut(&[u32]) -> Option<f64>,
    ) -> Option<Estimate> {
        let mut values = Vec::with_capacity(RESAMPLES);
        self.each_draw(|draw| values.extend(statistic(draw)));
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let half = match self.clusters {
            1 => 0.0,
            clusters => widening(clusters) * variance.sqrt(),
        };
        let mean = 2.0 * estimate - mean;
        let corrected = Estimate {
            mean,
            low: mean - half,
            high: mean + half,
            count: self.clusters,
        };
        corrected.finite()
    }

    /// The draws as a table, one row each: `prompts` (indices, with replacement).
    ///
    /// # Errors
    /// [`Error::Table`].
    #[cfg(feature = "tables")]
    pub fn frame(&self) -> Result<DataFrame> {
        self.rows(0..RESAMPLES)
    }

    /// Some rows of the [table](Self::frame).
    #[cfg(feature = "tables")]
    fn rows(&self, rows: std::ops::Range<usize>) -> Result<DataFrame> {
        // Also where there is nothing to draw from: as many draws, of nothing.
        let (height, n) = (rows.len(), self.clusters);
        let cells = rows.start * n..rows.end * n;
        let draws: Vec<u32> = match &self.kept {
            Some(kept) => kept[cells].iter().map(|i| u32::from(*i)).collect(),
            None => {
                let mut random = generator(cells.start);
                cells.map(|_| index(&mut random, n)).collect()
            }
        };
        let draws = (0..height).map(|row| Series::new("".into(), &draws[row * n..(row + 1) * n]));
        let columns = vec![Column::new("prompts".into(), draws.collect::<Vec<_>>())];
        DataFrame::new(height, columns).map_err(|e| Error::table(Path::new("resamples"), e))
    }

    /// Writes the [table](Self::frame) as Parquet; a large one in pieces, each a row group.
    ///
    /// # Errors
    /// [`Error::Table`], [`Error::Io`].
    #[cfg(feature = "tables")]
    pub fn write(&self, path: &Path) -> Result<()> {
        if RESAMPLES.saturating_mul(self.clusters) <= ONE_PIECE {
            return crate::write_atomic(path, &parquet(path, &mut self.frame()?)?);
        }
        let step = (PIECE / self.clusters).max(1);
        let starts = (0..RESAMPLES).step_by(step);
        write_parquet_pieces(
            path,
            starts.map(|start| self.rows(start..RESAMPLES.min(start + step))),
        )
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
        let mut drawn = Vec::new();
        bootstrap.each_draw(|draw| drawn = draw.to_vec());
        assert_eq!(indices, drawn);
    }

    /// The draws in the order in which the generator gives them.
    #[test]
    fn what_is_kept_is_what_is_drawn_again() {
        let clusters = 7;
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let cells = RESAMPLES * clusters;
        let draws: Vec<u32> = (0..cells).map(|_| (random.next_u64() % 7) as u32).collect();
        let kept = Bootstrap::new(clusters);
        assert!(kept.kept.is_some());
        let again = Bootstrap {
            clusters,
            kept: None,
        };
        let parts: Vec<(f64, f64)> = (0..7)
            .map(|i| (0.1 * f64::from(i), f64::from(i % 3)))
            .collect();
        let mut estimates = Vec::new();
        for bootstrap in [&kept, &again] {
            let mut drawn = Vec::new();
            bootstrap.each_draw(|draw| drawn.extend_from_slice(draw));
            assert_eq!(drawn, draws);
            estimates.push(bootstrap.ratio(&parts).unwrap());
        }
        assert_eq!(estimates[0], estimates[1]);
        // One draw at a time comes to the same.
        let interval = kept.interval(|draw| {
            let sum = |sum: (f64, f64), &i: &u32| {
                (sum.0 + parts[i as usize].0, sum.1 + parts[i as usize].1)
            };
            let (numerator, denominator) = draw.iter().fold((0.0, 0.0), sum);
            (denominator > 0.0).then(|| numerator / denominator)
        });
        assert_eq!(interval.unwrap(), (estimates[0].low, estimates[0].high));
        #[cfg(feature = "tables")]
        assert!(kept.frame().unwrap().equals(&again.frame().unwrap()));
        assert!(Bootstrap::new(KEPT / RESAMPLES + 1).kept.is_none());
    }

    #[cfg(feature = "tables")]
    #[test]
    fn a_large_table_is_written_in_pieces_and_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resamples.parquet");
        let bootstrap = Bootstrap::new(ONE_PIECE / RESAMPLES + 1);
        bootstrap.write(&path).unwrap();
        let frame = crate::table::read_parquet(&path).unwrap();
        assert!(frame.equals(&bootstrap.frame().unwrap()));
        let bytes = std::fs::read(&path).unwrap();
        let schema = b"ARROW:schema";
        assert!(!bytes.windows(schema.len()).any(|w| w == schema));
    }

    /// Standard normal values from a fixed stream: sums of twelve uniform ones.
    fn normal(random: &mut ChaCha8Rng) -> f64 {
        let uniform = |random: &mut ChaCha8Rng| f64::from(random.next_u32()) / f64::from(u32::MAX);
        (0..12).map(|_| uniform(random)).sum::<f64>() - 6.0
    }

    /// How often intervals of means of `n` values hold the truth, in 600 samples.
    fn coverage(n: usize) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(n as u64);
        let bootstrap = Bootstrap::new(n);
        let mut hits = 0;
        for _ in 0..600 {
            let sample: Vec<Vec<f64>> = (0..n).map(|_| vec![normal(&mut random)]).collect();
            let e = bootstrap.mean(&sample).unwrap();
            hits += usize::from(e.low <= 0.0 && 0.0 <= e.high);
        }
        hits as f64 / 600.0
    }

    /// Plain percentiles hold it in 89, 91 and 94 of 100.
    #[test]
    fn intervals_of_few_clusters_hold_the_truth() {
        for n in [8, 12, 32] {
            let share = coverage(n);
            assert!((0.925..0.975).contains(&share), "{n}: {share}");
        }
        // Two values say next to nothing, and one says nothing of its error.
        let two = Bootstrap::new(2).mean(&[vec![0.0], vec![1.0]]).unwrap();
        assert_eq!((two.low, two.high), (0.0, 1.0));
    }

    /// The largest of eleven means whose truth is 0: its estimate from 8 clusters is 0.6 too high.
    #[test]
    fn the_bias_of_a_maximum_is_taken_off() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let bootstrap = Bootstrap::new(8);
        let (mut plain, mut corrected) = (0.0, 0.0);
        for _ in 0..40 {
            let sample: Vec<f64> = (0..88).map(|_| normal(&mut random)).collect();
            let largest = |draw: &[u32]| {
                let mean = |k: usize| {
                    draw.iter()
                        .map(|&i| sample[i as usize * 11 + k])
                        .sum::<f64>()
                        / 8.0
                };
                (0..11).map(mean).reduce(f64::max)
            };
            let estimate = largest(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
            plain += estimate / 40.0;
            corrected += bootstrap.corrected(estimate, largest).unwrap().mean / 40.0;
        }
        assert!(
            plain > 0.45 && corrected < 0.75 * plain,
            "{plain} {corrected}"
        );
    }
}
