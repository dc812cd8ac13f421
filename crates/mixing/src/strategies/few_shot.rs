//! Few-shot prompting: the base model sees examples of each stated direction, as turns before the question,
//! and the preference's text as an instruction. arXiv 2512.23067 finds it strong.

use std::collections::BTreeMap;

use lm::chat::{Message, Role};
use serde::{Deserialize, Serialize};

use super::Method;
use super::single::Copy;
use crate::{BASE, Needs, Plan, Preference, Result, refuse};

/// The base model with examples of the preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// Examples by direction; those of the stated directions are shown, in the order of their names.
    #[serde(deserialize_with = "crate::named::unique")]
    pub examples: BTreeMap<String, Vec<Example>>,
    /// Add the preference's text as an instruction. Default: yes (ours).
    #[serde(default = "yes")]
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

fn yes() -> bool {
    true
}

impl Method for FewShot {
    fn plan(&self, preference: &Preference, _: &[&str]) -> Result<Plan> {
        let mut turns = Vec::new();
        for (direction, _) in preference.shares()? {
            let Some(shown) = self.examples.get(&direction).filter(|e| !e.is_empty()) else {
                return refuse(format!(
                    "there is no example of '{direction}'; add one to examples"
                ));
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
            return refuse("the preference has no text; give it one, or set instruction: false");
        }
        Ok(Plan {
            examples: turns,
            instruction: text,
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
