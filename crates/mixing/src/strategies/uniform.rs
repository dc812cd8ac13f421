//! Uniform mixing: `p = (1/n) Σ_i p_i` over the experts that the preference states (arXiv
//! 2407.04181's baseline).

use serde::{Deserialize, Serialize};

use super::fixed::{Constant, Space};
use super::{Instance, InstanceContext, Method, Parts};
use crate::{Plan, Preference, Result};

/// The preference's experts with equal weights, whatever their importance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uniform {
    /// Where the average is taken. Default: probabilities (paper).
    pub space: Space,
}

impl Method for Uniform {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let experts = preference.directions(experts)?;
        let weights = vec![1.0 / experts.len() as f32; experts.len()];
        let space = self.space;
        Ok(Plan::new(
            experts,
            space.requirements(),
            Constant { weights, space },
        ))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        // Equal weights over a single stated direction are that expert.
        true
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        vec![
            Instance::new(Self::default()),
            Instance::new(Self { space: Space::Log }).multiplies(),
        ]
    }
}
