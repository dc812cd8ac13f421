//! Losses of log-probabilities, with their derivatives. Pure functions; the decoder's part of the chain
//! rule is [`crate::tuning`]'s.

use crate::tuning::Loss;

fn sum(log_probs: &[f32]) -> f64 {
    log_probs.iter().map(|v| f64::from(*v)).sum()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln σ(x)` without overflow.
fn log_sigmoid(x: f64) -> f64 {
    if x < 0.0 {
        x - x.exp().ln_1p()
    } else {
        -(-x).exp().ln_1p()
    }
}

/// Supervised fine-tuning: minus the mean log-probability of a response's tokens, in nats per token.
///
/// ```
/// let loss = mope_lm::objectives::nll(&[-1.0, -3.0]);
/// assert_eq!((loss.value, loss.gradient[0][0]), (2.0, -0.5));
/// ```
pub fn nll(log_probs: &[f32]) -> Loss {
    let n = log_probs.len() as f64;
    Loss {
        value: -sum(log_probs) / n,
        gradient: vec![vec![(-1.0 / n) as f32; log_probs.len()]],
    }
}

/// What preference losses know of a pair besides the policy's log-probabilities, `[first, second]` each.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Log-probability of each response under the policy that the step starts from (REBEL) or the reference
    /// (DPO), in nats.
    pub old: [f64; 2],
    /// Reward of each response.
    pub rewards: [f64; 2],
}

/// `log π(y)/π_old(y) − log π(y')/π_old(y')`.
fn log_ratio(log_probs: [&[f32]; 2], old: [f64; 2]) -> f64 {
    (sum(log_probs[0]) - old[0]) - (sum(log_probs[1]) - old[1])
}

fn pair_gradient(log_probs: [&[f32]; 2], derivative: f64) -> Vec<Vec<f32>> {
    let d = derivative as f32;
    vec![vec![d; log_probs[0].len()], vec![-d; log_probs[1].len()]]
}

/// REBEL (arXiv 2404.16767, eq. 2 with η on the rewards' side):
/// `([ln π(y)/π_t(y)] − [ln π(y')/π_t(y')] − η (r − r'))²`.
///
/// # Shapes
/// - `log_probs`: one number per token of the first and of the second response
pub fn rebel(log_probs: [&[f32]; 2], pair: &Pair, eta: f64) -> Loss {
    let residual = rebel_residual(log_probs, pair, eta);
    Loss {
        value: residual * residual,
        gradient: pair_gradient(log_probs, 2.0 * residual),
    }
}

/// What [`rebel`] squares: how far the log-ratio is from the rewards' difference, in nats.
pub fn rebel_residual(log_probs: [&[f32]; 2], pair: &Pair, eta: f64) -> f64 {
    log_ratio(log_probs, pair.old) - eta * (pair.rewards[0] - pair.rewards[1])
}

/// Direct preference optimisation (arXiv 2305.18290, eq. 7):
/// `−ln σ(β (ln π(y)/π_ref(y) − ln π(y')/π_ref(y')))`, the first response preferred.
pub fn dpo(log_probs: [&[f32]; 2], reference: [f64; 2], beta: f64) -> Loss {
    let margin = beta * log_ratio(log_probs, reference);
    Loss {
        value: -log_sigmoid(margin),
        gradient: pair_gradient(log_probs, -beta * sigmoid(-margin)),
    }
}

/// Bradley-Terry: `−ln σ(r − r')` of two scores, the first preferred, and its derivative by `r` (that by
/// `r'` is minus it).
pub fn bradley_terry(first: f64, second: f64) -> (f64, f64) {
    (-log_sigmoid(first - second), -sigmoid(second - first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gradients_are_the_slopes(
            first in prop::collection::vec(-4.0f32..-0.1, 1..6),
            second in prop::collection::vec(-4.0f32..-0.1, 1..6),
            old in [-9.0f64..0.0, -9.0f64..0.0],
            rewards in [-2.0f64..2.0, -2.0f64..2.0],
            factor in 0.1f64..3.0,
        ) {
            let pair = Pair { old, rewards };
            type Objective<'a> = Box<dyn Fn(&[f32], &[f32]) -> Loss + 'a>;
            let all: [Objective<'_>; 2] = [
                Box::new(|a, b| rebel([a, b], &pair, factor)),
                Box::new(|a, b| dpo([a, b], pair.old, factor)),
            ];
            for objective in all {
                let loss = objective(&first, &second);
                let mut moved = first.clone();
                moved[0] += 1e-2;
                let up = objective(&moved, &second).value;
                moved[0] = first[0] - 1e-2;
                let down = objective(&moved, &second).value;
                let slope = (up - down) / 2e-2;
                let got = f64::from(loss.gradient[0][0]);
                prop_assert!((slope - got).abs() < 1e-3 * (1.0 + slope.abs()), "{} {}", slope, got);
                prop_assert_eq!(loss.gradient[1][0], -loss.gradient[0][0]);
            }
        }
    }

    #[test]
    fn sigmoids_do_not_overflow() {
        assert_eq!(bradley_terry(1e4, -1e4).0, 0.0);
        assert_eq!(bradley_terry(-1e4, 1e4), (2e4, -1.0));
        assert!((bradley_terry(0.0, 0.0).0 - 2f64.ln()).abs() < 1e-15);
    }
}
