//! The strategy of several that is best for a preference on a validation set:
//! `s* = arg max_s mean utility(y ~ s)`. Of equals the first. The caller makes the choice.
//!
//! This is how parameters are tuned inside a comparison, on prompts that it does not compare on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::single::Copy;
use super::{DeRa, Fixed, Instance, InstanceContext, Method, Parts, Strategy};
use crate::{Candidate, Error, Named, Plan, Preference, Requirements, Result};

/// One of several strategies, chosen for each preference by utility.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestOnValidation {
    /// Those to choose from, by name.
    pub of: Named<Strategy>,
}

impl Method for BestOnValidation {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let candidates = self.of.iter().map(|(name, strategy)| Candidate {
            name: name.into(),
            strategy: strategy.clone(),
        });
        among(candidates.collect(), preference, experts)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::strategies(self.of.iter_mut().map(|(_, strategy)| strategy))
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let near = Strategy::DeRa(DeRa::default());
        let mean = Strategy::Fixed(Fixed::default());
        let of = [("mean", mean), ("near", near)].map(|(name, s)| (name.to_string(), s));
        let best = Self {
            of: of.into_iter().collect(),
        };
        vec![Instance::new(best)]
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
            let strategy = Some(candidate.name.clone());
            return Err(Error::StillToBeChosen { strategy });
        }
        if plan.recorded.is_some() {
            return Err(Error::RecordedInside);
        }
        if plan.samples > 1 {
            return Err(Error::CandidateOfSeveral(candidate.name.clone()));
        }
        plans.push(plan);
    }
    match plans.len() {
        0 => Err(Error::NoCandidates(
            "there is nothing to choose from; name some",
        )),
        1 => Ok(plans.remove(0)),
        _ => {
            let names = plans.iter().flat_map(|p| p.sources()).map(String::from);
            let names: BTreeSet<String> = names.collect();
            let requirements = plans.iter().map(|plan| plan.requirements);
            let requirements = requirements.fold(Requirements::LIKELIEST, Requirements::and);
            Ok(Plan {
                candidates,
                ..Plan::new(names.into_iter().collect(), requirements, Copy)
            })
        }
    }
}
