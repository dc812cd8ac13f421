//! Another strategy over experts of which only the k likeliest tokens are seen, renormalised: what a
//! remote interface shows. Asked for by reviewers of arXiv 2407.04181.
//!
//! `p_i(y) ← p_i(y) [y ∈ top k of p_i] / Σ_{top k} p_i`

use std::sync::Arc;

use experts::NextTokens;
use kernels::Team;
use lm::LanguageModel;
use lm::sampling::keep_likeliest;
use serde::{Deserialize, Serialize};

use super::{Fixed, Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::at_least_one;
use crate::{Distribution, Error, Mixed, Mixer, Plan, Preference, Result, Step};

/// A strategy that sees the likeliest tokens of each expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Tokens that are seen. Default 20 (ours: what remote interfaces show).
    #[serde(default = "default_k")]
    pub k: usize,
    /// The strategy; one that needs full distributions is refused.
    pub of: Box<Strategy>,
}

fn default_k() -> usize {
    20
}

impl Method for TopK {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        at_least_one("k", self.k)?;
        let inner = self.of.plan(preference, experts)?;
        if inner.requirements.distribution == Distribution::Full {
            return Err(Error::Truncated(self.k));
        }
        if !inner.candidates.is_empty() {
            return Err(Error::StillToBeChosen { strategy: None });
        }
        let mixer = Truncated {
            k: self.k,
            inner: inner.mixer,
            next: NextTokens::default(),
        };
        Ok(Plan {
            mixer: Box::new(mixer),
            ..inner
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::strategies([&mut *self.of])
    }

    fn reproduces_single_expert(&self) -> bool {
        // The expert that it reproduces is the truncated one.
        false
    }

    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        let of = Box::new(self.of.at_strength(strength)?);
        Some(Strategy::TopK(Self { of, ..self.clone() }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let top_k = Self {
            k: 4,
            of: Box::new(Strategy::Fixed(Fixed::default())),
        };
        vec![Instance::new(top_k).reference("top_k")]
    }
}

#[derive(Clone)]
struct Truncated {
    k: usize,
    inner: Box<dyn Mixer>,
    next: NextTokens,
}

impl Mixer for Truncated {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        self.next.clone_from(step.next);
        let vocab = self.next.vocab;
        let (rows, k) = (step.next.experts * step.next.sequences, self.k);
        let log_probs = &mut self.next.log_probs[..rows * vocab];
        Team::global().for_each_row(log_probs, vocab, |_, row| keep_likeliest(row, k));
        let step = Step {
            next: &self.next,
            history: step.history,
        };
        self.inner.mix(&step, mixed)
    }

    fn open(&mut self, model: &Arc<LanguageModel>) -> Result<()> {
        self.inner.open(model)
    }

    fn reads_context(&self) -> bool {
        self.inner.reads_context()
    }

    fn reads_prompt(&self) -> bool {
        self.inner.reads_prompt()
    }
}
