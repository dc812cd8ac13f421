//! Fitting the PCM to recorded rollouts: REBEL (arXiv 2404.16767), and PPO (arXiv 1707.06347) as the ablation.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

use lm::objectives::rebel;
use lm::parameter::{above_zero, at_least_one, from_zero_on};
use lm::sampling::permutation;
use lm::tuning::{AdamW, AdamWState, Optimisation};
use serde::{Deserialize, Serialize};

use crate::held_out::{self, Epochs};
use crate::model::Embed;
use crate::pairs::{PreparedPair, evaluate, floor, spread, sums};
use crate::rollout::Chance;
use crate::{Context, Credit, Error, Output, Pcm, PcmGradient, Result, Rollout};

/// How rollouts become a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Algorithm {
    /// Regression of log-ratios on differences of utility; `eta` in nats per standard deviation of utility.
    Rebel {
        /// Default 2 (ours: a mixture of three experts can move a sequence by a few nats).
        eta: f64,
    },
    /// Clipped policy gradient per token.
    Ppo {
        /// Range of the ratio, 0.2 in the paper.
        clip: f64,
    },
}

impl Default for Algorithm {
    fn default() -> Self {
        Self::Rebel { eta: 2.0 }
    }
}

/// Settings of a fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainerConfig {
    /// Default REBEL (paper).
    pub algorithm: Algorithm,
    /// Which token is credited with what of a response's utility. Default `Response` (paper).
    pub credit: Credit,
    /// Passes over the rollouts of an iteration. Default 4 (REBEL's code).
    pub epochs: u64,
    /// Pairs of a step. Default 16 (ours).
    pub minibatch: usize,
    /// Reward of the weights' entropy, in nats (arXiv 1602.01783). Default 0.
    pub entropy: f64,
    /// Penalty `KL(uniform ‖ α)` per token (a prior that keeps every expert alive; ours). Default 0.
    pub uniform: f64,
    /// Gates: what a nat per token of divergence from the base costs, in units of utility, worked out at every token
    /// from its record (ours: exact where `settings: kl`, which takes it from the utility, is a draw). Default 0.
    pub kl: f64,
    /// How gradients become steps.
    pub optimisation: Optimisation,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            credit: Credit::default(),
            epochs: 4,
            minibatch: 16,
            entropy: 0.0,
            uniform: 0.0,
            kl: 0.0,
            optimisation: Optimisation {
                learning_rate: 1e-3,
                ..Optimisation::default()
            },
        }
    }
}

impl TrainerConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        match self.algorithm {
            Algorithm::Rebel { eta } => above_zero("eta", eta)?,
            Algorithm::Ppo { clip } => above_zero("clip", clip)?,
        }
        at_least_one([
            ("epochs", self.epochs),
            ("minibatch", self.minibatch as u64),
        ])?;
        for (name, value) in [
            ("entropy", self.entropy),
            ("uniform", self.uniform),
            ("kl", self.kl),
        ] {
            from_zero_on(name, value)?;
        }
        self.credit.validate()?;
        Ok(self.optimisation.validate()?)
    }
}

/// What a fit did; means over pairs, tokens or steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// Loss per pair in the last epoch.
    pub loss: f64,
    /// REBEL: root mean square of the residual in the last epoch, in nats; of a pair, or of all its segments.
    pub residual: f64,
    /// REBEL over whole responses: what of it no weights could take away, in nats: a mixture of probabilities never
    /// exceeds its best expert. 0 for products.
    pub floor: f64,
    /// Entropy of the weights' shares in nats, in the last epoch.
    pub entropy: f64,
    /// Gates: divergence from the base in nats per token, by the records, in the last epoch; 0 elsewhere.
    pub divergence: f64,
    /// Length of the gradient before clipping, in the last epoch.
    pub gradient: f64,
    /// Replay: share of the squared targets of held-out pairs that the fit explains, each tenth of their prompts at the
    /// epoch that the others choose; 0 elsewhere.
    pub explained: f64,
    /// Its standard error, over prompts.
    #[serde(default)]
    pub explained_error: f64,
}

/// A PCM in training.
#[derive(Debug, Clone)]
pub struct PcmTrainer {
    /// The model.
    pub pcm: Pcm,
    /// Its optimiser.
    pub adam: AdamW,
    /// How it is trained.
    pub config: TrainerConfig,
    /// Steps of the whole training, for the learning rate's schedule.
    pub steps: u64,
}

impl PcmTrainer {
    /// A training that starts, or goes on from `state`.
    ///
    /// # Errors
    /// Settings that make no sense.
    pub fn new(pcm: Pcm, config: TrainerConfig, state: AdamWState, steps: u64) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            pcm,
            adam: AdamW::new(config.optimisation.adamw, state),
            config,
            steps,
        })
    }

    /// Fits to rollouts that come in pairs of the same prompt and preference, sampled from this PCM. Reads nothing
    /// but the records.
    ///
    /// # Errors
    /// An odd number of rollouts, or records that do not fit the PCM.
    pub fn fit(&mut self, rollouts: &[Rollout], embed: &Embed<'_>, parts: &[&[u8]]) -> Result<Fit> {
        let pairs = self.pairs(rollouts)?;
        let scale = spread(&pairs);
        let mut out = Fit {
            floor: self.floor(&pairs, scale),
            ..Fit::default()
        };
        for epoch in 0..self.config.epochs {
            let number = epoch.to_le_bytes();
            let named = [parts, &[&number]].concat();
            self.epoch(&pairs, scale, embed, &named, &mut out)?;
        }
        Ok(out)
    }

    /// Starts anew from `reference` and fits to rollouts of any policies near it, by REBEL's regression:
    /// `ln π(y)/π_ref(y) − ln π(y')/π_ref(y') ≈ η (u − u')`, whoever sampled `y` and `y'`. Pairs of a tenth of the
    /// prompts are held out; the epoch whose loss on theirs is lowest is kept, none if none is below the reference's.
    ///
    /// # Errors
    /// Those of [`Self::fit`]; PPO, which needs its own samples.
    pub fn replay(
        &mut self,
        rollouts: &[Rollout],
        reference: &Pcm,
        embed: &Embed<'_>,
        parts: &[&[u8]],
    ) -> Result<Fit> {
        let Algorithm::Rebel { eta } = self.config.algorithm else {
            return Err(Error::Unsupported(
                "PPO needs samples of the PCM itself; replay is for REBEL",
            ));
        };
        let mut pairs = self.pairs(rollouts)?;
        let scale = spread(&pairs);
        for some in pairs.chunks_mut(self.config.minibatch) {
            let evaluations = evaluate(reference, some, embed)?;
            for (pair, two) in some.iter_mut().zip(evaluations) {
                pair.set_reference_log_probs(two.map(|evaluation| evaluation.log_probs));
            }
        }
        let prompts: BTreeSet<&str> = rollouts.iter().map(|r| r.prompt.as_str()).collect();
        let prompts: Vec<&str> = prompts.into_iter().collect();
        let order = permutation(prompts.len(), &[b"held out"]);
        let apart = order.iter().take(prompts.len().div_ceil(10));
        let apart: BTreeSet<&str> = apart.map(|&i| prompts[i]).collect();
        let kept = |pair: &PreparedPair<'_>| !apart.contains(pair.rollouts[0].prompt.as_str());
        let (pairs, held_out): (Vec<PreparedPair<'_>>, Vec<_>) = pairs.into_iter().partition(kept);
        if pairs.is_empty() || held_out.is_empty() {
            return Err(Error::NothingToHoldOut);
        }
        let mut out = Fit {
            floor: self.floor(&pairs, scale),
            ..Fit::default()
        };
        self.pcm = reference.clone();
        self.adam = AdamW::new(self.config.optimisation.adamw, AdamWState::default());
        self.steps = self.config.epochs * pairs.len().div_ceil(self.config.minibatch) as u64;
        let mut told: BTreeMap<&str, Epochs> = BTreeMap::new();
        let paid = self.judge(&held_out, scale, eta, embed, &mut told)?;
        let mut best = (paid, reference.values().to_vec());
        for epoch in 0..self.config.epochs {
            let number = epoch.to_le_bytes();
            let named = [parts, &[&number]].concat();
            self.epoch(&pairs, scale, embed, &named, &mut out)?;
            let paid = self.judge(&held_out, scale, eta, embed, &mut told)?;
            if paid < best.0 {
                best = (paid, self.pcm.values().to_vec());
            }
        }
        (out.explained, out.explained_error) = held_out::explained(&told);
        self.pcm.set_values(&best.1);
        Ok(out)
    }

    /// All that the fit pays for some pairs; what is left of the regression of each pair and what it pays is added to its
    /// prompt.
    fn judge<'p>(
        &self,
        pairs: &[PreparedPair<'p>],
        scale: f64,
        eta: f64,
        embed: &Embed<'_>,
        told: &mut BTreeMap<&'p str, Epochs>,
    ) -> Result<f64> {
        let price = self.price(scale);
        let mut sum = 0.0;
        let mut by_prompt: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for some in pairs.chunks(self.config.minibatch) {
            let evaluations = evaluate(&self.pcm, some, embed)?;
            let kl = evaluations
                .iter()
                .map(|two| two.iter().map(|e| e.kl).sum::<f64>());
            let kl: Vec<f64> = kl.collect();
            let log_probs = evaluations.into_iter().map(|two| two.map(|e| e.log_probs));
            let log_probs: Vec<_> = log_probs.collect();
            sum += self.regress(some, &log_probs, eta, scale).0 + price * kl.iter().sum::<f64>();
            for (i, pair) in some.iter().enumerate() {
                let alone = i..i + 1;
                let (left, _) = self.regress(&some[alone.clone()], &log_probs[alone], eta, scale);
                let cell = by_prompt
                    .entry(pair.rollouts[0].prompt.as_str())
                    .or_default();
                cell.0 += left;
                cell.1 += left + price * kl[i];
            }
        }
        for (prompt, (left, paid)) in by_prompt {
            let epochs = told.entry(prompt).or_default();
            epochs.left.push(left);
            epochs.paid.push(paid);
        }
        Ok(sum)
    }

    /// What a nat per token of a response's divergence costs in the loss. REBEL's regression has at first the
    /// gradient `−2 η ∇E[u] / scale` a response.
    fn price(&self, scale: f64) -> f64 {
        match self.config.algorithm {
            Algorithm::Rebel { eta } => 2.0 * eta * self.config.kl / scale,
            Algorithm::Ppo { .. } => self.config.kl / scale,
        }
    }

    /// REBEL's loss of some pairs, each for its tokens' log-probabilities, and the derivatives by those of each
    /// segment, pair after pair.
    fn regress(
        &self,
        pairs: &[PreparedPair<'_>],
        log_probs: &[[Vec<f32>; 2]],
        eta: f64,
        scale: f64,
    ) -> (f64, Vec<Vec<f64>>) {
        let mut value = 0.0;
        if self.config.credit == Credit::Response {
            let mut factors = Vec::new();
            for (pair, [a, b]) in pairs.iter().zip(log_probs) {
                let loss = rebel([a, b], &pair.scaled(scale), eta);
                value += loss.value;
                let first = |g: &Vec<f32>| vec![g.first().map_or(0.0, |g| f64::from(*g))];
                factors.extend(loss.gradient.iter().map(first));
            }
            return (value, factors);
        }
        let mut residuals = Vec::new();
        for (pair, log_probs) in pairs.iter().zip(log_probs) {
            for (i, log_probs) in log_probs.iter().enumerate() {
                let now = sums(log_probs, &pair.segments[i]);
                let old = now.iter().zip(&pair.old[i]);
                let segments = old.zip(&pair.advantages[i]);
                let residual = segments.map(|((now, old), a)| now - old - eta * a / scale);
                residuals.push(residual.collect::<Vec<f64>>());
            }
        }
        // What is the same for all that have a segment is the normaliser's, as what is the same for a pair.
        let longest = residuals.iter().map(Vec::len).max().unwrap_or(0);
        for k in 0..longest {
            let present = || residuals.iter().filter_map(|r| r.get(k));
            let mean = present().sum::<f64>() / present().count() as f64;
            let present = residuals.iter_mut().filter_map(|r| r.get_mut(k));
            for residual in present {
                *residual -= mean;
                value += *residual * *residual;
                *residual *= 2.0;
            }
        }
        (value, residuals)
    }

    fn pairs<'r>(&self, rollouts: &'r [Rollout]) -> Result<Vec<PreparedPair<'r>>> {
        let output = self.pcm.config().output;
        if output.reads_base() && (self.config.entropy > 0.0 || self.config.uniform > 0.0) {
            return Err(Error::Unsupported(
                "entropy and uniform are for weights that sum to 1, not for gates",
            ));
        }
        if self.config.kl > 0.0 && !output.reads_base() {
            return Err(Error::Unsupported(
                "kl is worked out where the base takes part, with gates",
            ));
        }
        for rollout in rollouts {
            rollout.check(self.pcm.config().experts.len(), output)?;
        }
        if rollouts.is_empty() || !rollouts.len().is_multiple_of(2) {
            return Err(Error::Unpaired);
        }
        let credit = self.config.credit;
        let mut advantages = credit.advantages(rollouts)?.into_iter();
        let pairs = rollouts.chunks(2).map(|pair| {
            let mut prepared = PreparedPair {
                rollouts: pair,
                segments: [0, 1].map(|i: usize| credit.segments(&pair[i])),
                advantages: [(); 2].map(|()| advantages.next().unwrap_or_default()),
                old: [Vec::new(), Vec::new()],
            };
            prepared.set_reference_log_probs([0, 1].map(|i: usize| pair[i].behaviour.clone()));
            prepared
        });
        Ok(pairs.collect())
    }

    fn floor(&self, pairs: &[PreparedPair<'_>], scale: f64) -> f64 {
        let config = self.pcm.config();
        match self.config.algorithm {
            Algorithm::Rebel { eta }
                if config.output == Output::Probabilities
                    && self.config.credit == Credit::Response =>
            {
                floor(pairs, eta / scale, config.experts.len())
            }
            _ => 0.0,
        }
    }

    /// One pass over all pairs.
    fn epoch(
        &mut self,
        pairs: &[PreparedPair<'_>],
        scale: f64,
        embed: &Embed<'_>,
        parts: &[&[u8]],
        out: &mut Fit,
    ) -> Result<()> {
        let order = permutation(pairs.len(), parts);
        (out.loss, out.entropy) = (0.0, 0.0);
        (out.divergence, out.gradient) = (0.0, 0.0);
        let mut regression = 0.0;
        for chosen in order.chunks(self.config.minibatch) {
            let chosen: Vec<PreparedPair<'_>> = chosen.iter().map(|&p| pairs[p].clone()).collect();
            let step = self.gradient(&chosen, scale, embed)?;
            let share = chosen.len() as f64 / pairs.len() as f64;
            out.loss += step.loss * share;
            regression += step.regression * share;
            out.entropy += step.entropy * share;
            out.divergence += step.divergence * share;
            out.gradient += self.step(step.gradient) * share;
        }
        if matches!(self.config.algorithm, Algorithm::Rebel { .. }) {
            out.residual = regression.max(0.0).sqrt();
        }
        Ok(())
    }

    /// One step; returns the gradient's length before clipping.
    fn step(&mut self, mut gradient: PcmGradient) -> f64 {
        let optimisation = &self.config.optimisation;
        let norm = optimisation.clip(&mut gradient.values);
        let rate = optimisation.rate(self.adam.state.step, self.steps);
        let mut values = self.pcm.values().to_vec();
        self.adam.step(&mut values, &gradient.values, rate);
        self.pcm.set_values(&values);
        norm
    }

    /// What each segment's log-probability is to be pushed by, `[responses][segments]`, and the mean loss of REBEL's
    /// regression. Its factors need both responses of a pair, whose log-probabilities come first.
    fn pushes(
        &self,
        pairs: &[PreparedPair<'_>],
        scale: f64,
        embed: &Embed<'_>,
    ) -> Result<(f64, Vec<Vec<f64>>)> {
        let count = pairs.len() as f64;
        match self.config.algorithm {
            Algorithm::Rebel { eta } => {
                let evaluations = evaluate(&self.pcm, pairs, embed)?.into_iter();
                let log_probs: Vec<_> = evaluations.map(|two| two.map(|e| e.log_probs)).collect();
                let (value, mut factors) = self.regress(pairs, &log_probs, eta, scale);
                factors.iter_mut().flatten().for_each(|f| *f /= count);
                Ok((value / count, factors))
            }
            Algorithm::Ppo { .. } => {
                let advantages = pairs.iter().flat_map(|p| &p.advantages);
                let scaled = advantages.map(|a| a.iter().map(|a| a / scale).collect());
                Ok((0.0, scaled.collect()))
            }
        }
    }

    /// Mean loss of some pairs and its gradient.
    fn gradient(
        &self,
        pairs: &[PreparedPair<'_>],
        scale: f64,
        embed: &Embed<'_>,
    ) -> Result<StepResult> {
        let rollouts: Vec<&Rollout> = pairs.iter().flat_map(|p| p.rollouts).collect();
        let items: Vec<(&Context, &[u32])> = rollouts
            .iter()
            .map(|r| (&r.context, r.tokens.as_slice()))
            .collect();
        let segments: Vec<&[Range<usize>]> = pairs
            .iter()
            .flat_map(|p| p.segments.iter().map(Vec::as_slice))
            .collect();
        let (regression, pushes) = self.pushes(pairs, scale, embed)?;
        let (price, count) = (self.price(scale), pairs.len() as f64);
        let sums = Mutex::new(vec![Sums::default(); rollouts.len()]);
        let gradient = self.pcm.gradient(&items, embed, |i, logits| {
            let segments = segments[i].iter().zip(&pushes[i]);
            let (slope, sum) = self.slope(rollouts[i], segments, logits, price, count);
            sums.lock().unwrap_or_else(|e| e.into_inner())[i] = sum;
            slope
        })?;
        let sums = sums.into_inner().unwrap_or_else(|e| e.into_inner());
        let total = |get: fn(&Sums) -> f64| sums.iter().map(get).sum::<f64>();
        let responses = rollouts.len() as f64;
        let kl = total(|s| s.kl);
        Ok(StepResult {
            loss: regression + (total(|s| s.loss) + price * kl) / count,
            regression,
            entropy: total(|s| s.entropy) / responses,
            divergence: kl / responses,
            gradient,
        })
    }

    /// Derivatives of the mean loss of `count` pairs by one response's logits, `[tokens, experts]`, and what is
    /// summed up of it. `price` is that of a nat of divergence; each segment comes with its push.
    fn slope<'s>(
        &self,
        rollout: &Rollout,
        segments: impl Iterator<Item = (&'s Range<usize>, &'s f64)> + Clone,
        logits: &[f32],
        price: f64,
        count: f64,
    ) -> (Vec<f32>, Sums) {
        let n = self.pcm.config().experts.len();
        let output = self.pcm.config().output;
        let steps = rollout.tokens.len() as f64;
        let (mut slopes, mut sums) = (Vec::with_capacity(logits.len()), Sums::default());
        let rows = logits.chunks(n).enumerate();
        for ((token, z), old) in rows.zip(&rollout.behaviour) {
            let Chance {
                log_prob,
                slope,
                kl,
                kl_slope,
                weights,
            } = rollout.chance(token, z, output);
            let segment = segments.clone().find(|(range, _)| range.contains(&token));
            let push = segment.map_or(0.0, |(_, push)| *push);
            let factor = match self.config.algorithm {
                Algorithm::Rebel { .. } => push,
                Algorithm::Ppo { clip } => {
                    let ratio = (log_prob - f64::from(*old)).exp();
                    let clipped = ratio.clamp(1.0 - clip, 1.0 + clip);
                    let (free, bound) = (ratio * push, clipped * push);
                    sums.loss -= free.min(bound) / steps;
                    let open = free <= bound;
                    if open { -free / steps / count } else { 0.0 }
                }
            };
            sums.kl += kl / steps;
            let named = weights.iter().filter(|a| **a > 0.0).count() as f64;
            let sum: f64 = weights.iter().sum();
            let shares = weights.iter().map(|a| a / sum).filter(|a| *a > 0.0);
            let entropy = -shares.map(|a| a * a.ln()).sum::<f64>();
            sums.entropy += entropy / steps;
            for ((a, s), k) in weights.iter().zip(&slope).zip(&kl_slope) {
                let mut value = factor * s + price * k / steps / count;
                if *a > 0.0 {
                    let weight = 1.0 / steps / count;
                    value += self.config.entropy * weight * a * (a.ln() + entropy);
                    value += self.config.uniform * weight * (a - 1.0 / named);
                }
                slopes.push(value as f32);
            }
        }
        (slopes, sums)
    }
}

/// Means over a response's tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    loss: f64,
    entropy: f64,
    kl: f64,
}

struct StepResult {
    loss: f64,
    /// REBEL's part of it.
    regression: f64,
    entropy: f64,
    divergence: f64,
    gradient: PcmGradient,
}
