//! Reinforced agent merging, RAM (arXiv 2601.13572), for experts trained by reinforcement learning, whose
//! differences are sparse: what several experts changed is averaged among them, what one changed is kept
//! whole.
//!
//! `θ = θ_base + Σ_{i ∈ S} w_i δ_i / Σ_{i ∈ S} w_i`, `S` the experts with |δ_i| > ε at this parameter
//!
//! 1. The paper averages with equal weights; here by the experts' weights, which so decide between experts
//!    where they meet and nowhere else. An expert of weight 0 takes no part.
//! 2. The rescaling of unique changes (RAM+) is not offered.

use serde::{Deserialize, Serialize};

use super::{EQUAL, Instance, Rule, Tensors};
use crate::Result;
use crate::error::not_negative;

/// Average what is shared, keep what is one expert's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ram {
    /// ε: smaller differences count as none. Default 1e-5 (the authors' script).
    pub threshold: f64,
}

impl Default for Ram {
    fn default() -> Self {
        Self { threshold: 1e-5 }
    }
}

impl Rule for Ram {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        let used = t.weights.iter().enumerate().filter(|(_, w)| **w != 0.0);
        let deltas: Vec<(f64, Vec<f32>)> = used.map(|(i, w)| (*w, t.delta(i))).collect();
        let value = |(i, base): (usize, &f32)| {
            let differences = deltas.iter().map(|(w, d)| (*w, f64::from(d[i])));
            let (mut sum, mut weight) = (0.0, 0.0);
            for (w, d) in differences.filter(|(_, d)| d.abs() > self.threshold) {
                sum += w * d;
                weight += w;
            }
            if weight == 0.0 {
                return *base;
            }
            (f64::from(*base) + sum / weight) as f32
        };
        t.base.iter().enumerate().map(value).collect()
    }

    fn check(&self, _: usize) -> Result<()> {
        not_negative("threshold", self.threshold)
    }

    fn reproduces_single_expert(&self) -> bool {
        // Differences below the threshold are lost.
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        vec![Instance::new(Self::default()).reference("ram", EQUAL)]
    }
}
