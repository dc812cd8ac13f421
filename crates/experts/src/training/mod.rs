//! Recipes that train an expert's adapter: supervised fine-tuning, direct preference optimisation, REBEL. And the
//! fit of a classifier that guides a model.
//!
//! A recipe knows tokens, log-probabilities and numbers called reward. Where responses come from and who
//! scores them is the caller's ([`rebel::Environment`]).
//!
//! ```
//! use mope_experts::training::offline::OfflineConfig;
//! use mope_experts::training::rebel::RebelConfig;
//! // 24 iterations of 16 pairs, each seen twice, 8 at a time.
//! assert_eq!(RebelConfig::default().total_steps(), 24 * 2 * 2);
//! let config = OfflineConfig { minibatch: 4, ..OfflineConfig::default() };
//! assert_eq!(config.steps(10), 3);
//! assert!(OfflineConfig { beta: 0.0, ..config }.validate().is_err());
//! ```

pub mod checkpoint;
pub mod classifier;
pub mod offline;
pub mod rebel;

use lm::tuning::{AdamW, Gradient, LoraParameters, Optimisation};

pub use checkpoint::Checkpoint;

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
        let scale = 1.0 / items.max(1) as f32;
        gradient.values.iter_mut().for_each(|g| *g *= scale);
        let norm = self.optimisation.clip(&mut gradient.values);
        let rate = self.optimisation.rate(self.adam.state.step, self.steps);
        self.adam
            .step(&mut self.lora.values, &gradient.values, rate);
        norm
    }
}
