use std::collections::BTreeMap;
use std::sync::Arc;

use experts::NextTokens;
use kernels::{Isa, Team, math};
use lm::LanguageModel;
use lm::chat::{Message, Prompt};
use lm::sampling::log_softmax;

use crate::merging::Recipe;
use crate::{Result, Strategy, refuse};

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
    /// What else the mixer looked at and a training wants to know, `[sequences, width]`; mostly empty.
    pub features: Vec<f32>,
    /// What a training has to know of the distribution, `[sequences, width]`; mostly empty.
    pub records: Vec<f32>,
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
pub trait Mixer: Send + Sync {
    /// Mixes one step; `mixed` is overwritten whole and keeps its memory.
    ///
    /// # Errors
    /// When the step does not fit what the mixer was made for.
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()>;

    /// Makes ready for decoding with `model`, the first expert's.
    ///
    /// # Errors
    /// What keeps it from doing so.
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

/// What may serve a preference.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// What it is called in tables.
    pub name: String,
    /// What it is.
    pub strategy: Strategy,
}

/// How a strategy serves one preference.
pub struct Plan {
    /// Experts to run, in the order of the mixer's weights. Sorted by name where there are several,
    /// so that results don't depend on the order in which a config lists them.
    pub experts: Vec<String>,
    /// Instruction added to every prompt.
    pub instruction: Option<String>,
    /// Turns shown before every prompt.
    pub examples: Vec<Message>,
    /// Mixes them.
    pub mixer: Box<dyn Mixer>,
    /// Responses that are made for each one that is kept, by utility; attempt `a` of request `r` is sequence
    /// `r · samples + a` ([`History::request`]).
    pub samples: usize,
    /// One of these is to serve the preference; which, is still to be found out. The plan's experts are all of
    /// theirs. Empty where nothing is to be chosen.
    pub candidates: Vec<Candidate>,
    /// How experts that run are merged out of others, by name.
    pub merged: BTreeMap<String, Recipe>,
}

impl Plan {
    /// Mixes experts, the prompt as it is.
    pub fn new(experts: Vec<String>, mixer: impl Mixer + 'static) -> Self {
        Self {
            experts,
            instruction: None,
            examples: Vec::new(),
            mixer: Box::new(mixer),
            samples: 1,
            candidates: Vec::new(),
            merged: BTreeMap::new(),
        }
    }

    /// The experts that must be there, each once: those that run, or those that are merged into one that runs.
    pub fn sources(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in &self.experts {
            match self.merged.get(name) {
                Some(recipe) => names.extend(recipe.experts.iter().map(String::as_str)),
                None => names.push(name),
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The prompt as the experts get it.
    ///
    /// # Errors
    /// A raw prompt where an instruction or examples are to be added.
    pub fn prompt(&self, prompt: &Prompt) -> Result<Prompt> {
        let mut prompt = match self.examples.as_slice() {
            [] => prompt.clone(),
            turns => prompt.after(turns)?,
        };
        if let Some(text) = &self.instruction {
            prompt = prompt.instructed(text)?;
        }
        Ok(prompt)
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            experts,
            instruction,
            examples,
            samples,
            candidates,
            merged,
            mixer: _,
        } = self;
        f.debug_struct("Plan")
            .field("experts", experts)
            .field("instruction", instruction)
            .field("examples", examples)
            .field("samples", samples)
            .field("candidates", candidates)
            .field("merged", merged)
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
        // Less than nothing of what is impossible would be certainty.
        let ruled_out = out.iter_mut().filter(|v| !v.is_finite());
        ruled_out.for_each(|v| *v = f32::NEG_INFINITY);
    }
    normalise(out);
}

/// Refuses a step that has another number of experts than the mixer was made for.
pub(crate) fn same_experts(step: &Step<'_>, expected: usize) -> Result<()> {
    let experts = step.next.experts;
    if experts != expected || step.history.len() != step.next.sequences {
        let (histories, sequences) = (step.history.len(), step.next.sequences);
        return refuse(format!(
            "made for {expected} experts, the step has {experts} ({histories} histories of \
             {sequences} sequences)"
        ));
    }
    Ok(())
}

/// Renormalises one row of unnormalised log-probabilities.
pub fn normalise(row: &mut [f32]) {
    log_softmax(row);
}
