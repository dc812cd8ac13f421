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

use super::dera::signed;
use super::single::known;
use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::finite;
use crate::preference::constant_weights;
use crate::{BASE, Error, Plan, Preference, Result};

/// The base, pushed by the difference of pairs of experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DExperts {
    /// The anti-expert of each expert.
    #[serde(deserialize_with = "crate::named::unique")]
    pub anti: BTreeMap<String, String>,
    /// How strongly to push. Default 1 (paper, proxy tuning).
    #[serde(default = "default_strength")]
    pub strength: f64,
    /// What is pushed. Default `base`.
    #[serde(default = "default_base")]
    pub base: String,
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(default, deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
}

fn default_strength() -> f64 {
    1.0
}

fn default_base() -> String {
    BASE.into()
}

impl Method for DExperts {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        finite("strength", self.strength)?;
        for (expert, anti) in &self.anti {
            known(expert, experts)?;
            known(anti, experts)?;
        }
        known(&self.base, experts)?;
        let mut weights = BTreeMap::from([(self.base.clone(), 1.0)]);
        for (name, w) in constant_weights(self.weights.as_ref(), preference, experts)? {
            let Some(anti) = self.anti.get(&name) else {
                return Err(Error::MissingFor {
                    lacking: "no anti-expert is named for",
                    direction: name,
                    remedy: "it to anti",
                });
            };
            *weights.entry(anti.clone()).or_default() -= self.strength * w;
            *weights.entry(name).or_default() += self.strength * w;
        }
        Ok(signed(weights))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::DExperts(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        Some(Strategy::DExperts(Self {
            strength,
            ..self.clone()
        }))
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        // The first direction against the other expert, the rest against the base.
        let opponents = std::iter::once(context.other).chain(std::iter::repeat(BASE));
        let pairs = context.directions.iter().zip(opponents);
        let anti = pairs.map(|(expert, anti)| (expert.to_string(), anti.to_string()));
        let dexperts = Self {
            anti: anti.collect(),
            strength: 1.5,
            base: BASE.into(),
            weights: None,
        };
        vec![Instance::new(dexperts).reference("dexperts").multiplies()]
    }
}
