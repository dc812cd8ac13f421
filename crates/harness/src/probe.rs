//! Whether an expert changes anything: one token of each, beside the base.

use anyhow::Result;
use experts::{ExpertPool, NextTokens};
use lm::sampling::argmax;
use mixing::BASE;
use serde::Serialize;

use crate::experiment::Experiment;
use crate::models::Pools;
use crate::splits::Splits;

/// What an expert makes of the first token of a response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// Its name.
    pub expert: String,
    /// Divergence from the base's distribution, `KL(expert ‖ base)`, in nats, the largest over the prompts that were
    /// tried.
    pub kl: f64,
    /// Largest change of a token's probability.
    pub change: f64,
    /// Share of the prompts after which another token is the likeliest.
    pub other_token: f64,
}

impl Probe {
    /// The expert changes the distribution at all.
    pub fn changes(&self) -> bool {
        self.change > 0.0
    }
}

/// Prompts that are tried (ours).
const PROMPTS: usize = 4;

/// Opens every expert and compares its distribution of the first token with the base's, after the first few prompts.
///
/// # Errors
/// An expert that cannot be opened, or whose vocabulary is not the base's.
pub fn probe(experiment: &Experiment, splits: &Splits) -> Result<Vec<Probe>> {
    let mut pools = Pools::open(experiment)?;
    let prompts = splits.prompts.iter().take(PROMPTS);
    let prompts: Vec<_> = prompts.map(|p| p.prompt.clone()).collect();
    let mut probes = Vec::new();
    for name in experiment.experts.names() {
        if name == BASE {
            continue;
        }
        pools.open_expert(experiment, name)?;
        let experts = [name, BASE].map(|name| pools.expert(name).cloned());
        let pool = ExpertPool::new(experts.into_iter().collect::<Result<_>>()?)?;
        let mut next = NextTokens::default();
        pool.begin(&prompts, 1, &mut next)?;
        let mut found = Probe {
            expert: name.into(),
            kl: 0.0,
            change: 0.0,
            other_token: 0.0,
        };
        for sequence in 0..prompts.len() {
            let (own, base) = (next.row(0, sequence), next.row(1, sequence));
            let pairs = || {
                own.iter()
                    .zip(base)
                    .map(|(p, q)| (f64::from(*p), f64::from(*q)))
            };
            let change = pairs().map(|(p, q)| (p.exp() - q.exp()).abs());
            found.change = change.fold(found.change, f64::max);
            // What an expert does not show has no probability.
            let shown = pairs().filter(|(p, _)| p.is_finite());
            found.kl = found.kl.max(shown.map(|(p, q)| p.exp() * (p - q)).sum());
            let other = argmax(own) != argmax(base);
            found.other_token += f64::from(u8::from(other)) / prompts.len() as f64;
        }
        probes.push(found);
    }
    Ok(probes)
}
