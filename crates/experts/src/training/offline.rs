//! Training on given responses: supervised fine-tuning, and on pairs direct preference optimisation
//! (arXiv 2305.18290) or REBEL's regression (arXiv 2404.16767) from the base policy.

use std::sync::atomic::{AtomicUsize, Ordering};

use lm::objectives::{Pair, dpo, nll, rebel};
use lm::parameter::{above_zero, at_least_one, from_zero_on};
use lm::sampling::permutation;
use lm::tuning::{Item, Loss, Optimisation, Sequence, TuningDecoder};
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
    /// Weight of the chosen response's loss per token beside DPO's (RPO, arXiv 2404.19733: 1). DPO alone only moves the
    /// two responses apart, and may make both unlikely. Default 0 (DPO). The others have no use for it.
    pub nll: f64,
    /// REBEL's η: nats of log-ratio per unit of reward. Default 3 (ours: an exact fit moves a reward of unit
    /// variance by 3 standard deviations). The others have no use for it.
    pub eta: f64,
    /// How gradients become steps.
    pub optimisation: Optimisation,
}

impl Default for OfflineConfig {
    fn default() -> Self {
        Self {
            epochs: 2,
            minibatch: 16,
            beta: 0.1,
            nll: 0.0,
            eta: 3.0,
            optimisation: Optimisation::default(),
        }
    }
}

impl OfflineConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        at_least_one([
            ("epochs", self.epochs),
            ("minibatch", self.minibatch as u64),
        ])?;
        above_zero("beta", self.beta)?;
        above_zero("eta", self.eta)?;
        from_zero_on("nll", self.nll)?;
        Ok(self.optimisation.validate()?)
    }

    /// Steps of an epoch over `items`.
    pub fn steps(&self, items: usize) -> u64 {
        items.div_ceil(self.minibatch) as u64
    }
}

/// What is made likelier.
#[derive(Debug, Clone, PartialEq)]
pub enum Objective {
    /// The response; items are single sequences.
    Nll,
    /// The first response of a pair against the second.
    Dpo,
    /// Both responses of a pair by their rewards, given for every item.
    Rebel(Vec<[f64; 2]>),
}

/// What a step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Number, from 0.
    pub step: u64,
    /// Mean loss of its items: nats per token, or DPO's.
    pub loss: f64,
    /// Share of pairs whose log-ratio moved the right way (1 in fine-tuning).
    pub accuracy: f64,
    /// Length of the gradient before clipping.
    pub gradient: f64,
}

/// A training that goes on from step to step.
#[derive(Debug)]
pub struct Offline<'a> {
    /// How it is trained.
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
    /// Log-probability of every response under the base in nats, `[items][2]`, for objectives that compare with
    /// it; computed once for all steps.
    ///
    /// # Errors
    /// Items that the decoder refuses.
    pub fn reference(&self) -> Result<Vec<Vec<f64>>> {
        if self.objective == Objective::Nll {
            return Ok(Vec::new());
        }
        let flat: Vec<Sequence> = self.items.iter().flatten().cloned().collect();
        let all = self.decoder.log_probs(None, &flat)?;
        let sum = |l: &Vec<f32>| l.iter().map(|v| f64::from(*v)).sum();
        let sums: Vec<f64> = all.iter().map(sum).collect();
        Ok(sums.chunks(2).map(<[f64]>::to_vec).collect())
    }

    /// Makes step `number`; `reference` is [`Self::reference`]'s.
    ///
    /// # Errors
    /// Items of another size than the objective wants, or that the decoder refuses.
    pub fn step(&self, number: u64, reference: &[Vec<f64>], trainer: &mut Trainer) -> Result<Step> {
        let size = match &self.objective {
            Objective::Nll => 1,
            Objective::Dpo | Objective::Rebel(_) => 2,
        };
        if let Some(item) = self.items.iter().find(|item| item.len() != size) {
            return Err(Error::ItemSize {
                got: item.len(),
                expected: size,
            });
        }
        let per_epoch = self.config.steps(self.items.len()).max(1);
        let epoch = (number / per_epoch).to_le_bytes();
        let seed = self.seed.to_le_bytes();
        let order = permutation(self.items.len(), &[&seed, b"items", &epoch]);
        let minibatch = (number % per_epoch) as usize;
        let Some(chosen) = order.chunks(self.config.minibatch).nth(minibatch) else {
            return Err(Error::NoData);
        };
        let items: Vec<Item> = chosen.iter().map(|&i| self.items[i].clone()).collect();
        let ordered = AtomicUsize::new(0);
        let objective = |i: usize, log_probs: &[Vec<f32>]| -> Loss {
            if self.objective == Objective::Nll {
                return nll(&log_probs[0]);
            }
            let base = [reference[chosen[i]][0], reference[chosen[i]][1]];
            let both = [log_probs[0].as_slice(), log_probs[1].as_slice()];
            match &self.objective {
                Objective::Rebel(rewards) => {
                    let pair = Pair {
                        old: base,
                        rewards: rewards[chosen[i]],
                    };
                    rebel(both, &pair, self.config.eta)
                }
                _ => {
                    let mut loss = dpo(both, base, self.config.beta);
                    // Below ln 2 where the pair moves the right way.
                    if loss.value < 2f64.ln() {
                        ordered.fetch_add(1, Ordering::Relaxed);
                    }
                    if self.config.nll > 0.0 {
                        let chosen = nll(&log_probs[0]);
                        loss.value += self.config.nll * chosen.value;
                        let both = loss.gradient[0].iter_mut().zip(&chosen.gradient[0]);
                        both.for_each(|(g, of_chosen)| *g += self.config.nll as f32 * of_chosen);
                    }
                    loss
                }
            }
        };
        let mut gradient = self.decoder.gradient(&trainer.lora, &items, &objective)?;
        let n = items.len() as f64;
        // REBEL's loss is below that of no change where the pair moves the right way.
        let right = |(i, loss): (usize, &f64)| match &self.objective {
            Objective::Rebel(rewards) => {
                let [first, second] = rewards[chosen[i]];
                *loss < (self.config.eta * (first - second)).powi(2)
            }
            _ => false,
        };
        let right = match &self.objective {
            Objective::Nll => items.len(),
            Objective::Dpo => ordered.into_inner(),
            Objective::Rebel(_) => gradient
                .losses
                .iter()
                .enumerate()
                .filter(|l| right(*l))
                .count(),
        };
        let out = Step {
            step: number,
            loss: gradient.losses.iter().sum::<f64>() / n,
            accuracy: right as f64 / n,
            gradient: 0.0,
        };
        let gradient = trainer.step(&mut gradient, items.len());
        Ok(Step { gradient, ..out })
    }
}
