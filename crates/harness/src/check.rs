//! What is wrong with an experiment, as far as it is known before a model is fetched or its weights are read.

use std::path::Path;

use anyhow::{Context, Result};
use experts::Files;
use lm::Adapter;
use lm::source::hub::{Wanted, id_of};

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::memory::{self, Memory};
use crate::models::{Found, find, located_files, missing};
use crate::recorded;
use crate::splits::Splits;
use crate::stages::retain;

/// What a reader should know of experts that no strategy uses: a preference or a strategy is missing, or a name is wrong.
///
/// # Errors
/// Strategies that cannot be resolved.
pub(crate) fn unused(experiment: &Experiment) -> Result<Option<String>> {
    let unused = experiment.unused_experts()?;
    Ok((!unused.is_empty()).then(|| {
        let names = unused.iter().map(|name| format!("'{name}'"));
        let names = names.collect::<Vec<_>>().join(", ");
        format!("no strategy uses expert {names} for any preference")
    }))
}

/// What a check found out.
pub struct Checked {
    /// The prompt sets, with their warnings.
    pub splits: Splits,
    /// What a run would fetch from the hub.
    pub fetched: Vec<String>,
    /// What a run would take of memory; `None` where the base model is not there yet.
    pub memory: Option<Memory>,
}

/// Checks all that a run would refuse before it opens a model: prompt sets, recorded responses, what retention reads,
/// the device and its number formats, names of models, adapters' files. What needs the models themselves (shapes,
/// lengths of prompts in tokens) is found by the run, still before anything is generated. Nothing is fetched.
///
/// # Errors
/// The first mistake, with the name of the expert or the file.
///
/// ```no_run
/// use mope_harness::check::check;
/// use mope_harness::experiment::Experiment;
/// let experiment = Experiment::load("experiments/quickstart/quickstart.ron".as_ref())?;
/// println!("{} prompts", check(&experiment)?.splits.prompts.len());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn check(experiment: &Experiment) -> Result<Checked> {
    let offered = experiment.device.offers(experiment.format);
    offered.map_err(|e| usage(e.to_string()))?;
    let mut fetched: Vec<String> = model(&experiment.model)?.into_iter().collect();
    for (name, expert) in experiment.experts.iter() {
        let known = match expert.files() {
            Some(Files::Model(name)) => model(&name),
            Some(Files::Adapter(folder)) => adapter(&folder),
            None => Ok(None),
        };
        fetched.extend(known.with_context(|| format!("expert '{name}'"))?);
    }
    fetched.sort();
    fetched.dedup();
    if let Some(retention) = &experiment.retention {
        retain::check(retention)?;
    }
    let mut splits = Splits::load(experiment)?;
    recorded::load_all(experiment, &splits.prompts)?;
    splits.warnings.extend(unused(experiment)?);
    let memory = memory::of(experiment, &splits)?;
    if let Some(memory) = &memory {
        let remedy = "lower batch_size or max_new_tokens, or take a smaller format";
        memory.fits("the experiment", remedy)?;
    }
    Ok(Checked {
        splits,
        fetched,
        memory,
    })
}

/// What would be fetched for a model.
fn model(name: &str) -> Result<Option<String>> {
    match find(name)? {
        Found::Hub(id) => missing(&id, Wanted::Model),
        Found::Path(_) | Found::Registered(_) => Ok(None),
    }
}

/// The same for an adapter, which is described where it is there.
fn adapter(folder: &Path) -> Result<Option<String>> {
    let files = Files::Adapter(folder.into());
    match (located_files(Some(&files))?, id_of(folder)?) {
        (None, Some(id)) => missing(&id, Wanted::Adapter),
        (None, None) => Ok(None),
        (Some(folder), _) => {
            Adapter::describe(&folder)?;
            Ok(None)
        }
    }
}
