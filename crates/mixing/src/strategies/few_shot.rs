//! Few-shot prompting: the base model sees examples of each stated direction, as turns before the question,
//! and the preference's text as an instruction. arXiv 2512.23067 finds it strong.

use std::collections::BTreeMap;

use lm::chat::{Message, Role};
use serde::{Deserialize, Serialize};

use super::single::Copy;
use super::{Instance, InstanceContext, Method, Parts};
use crate::{BASE, Error, Plan, Preference, Requirements, Result};

/// The base model with examples of the preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// Examples by direction; those of the stated directions are shown, in the order of their names.
    #[serde(deserialize_with = "crate::named::unique")]
    pub examples: BTreeMap<String, Vec<Example>>,
    /// Add the preference's text as an instruction. Default: yes (ours).
    #[serde(default = "default_instruction")]
    pub instruction: bool,
}

/// A question, and an answer in the wanted way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// What is asked.
    pub prompt: String,
    /// What the person would have liked to read.
    pub response: String,
}

fn default_instruction() -> bool {
    true
}

impl Method for FewShot {
    fn plan(&self, preference: &Preference, _: &[&str]) -> Result<Plan> {
        let mut turns = Vec::new();
        for (direction, _) in preference.shares()? {
            let Some(shown) = self.examples.get(&direction).filter(|e| !e.is_empty()) else {
                return Err(Error::MissingFor {
                    lacking: "there is no example of",
                    direction,
                    remedy: "one to examples",
                });
            };
            for example in shown {
                turns.push(Message::user(&example.prompt));
                turns.push(Message {
                    role: Role::Assistant,
                    content: example.response.clone(),
                });
            }
        }
        let text = Some(preference.text.clone()).filter(|_| self.instruction);
        if text.as_ref().is_some_and(|t| t.trim().is_empty()) {
            return Err(Error::Preference(
                "the preference has no text; give it one, or set instruction: false",
            ));
        }
        Ok(Plan {
            examples: turns,
            instruction: text,
            ..Plan::new(vec![BASE.into()], Requirements::LIKELIEST, Copy)
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let examples = context.directions.iter().map(|direction| {
            let initials: String = direction.chars().take(2).collect();
            let example = Example {
                prompt: format!("{initials}?"),
                response: format!("{initials}!"),
            };
            (direction.to_string(), vec![example])
        });
        let few_shot = Self {
            examples: examples.collect(),
            instruction: false,
        };
        vec![Instance::new(few_shot).multiplies()]
    }
}
