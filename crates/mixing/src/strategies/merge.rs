//! Parameter merging: the preference's experts become one expert before decoding. The methods are in
//! [`crate::merging`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Method;
use super::single::Copy;
use crate::merging::{self, Recipe};
use crate::preference::constant_weights;
use crate::{Needs, Plan, Preference, Result, refuse};

/// Name of the expert that merging makes.
const MERGED: &str = "merged";

/// One expert out of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// How.
    pub method: merging::Method,
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(default, deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// Of methods that drop at random. Default 0 (ours).
    #[serde(default)]
    pub seed: u64,
}

impl Method for Merge {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        if self.weights.is_some() && !self.method.weighted() {
            return refuse("this method has no use for weights; leave them out");
        }
        let weights = constant_weights(self.weights.as_ref(), preference, experts)?;
        self.method.check(weights.len())?;
        let (experts, weights) = weights.into_iter().unzip();
        let recipe = Recipe {
            method: self.method.clone(),
            experts,
            weights,
            seed: self.seed,
        };
        Ok(Plan {
            merged: [(MERGED.to_string(), recipe)].into(),
            ..Plan::new(vec![MERGED.into()], Copy)
        })
    }

    fn needs(&self) -> Needs {
        Needs {
            weights: true,
            ..Needs::LIKELIEST
        }
    }

    fn one_hot(&self) -> bool {
        self.method.one_hot()
    }
}
