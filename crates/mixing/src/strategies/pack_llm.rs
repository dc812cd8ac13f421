//! Weights by how well each expert predicts the prompt:
//!
//! `w = softmax(−NLL_i(prompt) / τ)`, then `p(y) ∝ Π_i p_i(y)^{w_i}`
//!
//! with the mean negative log-probability of a prompt token. PackLLM, its simple form (arXiv 2404.11531).
//!
//! 1. The paper averages logits; the average of log-probabilities is the same after normalisation.
//! 2. The prompt is what each expert reads, its template and its instruction included.
//! 3. The preference only says which experts take part; its importances play no role.
//! 4. All experts must have one vocabulary; the paper aligns different ones.

use serde::{Deserialize, Serialize};

use super::fixed::Space;
use super::{Instance, InstanceContext, Method, Parts};
use crate::error::above_zero;
use crate::mixer::same_experts;
use crate::{
    Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs, mix_probabilities,
};

/// The preference's experts, weighted by the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackLlm {
    /// Temperature of the weights, in nats per token. Default 1 (ours).
    pub tau: f64,
    /// Where the average is taken. Default: log (paper).
    pub space: Space,
}

impl Default for PackLlm {
    fn default() -> Self {
        Self {
            tau: 1.0,
            space: Space::Log,
        }
    }
}

impl Method for PackLlm {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        above_zero("tau", self.tau)?;
        let experts = preference.directions(experts)?;
        let mixer = ByPrompt {
            experts: experts.len(),
            tau: self.tau,
            space: self.space,
        };
        let requirements = Requirements {
            prompt: true,
            ..self.space.requirements()
        };
        Ok(Plan::new(experts, requirements, mixer))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let linear = Self {
            tau: 2.0,
            space: Space::Probability,
        };
        let log = Self {
            tau: 0.5,
            space: Space::Log,
        };
        vec![
            Instance::new(linear).reference("pack_linear"),
            Instance::new(log).reference("pack").multiplies(),
        ]
    }
}

#[derive(Clone)]
struct ByPrompt {
    experts: usize,
    tau: f64,
    space: Space,
}

impl Mixer for ByPrompt {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, self.experts)?;
        if step.history.iter().any(|h| h.prompt.len() != self.experts) {
            return Err(Error::NotReady(
                "the step carries no log-probabilities of the prompt",
            ));
        }
        mixed.each(step, |sequence, out, weights| {
            let nll = &step.history[sequence].prompt;
            let least = nll.iter().copied().fold(f64::INFINITY, f64::min);
            let powers = || nll.iter().map(|v| ((least - v) / self.tau).exp());
            let total: f64 = powers().sum();
            for (weight, value) in weights.iter_mut().zip(powers()) {
                *weight = (value / total) as f32;
            }
            let rows: Vec<&[f32]> = (0..self.experts)
                .map(|e| step.next.row(e, sequence))
                .collect();
            match self.space {
                Space::Probability => mix_probabilities(&rows, weights, out),
                Space::Log => mix_logs(&rows, weights, out),
            }
        });
        Ok(())
    }

    fn reads_prompt(&self) -> bool {
        true
    }
}
