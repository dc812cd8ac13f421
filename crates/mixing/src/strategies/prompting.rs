//! Preference prompting: the base model reads the preference's text in its system message
//! (arXiv 2310.11564).

use serde::{Deserialize, Serialize};

use super::Method;
use super::single::Copy;
use crate::{BASE, Needs, Plan, Preference, Result, refuse};

/// The base model with the preference's text as an instruction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompting {}

impl Method for Prompting {
    fn plan(&self, preference: &Preference, _: &[&str]) -> Result<Plan> {
        if preference.text.trim().is_empty() {
            return refuse("prompting needs a preference with a text");
        }
        Ok(Plan {
            instruction: Some(preference.text.clone()),
            ..Plan::new(vec![BASE.into()], Copy)
        })
    }

    fn needs(&self) -> Needs {
        Needs::LIKELIEST
    }

    fn one_hot(&self) -> bool {
        false
    }
}
