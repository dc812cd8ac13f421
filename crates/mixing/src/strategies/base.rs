//! `π_base`: the model that everything is compared with.

use serde::{Deserialize, Serialize};

use super::Method;
use super::single::Copy;
use crate::{BASE, Needs, Plan, Preference, Result};

/// The base model as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {}

impl Method for Base {
    fn plan(&self, _: &Preference, _: &[&str]) -> Result<Plan> {
        Ok(Plan::new(vec![BASE.into()], Copy))
    }

    fn needs(&self) -> Needs {
        Needs::LIKELIEST
    }

    fn one_hot(&self) -> bool {
        true
    }
}
