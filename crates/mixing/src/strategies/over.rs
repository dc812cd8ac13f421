//! Another strategy over experts that are merged out of others before decoding: multi-objective decoding over
//! soups, a PCM over experts that were taken further, a mixture of two merges.
//!
//! An expert that is named like one that is there takes its place in the inner strategy; what is merged are always
//! those that are there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Merge, Method, Strategy};
use crate::{Named, Needs, Plan, Preference, Result, refuse};

/// A strategy over merged experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Over {
    /// The merged experts by name.
    pub experts: Named<Merge>,
    /// What is done with them, and with those that are there.
    pub of: Box<Strategy>,
}

impl Method for Over {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let others = self.experts.names().into_iter();
        let others = others.filter(|name| !experts.contains(name));
        let all: Vec<&str> = experts.iter().copied().chain(others).collect();
        let mut plan = self.of.plan(preference, &all)?;
        if !plan.candidates.is_empty() {
            return refuse("the inner strategy is still to be chosen; name what it is to be");
        }
        let mut merged = BTreeMap::new();
        for (name, merge) in self.experts.iter() {
            for recipe in merge.plan(preference, experts)?.merged.into_values() {
                merged.insert(name.to_string(), recipe);
            }
        }
        for recipe in plan.merged.values() {
            if let Some(name) = recipe.experts.iter().find(|n| merged.contains_key(*n)) {
                return refuse(format!(
                    "the inner strategy merges '{name}', which is merged itself; merge once"
                ));
            }
        }
        merged.retain(|name, _| plan.experts.contains(name));
        plan.merged.extend(merged);
        Ok(plan)
    }

    fn needs(&self) -> Needs {
        self.of.needs()
    }

    fn one_hot(&self) -> bool {
        self.of.one_hot() && self.experts.iter().all(|(_, merge)| merge.one_hot())
    }
}
