//! Recipes that train an expert's adapter: supervised fine-tuning, direct preference optimisation, REBEL.
//!
//! A recipe knows tokens, log-probabilities and numbers called reward. Where responses come from and who
//! scores them is the caller's ([`rebel::Environment`]).

pub mod checkpoint;
pub mod offline;
pub mod rebel;

use lm::sampling::Draws;
use lm::tuning::{AdamW, AdamWConfig, Gradient, LoraParameters};
use serde::{Deserialize, Serialize};

pub use checkpoint::Checkpoint;

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimisation {
    /// Step size after warm-up. Default 5e-4 (ours: between 3e-4, where nothing moved, and 1e-3, where the
    /// KL ran away; see `experiments/experts`).
    pub learning_rate: f64,
    /// Steps over which the learning rate grows from 0. Default 5 (ours).
    pub warmup: u64,
    /// What happens after the warm-up. Default `Constant` (REBEL's code).
    pub schedule: Schedule,
    /// Gradients longer than this are scaled to it. Default 1 (the usual value; REBEL's code does not clip).
    pub clip: f64,
    /// The optimiser's own settings.
    pub adamw: AdamWConfig,
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// As it is.
    #[default]
    Constant,
    /// Straight down to 0 at the last step.
    Linear,
}

impl Default for Optimisation {
    fn default() -> Self {
        Self {
            learning_rate: 5e-4,
            warmup: 5,
            schedule: Schedule::Constant,
            clip: 1.0,
            adamw: AdamWConfig::default(),
        }
    }
}

impl Optimisation {
    /// Checks the numbers.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(format!("{name} is {value}, not a number above 0"))
            }
        };
        positive("learning_rate", self.learning_rate)?;
        positive("clip", self.clip)?;
        positive("adamw.eps", self.adamw.eps)?;
        for (name, beta) in [("beta1", self.adamw.beta1), ("beta2", self.adamw.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!("adamw.{name} is {beta}, not in [0, 1)"));
            }
        }
        Ok(())
    }

    /// Learning rate of step `step` (from 0) of `total`.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        let warm = ((step + 1) as f64 / self.warmup.max(1) as f64).min(1.0);
        let left = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => {
                let (done, all) = (
                    step.saturating_sub(self.warmup),
                    total - self.warmup.min(total),
                );
                1.0 - done as f64 / all.max(1) as f64
            }
        };
        self.learning_rate * warm * left.max(0.0)
    }
}

/// An adapter, its optimiser and how far they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainer {
    /// What is trained.
    pub lora: LoraParameters,
    /// The optimiser.
    pub adam: AdamW,
    /// How gradients become steps.
    pub optimisation: Optimisation,
    /// Steps of the whole training.
    pub steps: u64,
}

impl Trainer {
    /// One step along a gradient that is a sum over `items`; returns its length before clipping, in units
    /// of the mean loss.
    pub fn step(&mut self, gradient: &mut Gradient, items: usize) -> f64 {
        let scale = 1.0 / items.max(1) as f64;
        let squares = gradient.values.iter().map(|g| f64::from(*g).powi(2));
        let norm = squares.sum::<f64>().sqrt() * scale;
        let clip = (self.optimisation.clip / norm.max(1e-300)).min(1.0);
        let factor = (scale * clip) as f32;
        gradient.values.iter_mut().for_each(|g| *g *= factor);
        let rate = self.optimisation.rate(self.adam.state.step, self.steps);
        self.adam
            .step(&mut self.lora.values, &gradient.values, rate);
        norm
    }
}

/// The numbers below `n` in an order that `parts` name (Fisher-Yates).
pub fn permutation(n: usize, parts: &[&[u8]]) -> Vec<usize> {
    let mut draws = Draws::new(parts);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (draws.uniform(i) * (i + 1) as f64) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_warm_up_and_decay() {
        let o = Optimisation {
            learning_rate: 1.0,
            warmup: 4,
            schedule: Schedule::Linear,
            ..Optimisation::default()
        };
        assert_eq!((o.rate(0, 12), o.rate(3, 12)), (0.25, 1.0));
        assert_eq!((o.rate(8, 12), o.rate(12, 12)), (0.5, 0.0));
    }

    #[test]
    fn permutations_are_fair_and_repeatable() {
        let first = permutation(20, &[b"a"]);
        assert_eq!(first, permutation(20, &[b"a"]));
        assert_ne!(first, permutation(20, &[b"b"]));
        let mut sorted = first;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }
}
