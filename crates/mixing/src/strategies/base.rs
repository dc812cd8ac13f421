//! `π_base`: the model that everything is compared with.

use serde::{Deserialize, Serialize};

use super::single::Copy;
use super::{Instance, InstanceContext, Method, Parts};
use crate::{BASE, Plan, Preference, Requirements, Result};

/// The base model as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {}

impl Method for Base {
    fn plan(&self, _: &Preference, _: &[&str]) -> Result<Plan> {
        Ok(Plan::new(vec![BASE.into()], Requirements::LIKELIEST, Copy))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        vec![Instance::new(Self {}).multiplies()]
    }
}
