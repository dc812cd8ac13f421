//! Weights that boost the objective that lags, at every token:
//!
//! ```text
//! R_k  = β log p_k(y_<t) / p_base(y_<t)                         what objective k has got so far
//! w    = arg min_w Σ_k w_k R_k + τ KL(w ‖ w₀)   =>   w_k ∝ w₀_k exp(−R_k / τ)
//! p(y) ∝ p_base(y) Π_k (p_k(y) / p_base(y))^{s w_k}
//! ```
//!
//! MATO (arXiv 2605.25342).
//!
//! 1. The paper's objectives are descriptions in the backbone's prompt; here any expert is one.
//! 2. Rewards are summed over the response, not averaged, and start at 0.
//! 3. The last line is the tilt of the base by Σ w_k R_k(y); `s` stands for the quotient of the paper's
//!    reward and regularisation strengths.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::above_zero;
use crate::mixer::same_experts;
use crate::preference::constant_weights;
use crate::{BASE, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs};

/// Rewards found in the experts' own probabilities, balanced while decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mato {
    /// Scale of the rewards. Default 1 (ours).
    pub beta: f64,
    /// How firmly the weights hold to the preference, in units of reward; large values never move. Default
    /// 10 (ours: rewards are sums over tokens).
    pub tau: f64,
    /// How far to go from the base, 1 being the experts. Default 1 (ours).
    pub strength: f64,
    /// Weights to start from, summing to 1. Default `None`: the importances of the preference.
    #[serde(deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
}

impl Default for Mato {
    fn default() -> Self {
        Self {
            beta: 1.0,
            tau: 10.0,
            strength: 1.0,
            weights: None,
        }
    }
}

impl Method for Mato {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        for (name, value) in [
            ("beta", self.beta),
            ("tau", self.tau),
            ("strength", self.strength),
        ] {
            above_zero(name, value)?;
        }
        let mut start = BTreeMap::from([(BASE.to_string(), 0.0)]);
        start.extend(constant_weights(
            self.weights.as_ref(),
            preference,
            experts,
        )?);
        let (experts, start): (Vec<_>, Vec<_>) = start.into_iter().unzip();
        let base = experts.iter().position(|n| n == BASE).unwrap_or(0);
        let mixer = Balance {
            base,
            start,
            inverse: self.beta / self.tau,
            strength: self.strength,
        };
        Ok(Plan::new(experts, Requirements::FULL, mixer))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        self.strength == 1.0
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::Mato(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let fixture = Self {
            beta: 2.0,
            tau: 5.0,
            strength: 0.7,
            weights: None,
        };
        vec![
            Instance::new(fixture).reference("mato").multiplies(),
            Instance::new(Self::default()).multiplies(),
        ]
    }
}

#[derive(Clone)]
struct Balance {
    base: usize,
    /// `[experts]`, on the simplex.
    start: Vec<f64>,
    /// β / τ.
    inverse: f64,
    strength: f64,
}

impl Mixer for Balance {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, self.start.len())?;
        mixed.each(step, |sequence, out, weights| {
            let sums = &step.history[sequence].log_probs;
            let logs: Vec<f64> = self
                .start
                .iter()
                .zip(sums)
                .map(|(w, sum)| w.ln() - self.inverse * (sum - sums[self.base]))
                .collect();
            let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logs.iter().map(|l| (l - most).exp()).sum();
            for (weight, log) in weights.iter_mut().zip(&logs) {
                *weight = ((log - most).exp() / total) as f32;
            }
            let tilt = self.strength as f32;
            let mut powers: Vec<f32> = weights.iter().map(|w| tilt * w).collect();
            powers[self.base] += 1.0 - tilt;
            let rows: Vec<&[f32]> = (0..powers.len())
                .map(|e| step.next.row(e, sequence))
                .collect();
            mix_logs(&rows, &powers, out);
        });
        Ok(())
    }
}
