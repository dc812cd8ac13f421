//! Parameter merging: the preference's experts become one expert before decoding. The methods are in
//! [`crate::merging`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::single::Copy;
use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::merging::{self, Recipe};
use crate::preference::constant_weights;
use crate::{Error, Plan, Preference, Requirements, Result};

/// Name of the expert that merging makes.
const MERGED: &str = "merged";

/// One expert out of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// How parameters are merged.
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
            return Err(Error::Combination(
                "this method has no use for weights; leave them out",
            ));
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
            ..Plan::new(vec![MERGED.into()], Requirements::PARAMETERS, Copy)
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        self.method.reproduces_single_expert()
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::Merge(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let methods = merging::Method::instances().into_iter();
        let two =
            methods.filter(|instance| instance.method.check(context.directions.len()).is_ok());
        let merges = two.map(|instance| Self {
            method: instance.method,
            weights: None,
            seed: 0,
        });
        merges.map(Instance::new).collect()
    }
}
