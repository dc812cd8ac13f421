//! Model breadcrumbs (arXiv 2312.06795): leave out the smallest differences, which are noise, and the
//! largest, which are outliers:
//!
//! `θ = θ_base + λ Σ_i w_i m_i δ_i`, `m_i = 0` for the `smallest` and the `largest` shares of |δ_i| in a tensor
//!
//! 1. The paper has no weights, and λ for all.

use serde::{Deserialize, Serialize};

use super::{Instance, Rule, Tensors, UNEQUAL, by_magnitude};
use crate::error::{finite, share};
use crate::{Error, Result};

/// Leave out the smallest and the largest differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breadcrumbs {
    /// Share of small differences that is left out. Default 0.85 (ours).
    pub smallest: f64,
    /// Share of large differences that is left out. Default 0.01 (ours).
    pub largest: f64,
    /// λ. Default 1 (ours).
    pub scale: f64,
}

impl Default for Breadcrumbs {
    fn default() -> Self {
        Self {
            smallest: 0.85,
            largest: 0.01,
            scale: 1.0,
        }
    }
}

impl Rule for Breadcrumbs {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        t.base_plus(self.scale, |_, delta| {
            let part = |share: f64| (share * delta.len() as f64 + 1e-9) as usize;
            let largest = part(self.largest);
            let rest = largest + part(1.0 - self.largest - self.smallest);
            let order = by_magnitude(delta);
            let out = order[..largest].iter().chain(&order[rest..]);
            out.for_each(|&i| delta[i] = 0.0);
        })
    }

    fn check(&self, _: usize) -> Result<()> {
        share("smallest", self.smallest)?;
        share("largest", self.largest)?;
        if self.smallest + self.largest >= 1.0 {
            return Err(Error::Merge(format!(
                "smallest {} and largest {} leave nothing",
                self.smallest, self.largest
            )));
        }
        finite("scale", self.scale)
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        // mergekit counts what is kept.
        let fixture = Self {
            smallest: 0.4,
            largest: 0.1,
            scale: 1.0,
        };
        vec![
            Instance::new(fixture).reference("breadcrumbs", UNEQUAL),
            Instance::new(Self::default()),
        ]
    }
}
