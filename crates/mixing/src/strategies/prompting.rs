//! Preference prompting: the base model reads the preference's text in its system message
//! (arXiv 2310.11564).

use serde::{Deserialize, Serialize};

use super::single::Copy;
use crate::{BASE, Plan, Preference, Result, refuse};

/// The base model with the preference's text as an instruction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompting {}

impl Prompting {
    pub(super) fn plan(&self, preference: &Preference) -> Result<Plan> {
        if preference.text.trim().is_empty() {
            return refuse("prompting needs a preference with a text");
        }
        Ok(Plan {
            experts: vec![BASE.into()],
            instruction: Some(preference.text.clone()),
            mixer: Box::new(Copy),
        })
    }
}
