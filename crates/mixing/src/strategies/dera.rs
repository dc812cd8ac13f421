//! Decoding-time realignment, and extrapolation beyond the experts:
//!
//! `p(y) ∝ p_base(y) Π_i (p_i(y) / p_base(y))^{λ w_i}`
//!
//! λ = 0 is the base, λ = 1 the log-linear mixture, λ > 1 exaggerates what the experts learned. DeRa
//! (arXiv 2402.02992).
//!
//! 1. The paper has one aligned model; with several, their log ratios are averaged by the weights.
//! 2. A token that the base rules out stays out, whatever λ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fixed::{Constant, Space};
use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::not_negative;
use crate::preference::constant_weights;
use crate::{BASE, Plan, Preference, Requirements, Result};

/// Between the base and the experts, and beyond them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeRa {
    /// How far to go from the base, 1 being the experts. Default 1.5 (ours; the paper sweeps it).
    pub lambda: f64,
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
}

impl Default for DeRa {
    fn default() -> Self {
        Self {
            lambda: 1.5,
            weights: None,
        }
    }
}

impl Method for DeRa {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        not_negative("lambda", self.lambda)?;
        let mut weights = BTreeMap::from([(BASE.to_string(), 1.0 - self.lambda)]);
        for (name, w) in constant_weights(self.weights.as_ref(), preference, experts)? {
            *weights.entry(name).or_default() += self.lambda * w;
        }
        Ok(signed(weights))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        self.lambda == 1.0
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::DeRa(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn at_strength(&self, lambda: f64) -> Option<Strategy> {
        Some(Strategy::DeRa(Self {
            lambda,
            ..self.clone()
        }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let to = |lambda| {
            Instance::new(Self {
                lambda,
                weights: None,
            })
            .multiplies()
        };
        vec![to(2.5).reference("dera"), to(1.0)]
    }
}

/// A log-linear mixture with weights of any sign.
pub(super) fn signed(weights: BTreeMap<String, f64>) -> Plan {
    let (experts, weights): (Vec<_>, Vec<_>) =
        weights.into_iter().map(|(n, w)| (n, w as f32)).unzip();
    let space = Space::Log;
    Plan::new(experts, Requirements::FULL, Constant { weights, space })
}
