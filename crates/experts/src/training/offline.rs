//! Training on given responses: supervised fine-tuning, and direct preference optimisation
//! (arXiv 2305.18290) on pairs.

use lm::objectives::{dpo, nll};
use lm::sampling::permutation;
use lm::tuning::{Item, Loss, Optimisation, TuningDecoder};
use serde::{Deserialize, Serialize};

use super::Trainer;
use crate::{Error, Result};

/// Settings of a training on given responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OfflineConfig {
    /// Passes over the data. Default 2 (ours).
    pub epochs: u64,
    /// Items of a step. Default 16 (ours).
    pub minibatch: usize,
    /// DPO's β, the strength of the tie to the base. Default 0.1 (DPO's code). Fine-tuning has no use for it.
    pub beta: f64,
    /// Steps.
    pub optimisation: Optimisation,
}

impl Default for OfflineConfig {
    fn default() -> Self {
        Self {
            epochs: 2,
            minibatch: 16,
            beta: 0.1,
            optimisation: Optimisation::default(),
        }
    }
}

impl OfflineConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        if self.epochs == 0 || self.minibatch == 0 {
            return Err("epochs and minibatch are at least 1".into());
        }
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(format!("beta is {}, not a number above 0", self.beta));
        }
        self.optimisation.validate()
    }

    /// Steps of an epoch over `items`.
    pub fn steps(&self, items: usize) -> u64 {
        items.div_ceil(self.minibatch) as u64
    }
}

/// What is made likelier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The response; items are single sequences.
    Nll,
    /// The first response of a pair against the second.
    Dpo,
}

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Number, from 0.
    pub step: u64,
    /// Mean loss of its items: nats per token, or DPO's.
    pub loss: f64,
    /// Share of pairs whose first response became likelier against the second than under the base (1 in
    /// fine-tuning).
    pub accuracy: f64,
    /// Length of the gradient before clipping.
    pub gradient: f64,
}

/// A training that goes on from step to step.
#[derive(Debug)]
pub struct Offline<'a> {
    /// Settings.
    pub config: &'a OfflineConfig,
    /// What is made likelier.
    pub objective: Objective,
    /// The frozen model.
    pub decoder: &'a TuningDecoder,
    /// The data: one sequence an item, or two.
    pub items: &'a [Item],
    /// All randomness follows from it.
    pub seed: u64,
}

impl Offline<'_> {
    /// Makes step `number`.
    ///
    /// # Errors
    /// Items of another size than the objective wants, or that the decoder refuses.
    pub fn step(&self, number: u64, trainer: &mut Trainer) -> Result<Step> {
        let size = match self.objective {
            Objective::Nll => 1,
            Objective::Dpo => 2,
        };
        if let Some(item) = self.items.iter().find(|item| item.len() != size) {
            let message = format!("an item of {} responses, not {size}", item.len());
            return Err(Error::Argument(message));
        }
        let per_epoch = self.config.steps(self.items.len()).max(1);
        let epoch = (number / per_epoch).to_le_bytes();
        let seed = self.seed.to_le_bytes();
        let order = permutation(self.items.len(), &[&seed, b"items", &epoch]);
        let place = (number % per_epoch) as usize;
        let Some(chosen) = order.chunks(self.config.minibatch).nth(place) else {
            return Err(Error::Argument("there is nothing to train on".into()));
        };
        let items: Vec<Item> = chosen.iter().map(|&i| self.items[i].clone()).collect();
        let reference: Vec<f64> = match self.objective {
            Objective::Nll => Vec::new(),
            Objective::Dpo => {
                let flat: Vec<_> = items.iter().flatten().cloned().collect();
                let all = self.decoder.log_probs(None, &flat)?;
                let sum = |l: &Vec<f32>| l.iter().map(|v| f64::from(*v)).sum();
                all.iter().map(sum).collect()
            }
        };
        let objective = |i: usize, log_probs: &[Vec<f32>]| -> Loss {
            match self.objective {
                Objective::Nll => nll(&log_probs[0]),
                Objective::Dpo => {
                    let base = [reference[2 * i], reference[2 * i + 1]];
                    dpo([&log_probs[0], &log_probs[1]], base, self.config.beta)
                }
            }
        };
        let mut gradient = self.decoder.gradient(&trainer.lora, &items, &objective)?;
        let n = items.len() as f64;
        // DPO's loss is below ln 2 exactly where the pair is in the right order.
        let right = |loss: &&f64| self.objective == Objective::Nll || **loss < 2f64.ln();
        let out = Step {
            step: number,
            loss: gradient.losses.iter().sum::<f64>() / n,
            accuracy: gradient.losses.iter().filter(right).count() as f64 / n,
            gradient: 0.0,
        };
        let gradient = trainer.step(&mut gradient, items.len());
        Ok(Step { gradient, ..out })
    }
}
