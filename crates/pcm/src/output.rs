//! What the PCM's outputs do: how logits become weights, and what log-probability a token has under them.

use lm::parameter::above_zero;
use serde::{Deserialize, Serialize};

use lm::Result;

/// How the experts are mixed with the PCM's outputs `z`, for importances `s`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// `p = Σ_i α_i p_i` with `α = softmax(z)` (arXiv 2407.04181).
    #[default]
    Probabilities,
    /// `p ∝ Π_i p_i^{α_i}` with `α = softmax(z)`: logits mixed instead (that paper's ablation).
    Logs,
    /// `p ∝ p_0 Π_i (p_i / p_0)^{g_i}` with `g_i = limit · σ(z_i) · s_i / max s`: how far to go from the base
    /// `p_0` towards each expert, and past it (ours; with equal constant gates it is DeRa, arXiv 2402.02992).
    Gates {
        /// No gate is larger; a fresh PCM's are half of it.
        limit: f64,
    },
}

impl Output {
    /// Tokens are normalised over the vocabulary: training needs [`Support`].
    pub fn is_product(self) -> bool {
        self != Self::Probabilities
    }

    /// The base takes part.
    pub fn reads_base(self) -> bool {
        matches!(self, Self::Gates { .. })
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for a limit that is not above 0.
    pub fn validate(self) -> Result<()> {
        match self {
            Self::Gates { limit } => above_zero("limit", limit),
            Self::Probabilities | Self::Logs => Ok(()),
        }
    }

    /// Weights of the experts for logits and importances, `[experts]` each; 0 for experts at −∞.
    ///
    /// ```
    /// use mope_pcm::Output;
    /// let z = [0.0, 0.0, f32::NEG_INFINITY];
    /// assert_eq!(Output::Logs.weights(&z, &[0.8, 0.2, 0.0]), [0.5, 0.5, 0.0]);
    /// let gates = Output::Gates { limit: 2.0 };
    /// assert_eq!(gates.weights(&z, &[0.8, 0.2, 0.0]), [1.0, 0.25, 0.0]);
    /// ```
    pub fn weights(self, logits: &[f32], shares: &[f32]) -> Vec<f64> {
        match self {
            Self::Probabilities | Self::Logs => {
                let total = log_sum_exp(logits.iter().map(|z| f64::from(*z)));
                let weights = logits.iter().map(|z| (f64::from(*z) - total).exp());
                weights.collect()
            }
            Self::Gates { limit } => {
                let most = largest(shares);
                let pairs = logits.iter().zip(shares);
                let gate = |(z, s): (&f32, &f32)| {
                    limit * f64::from(*s) / most / (1.0 + (-f64::from(*z)).exp())
                };
                pairs.map(gate).collect()
            }
        }
    }

    /// From derivatives by the weights to derivatives by the logits: for a softmax `α_i (d_i − Σ_j α_j d_j)`, for a
    /// gate `d g (1 − g / g_max)`.
    pub(crate) fn back(self, weights: &[f64], shares: &[f32], by_weight: &[f64]) -> Vec<f64> {
        let pairs = || weights.iter().zip(by_weight);
        match self {
            Self::Probabilities | Self::Logs => {
                let used = pairs().filter(|(w, _)| **w > 0.0);
                let mean: f64 = used.map(|(w, d)| w * d).sum();
                let slope = |(w, d): (&f64, &f64)| if *w > 0.0 { w * (d - mean) } else { 0.0 };
                pairs().map(slope).collect()
            }
            Self::Gates { limit } => {
                let most = largest(shares);
                let slope = |((w, d), s): ((&f64, &f64), &f32)| match *s {
                    0.0 => 0.0,
                    s => d * w * (1.0 - w * most / limit / f64::from(s)),
                };
                pairs().zip(shares).map(slope).collect()
            }
        }
    }
}

fn largest(shares: &[f32]) -> f64 {
    f64::from(shares.iter().copied().fold(0.0, f32::max))
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// `ln Σ α_i p_i(y)` in nats for logits of the weights and the experts' log-probabilities of a token. An
/// expert at −∞ has no part.
///
/// ```
/// let third = mope_pcm::mixture(&[0.0, 0.0, f32::NEG_INFINITY], &[-1.0, -1.0, 0.0]);
/// assert!((third + 1.0).abs() < 1e-12);
/// ```
pub fn mixture(logits: &[f32], log_probs: &[f32]) -> f64 {
    let joint = || {
        logits
            .iter()
            .zip(log_probs)
            .map(|(z, l)| f64::from(*z) + f64::from(*l))
    };
    log_sum_exp(joint()) - log_sum_exp(logits.iter().map(|z| f64::from(*z)))
}

/// What is left of the vocabulary where experts are multiplied: the `k` likeliest tokens of the distribution
/// that was sampled, and all others as one. Of each, `ln p ∝ offset + Σ_i w_i terms_i`.
///
/// The others' mass follows their mean log-probabilities from where it was: value and slope are exact at the
/// weights that were sampled with, and elsewhere the mass is too small rather than too large, as the logarithm
/// of a sum of exponentials is convex.
#[derive(Debug, Clone, Copy)]
pub struct Support<'a> {
    /// `[k + 1, experts + 1]`: terms of the named experts, in their order, and the offset.
    pub rows: &'a [f32],
    /// Named experts.
    pub experts: usize,
}

impl Support<'_> {
    /// Records a step, to `out`: `mixed` are the log-probabilities that were sampled from, `rows` those of the
    /// named experts, `base` those of the base where it takes part, all `[vocab]`; `weights` those of the
    /// experts.
    pub fn record(
        k: usize,
        mixed: &[f32],
        rows: &[&[f32]],
        base: Option<&[f32]>,
        weights: &[f64],
        out: &mut Vec<f32>,
    ) {
        let k = k.clamp(1, mixed.len());
        let mut order: Vec<u32> = (0..mixed.len() as u32).collect();
        let falling = |a: &u32, b: &u32| mixed[*b as usize].total_cmp(&mixed[*a as usize]);
        order.select_nth_unstable_by(k - 1, falling);
        let (likeliest, others) = order.split_at(k);
        let offset = |v: usize| base.map_or(0.0, |b| f64::from(b[v]));
        let term = |row: &[f32], v: usize| f64::from(row[v]) - offset(v);
        let mut log_total = 0.0;
        for &v in likeliest {
            let v = v as usize;
            let mut sum = offset(v);
            for (row, weight) in rows.iter().zip(weights) {
                sum += weight * term(row, v);
                out.push(term(row, v) as f32);
            }
            out.push(offset(v) as f32);
            log_total = sum - f64::from(mixed[v]);
        }
        let (mut mass, mut means) = (0.0, vec![0.0; rows.len()]);
        for &v in others {
            let v = v as usize;
            let p = f64::from(mixed[v]).exp();
            if p > 0.0 {
                mass += p;
                for (mean, row) in means.iter_mut().zip(rows) {
                    *mean += p * term(row, v);
                }
            }
        }
        if mass > 0.0 {
            means.iter_mut().for_each(|m| *m /= mass);
        }
        let moved: f64 = means.iter().zip(weights).map(|(m, w)| m * w).sum();
        out.extend(means.iter().map(|m| *m as f32));
        out.push((mass.ln() + log_total - moved) as f32);
    }

    /// Normaliser, means and divergence for some weights of the named experts.
    ///
    /// With `A(w) = ln Σ exp(offset + w · terms)` the means are `∇A`, the divergence from the base is
    /// `w · ∇A − A`, and its derivatives are `∇²A w`, the covariances with `w · terms`: that of an exponential
    /// family whose base measure is the base's distribution. At the weights that were sampled with all but the
    /// last are exact; the spread of the terms among the others is left out.
    pub fn moments(&self, weights: &[f64]) -> Moments {
        let moved = |row: &[f32]| -> f64 {
            let terms = weights.iter().zip(row);
            terms.map(|(w, t)| w * f64::from(*t)).sum()
        };
        let rows = || self.rows.chunks(self.experts + 1);
        let sums: Vec<f64> = rows().map(moved).collect();
        let offsets = rows().map(|row| f64::from(row[self.experts]));
        let values: Vec<f64> = offsets.zip(&sums).map(|(o, s)| o + s).collect();
        let total = log_sum_exp(values.iter().copied());
        let (mut means, mut products) = (vec![0.0; self.experts], vec![0.0; self.experts]);
        let mut mean_sum = 0.0;
        for ((row, value), sum) in rows().zip(&values).zip(&sums) {
            let p = (value - total).exp();
            if p > 0.0 {
                mean_sum += p * sum;
                let terms = means.iter_mut().zip(&mut products).zip(row);
                for ((mean, product), term) in terms {
                    *mean += p * f64::from(*term);
                    *product += p * f64::from(*term) * sum;
                }
            }
        }
        let slopes = products.iter().zip(&means);
        Moments {
            slopes: slopes.map(|(p, m)| p - m * mean_sum).collect(),
            divergence: mean_sum - total,
            total,
            means,
        }
    }
}

/// What [`Support::moments`] gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// `A = ln Σ exp(offset + Σ w_i terms_i)`.
    pub total: f64,
    /// Its derivatives, the terms' means, `[experts]`.
    pub means: Vec<f64>,
    /// Divergence from the base in nats, where offsets are the base's log-probabilities.
    pub divergence: f64,
    /// Its derivatives by the weights, `[experts]`.
    pub slopes: Vec<f64>,
}
