use experts::NextTokens;
use lm::sampling::log_softmax;
use rayon::prelude::*;

use crate::Result;

/// What a mixer sees at one token.
#[derive(Debug)]
pub struct Step<'a> {
    /// The experts' log-probabilities, `[experts, sequences, vocab]`, in nats.
    pub next: &'a NextTokens,
}

/// What a mixer makes of it.
#[derive(Debug, Clone, Default)]
pub struct Mixed {
    /// Log-probabilities of the next token in nats, `[sequences, vocab]`.
    pub log_probs: Vec<f32>,
    /// The weights used, `[sequences, experts]`.
    pub weights: Vec<f32>,
}

impl Mixed {
    /// Makes room for a step and returns the rows of each sequence: log-probabilities, weights.
    pub fn rows<'a>(
        &'a mut self,
        step: &Step<'_>,
    ) -> impl IndexedParallelIterator<Item = (&'a mut [f32], &'a mut [f32])> {
        let NextTokens {
            experts,
            sequences,
            vocab,
            ..
        } = *step.next;
        self.log_probs.resize(sequences * vocab, 0.0);
        self.weights.resize(sequences * experts, 0.0);
        self.log_probs
            .par_chunks_mut(vocab)
            .zip(self.weights.par_chunks_mut(experts))
    }
}

/// Turns the experts' distributions into one.
pub trait Mixer: Send + Sync {
    /// Mixes one step; `mixed` is overwritten whole and keeps its memory.
    ///
    /// # Errors
    /// When the step does not fit what the mixer was made for.
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()>;
}

/// How a strategy serves one preference.
pub struct Plan {
    /// Experts to run, in the order of the mixer's weights. Sorted by name where there are several,
    /// so that results don't depend on the order in which a config lists them.
    pub experts: Vec<String>,
    /// Instruction added to every prompt.
    pub instruction: Option<String>,
    /// Mixes them.
    pub mixer: Box<dyn Mixer>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            experts,
            instruction,
            ..
        } = self;
        f.debug_struct("Plan")
            .field("experts", experts)
            .field("instruction", instruction)
            .finish_non_exhaustive()
    }
}

/// `out = log Σ_i w_i exp(rows_i)` over the vocabulary. An expert of weight 0 is not looked at, and
/// one of weight 1 is copied, so one-hot weights reproduce their expert bit for bit.
pub fn mix_probabilities(rows: &[&[f32]], weights: &[f32], out: &mut [f32]) {
    if let Some(only) = weights.iter().position(|&w| w == 1.0) {
        out.copy_from_slice(rows[only]);
        return;
    }
    out.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights).filter(|(_, w)| **w != 0.0) {
        for (out, &log_prob) in out.iter_mut().zip(*row) {
            *out += weight * log_prob.exp();
        }
    }
    for out in out {
        *out = out.ln();
    }
}

/// Renormalises one row of unnormalised log-probabilities.
pub fn normalise(row: &mut [f32]) {
    log_softmax(row);
}
