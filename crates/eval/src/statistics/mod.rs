//! Paired, prompt-clustered statistics.
//!
//! Responses to one prompt are alike, so prompts, not responses, are what is drawn: strategies are compared
//! on the same prompt, preference and sample, and intervals ([`Bootstrap`]) and tests ([`permutation`])
//! move a prompt with all of its values. Every draw comes from a fixed seed; those of prompts are stored beside the
//! tables, those of signs are told by a formula, so each number can be computed again elsewhere.

mod bootstrap;
pub mod front;
pub mod permutation;
pub mod power;
mod quantiles;
pub mod ranking;

pub use bootstrap::{Bootstrap, RESAMPLES};
pub use quantiles::student;

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Mean over all values.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Number of values.
    pub count: usize,
}

impl Estimate {
    /// The estimate where it is one: mean and interval are numbers.
    pub fn finite(self) -> Option<Self> {
        let numbers = [self.mean, self.low, self.high];
        numbers.iter().all(|v| v.is_finite()).then_some(self)
    }
}

/// Mean of values by cluster (prompt), with its clustered bootstrap interval; `None` without values.
/// With one cluster the interval is the mean itself and says nothing.
///
/// ```
/// use mope_eval::statistics::clustered;
/// let e = clustered(&[vec![1.0, 3.0], vec![2.0]]).unwrap();
/// assert_eq!((e.mean, e.count), (2.0, 3));
/// assert_eq!((e.low, e.high), (2.0, 2.0));
/// ```
pub fn clustered(clusters: &[Vec<f64>]) -> Option<Estimate> {
    Bootstrap::new(clusters.len()).mean(clusters)
}

/// Percentile of sorted values, linear between ranks (numpy's default).
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let at = p * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// 1 for a win of `a` over `b`, 0 for a loss, a half for a tie.
pub fn win(a: f64, b: f64) -> f64 {
    match a.total_cmp(&b) {
        std::cmp::Ordering::Greater => 1.0,
        std::cmp::Ordering::Less => 0.0,
        std::cmp::Ordering::Equal => 0.5,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn interval_of_independent_values_is_near_the_normal_one() {
        // 0 and 1 in turn, 400 clusters: sd of the mean 0.025, so ±0.049.
        let values: Vec<Vec<f64>> = (0..400).map(|i| vec![f64::from(i % 2)]).collect();
        let e = clustered(&values).unwrap();
        assert_eq!(e.mean, 0.5);
        assert!(
            (e.low - 0.451).abs() < 0.005 && (e.high - 0.549).abs() < 0.005,
            "{e:?}"
        );
    }

    #[test]
    fn clustering_widens_the_interval() {
        let apart: Vec<Vec<f64>> = (0..80).map(|i| vec![f64::from(i % 2)]).collect();
        let together: Vec<Vec<f64>> = (0..20).map(|i| vec![f64::from(i % 2); 4]).collect();
        let width = |c: &[Vec<f64>]| clustered(c).map(|e| e.high - e.low).unwrap();
        assert!(width(&together) > 1.6 * width(&apart));
    }

    #[test]
    fn wins_and_ties() {
        assert_eq!(
            (win(2.0, 1.0), win(1.0, 2.0), win(1.0, 1.0)),
            (1.0, 0.0, 0.5)
        );
        assert!(clustered(&[]).is_none());
        assert_eq!(percentile(&[0.0, 1.0, 2.0], 0.25), 0.5);
    }
}
