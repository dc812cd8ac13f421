//! The single expert that is best for a preference on a validation set:
//! `i* = arg max_i mean utility(y ~ p_i)`, then `p = p_{i*}`. Of equals the first by name.
//!
//! Asked for by reviewers of arXiv 2407.04181: what a mixture must beat. The caller makes the choice.

use serde::{Deserialize, Serialize};

use super::best_on_validation::among;
use super::{Instance, InstanceContext, Method, Parts, Single, Strategy};
use crate::{BASE, Candidate, Error, Plan, Preference, Result, owned};

/// One expert, chosen for each preference by utility.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BestSingle {
    /// Those to choose from. Default `None`: all but the base.
    pub among: Option<Vec<String>>,
}

impl Method for BestSingle {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let others = || {
            experts
                .iter()
                .filter(|e| **e != BASE)
                .map(|e| e.to_string())
        };
        let mut names = self.among.clone().unwrap_or_else(|| others().collect());
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err(Error::NoCandidates(
                "there is no expert to choose; name some, or take Base()",
            ));
        }
        let single = |name: String| Candidate {
            strategy: Strategy::Single(Single {
                expert: name.clone(),
            }),
            name,
        };
        among(names.into_iter().map(single).collect(), preference, experts)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let among = Some(owned(context.directions));
        vec![
            Instance::new(Self::default()),
            Instance::new(Self { among }),
        ]
    }
}
