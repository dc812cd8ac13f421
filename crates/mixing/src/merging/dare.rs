//! DARE (arXiv 2311.03099): drop each difference with probability 1 − density and rescale the rest,
//!
//! `δ̂_i = m_i δ_i / density`, `m_i ~ Bernoulli(density)`, then `θ = θ_base + λ Σ_i w_i δ̂_i`, or the sign
//! election of TIES over the `δ̂_i`
//!
//! 1. Randomness is keyed by seed, expert and tensor, so a merge can be repeated.

use serde::{Deserialize, Serialize};

use super::ties::elect;
use super::{Instance, Rule, Tensors, UNEQUAL, density};
use crate::Result;
use crate::error::finite;

/// Drop differences at random and rescale the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dare {
    /// Share of the differences that is kept. Default 0.5 (ours; the paper drops up to 90 %).
    pub density: f64,
    /// Divide what is left by the density. Default: yes (paper).
    pub rescale: bool,
    /// Elect signs as TIES does instead of adding up. Default: no (paper).
    pub ties: bool,
    /// λ. Default 1 (ours).
    pub scale: f64,
}

impl Default for Dare {
    fn default() -> Self {
        Self {
            density: 0.5,
            rescale: true,
            ties: false,
            scale: 1.0,
        }
    }
}

impl Rule for Dare {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        let drop = |expert: usize, delta: &mut Vec<f32>| {
            let factor = if self.rescale {
                1.0 / self.density
            } else {
                1.0
            };
            for (d, uniform) in delta.iter_mut().zip((t.chance)(expert)) {
                let kept = uniform < self.density;
                *d = if kept {
                    (f64::from(*d) * factor) as f32
                } else {
                    0.0
                };
            }
        };
        match self.ties {
            true => elect(t, self.scale, drop),
            false => t.base_plus(self.scale, drop),
        }
    }

    fn check(&self, _: usize) -> Result<()> {
        density(self.density)?;
        finite("scale", self.scale)
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        // mergekit's does not rescale here.
        let fixture = |ties| Self {
            density: 0.4,
            rescale: false,
            ties,
            scale: 1.0,
        };
        let instances = [
            Instance::new(fixture(false)).reference("dare", UNEQUAL),
            Instance::new(fixture(true)).reference("dare_ties", UNEQUAL),
            Instance::new(Self::default()),
        ];
        instances.map(Instance::random).into()
    }
}
