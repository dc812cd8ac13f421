//! The empty answer: `y = ε`. No competitor: what is nothing must not be worth anything. Ours.

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts};
use crate::{Plan, Preference, Result};

/// No answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

impl Method for Empty {
    fn plan(&self, _: &Preference, _: &[&str]) -> Result<Plan> {
        Ok(Plan::of_text(String::new()))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    /// None: there is nothing to decode with.
    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        Vec::new()
    }
}
