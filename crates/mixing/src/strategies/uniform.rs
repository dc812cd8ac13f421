//! Uniform mixing: `p = (1/n) Σ_i p_i` over the experts that the preference states (arXiv
//! 2407.04181's baseline).

use serde::{Deserialize, Serialize};

use super::fixed::{Constant, Space};
use crate::{Plan, Preference, Result};

/// The preference's experts with equal weights, whatever their importance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uniform {
    /// Where the average is taken. Default: probabilities (paper).
    pub space: Space,
}

impl Uniform {
    pub(super) fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let experts = preference.directions(experts)?;
        let weights = vec![1.0 / experts.len() as f32; experts.len()];
        let mixer = Box::new(Constant {
            weights,
            space: self.space,
        });
        Ok(Plan {
            experts,
            instruction: None,
            mixer,
        })
    }
}
