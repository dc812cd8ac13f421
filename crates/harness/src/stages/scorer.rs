//! The scorer of a run: rewards of its dimensions, beside those of the base's responses.
//!
//! ```
//! use lm::chat::{Message, Prompt};
//! use mope_harness::experiment::Experiment;
//! use mope_harness::stages::scorer::{open_scorer, utility};
//!
//! let folder = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let mut scorer = open_scorer(&experiment)?;
//! let prompt = Prompt::Chat(vec![Message::user("Why is the sky blue?")]);
//! scorer.set_reference("sky", &prompt, "It is blue.")?;
//! let utility = |response: &str| {
//!     let rewards = scorer.reward(&prompt, response)?;
//!     utility(&experiment, &scorer, "kind", "sky", &rewards)
//! };
//! // As good as the reference is one half.
//! assert_eq!(utility("It is blue.")?, 0.5);
//! assert!(utility("Thank you, what a lovely question!")? > 0.5);
//! # anyhow::Ok(())
//! ```

use std::collections::HashMap;

use anyhow::{Context, Result};
use eval::rows::GenerationRow;
use eval::scoring::{ResponseScorer, Rewards};
use lm::chat::Prompt;

use crate::experiment::Experiment;
use crate::prompts::NamedPrompt;

/// Opens the rewards of an experiment's dimensions; there are no references yet.
///
/// # Errors
/// A reward model that cannot be opened.
pub fn open_scorer(experiment: &Experiment) -> Result<ResponseScorer> {
    let dimensions = experiment.dimensions.iter();
    let tokens = experiment.generation.max_new_tokens;
    Ok(ResponseScorer::of_run(
        dimensions,
        experiment.utility,
        tokens,
        &experiment.device,
    )?)
}

/// Utility of a response to the prompt called `id`, whose reference is set.
///
/// # Errors
/// No reference response to this prompt, no such preference.
pub fn utility(
    experiment: &Experiment,
    scorer: &ResponseScorer,
    preference: &str,
    id: &str,
    rewards: &Rewards,
) -> Result<f64> {
    let reference = scorer.reference(id)?.normalised;
    let shares = experiment.preference(preference)?.shares()?;
    Ok(scorer.utility(shares, &rewards.normalised, &reference)?)
}

/// Tells a scorer the base's responses.
///
/// # Errors
/// A response to no prompt, a reward model that fails.
pub(super) fn set_references(
    scorer: &mut ResponseScorer,
    prompts: &[NamedPrompt],
    rows: &[GenerationRow],
) -> Result<()> {
    let prompts = by_id(prompts);
    let reference = |row| Ok((row, prompt_of(&prompts, row)?));
    // Further samples are what bounds are read off.
    let rows = rows.iter().filter(|row| row.identity.sample == 0);
    let references = rows.map(reference).collect::<Result<Vec<_>>>()?;
    let references: Vec<(&str, &Prompt, &str)> = references
        .iter()
        .map(|(row, prompt)| (row.identity.prompt.as_str(), *prompt, row.response.as_str()))
        .collect();
    Ok(scorer.set_references(&references)?)
}

/// Prompts by their ids.
pub(super) fn by_id(prompts: &[NamedPrompt]) -> HashMap<&str, &Prompt> {
    prompts.iter().map(|p| (p.id.as_str(), &p.prompt)).collect()
}

/// The prompt that a row answers.
///
/// # Errors
/// None of them.
pub(super) fn prompt_of<'p>(
    prompts: &HashMap<&str, &'p Prompt>,
    row: &GenerationRow,
) -> Result<&'p Prompt> {
    let id = row.identity.prompt.as_str();
    let prompt = prompts.get(id).copied();
    prompt.with_context(|| format!("no prompt '{id}'"))
}
