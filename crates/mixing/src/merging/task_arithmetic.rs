//! `θ = θ_base + λ Σ_i w_i (θ_i − θ_base)`
//!
//! Task arithmetic (arXiv 2212.04089).
//!
//! 1. The paper adds task vectors with one λ; here each also has the expert's weight, the weights summing
//!    to 1, so that λ = 1 is the soup.

use lm::Adapter;
use serde::{Deserialize, Serialize};

use super::soup::beside;
use super::{Instance, Rule, Tensors, UNEQUAL};
use crate::Result;
use crate::error::finite;

/// The base plus scaled differences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskArithmetic {
    /// How far to go, 1 being the soup. Default 1 (ours; the paper tunes it on held-out data).
    pub scale: f64,
}

impl Default for TaskArithmetic {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

impl Rule for TaskArithmetic {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        match t.weights.iter().position(|w| *w == 1.0) {
            Some(only) if self.scale == 1.0 => t.values(only).into_owned(),
            _ => t.base_plus(self.scale, |_, _| ()),
        }
    }

    fn check(&self, _: usize) -> Result<()> {
        finite("scale", self.scale)
    }

    fn reproduces_single_expert(&self) -> bool {
        self.scale == 1.0
    }

    fn instances() -> Vec<Instance<Self>> {
        vec![
            Instance::new(Self { scale: 0.7 }).reference("task_arithmetic", UNEQUAL),
            Instance::new(Self::default()),
        ]
    }

    fn adapters(&self, adapters: &[(&Adapter, f64)]) -> Option<Result<Adapter>> {
        let scaled: Vec<_> = adapters.iter().map(|(a, w)| (*a, self.scale * w)).collect();
        Some(Ok(beside(&scaled)))
    }
}
