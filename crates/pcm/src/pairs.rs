//! Pairs of responses as a fit sees them.

use std::ops::Range;

use lm::objectives::Pair;

use crate::model::Embed;
use crate::{Context, Pcm, Result, Rollout};

/// Two responses to the same prompt.
#[derive(Clone)]
pub(crate) struct PreparedPair<'a> {
    pub rollouts: &'a [Rollout],
    /// Tokens that are credited together.
    pub segments: [Vec<Range<usize>>; 2],
    /// What each segment is credited with, in units of utility.
    pub advantages: [Vec<f64>; 2],
    /// Log-probability of each segment under the reference policy, in nats.
    pub old: [Vec<f64>; 2],
}

impl PreparedPair<'_> {
    /// Takes the tokens' log-probabilities under the reference policy, whose update this is.
    pub fn set_reference_log_probs(&mut self, log_probs: [Vec<f32>; 2]) {
        for ((old, log_probs), segments) in self.old.iter_mut().zip(log_probs).zip(&self.segments) {
            *old = sums(&log_probs, segments);
        }
    }

    /// First utility less the second.
    pub fn difference(&self) -> f64 {
        self.rollouts[0].utility - self.rollouts[1].utility
    }

    /// As REBEL's objective wants it, utility in units of `scale`.
    pub fn scaled(&self, scale: f64) -> Pair {
        Pair {
            old: [0, 1].map(|i: usize| self.old[i].iter().sum()),
            rewards: [0, 1].map(|i: usize| self.rollouts[i].utility / scale),
        }
    }
}

/// A response under a PCM as the policy.
#[derive(Default)]
pub(crate) struct PolicyEvaluation {
    /// Log-probability of every token, in nats.
    pub log_probs: Vec<f32>,
    /// Divergence from the base in nats per token, where the PCM has gates.
    pub kl: f64,
}

/// Each pair under a PCM as the policy.
pub(crate) fn evaluate(
    pcm: &Pcm,
    pairs: &[PreparedPair<'_>],
    embed: &Embed<'_>,
) -> Result<Vec<[PolicyEvaluation; 2]>> {
    let rollouts = || pairs.iter().flat_map(|p| p.rollouts);
    let items: Vec<(&Context, &[u32])> = rollouts()
        .map(|r| (&r.context, r.tokens.as_slice()))
        .collect();
    let logits = pcm.logits(&items, embed)?;
    let (output, n) = (pcm.config().output, pcm.config().experts.len());
    let mut evaluations = rollouts().zip(&logits).map(|(rollout, logits)| {
        let mut evaluation = PolicyEvaluation::default();
        for (token, z) in logits.chunks(n).enumerate() {
            let chance = rollout.chance(token, z, output);
            evaluation.log_probs.push(chance.log_prob as f32);
            evaluation.kl += chance.kl / rollout.tokens.len() as f64;
        }
        evaluation
    });
    let two = |_| [(); 2].map(|()| evaluations.next().unwrap_or_default());
    Ok((0..pairs.len()).map(two).collect())
}

/// Log-probability of each segment, in nats.
pub(crate) fn sums(log_probs: &[f32], segments: &[Range<usize>]) -> Vec<f64> {
    let of = |s: &Range<usize>| log_probs[s.clone()].iter().map(|l| f64::from(*l)).sum();
    segments.iter().map(of).collect()
}

/// Standard deviation of utility within pairs: differences divided by √2; 1 where there are none.
pub(crate) fn spread(pairs: &[PreparedPair<'_>]) -> f64 {
    let squares = pairs.iter().map(|p| p.difference().powi(2) / 2.0);
    let sd = (squares.sum::<f64>() / pairs.len() as f64).sqrt();
    if sd > 1e-9 { sd } else { 1.0 }
}

/// Root mean square of how far REBEL's targets lie outside of what any weights reach.
pub(crate) fn floor(pairs: &[PreparedPair<'_>], eta: f64, n: usize) -> f64 {
    let bounds = |rollout: &Rollout| {
        let old = rollout.behaviour();
        let rows = rollout.log_probs.chunks(n);
        let (mut low, mut high) = (0.0, 0.0);
        for row in rows {
            let named = row
                .iter()
                .zip(&rollout.context.shares)
                .filter(|(_, s)| **s > 0.0);
            let named: Vec<f64> = named.map(|(l, _)| f64::from(*l)).collect();
            low += named.iter().copied().fold(f64::INFINITY, f64::min);
            high += named.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        }
        (low - old, high - old)
    };
    let squares = pairs.iter().map(|pair| {
        let target = eta * pair.difference();
        let [first, second] = [0, 1].map(|i: usize| bounds(&pair.rollouts[i]));
        let ((low, high), (other_low, other_high)) = (first, second);
        let reachable = target.clamp(low - other_high, high - other_low);
        (target - reachable).powi(2)
    });
    (squares.sum::<f64>() / pairs.len() as f64).sqrt()
}
