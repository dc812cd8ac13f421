//! Another strategy over experts that are merged out of others before decoding: multi-objective decoding over
//! soups, a PCM over experts that were taken further, a mixture of two merges.
//!
//! An expert that is named like one that is there takes its place in the inner strategy; what is merged are always
//! those that are there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Fixed, Instance, InstanceContext, Merge, Method, Parts, Pcm, Strategy};
use crate::merging::{self, TaskArithmetic};
use crate::{Error, Named, Plan, Preference, Result};

/// A strategy over merged experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithMerged {
    /// The merged experts by name.
    pub experts: Named<Merge>,
    /// What is done with them, and with those that are there.
    pub of: Box<Strategy>,
}

impl Method for WithMerged {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let others = self.experts.names().into_iter();
        let others = others.filter(|name| !experts.contains(name));
        let all: Vec<&str> = experts.iter().copied().chain(others).collect();
        let mut plan = self.of.plan(preference, &all)?;
        if !plan.candidates.is_empty() {
            return Err(Error::StillToBeChosen { strategy: None });
        }
        let mut merged = BTreeMap::new();
        for (name, merge) in self.experts.iter() {
            for recipe in merge.plan(preference, experts)?.merged.into_values() {
                merged.insert(name.to_string(), recipe);
            }
        }
        for recipe in plan.merged.values() {
            if let Some(name) = recipe.experts.iter().find(|n| merged.contains_key(*n)) {
                return Err(Error::Merge(format!(
                    "the inner strategy merges '{name}', which is merged itself; merge once"
                )));
            }
        }
        merged.retain(|name, _| plan.experts.contains(name));
        plan.merged.extend(merged);
        Ok(plan)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::strategies([&mut *self.of])
    }

    fn reproduces_single_expert(&self) -> bool {
        let mut merges = self.experts.iter();
        self.of.reproduces_single_expert()
            && merges.all(|(_, merge)| merge.reproduces_single_expert())
    }

    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        let of = Box::new(self.of.at_strength(strength)?);
        Some(Strategy::WithMerged(Self { of, ..self.clone() }))
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let first = context.directions[0];
        let further = Merge {
            method: merging::Method::TaskArithmetic(TaskArithmetic { scale: 2.0 }),
            weights: Some([(first.to_string(), 1.0)].into()),
            seed: 0,
        };
        let over = |of| Self {
            experts: [(first.to_string(), further.clone())].into_iter().collect(),
            of: Box::new(of),
        };
        let pcm = Strategy::Pcm(Pcm::of(context.pcm));
        let fixed = Strategy::Fixed(Fixed::default());
        [pcm, fixed].map(|of| Instance::new(over(of))).into()
    }
}
