//! `π_base`: the model that everything is compared with.

use serde::{Deserialize, Serialize};

use super::single::Copy;
use crate::{BASE, Plan, Result};

/// The base model as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {}

impl Base {
    pub(super) fn plan(&self) -> Result<Plan> {
        Ok(Plan {
            experts: vec![BASE.into()],
            instruction: None,
            mixer: Box::new(Copy),
        })
    }
}
