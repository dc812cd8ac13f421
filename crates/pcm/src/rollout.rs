//! Recorded responses: all that a training needs to know of them.

use crate::output::{Moments, Output, Support, mixture};
use crate::{Context, Error, Result};

/// One sampled response and all that training needs to know of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rollout {
    /// Prompt by its id.
    pub prompt: String,
    /// What the PCM read.
    pub context: Context,
    /// The sampled tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under each expert in nats, at the temperature of sampling, `[tokens, experts]`;
    /// 0 for experts that the preference does not name.
    pub log_probs: Vec<f32>,
    /// Log-probability of each token under the base, in nats, at the same temperature; empty where the base takes
    /// no part.
    pub base: Vec<f32>,
    /// [`Support`] of each token, `[tokens, k + 1, named experts + 1]`; empty where probabilities are mixed.
    pub support: Vec<f32>,
    /// Log-probability of each token under the policy that sampled it, in nats.
    pub behaviour: Vec<f32>,
    /// Normalised reward by dimension, in the order of the training's dimensions.
    pub rewards: Vec<f64>,
    /// Normalised rewards of the reference response; empty where they were not recorded.
    pub references: Vec<f64>,
    /// Mean divergence of the tokens' distributions from the base, in nats; 0 where it was not measured.
    pub divergence: f64,
    /// Utility of the response.
    pub utility: f64,
    /// Utilities of its beginnings; empty where only the whole was scored.
    pub prefixes: Prefixes,
    /// Divides each expert's logits.
    pub temperature: f32,
    /// Seed of the training that sampled it.
    pub seed: u64,
}

/// Beginnings of a response, the whole of it the last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prefixes {
    /// Tokens of each, rising.
    pub cuts: Vec<u32>,
    /// Utility of each, against the reference's beginning of the same length; the last is the response's.
    pub utilities: Vec<f64>,
    /// Normalised rewards, `[cuts, dimensions]`.
    pub rewards: Vec<f64>,
    /// Normalised rewards of the reference's beginnings, `[cuts, dimensions]`.
    pub references: Vec<f64>,
    /// Mean divergence of the tokens so far from the base, in nats.
    pub divergences: Vec<f64>,
}

impl Rollout {
    /// Log-probability of the whole response under the policy that sampled it, in nats.
    pub fn behaviour(&self) -> f64 {
        self.behaviour.iter().map(|v| f64::from(*v)).sum()
    }

    /// Log-probability of each token for logits of the weights, `[tokens, experts]`.
    pub fn mixed(&self, logits: &[f32], output: Output) -> Vec<f32> {
        let n = self.context.shares.len().max(1);
        let rows = logits.chunks(n).enumerate();
        rows.map(|(token, z)| self.chance(token, z, output).log_prob as f32)
            .collect()
    }

    /// Derivatives of a token's log-probability by the logits of the weights, `[experts]`; where probabilities are
    /// mixed, `∂ ln p(y) / ∂z_i = α_i (p_i(y)/p(y) − 1)`.
    pub fn slope(&self, token: usize, logits: &[f32], output: Output) -> Vec<f64> {
        self.chance(token, logits, output).slope
    }

    /// What a token's log-probability is for logits of the weights, `[experts]`.
    pub(crate) fn chance(&self, token: usize, logits: &[f32], output: Output) -> Chance {
        let shares = self.context.shares.as_slice();
        let n = shares.len();
        let log_probs = &self.log_probs[token * n..(token + 1) * n];
        let weights = output.weights(logits, shares);
        let mut by_weight = vec![0.0; n];
        let (mut kl, mut kl_by_weight) = (0.0, vec![0.0; n]);
        let log_prob = match output {
            Output::Probabilities => {
                let log_prob = mixture(logits, log_probs);
                for (by, l) in by_weight.iter_mut().zip(log_probs) {
                    *by = (f64::from(*l) - log_prob).exp();
                }
                log_prob
            }
            Output::Logs | Output::Gates { .. } => {
                let named: Vec<usize> = (0..n).filter(|&i| shares[i] > 0.0).collect();
                let used: Vec<f64> = named.iter().map(|&i| weights[i]).collect();
                let width = self.support.len() / self.tokens.len();
                let support = Support {
                    rows: &self.support[token * width..(token + 1) * width],
                    experts: named.len(),
                };
                let Moments {
                    total,
                    means,
                    divergence,
                    slopes,
                } = support.moments(&used);
                if output.reads_base() {
                    kl = divergence;
                    named
                        .iter()
                        .zip(slopes)
                        .for_each(|(&i, s)| kl_by_weight[i] = s);
                }
                let base = self.base.get(token).map_or(0.0, |b| f64::from(*b));
                let mut log_prob = base - total;
                for (&i, mean) in named.iter().zip(means) {
                    let term = f64::from(log_probs[i]) - base;
                    log_prob += weights[i] * term;
                    by_weight[i] = term - mean;
                }
                log_prob
            }
        };
        Chance {
            log_prob,
            slope: output.back(&weights, shares, &by_weight),
            kl,
            kl_slope: output.back(&weights, shares, &kl_by_weight),
            weights,
        }
    }

    /// The numbers belong to each other.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self, experts: usize, output: Output) -> Result<()> {
        let (tokens, n) = (self.tokens.len(), self.context.shares.len());
        if n != experts || self.log_probs.len() != tokens * n || self.behaviour.len() != tokens {
            return Err(Error::RolloutLengths {
                tokens,
                log_probs: self.log_probs.len(),
                behaviour: self.behaviour.len(),
                experts,
            });
        }
        let named = self.context.shares.iter().filter(|s| **s > 0.0).count();
        // A record for gates holds what the other outputs need, and more.
        let base = output.reads_base() || !self.base.is_empty();
        let base = if base { tokens } else { 0 };
        let has_support = match output.is_product() {
            true => {
                !self.support.is_empty() && self.support.len().is_multiple_of(tokens * (named + 1))
            }
            false => true,
        };
        if self.base.len() != base || !has_support {
            return Err(Error::RolloutOutput {
                tokens,
                base: self.base.len(),
                support: self.support.len(),
                output,
            });
        }
        let Prefixes {
            cuts, utilities, ..
        } = &self.prefixes;
        let rising = cuts.windows(2).all(|w| w[0] < w[1]) && cuts.first().is_none_or(|c| *c > 0);
        let ends = cuts.last().is_none_or(|c| *c as usize == tokens);
        if utilities.len() != cuts.len()
            || !rising
            || !ends
            || utilities.iter().any(|w| !w.is_finite())
        {
            return Err(Error::RolloutBeginnings {
                tokens,
                cuts: cuts.clone(),
                utilities: utilities.clone(),
            });
        }
        if tokens == 0 || !self.utility.is_finite() {
            return Err(Error::EmptyRollout);
        }
        Ok(())
    }
}

/// A token under some weights.
pub(crate) struct Chance {
    /// In nats.
    pub log_prob: f64,
    /// Its derivatives by the logits of the weights, `[experts]`.
    pub slope: Vec<f64>,
    /// Divergence of the distribution from the base in nats, where the base takes part; else 0.
    pub kl: f64,
    /// Its derivatives by the logits of the weights, `[experts]`.
    pub kl_slope: Vec<f64>,
    /// The weights, `[experts]`.
    pub weights: Vec<f64>,
}
