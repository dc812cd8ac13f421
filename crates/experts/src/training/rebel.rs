//! REBEL (arXiv 2404.16767): regress the log-ratio of two responses on the difference of their rewards.
//!
//! An iteration samples two responses `y, y'` per prompt from the current policy `π_t` and then fits, for
//! some epochs over fresh permutations of the pairs ([`lm::objectives::rebel`]),
//!
//! ```text
//! ( [ln π(y)/π_t(y)] − [ln π(y')/π_t(y')] − η (r(y) − r(y')) )²
//! r = reward − penalty · [no end token] − β ln π_t(y)/π_ref(y)
//! ```
//!
//! Where we differ from the authors' code:
//!
//! 1. η stands at the rewards, as in the paper's equation 2, not under them
//! 2. rewards are brought to unit variance on the reference's responses, so η is in nats per standard
//!    deviation
//! 3. β can follow a target for the KL per token, as in arXiv 1909.08593 (there with gain 0.1 per step)
//! 4. gradients are clipped

use lm::Adapter;
use lm::objectives::{Pair, rebel, rebel_residual};
use lm::parameter::{above_zero, at_least_one, from_zero_on};
use lm::sampling::{Draws, permutation};
use lm::tuning::{Item, Optimisation, Sequence, TuningDecoder};
use serde::{Deserialize, Serialize};

use super::Trainer;
use crate::{Error, Result};

/// Settings of a training by REBEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebelConfig {
    /// Iterations of sampling and fitting. Default 24 (ours).
    pub iterations: u64,
    /// Prompts of an iteration. Default 16 (ours).
    pub prompts: usize,
    /// Longest response in tokens. Default 96 (ours).
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7 (REBEL's code uses 0.5
    /// to 0.7; at 1 small models ramble).
    pub temperature: f32,
    /// Nats per standard deviation of reward that a step aims at. Default 4 (ours).
    pub eta: f64,
    /// Weight β of the KL to the base in the reward. Default 0.05 (REBEL's code).
    pub kl: f64,
    /// KL to the base, in nats per token, that β is adapted to; `None` keeps β. Default `None`.
    pub kl_target: Option<f64>,
    /// Passes over an iteration's pairs. Default 2 (REBEL's code: 4).
    pub epochs: u64,
    /// Pairs of a step. Default 8 (ours).
    pub minibatch: usize,
    /// Taken off the reward of a response that does not end by itself, in standard deviations. Default 1 (ours;
    /// REBEL's code takes a fixed penalty, too).
    pub missing_end: f64,
    /// How gradients become steps.
    pub optimisation: Optimisation,
}

impl Default for RebelConfig {
    fn default() -> Self {
        Self {
            iterations: 24,
            prompts: 16,
            max_new_tokens: 96,
            temperature: 0.7,
            eta: 4.0,
            kl: 0.05,
            kl_target: None,
            epochs: 2,
            minibatch: 8,
            missing_end: 1.0,
            optimisation: Optimisation::default(),
        }
    }
}

impl RebelConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        at_least_one([
            ("iterations", self.iterations),
            ("prompts", self.prompts as u64),
            ("max_new_tokens", self.max_new_tokens as u64),
            ("epochs", self.epochs),
            ("minibatch", self.minibatch as u64),
        ])?;
        above_zero("temperature", self.temperature)?;
        above_zero("eta", self.eta)?;
        from_zero_on("kl", self.kl)?;
        from_zero_on("missing_end", self.missing_end)?;
        if let Some(target) = self.kl_target {
            above_zero("kl_target", target)?;
        }
        Ok(self.optimisation.validate()?)
    }

    /// Steps of an iteration.
    fn steps(&self) -> u64 {
        self.epochs * self.prompts.div_ceil(self.minibatch) as u64
    }

    /// Steps of the whole training.
    pub fn total_steps(&self) -> u64 {
        self.iterations * self.steps()
    }
}

/// A sampled response.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampled {
    /// Token ids, the end token included where there is one.
    pub tokens: Vec<u32>,
    /// It ended by itself.
    pub ended: bool,
}

/// Where responses and rewards come from.
pub trait Environment {
    /// Samples a response of the policy with this adapter to each prompt (by its number), untruncated.
    ///
    /// # Errors
    /// [`Error::Environment`], and those of the experts.
    fn respond(&mut self, adapter: &Adapter, prompts: &[(usize, Draws)]) -> Result<Vec<Sampled>>;

    /// Reward of a response in standard deviations of the base's.
    ///
    /// # Errors
    /// [`Error::Environment`] for a scorer that fails.
    fn reward(&mut self, prompt: usize, response: &Sampled) -> Result<f64>;
}

/// What an iteration did; means over its responses or pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// Number, from 0.
    pub iteration: u64,
    /// Reward before penalties, in standard deviations of the base's.
    pub reward: f64,
    /// Its standard deviation.
    pub reward_sd: f64,
    /// `ln π_t/π_ref` in nats per token.
    pub kl: f64,
    /// Weight of the KL.
    pub beta: f64,
    /// Response length in tokens.
    pub length: f64,
    /// Share of responses that ended by themselves.
    pub ended: f64,
    /// Loss per pair in the first epoch, before any step.
    pub loss_before: f64,
    /// Loss per pair in the last epoch.
    pub loss: f64,
    /// Root mean square of the residual in the last epoch, in nats.
    pub residual: f64,
    /// Length of the gradient before clipping.
    pub gradient: f64,
}

/// A training that goes on from iteration to iteration.
#[derive(Debug)]
pub struct Rebel<'a> {
    /// How it is trained.
    pub config: &'a RebelConfig,
    /// The frozen model, at the config's temperature.
    pub decoder: &'a TuningDecoder,
    /// Token ids of the prompts.
    pub prompts: &'a [Vec<u32>],
    /// All randomness follows from it.
    pub seed: u64,
}

impl Rebel<'_> {
    /// Samples, scores and fits once. `beta` is the weight of the KL and is adapted.
    ///
    /// # Errors
    /// From the environment, or sequences that the decoder refuses.
    pub fn iterate(
        &self,
        number: u64,
        beta: &mut f64,
        trainer: &mut Trainer,
        environment: &mut dyn Environment,
    ) -> Result<Iteration> {
        let config = self.config;
        let asked = self.asked(number);
        let responses = environment.respond(&trainer.lora.adapter(), &asked)?;
        let sequences: Vec<Sequence> = asked
            .iter()
            .zip(&responses)
            .map(|((prompt, _), r)| Sequence::new(&self.prompts[*prompt], &r.tokens))
            .collect();
        if responses.len() != asked.len() || sequences.iter().any(|s| s.scored() == 0) {
            return Err(Error::NoResponse);
        }
        let sums = |log_probs: Vec<Vec<f32>>| -> Vec<f64> {
            let sum = |l: &Vec<f32>| l.iter().map(|v| f64::from(*v)).sum();
            log_probs.iter().map(sum).collect()
        };
        let reference = sums(self.decoder.log_probs(None, &sequences)?);
        let old = sums(self.decoder.log_probs(Some(&trainer.lora), &sequences)?);
        let mut rewards = Vec::new();
        for ((prompt, _), response) in asked.iter().zip(&responses) {
            rewards.push(environment.reward(*prompt, response)?);
        }
        let shaped = |i: usize| {
            let missing = if responses[i].ended {
                0.0
            } else {
                config.missing_end
            };
            rewards[i] - missing - *beta * (old[i] - reference[i])
        };
        let pairs: Vec<Pair> = (0..responses.len() / 2)
            .map(|p| Pair {
                old: [old[2 * p], old[2 * p + 1]],
                rewards: [shaped(2 * p), shaped(2 * p + 1)],
            })
            .collect();
        let n = responses.len() as f64;
        let tokens: f64 = responses.iter().map(|r| r.tokens.len() as f64).sum();
        let mean = rewards.iter().sum::<f64>() / n;
        let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n;
        let mut out = Iteration {
            iteration: number,
            reward: mean,
            reward_sd: variance.sqrt(),
            kl: old.iter().zip(&reference).map(|(o, r)| o - r).sum::<f64>() / tokens,
            beta: *beta,
            length: tokens / n,
            ended: responses.iter().filter(|r| r.ended).count() as f64 / n,
            ..Iteration::default()
        };
        self.fit(&mut out, &sequences, &pairs, trainer)?;
        if let Some(target) = config.kl_target {
            // ours: a gain of 0.3, for trainings of tens of iterations rather than thousands.
            *beta *= (0.3 * (out.kl / target - 1.0).clamp(-1.0, 1.0)).exp();
            *beta = beta.clamp(1e-4, 10.0);
        }
        Ok(out)
    }

    /// Prompts of an iteration, each twice: a walk through permutations of all of them.
    fn asked(&self, number: u64) -> Vec<(usize, Draws)> {
        let (all, count) = (self.prompts.len() as u64, self.config.prompts as u64);
        let seed = self.seed.to_le_bytes();
        let mut asked = Vec::new();
        for visit in number * count..(number + 1) * count {
            let round = (visit / all).to_le_bytes();
            let order = permutation(all as usize, &[&seed, b"prompts", &round]);
            let prompt = order[(visit % all) as usize];
            for sample in 0..2u64 {
                let (visit, sample) = (visit.to_le_bytes(), sample.to_le_bytes());
                asked.push((prompt, Draws::new(&[&seed, b"response", &visit, &sample])));
            }
        }
        asked
    }

    fn fit(
        &self,
        out: &mut Iteration,
        sequences: &[Sequence],
        pairs: &[Pair],
        trainer: &mut Trainer,
    ) -> Result<()> {
        let config = self.config;
        let mut steps = 0.0;
        for epoch in 0..config.epochs {
            let (seed, number) = (self.seed.to_le_bytes(), out.iteration.to_le_bytes());
            let parts: [&[u8]; 4] = [&seed, b"epoch", &number, &epoch.to_le_bytes()];
            let order = permutation(pairs.len(), &parts);
            let mut loss = 0.0;
            for chosen in order.chunks(config.minibatch) {
                let items: Vec<Item> = chosen
                    .iter()
                    .map(|&p| vec![sequences[2 * p].clone(), sequences[2 * p + 1].clone()])
                    .collect();
                let objective = |i: usize, log_probs: &[Vec<f32>]| {
                    let both = [log_probs[0].as_slice(), log_probs[1].as_slice()];
                    rebel(both, &pairs[chosen[i]], config.eta)
                };
                let mut gradient = self.decoder.gradient(&trainer.lora, &items, &objective)?;
                loss += gradient.losses.iter().sum::<f64>();
                out.gradient += trainer.step(&mut gradient, items.len());
                steps += 1.0;
            }
            out.loss = loss / pairs.len() as f64;
        }
        let targets = pairs.iter().map(|pair| {
            let zero: [&[f32]; 2] = [&[pair.old[0] as f32], &[pair.old[1] as f32]];
            rebel_residual(zero, pair, config.eta).powi(2)
        });
        out.loss_before = targets.sum::<f64>() / pairs.len() as f64;
        out.gradient /= steps;
        out.residual = out.loss.sqrt();
        Ok(())
    }
}
