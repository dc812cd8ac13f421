//! Experts against anti-experts:
//!
//! `p(y) ∝ p_base(y) Π_i (p_i(y) / p_anti(i)(y))^{s w_i}`
//!
//! DExperts (arXiv 2105.03023); with a small tuned model and its untuned twin, proxy tuning (arXiv
//! 2401.08565). The papers add logits; log-probabilities differ from them by a constant that the
//! normalisation removes.
//!
//! 1. The papers have one pair; here each direction of the preference has its own, by its weight.
//! 2. A token that base or any anti-expert rules out is out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Method;
use super::dera::signed;
use crate::preference::constant_weights;
use crate::{BASE, Needs, Plan, Preference, Result, refuse};

/// The base, pushed by the difference of pairs of experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DExperts {
    /// The anti-expert of each expert.
    #[serde(deserialize_with = "crate::named::unique")]
    pub anti: BTreeMap<String, String>,
    /// How strongly to push. Default 1 (paper, proxy tuning).
    #[serde(default = "one")]
    pub strength: f64,
    /// What is pushed. Default `base`.
    #[serde(default = "base")]
    pub base: String,
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(default, deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
}

fn one() -> f64 {
    1.0
}

fn base() -> String {
    BASE.into()
}

impl Method for DExperts {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        if !self.strength.is_finite() {
            return refuse(format!("strength is {}, not a number", self.strength));
        }
        let named = self.anti.iter().flat_map(|(e, a)| [e, a]);
        if let Some(name) = named
            .chain([&self.base])
            .find(|n| !experts.contains(&n.as_str()))
        {
            let known = experts.join(", ");
            return refuse(format!(
                "there is no expert '{name}'; the experts are: {known}"
            ));
        }
        let mut weights = BTreeMap::from([(self.base.clone(), 1.0)]);
        for (name, w) in constant_weights(self.weights.as_ref(), preference, experts)? {
            let Some(anti) = self.anti.get(&name) else {
                return refuse(format!(
                    "no anti-expert is named for '{name}'; add it to anti"
                ));
            };
            *weights.entry(anti.clone()).or_default() -= self.strength * w;
            *weights.entry(name).or_default() += self.strength * w;
        }
        Ok(signed(weights))
    }

    fn needs(&self) -> Needs {
        Needs::FULL
    }

    fn one_hot(&self) -> bool {
        false
    }
}
