//! Which token is credited with what of a response's utility.
//!
//! One utility for a whole response says little about each of its tokens. Where a record says what the response
//! had reached on its way, in utility ([`Prefixes`](crate::Prefixes)), a response falls into segments, and segment `k` gets the
//! generalised advantage (arXiv 1506.02438) of what was expected before and after it:
//!
//! ```text
//! A_k = Σ_{j ≥ k} λ^{j−k} (V_{j+1} − V_j)        V_k = E[ u(y) | utility of its first k segments, u(y'), s ]
//! ```
//!
//! with the utility `u(y)` itself after the last one. `V_k` is linear in what it is given, the utility of the
//! pair's other response (a baseline of the prompt) and the importances `s` (one of the preference) included, and
//! fitted to all records by ridge regression, each `k` by itself: where a beginning tells nothing, its coefficient
//! says so.
//!
//! REBEL then regresses each segment's log-ratio on `η A_k`, instead of a pair's on `η (u − u')`, the residuals of
//! each `k` centred over the minibatch, as a pair's difference centres its two:
//!
//! 1. At the reference both have the same expected gradient, `−2 η ∇E[u]` a response, for λ = 1 whatever `V` is:
//!    `V_k` depends on nothing that comes later, and so cancels in expectation (a potential, as in Ng et al. 1999).
//! 2. Both have the same curvature, twice the Fisher information: scores of segments are uncorrelated.
//! 3. Their noise differs: a segment's target is free of what the other response and what came before did, and
//!    with λ < 1 of most that comes later, at the price of a bias where `V` is no conditional mean.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Rollout};

/// Which token is credited with what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Credit {
    /// All tokens of a response with its utility, beside the pair's other one (paper).
    #[default]
    Response,
    /// Those of a segment with what it changed (ours, after arXiv 1506.02438); needs records with beginnings.
    Segments {
        /// How much a segment is credited with what the later ones changed, from 0 (nothing) to 1 (all of it).
        lambda: f64,
    },
}

impl Credit {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for a λ outside of [0, 1].
    pub fn validate(self) -> Result<()> {
        match self {
            Self::Segments { lambda } if !(0.0..=1.0).contains(&lambda) => {
                Err(lm::Error::parameter("credit: lambda", lambda, "from 0 to 1").into())
            }
            _ => Ok(()),
        }
    }

    /// The tokens of each segment; the whole response where it is one.
    pub(crate) fn segments(self, rollout: &Rollout) -> Vec<Range<usize>> {
        match self {
            Self::Response => std::iter::once(0..rollout.tokens.len()).collect(),
            Self::Segments { .. } => {
                let ends = || rollout.prefixes.cuts.iter().map(|c| *c as usize);
                let starts = std::iter::once(0).chain(ends());
                starts.zip(ends()).map(|(from, to)| from..to).collect()
            }
        }
    }

    /// What each segment of each response is credited with, in units of utility. Pairs stand together.
    ///
    /// # Errors
    /// Records without beginnings where they are needed.
    pub(crate) fn advantages(self, rollouts: &[Rollout]) -> Result<Vec<Vec<f64>>> {
        let partner = |i: usize| rollouts[i ^ 1].utility;
        let Self::Segments { lambda } = self else {
            let numbered = rollouts.iter().enumerate();
            return Ok(numbered
                .map(|(i, r)| vec![(r.utility - partner(i)) / 2.0])
                .collect());
        };
        if let Some(bare) = rollouts.iter().find(|r| r.prefixes.cuts.is_empty()) {
            let prompt = bare.prompt.clone();
            return Err(Error::NoBeginnings { prompt });
        }
        let longest = rollouts.iter().map(|r| r.prefixes.cuts.len()).max();
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); rollouts.len()];
        for k in 0..longest.unwrap_or(0) {
            // Those that go on after k segments.
            let open = (0..rollouts.len()).filter(|&i| rollouts[i].prefixes.cuts.len() > k);
            let open: Vec<usize> = open.collect();
            let features = |&i: &usize| {
                let rollout = &rollouts[i];
                let so_far = k
                    .checked_sub(1)
                    .map(|before| rollout.prefixes.utilities[before]);
                let shares = rollout.context.shares.iter().map(|s| f64::from(*s));
                let known = so_far.into_iter().chain([partner(i)]);
                known.chain(shares).collect()
            };
            let rows: Vec<Vec<f64>> = open.iter().map(features).collect();
            let targets: Vec<f64> = open.iter().map(|&i| rollouts[i].utility).collect();
            for (&i, value) in open.iter().zip(fitted(&rows, &targets)) {
                values[i].push(value);
            }
        }
        let advantages = values.into_iter().zip(rollouts).map(|(mut values, r)| {
            values.push(r.utility);
            let mut after = 0.0;
            let steps = values.windows(2).rev().map(|two| {
                after = two[1] - two[0] + lambda * after;
                after
            });
            let mut out: Vec<f64> = steps.collect();
            out.reverse();
            out
        });
        Ok(advantages.collect())
    }
}

/// Rows that a ridge is worth (ours): coefficients of a dozen features are not fitted to a handful of responses.
const RIDGE: f64 = 10.0;

/// Ridge regression of targets on standardised features and a constant; returns its values at the rows.
fn fitted(rows: &[Vec<f64>], targets: &[f64]) -> Vec<f64> {
    let n = rows.len() as f64;
    let width = rows.first().map_or(0, Vec::len);
    let mean = targets.iter().sum::<f64>() / n.max(1.0);
    let moments = (0..width).map(|f| {
        let mean = rows.iter().map(|r| r[f]).sum::<f64>() / n;
        let square = rows.iter().map(|r| (r[f] - mean).powi(2)).sum::<f64>() / n;
        (mean, square.sqrt())
    });
    let moments: Vec<(f64, f64)> = moments.collect();
    let standard = |row: &Vec<f64>| -> Vec<f64> {
        let pairs = row.iter().zip(&moments);
        // What is the same everywhere says nothing.
        pairs
            .map(|(x, (mean, sd))| if *sd > 1e-9 { (x - mean) / sd } else { 0.0 })
            .collect()
    };
    let rows: Vec<Vec<f64>> = rows.iter().map(standard).collect();
    let mut gram = vec![vec![0.0; width]; width];
    let mut right = vec![0.0; width];
    for (row, target) in rows.iter().zip(targets) {
        for (i, x) in row.iter().enumerate() {
            right[i] += x * (target - mean);
            for (j, y) in row.iter().enumerate().take(i + 1) {
                gram[i][j] += x * y;
            }
        }
    }
    (0..width).for_each(|i| gram[i][i] += RIDGE);
    let coefficients = solve(gram, right);
    let value = |row: &Vec<f64>| {
        mean + row
            .iter()
            .zip(&coefficients)
            .map(|(x, c)| x * c)
            .sum::<f64>()
    };
    rows.iter().map(value).collect()
}

/// `A x = b` for a positive definite matrix, of which the lower half is given (Cholesky).
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            let left = a[i][j] - dot;
            a[i][j] = if i == j {
                left.max(1e-300).sqrt()
            } else {
                left / a[j][j]
            };
        }
    }
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i][i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| a[k][i] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Context, Prefixes};

    #[test]
    fn a_positive_definite_system_is_solved() {
        // [[4, 2], [2, 3]] x = [2, 5] has x = [−0.5, 2].
        let x = solve(vec![vec![4.0, 0.0], vec![2.0, 3.0]], vec![2.0, 5.0]);
        assert!(
            (x[0] + 0.5).abs() < 1e-12 && (x[1] - 2.0).abs() < 1e-12,
            "{x:?}"
        );
    }

    fn rollout(utilities: &[f64]) -> Rollout {
        let cuts: Vec<u32> = (1..=utilities.len() as u32).map(|k| 2 * k).collect();
        Rollout {
            prompt: "p".into(),
            context: Context {
                shares: vec![1.0],
                ..Context::default()
            },
            tokens: vec![0; 2 * utilities.len()],
            utility: *utilities.last().unwrap(),
            prefixes: Prefixes {
                cuts,
                utilities: utilities.to_vec(),
                ..Prefixes::default()
            },
            ..Rollout::default()
        }
    }

    #[test]
    fn a_segment_is_credited_with_what_it_changes() {
        // Sums of coins: the beginning tells its part of the whole, and no more.
        let coins = |i: usize| [i & 1, i >> 1 & 1, i >> 2 & 1].map(|c| 2.0 * c as f64 - 1.0);
        let sums = |[a, b, c]: [f64; 3]| rollout(&[a, a + b, a + b + c]);
        // Partners are independent of each other.
        let pairs = (0..64).flat_map(|p| [sums(coins(p % 8)), sums(coins(p / 8))]);
        let rollouts: Vec<Rollout> = pairs.collect();
        let credit = Credit::Segments { lambda: 0.0 };
        assert_eq!(credit.segments(&rollouts[0]), [0..2, 2..4, 4..6]);
        let steps = credit.advantages(&rollouts).unwrap();
        let later = Credit::Segments { lambda: 1.0 }
            .advantages(&rollouts)
            .unwrap();
        for ((rollout, steps), later) in rollouts.iter().zip(&steps).zip(&later) {
            let utilities = &rollout.prefixes.utilities;
            for k in 1..3 {
                let changed = utilities[k] - utilities[k - 1];
                assert!((steps[k] - changed).abs() < 0.25, "{utilities:?} {steps:?}");
            }
            // All that is credited adds up to the response's lead over what was expected at first.
            let sum: f64 = steps.iter().sum();
            assert!((sum - later[0]).abs() < 1e-9);
            assert!((later[0] - rollout.utility).abs() < 0.1, "{later:?}");
        }
        let advantages = Credit::Response.advantages(&rollouts[..2]).unwrap();
        let half = (rollouts[0].utility - rollouts[1].utility) / 2.0;
        assert_eq!(advantages, [[half], [-half]]);
        let bare = vec![Rollout::default(); 2];
        let error = credit.advantages(&bare).unwrap_err().to_string();
        assert!(error.contains("settings: segment"), "{error}");
        assert!(Credit::Segments { lambda: 1.5 }.validate().is_err());
    }
}
