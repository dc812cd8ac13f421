//! AdamW, learning-rate schedules and clipping.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::parameter::{above_zero, below_one};

/// Settings of [`AdamW`] (arXiv 1711.05101), which is PyTorch's `torch.optim.AdamW`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients. Default 0.9 (PyTorch).
    pub beta1: f64,
    /// Decay of the mean of squared gradients. Default 0.999 (PyTorch).
    pub beta2: f64,
    /// Added to the root of the latter. Default 1e-8 (PyTorch).
    pub eps: f64,
    /// Share of a parameter taken off per step and unit of learning rate. Default 0 (LoRA's updates start
    /// at zero and are small; ours).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// What the optimiser remembers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdamWState {
    /// Steps made.
    pub step: u64,
    /// Means of gradients.
    pub mean: Vec<f32>,
    /// Means of squared gradients.
    pub square: Vec<f32>,
}

/// Adam with decoupled weight decay.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    config: AdamWConfig,
    /// What it remembers.
    pub state: AdamWState,
}

impl AdamW {
    /// A fresh optimiser, or one that goes on from `state`.
    pub fn new(config: AdamWConfig, state: AdamWState) -> Self {
        Self { config, state }
    }

    /// One step of `parameters` against `gradient`.
    ///
    /// # Panics
    /// When the lengths differ from each other or from the step before.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], learning_rate: f64) {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let n = parameters.len();
        assert_eq!(n, gradient.len(), "a derivative per parameter");
        let state = &mut self.state;
        if state.step == 0 {
            state.mean = vec![0.0; n];
            state.square = vec![0.0; n];
        }
        assert_eq!(n, state.mean.len(), "the optimiser's parameters");
        state.step += 1;
        let correct = |beta: f64| 1.0 - beta.powf(state.step as f64);
        let (first, second) = (correct(beta1), correct(beta2));
        let moments = state.mean.iter_mut().zip(&mut state.square);
        for ((p, g), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            let g = f64::from(*g);
            let m = beta1 * f64::from(*mean) + (1.0 - beta1) * g;
            let s = beta2 * f64::from(*square) + (1.0 - beta2) * g * g;
            (*mean, *square) = (m as f32, s as f32);
            let value = f64::from(*p) * (1.0 - learning_rate * weight_decay);
            let update = m / first / ((s / second).sqrt() + eps);
            *p = (value - learning_rate * update) as f32;
        }
    }
}

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optimisation {
    /// Step size after warm-up. Default 5e-4 (ours, from a few trials with REBEL on a 135M model: less moved
    /// little, 1e-3 let the KL run away).
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
    /// [`Error::Parameter`](crate::Error::Parameter).
    pub fn validate(&self) -> Result<()> {
        above_zero("learning_rate", self.learning_rate)?;
        above_zero("clip", self.clip)?;
        above_zero("adamw.eps", self.adamw.eps)?;
        below_one("adamw.beta1", self.adamw.beta1)?;
        below_one("adamw.beta2", self.adamw.beta2)
    }

    /// Scales a gradient down to the clip where it is longer; returns its length before.
    pub fn clip(&self, gradient: &mut [f32]) -> f64 {
        let squares = gradient.iter().map(|g| f64::from(*g).powi(2));
        let norm = squares.sum::<f64>().sqrt();
        if norm > self.clip {
            let factor = (self.clip / norm) as f32;
            gradient.iter_mut().for_each(|g| *g *= factor);
        }
        norm
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
}
