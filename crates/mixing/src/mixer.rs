use experts::NextTokens;
use kernels::{Isa, Shared, Team, math};
use lm::sampling::log_softmax;

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
    /// Makes room for a step and calls `row` for every sequence, several at once: its number, room for
    /// its log-probabilities `[vocab]` and for its weights `[experts]`.
    pub fn each(&mut self, step: &Step<'_>, row: impl Fn(usize, &mut [f32], &mut [f32]) + Sync) {
        let next = step.next;
        let (vocab, experts) = (next.vocab, next.experts);
        self.log_probs.resize(next.sequences * vocab, 0.0);
        self.weights.resize(next.sequences * experts, 0.0);
        let (log_probs, weights) = (
            Shared::new(&mut self.log_probs),
            Shared::new(&mut self.weights),
        );
        Team::global().for_each(next.sequences, |i| {
            // SAFETY: each number is handed out once.
            let (log_probs, weights) = unsafe {
                let log_probs = log_probs.write(i * vocab..(i + 1) * vocab);
                (log_probs, weights.write(i * experts..(i + 1) * experts))
            };
            row(i, log_probs, weights);
        });
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
    let isa = Isa::best();
    out.fill(0.0);
    for (row, &weight) in rows.iter().zip(weights).filter(|(_, w)| **w != 0.0) {
        math::exp_add(isa, out, weight, row);
    }
    math::ln_all(isa, out);
}

/// Renormalises one row of unnormalised log-probabilities.
pub fn normalise(row: &mut [f32]) {
    log_softmax(row);
}
