use serde::{Deserialize, Serialize};

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
