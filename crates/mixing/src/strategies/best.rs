//! The strategy of several that is best for a preference on a validation set:
//! `s* = arg max_s mean utility(y ~ s)`. Of equals the first. The choice is made by whoever runs it.
//!
//! This is how parameters are tuned inside a comparison, on prompts that it does not compare on.

use serde::{Deserialize, Serialize};

use super::{Method, Strategy};
use crate::{Candidate, Named, Needs, Plan, Preference, Result, refuse};

/// One of several strategies, chosen for each preference by utility.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Those to choose from, by name.
    pub of: Named<Strategy>,
}

impl Method for Best {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let each = self.of.iter().map(|(name, strategy)| Candidate {
            name: name.into(),
            strategy: strategy.clone(),
        });
        among(each.collect(), preference, experts)
    }

    fn needs(&self) -> Needs {
        let each = self.of.iter().map(|(_, s)| s.needs());
        each.fold(Needs::LIKELIEST, Needs::and)
    }

    fn one_hot(&self) -> bool {
        false
    }
}

/// A plan that is still to be chosen, or that of the only candidate.
pub(super) fn among(
    candidates: Vec<Candidate>,
    preference: &Preference,
    experts: &[&str],
) -> Result<Plan> {
    let mut plans = Vec::new();
    for candidate in &candidates {
        let plan = candidate.strategy.plan(preference, experts)?;
        if !plan.candidates.is_empty() {
            let name = &candidate.name;
            return refuse(format!(
                "'{name}' is itself still to be chosen; name what it is to be"
            ));
        }
        if plan.samples > 1 {
            let name = &candidate.name;
            return refuse(format!(
                "'{name}' keeps the best of several responses by the very rewards that would choose it; compare it \
                 as a strategy of its own"
            ));
        }
        plans.push(plan);
    }
    match plans.len() {
        0 => refuse("there is nothing to choose from; name some"),
        1 => Ok(plans.remove(0)),
        _ => {
            let names = plans.iter().flat_map(|p| p.sources()).map(String::from);
            let names: std::collections::BTreeSet<String> = names.collect();
            Ok(Plan {
                candidates,
                ..Plan::new(names.into_iter().collect(), super::single::Copy)
            })
        }
    }
}
