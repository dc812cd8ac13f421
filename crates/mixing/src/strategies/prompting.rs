//! Preference prompting: the base model reads the preference's text in its system message
//! (arXiv 2310.11564). With an expert that was trained to heed it, this is MORL with the preference in its prompt.

use serde::{Deserialize, Serialize};

use super::single::{Copy, known};
use super::{Instance, InstanceContext, Method, Parts};
use crate::{BASE, Error, Plan, Preference, Requirements, Result};

/// One model with the preference's text as an instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompting {
    /// Who reads it. Default: the base model (paper).
    #[serde(skip_serializing_if = "is_base")]
    pub expert: String,
}

impl Default for Prompting {
    fn default() -> Self {
        Self {
            expert: BASE.into(),
        }
    }
}

/// What is as it always was is not written, so that what was made with it is found again.
fn is_base(expert: &str) -> bool {
    expert == BASE
}

impl Method for Prompting {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        known(&self.expert, experts)?;
        if preference.text.trim().is_empty() {
            return Err(Error::Preference(
                "prompting needs a preference with a text",
            ));
        }
        Ok(Plan {
            instruction: Some(preference.text.clone()),
            ..Plan::new(vec![self.expert.clone()], Requirements::LIKELIEST, Copy)
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let expert = context.directions[0].to_string();
        [Self::default(), Self { expert }]
            .map(|prompting| Instance::new(prompting).multiplies())
            .into()
    }
}
