//! TIES (arXiv 2306.01708): of each expert's differences δ_i keep the largest share, elect a sign for every
//! parameter, and average what agrees with it:
//!
//! ```text
//! δ̂_i = δ_i where |δ_i| is in the top `density`, else 0
//! γ   = sgn Σ_i w_i δ̂_i
//! θ   = θ_base + λ Σ_{i: sgn δ̂_i = γ} w_i δ̂_i / Σ_{i: sgn δ̂_i = γ} w_i
//! ```
//!
//! 1. The paper has no weights; with equal ones this is its formula.
//! 2. The largest are found in each tensor, not in the whole model.

use serde::{Deserialize, Serialize};

use super::{Instance, Rule, Tensors, UNEQUAL, by_magnitude, density};
use crate::Result;
use crate::error::finite;

/// Trim, elect signs, merge what agrees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ties {
    /// Share of the differences that is kept. Default 0.2 (paper).
    pub density: f64,
    /// λ. Default 1 (paper).
    pub scale: f64,
}

impl Default for Ties {
    fn default() -> Self {
        Self {
            density: 0.2,
            scale: 1.0,
        }
    }
}

impl Rule for Ties {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        elect(t, self.scale, |_, delta| {
            let kept = kept(self.density, delta.len());
            for &i in &by_magnitude(delta)[kept..] {
                delta[i] = 0.0;
            }
        })
    }

    fn check(&self, _: usize) -> Result<()> {
        density(self.density)?;
        finite("scale", self.scale)
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        let fixture = Self {
            density: 0.3,
            scale: 1.0,
        };
        vec![
            Instance::new(fixture).reference("ties", UNEQUAL),
            Instance::new(Self::default()),
        ]
    }
}

/// Values of `n` that a share leaves, at least one.
pub(super) fn kept(share: f64, n: usize) -> usize {
    // A share such as 0.3 is a little less than its name; ten of it must still be three.
    ((share * n as f64 + 1e-9) as usize).clamp(1, n)
}

/// Elects signs among changed deltas and averages what agrees.
pub(super) fn elect(
    t: &Tensors<'_>,
    scale: f64,
    mut change: impl FnMut(usize, &mut Vec<f32>),
) -> Vec<f32> {
    let used = t.weights.iter().enumerate().filter(|(_, w)| **w != 0.0);
    let deltas: Vec<(f64, Vec<f32>)> = used
        .map(|(i, weight)| {
            let mut delta = t.delta(i);
            change(i, &mut delta);
            (*weight, delta)
        })
        .collect();
    let value = |(i, base): (usize, &f32)| {
        let differences = || deltas.iter().map(|(w, d)| (*w, f64::from(d[i])));
        let sum: f64 = differences().map(|(w, d)| w * d).sum();
        let agree = || differences().filter(|(_, d)| d * sum > 0.0);
        let weight: f64 = agree().map(|(w, _)| w).sum();
        if weight == 0.0 {
            return *base;
        }
        let mean = agree().map(|(w, d)| w * d).sum::<f64>() / weight;
        (f64::from(*base) + scale * mean) as f32
    };
    t.base.iter().enumerate().map(value).collect()
}
