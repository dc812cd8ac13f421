//! What turns the experts' distributions of a step into one.

use std::sync::Arc;

use experts::NextTokens;
use kernels::{Isa, Team, math};
use lm::LanguageModel;
use lm::sampling::log_softmax;

use crate::{Error, Result};

/// What a mixer sees at one token. A mixer's answer for a sequence depends on that sequence's rows and
/// history alone, so results do not depend on who else is in the batch.
#[derive(Debug)]
pub struct Step<'a> {
    /// The experts' log-probabilities, `[experts, sequences, vocab]`, in nats.
    pub next: &'a NextTokens,
    /// What came before, `[sequences]`.
    pub history: &'a [History],
}

/// A sequence so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Number of the sequence among all that are asked for: it tells sequences apart as they join and
    /// leave.
    pub request: usize,
    /// Tokens of the response.
    pub tokens: Vec<u32>,
    /// Log-probability of these tokens under each expert, summed, in nats, `[experts]`.
    pub log_probs: Vec<f64>,
    /// Token ids of the prompt as the base model reads it; empty unless [`Mixer::reads_context`].
    pub context: Vec<u32>,
    /// Mean negative log-probability of a token of the prompt under each expert, in nats, `[experts]`;
    /// empty unless [`Mixer::reads_prompt`].
    pub prompt: Vec<f64>,
}

/// What a mixer makes of it.
#[derive(Debug, Clone, Default)]
pub struct Mixed {
    /// Log-probabilities of the next token in nats, `[sequences, vocab]`.
    pub log_probs: Vec<f32>,
    /// The weights used, `[sequences, experts]`.
    pub weights: Vec<f32>,
    /// Statistics of the experts' distributions that the mixer looked at, `[sequences, width]`; empty where it looked
    /// at none.
    pub expert_statistics: Vec<f32>,
    /// The distribution cut down to what a training needs ([`pcm::Support`]), `[sequences, width]`; empty where it was
    /// not asked for.
    pub truncated_distributions: Vec<f32>,
}

impl Mixed {
    /// Makes room for a step and calls `row` for every sequence, several at once: its number, room for
    /// its log-probabilities `[vocab]` and for its weights `[experts]`.
    pub fn each(&mut self, step: &Step<'_>, row: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
        let next = step.next;
        let (vocab, experts) = (next.vocab, next.experts);
        self.log_probs.resize(next.sequences * vocab, 0.0);
        self.weights.resize(next.sequences * experts, 0.0);
        let (log_probs, weights) = (&mut self.log_probs, &mut self.weights);
        Team::global().for_each_row_of_two(next.sequences, log_probs, weights, row);
    }

    /// Makes room for a step, lets `weigh` set every sequence's weights and mixes probabilities with them, parts
    /// of the vocabulary at once.
    pub fn probabilities(&mut self, step: &Step<'_>, mut weigh: impl FnMut(usize, &mut [f32])) {
        /// Tokens of a part: what stays in a core's cache.
        const PART: usize = 8192;
        let next = step.next;
        let (vocab, experts) = (next.vocab, next.experts);
        self.log_probs.resize(next.sequences * vocab, 0.0);
        self.weights.resize(next.sequences * experts, 0.0);
        for (i, weights) in self.weights.chunks_mut(experts.max(1)).enumerate() {
            weigh(i, weights);
        }
        let (log_probs, weights) = (&mut self.log_probs, &self.weights);
        Team::global().for_each_part(log_probs, vocab, PART, |i, first, out| {
            let part = first..first + out.len();
            let row = |e: usize| &next.row(e, i)[part.clone()];
            let rows: Vec<&[f32]> = (0..experts).map(row).collect();
            mix_probabilities(&rows, &weights[i * experts..(i + 1) * experts], out);
        });
    }
}

/// Turns the experts' distributions into one.
///
/// A mixer is [`Clone`], because a [`Plan`](crate::Plan) is: the plan keeps it as it was made, and each
/// [`Generator`](crate::Generator) opens a clone. A clone of a mixer that was never opened starts afresh; what it
/// gathers later, from sequences or from the model, is its own.
pub trait Mixer: CloneMixer + Send + Sync {
    /// Mixes one step; `mixed` is overwritten whole and keeps its memory.
    ///
    /// # Errors
    /// When the step does not fit what the mixer was made for.
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()>;

    /// Makes ready for decoding with `model`, the first expert's.
    ///
    /// # Errors
    /// Files that cannot be read, or were made for another base.
    fn open(&mut self, model: &Arc<LanguageModel>) -> Result<()> {
        let _ = model;
        Ok(())
    }

    /// It wants [`History::context`].
    fn reads_context(&self) -> bool {
        false
    }

    /// It wants [`History::prompt`], which costs another pass over the prompt.
    fn reads_prompt(&self) -> bool {
        false
    }
}

/// Clones a mixer whose type is not known. Every [`Mixer`] that is [`Clone`] has it.
pub trait CloneMixer {
    /// The clone.
    fn boxed_clone(&self) -> Box<dyn Mixer>;
}

impl<M: Mixer + Clone + 'static> CloneMixer for M {
    fn boxed_clone(&self) -> Box<dyn Mixer> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Mixer> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

/// `out = log Σ_i w_i exp(rows_i)` over the vocabulary. An expert of weight 0 is not looked at, and
/// one of weight 1 is copied, so one-hot weights reproduce their expert bit for bit.
pub fn mix_probabilities(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    if let Some(only) = weights.iter().position(|&w| w == 1.0) {
        out.copy_from_slice(rows[only]);
        return;
    }
    let isa = Isa::best();
    out.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights).filter(|(_, w)| **w != 0.0) {
        math::exp_add(isa, out, weight, row);
    }
    math::ln_all(isa, out);
}

/// `out = Σ_i w_i rows_i − log Σ exp(..)` for weights of any sign. An expert of weight 0 is not looked at;
/// one-hot weights copy their expert bit for bit. A token that any expert of another weight rules out is
/// ruled out.
pub fn mix_logs(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    let mut used = rows.iter().zip(weights).filter(|(_, w)| **w != 0.0);
    if let (Some((row, 1.0)), None) = (used.next(), used.next()) {
        out.copy_from_slice(row);
        return;
    }
    out.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights).filter(|(_, w)| **w != 0.0) {
        math::axpy(Isa::best(), out, weight, row);
    }
    if weights.iter().any(|w| *w < 0.0) {
        // A negative weight on −∞ gives +∞; such tokens stay ruled out.
        let ruled_out = out.iter_mut().filter(|v| !v.is_finite());
        ruled_out.for_each(|v| *v = f32::NEG_INFINITY);
    }
    normalise(out);
}

/// Refuses a step that has another number of experts than the mixer was made for.
pub(crate) fn same_experts(step: &Step<'_>, expected: usize) -> Result<()> {
    let (experts, sequences) = (step.next.experts, step.next.sequences);
    if experts == expected && step.history.len() == sequences {
        return Ok(());
    }
    Err(Error::Step {
        expected,
        experts,
        histories: step.history.len(),
        sequences,
    })
}

/// Renormalises one row of unnormalised log-probabilities.
pub fn normalise(row: &mut [f32]) {
    log_softmax(row);
}
