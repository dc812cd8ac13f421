//! `π_i`: one expert alone.

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts};
use crate::mixer::same_experts;
use crate::{Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, owned};

/// One expert for every preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Single {
    /// Its name.
    pub expert: String,
}

impl Method for Single {
    fn plan(&self, _: &Preference, experts: &[&str]) -> Result<Plan> {
        known(&self.expert, experts)?;
        Ok(Plan::new(
            vec![self.expert.clone()],
            Requirements::LIKELIEST,
            Copy,
        ))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let expert = context.directions[0].to_string();
        vec![Instance::new(Self { expert }).multiplies()]
    }
}

/// Refuses an expert that is not there.
pub(super) fn known(expert: &str, experts: &[&str]) -> Result<()> {
    if experts.contains(&expert) {
        return Ok(());
    }
    Err(Error::UnknownExpert {
        name: expert.into(),
        known: owned(experts),
    })
}

/// Hands one expert's distribution on.
#[derive(Clone)]
pub(super) struct Copy;

impl Mixer for Copy {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, 1)?;
        mixed.log_probs.clear();
        mixed.log_probs.extend_from_slice(&step.next.log_probs);
        mixed.weights.clear();
        mixed.weights.resize(step.next.sequences, 1.0);
        Ok(())
    }
}
