//! Sweeps: several preferences that weigh the same directions differently.

use std::collections::BTreeMap;

#[cfg(feature = "tables")]
use polars::prelude::*;

use super::Comparison;
#[cfg(feature = "tables")]
use super::tables::{frame, interval};
#[cfg(feature = "tables")]
use crate::Result;
#[cfg(feature = "tables")]
use crate::statistics::Estimate;
#[cfg(feature = "tables")]
use crate::statistics::front::{hypervolume, pareto};

/// Preferences over the same directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Dimensions, with the sign of the direction that is wanted.
    pub directions: Vec<(String, f64)>,
    /// The preferences, with the share of each direction.
    pub preferences: Vec<(String, Vec<f64>)>,
}

impl Sweep {
    /// The directions by name: `+` is a dimension's high end, `−` its low one.
    pub fn name(&self) -> String {
        let sign = |s: f64| if s > 0.0 { '+' } else { '−' };
        let parts = self.directions.iter();
        let parts: Vec<String> = parts.map(|(d, s)| format!("{}{d}", sign(*s))).collect();
        parts.join(" ")
    }
}

impl Comparison<'_> {
    /// The sweeps of a run: at least two preferences over the same two or more directions.
    pub fn sweeps(&self) -> Vec<Sweep> {
        let mut stated: BTreeMap<&str, Vec<(String, f64)>> = BTreeMap::new();
        for (_, row) in self.rows.values().flatten() {
            let shares = || {
                let all = row.dimensions.iter().filter(|(_, s)| s.stated != 0.0);
                all.map(|(d, s)| (d.clone(), s.stated)).collect()
            };
            let preference = row.identity.preference.as_str();
            stated.entry(preference).or_insert_with(shares);
        }
        let mut sweeps: Vec<Sweep> = Vec::new();
        for (preference, shares) in stated.into_iter().filter(|(_, s)| s.len() > 1) {
            let directions: Vec<(String, f64)> = shares
                .iter()
                .map(|(d, s)| (d.clone(), s.signum()))
                .collect();
            let shares = shares.iter().map(|(_, s)| s.abs()).collect();
            let point = (preference.to_string(), shares);
            match sweeps.iter_mut().find(|s| s.directions == directions) {
                Some(sweep) => sweep.preferences.push(point),
                None => sweeps.push(Sweep {
                    directions,
                    preferences: vec![point],
                }),
            }
        }
        sweeps.retain(|s| s.preferences.len() > 1);
        sweeps
    }

    /// Sums and counts of a strategy's signed rewards, `[preferences][prompts, directions]`.
    fn sums(&self, strategy: &str, sweep: &Sweep) -> Vec<Vec<(f64, f64)>> {
        let width = sweep.directions.len();
        let mut cells = vec![vec![(0.0, 0.0); width * self.prompts.len()]; sweep.preferences.len()];
        for (prompt, row) in &self.rows[strategy] {
            let asked = |(name, _): &(String, Vec<f64>)| *name == row.identity.preference;
            let Some(at) = sweep.preferences.iter().position(asked) else {
                continue;
            };
            for (d, (dimension, sign)) in sweep.directions.iter().enumerate() {
                let reward = sign * row.dimensions[dimension].reward;
                // What is no number is missing.
                if reward.is_finite() {
                    let cell = &mut cells[at][prompt * width + d];
                    cell.0 += reward;
                    cell.1 += 1.0;
                }
            }
        }
        cells
    }

    /// Mean rewards of a strategy for each preference of a sweep, `[preferences][directions]`.
    pub fn front(&self, strategy: &str, sweep: &Sweep) -> Option<Vec<Vec<f64>>> {
        let all: Vec<u32> = (0..self.prompts.len() as u32).collect();
        drawn(&self.sums(strategy, sweep), sweep.directions.len(), &all)
    }

    /// `fronts`: for every sweep and strategy the volume that its mean rewards dominate above `reference` (in
    /// every direction, in normalised rewards), how many of its points no other strategy's point exceeds, and
    /// the mean inner product of shares and rewards. Noise of the means makes a volume larger, because the best points
    /// count; what of this the draws show is [taken off](crate::statistics::Bootstrap::corrected).
    ///
    /// # Errors
    /// [`crate::Error::Table`].
    #[cfg(feature = "tables")]
    pub fn front_table(&self, reference: f64) -> Result<DataFrame> {
        let (mut sweeps, mut names) = (Vec::new(), Vec::new());
        let (mut volumes, mut products) = (Vec::new(), Vec::new());
        let (mut points, mut best) = (Vec::new(), Vec::new());
        for sweep in self.sweeps() {
            let width = sweep.directions.len();
            let floor = vec![reference; width];
            let fronts: Vec<Option<Vec<Vec<f64>>>> = self
                .strategies
                .iter()
                .map(|s| self.front(s, &sweep))
                .collect();
            let all: Vec<Vec<f64>> = fronts.iter().flatten().flatten().cloned().collect();
            let undominated: Vec<&Vec<f64>> = pareto(&all).into_iter().map(|i| &all[i]).collect();
            for (strategy, front) in self.strategies.iter().zip(&fronts) {
                let Some(front) = front else { continue };
                let cells = self.sums(strategy, &sweep);
                let of = |draw: &[u32]| Some(hypervolume(&drawn(&cells, width, draw)?, &floor));
                let volume = hypervolume(front, &floor);
                let volume = self.bootstrap.corrected(volume, of);
                // No volume is below 0.
                volumes.push(volume.map(|e| Estimate {
                    mean: e.mean.max(0.0),
                    low: e.low.max(0.0),
                    high: e.high.max(0.0),
                    count: front.len(),
                }));
                let product = |front: &[Vec<f64>]| {
                    let pairs = front.iter().zip(&sweep.preferences);
                    let inner = pairs.map(|(point, (_, shares))| -> f64 {
                        point.iter().zip(shares).map(|(r, s)| r * s).sum()
                    });
                    inner.sum::<f64>() / front.len() as f64
                };
                let interval = self
                    .bootstrap
                    .interval(|draw| Some(product(&drawn(&cells, width, draw)?)));
                products.push(interval.map(|(low, high)| Estimate {
                    mean: product(front),
                    low,
                    high,
                    count: front.len(),
                }));
                points.push(front.len() as u32);
                best.push(front.iter().filter(|p| undominated.contains(p)).count() as u32);
                sweeps.push(sweep.name());
                names.push(strategy.clone());
            }
        }
        let floor = vec![reference; names.len()];
        let mut columns = vec![
            Column::new("sweep".into(), sweeps),
            Column::new("strategy".into(), names),
            Column::new("points".into(), points),
            Column::new("on_front".into(), best),
        ];
        columns.extend(interval("hypervolume", &volumes));
        columns.extend(interval("inner_product", &products));
        columns.push(Column::new("reference".into(), floor));
        frame("fronts", columns)
    }
}

/// Mean rewards over drawn prompts; `None` where a preference has none.
fn drawn(cells: &[Vec<(f64, f64)>], width: usize, draw: &[u32]) -> Option<Vec<Vec<f64>>> {
    let point = |cells: &Vec<(f64, f64)>| {
        let mut sums = vec![(0.0, 0.0); width];
        for &prompt in draw {
            let of_prompt = &cells[prompt as usize * width..][..width];
            for (sum, cell) in sums.iter_mut().zip(of_prompt) {
                sum.0 += cell.0;
                sum.1 += cell.1;
            }
        }
        let mean = |(sum, count): &(f64, f64)| (*count > 0.0).then(|| sum / count);
        sums.iter().map(mean).collect::<Option<Vec<f64>>>()
    };
    cells.iter().map(point).collect()
}

#[cfg(all(test, feature = "tables"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;
    use crate::rows::{DimensionScore, Identity, ScoreRow};

    /// Of eleven points on a quarter of a circle, noise of one standard deviation a response.
    fn sample(prompts: usize, random: &mut ChaCha8Rng) -> Vec<ScoreRow> {
        let mut normal = || {
            let mut uniform = || f64::from(random.next_u32()) / f64::from(u32::MAX);
            (0..12).map(|_| uniform()).sum::<f64>() - 6.0
        };
        let mut rows = Vec::new();
        for (prompt, point) in (0..prompts).flat_map(|p| (0..11).map(move |k| (p, k))) {
            let angle = std::f64::consts::FRAC_PI_2 * f64::from(point) / 10.0;
            let share = (f64::from(point) + 0.5) / 11.0;
            let mut score = |reward: f64, stated: f64| DimensionScore {
                raw: 0.0,
                reward: 2.2 * reward + normal(),
                reference: 0.0,
                stated,
            };
            let dimensions = [
                ("x".to_string(), score(angle.cos(), 1.0 - share)),
                ("y".to_string(), score(angle.sin(), share)),
            ];
            rows.push(ScoreRow {
                identity: Identity {
                    strategy: "s".into(),
                    preference: format!("p{point:02}"),
                    prompt: prompt.to_string(),
                    sample: 0,
                },
                utility: 0.5,
                tokens: 1,
                ended: true,
                repetition: 0.0,
                kl: None,
                base_nll: None,
                dimensions: dimensions.into(),
            });
        }
        rows
    }

    /// Of the plain volume and its percentiles 2 in 100 intervals hold the truth, and their mean is 0.7 too high.
    #[test]
    fn volumes_of_noisy_means_are_not_too_large() {
        let points: Vec<Vec<f64>> = (0..11)
            .map(|k| std::f64::consts::FRAC_PI_2 * f64::from(k) / 10.0)
            .map(|angle| vec![2.2 * angle.cos(), 2.2 * angle.sin()])
            .collect();
        let truth = hypervolume(&points, &[0.0; 2]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (samples, mut hits, mut mean, mut plain) = (20, 0, 0.0, 0.0);
        for _ in 0..samples {
            let rows = sample(8, &mut random);
            let comparison = Comparison::new(&rows, &["s".into()]).unwrap();
            let table = comparison.front_table(0.0).unwrap();
            let number = |name: &str| table.column(name).unwrap().f64().unwrap().get(0).unwrap();
            let inside = number("hypervolume_low") <= truth && truth <= number("hypervolume_high");
            hits += usize::from(inside);
            mean += number("hypervolume") / f64::from(samples);
            let front = comparison.front("s", &comparison.sweeps()[0]).unwrap();
            plain += hypervolume(&front, &[0.0; 2]) / f64::from(samples);
        }
        assert!(plain - truth > 0.4, "{plain} {truth}");
        assert!(
            (mean - truth).abs() < 0.5 * (plain - truth),
            "{mean} {plain} {truth}"
        );
        assert!(hits >= 17, "{hits} of {samples}");
    }
}
