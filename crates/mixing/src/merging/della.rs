//! DELLA (arXiv 2406.11617): drop differences at random, the small ones of each row more often, rescale each
//! by its own chance, elect signs and average what agrees:
//!
//! ```text
//! q_i = density + ε (1/2 − r_i / (n − 1))     r_i = 0 for the largest of the row, n − 1 for the smallest
//! δ̂_i = m_i δ_i / q_i,   m_i ~ Bernoulli(q_i)
//! ```
//!
//! 1. The paper's chances step by ε / n and so miss the far end by one step; here both ends are reached.
//! 2. A vector is one row.

use serde::{Deserialize, Serialize};

use super::ties::elect;
use super::{Instance, Rule, Tensors, UNEQUAL, by_magnitude, density};
use crate::error::{finite, share};
use crate::{Error, Result};

/// Drop differences at random by size, elect signs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Della {
    /// Mean share of the differences that is kept. Default 0.5 (ours).
    pub density: f64,
    /// ε: how far the chances of the largest and of the smallest lie apart. Default 0.2 (ours).
    pub window: f64,
    /// Divide what is left by its chance. Default: yes (paper).
    pub rescale: bool,
    /// λ. Default 1 (ours).
    pub scale: f64,
}

impl Default for Della {
    fn default() -> Self {
        Self {
            density: 0.5,
            window: 0.2,
            rescale: true,
            scale: 1.0,
        }
    }
}

impl Rule for Della {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        let width = t.shape.last().copied().unwrap_or(1).max(1);
        elect(t, self.scale, |expert, delta| {
            let uniforms = (t.chance)(expert);
            for (row, uniforms) in delta.chunks_mut(width).zip(uniforms.chunks(width)) {
                for (rank, i) in by_magnitude(row).into_iter().enumerate() {
                    let depth = rank as f64 / (width - 1).max(1) as f64;
                    let chance = self.density + self.window * (0.5 - depth);
                    let factor = if self.rescale { 1.0 / chance } else { 1.0 };
                    let kept = uniforms[i] < chance;
                    row[i] = if kept {
                        (f64::from(row[i]) * factor) as f32
                    } else {
                        0.0
                    };
                }
            }
        })
    }

    fn check(&self, _: usize) -> Result<()> {
        density(self.density)?;
        share("window", self.window)?;
        let (low, high) = (
            self.density - self.window / 2.0,
            self.density + self.window / 2.0,
        );
        if low <= 0.0 || high > 1.0 {
            return Err(Error::Merge(format!(
                "with density {} and window {} chances run from {low} to {high}, not within 0 and 1",
                self.density, self.window
            )));
        }
        finite("scale", self.scale)
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        // mergekit's epsilon is half of the paper's.
        let fixture = Self {
            density: 0.5,
            window: 0.2,
            rescale: false,
            scale: 1.0,
        };
        let instances = [
            Instance::new(fixture).reference("della", UNEQUAL),
            Instance::new(Self::default()),
        ];
        instances.map(Instance::random).into()
    }
}
