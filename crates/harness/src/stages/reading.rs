//! The order in which batches are made, and which prompts each of them asks which experts to read.
//!
//! Strategies and preferences answer the same prompts. Batches of the same prompts come one after another, so that
//! what one of them has read is still there for the next, and [`uses`] tells the experts' cache what is still to come.
//! Files of rows, and their order in the results, do not follow from it.

use std::collections::HashMap;

use anyhow::Result;
use experts::prompts::PromptKey;

use crate::models::Pools;
use crate::plan::{Batch, Entry, RunPlan, Stage};

/// Entries with those of their batches that are to be made.
pub(super) type Work<'a> = [(&'a Entry, Vec<&'a Batch>)];

/// Which batch of which entry comes when: those with the same last prompt together, and references before what refers
/// to them. Merging takes time, so what is merged for an entry makes all of its batches, at the end.
pub(super) fn order(entries: &Work<'_>) -> Vec<(usize, usize)> {
    let mut order = Vec::new();
    for (number, (entry, batches)) in entries.iter().enumerate() {
        let samples = entry.samples.max(1) as usize;
        for (position, batch) in batches.iter().enumerate() {
            let last = batch.requests.end.saturating_sub(1);
            let prompt = match entry.stage {
                Stage::Reference => batch.requests.start / samples,
                Stage::Validation | Stage::Generation => last / samples,
            };
            let rank = match entry.plan.merged.is_empty() {
                true => (false, prompt, number),
                false => (true, number, prompt),
            };
            order.push((rank, number, position));
        }
    }
    order.sort_unstable();
    let places = order.into_iter();
    places
        .map(|(_, number, position)| (number, position))
        .collect()
}

/// Which step of an order asks for which reading, once for each lane.
///
/// # Errors
/// A prompt that an expert's template refuses, an expert that is not open.
pub(super) fn uses(
    plan: &RunPlan<'_>,
    pools: &Pools,
    entries: &Work<'_>,
    order: &[(usize, usize)],
) -> Result<Vec<(PromptKey, Vec<u64>)>> {
    let mut uses: Vec<(PromptKey, Vec<u64>)> = Vec::new();
    let mut numbers: HashMap<(&str, String, *const u8), usize> = HashMap::new();
    for (step, &(number, batch)) in order.iter().enumerate() {
        let (entry, batches) = &entries[number];
        let served = &entry.plan;
        // Texts that no expert makes.
        if served.text.is_some() || served.recorded.is_some() {
            continue;
        }
        let phrase = format!("{:?}{:?}", served.instruction, served.examples);
        let mut readers: Vec<(&str, &str)> = Vec::new();
        for name in &served.experts {
            if !served.merged.contains_key(name) {
                readers.push((name, &phrase));
            }
        }
        // The base reads the prompt as it is asked, unless it does so already.
        if plan.experiment.kl && !readers.contains(&(mixing::BASE, UNPHRASED)) {
            readers.push((mixing::BASE, UNPHRASED));
        }
        for (name, phrase) in readers {
            let expert = pools.expert(name)?;
            for (prompt, _) in plan.requests(entry, batches[batch]) {
                let key = (name, phrase.to_string(), std::ptr::from_ref(prompt).cast());
                let number = match numbers.get(&key) {
                    Some(number) => *number,
                    None => {
                        let text = match phrase {
                            UNPHRASED => prompt.prompt.clone(),
                            _ => served.prompt(&prompt.prompt)?,
                        };
                        uses.push((PromptKey::new(expert, expert.tokens(&text)?), Vec::new()));
                        numbers.insert(key, uses.len() - 1);
                        uses.len() - 1
                    }
                };
                let times = served.samples.max(1);
                uses[number]
                    .1
                    .extend(std::iter::repeat_n(step as u64, times));
            }
        }
    }
    Ok(uses)
}

/// What the process will take at most while it makes all of this, about, in bytes: what it takes now, a lane for each
/// expert and sequence as long as the longest prompt and response, and the prompts that are kept. `None` where an engine
/// does not say, or nobody reads anything.
pub(super) fn peak_bytes(
    plan: &RunPlan<'_>,
    pools: &Pools,
    entries: &Work<'_>,
    uses: &[(PromptKey, Vec<u64>)],
) -> Option<u64> {
    let experiment = plan.experiment;
    let longest = uses.iter().map(|(key, _)| key.tokens().len()).max()?;
    let mut per_token = pools.base().engine.bytes_per_token()?;
    let mut lanes = 0;
    for (entry, batches) in entries {
        for name in entry.plan.experts.iter() {
            if let Ok(expert) = pools.expert(name) {
                per_token = per_token.max(expert.model.engine.bytes_per_token()?);
            }
        }
        let requests = batches.iter().map(|batch| batch.requests.len()).max();
        let sequences = requests.unwrap_or(0) * entry.plan.samples.max(1);
        let passes = entry.plan.experts.len() + usize::from(experiment.kl);
        lanes = lanes.max(passes * sequences.min(experiment.batch_size));
    }
    let logits = pools.base().config().vocab_size * size_of::<f32>();
    let lane = (longest + experiment.generation.max_new_tokens) * per_token;
    let kept = uses
        .iter()
        .map(|(key, _)| key.tokens().len() * per_token + logits);
    // An expert's logits, and the mixture's.
    let working = lanes * (lane + 2 * logits) + kept.sum::<usize>().min(pools.prompts().budget());
    Some(kernels::memory::resident_bytes()? + working as u64)
}

/// How a plan without instruction and examples is told.
const UNPHRASED: &str = "None[]";
