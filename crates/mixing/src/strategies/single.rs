//! `π_i`: one expert alone.

use serde::{Deserialize, Serialize};

use crate::{Mixed, Mixer, Plan, Result, Step, refuse};

/// One expert for every preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Single {
    /// Its name.
    pub expert: String,
}

impl Single {
    pub(super) fn plan(&self, experts: &[&str]) -> Result<Plan> {
        if !experts.contains(&self.expert.as_str()) {
            let known = experts.join(", ");
            return refuse(format!(
                "there is no expert '{}'; the experts are: {known}",
                self.expert
            ));
        }
        Ok(Plan {
            experts: vec![self.expert.clone()],
            instruction: None,
            mixer: Box::new(Copy),
        })
    }
}

/// Hands one expert's distribution on.
pub(super) struct Copy;

impl Mixer for Copy {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        if step.next.experts != 1 {
            return refuse(format!("one expert expected, got {}", step.next.experts));
        }
        mixed.log_probs.clear();
        mixed.log_probs.extend_from_slice(&step.next.log_probs);
        mixed.weights.clear();
        mixed.weights.resize(step.next.sequences, 1.0);
        Ok(())
    }
}
