//! What is wrong with an experiment, as far as it is known before a model is fetched or its weights are read.

use anyhow::{Context, Result};
use experts::Files;
use lm::Adapter;

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::models::find;
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

/// Checks all that a run would refuse before it opens a model: prompt sets, recorded responses, what retention reads,
/// the device and its number formats, names of models, adapters' files. What needs the models themselves (shapes,
/// lengths of prompts in tokens) is found by the run, still before anything is generated. Returns the prompt sets, with
/// their warnings.
///
/// # Errors
/// The first mistake, with the name of the expert or the file.
///
/// ```no_run
/// use mope_harness::check::check;
/// use mope_harness::experiment::Experiment;
/// let experiment = Experiment::load("experiments/quickstart/quickstart.ron".as_ref())?;
/// println!("{} prompts", check(&experiment)?.prompts.len());
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn check(experiment: &Experiment) -> Result<Splits> {
    let offered = experiment.device.offers(experiment.format);
    offered.map_err(|e| usage(e.to_string()))?;
    find(&experiment.model)?;
    for (name, expert) in experiment.experts.iter() {
        let known = match expert.files() {
            Some(Files::Model(model)) => find(&model).map(|_| ()),
            Some(Files::Adapter(folder)) => {
                let described = Adapter::describe(&folder);
                described.map(|_| ()).map_err(anyhow::Error::from)
            }
            None => Ok(()),
        };
        known.with_context(|| format!("expert '{name}'"))?;
    }
    if let Some(retention) = &experiment.retention {
        retain::check(retention)?;
    }
    let mut splits = Splits::load(experiment)?;
    recorded::load_all(experiment, &splits.prompts)?;
    splits.warnings.extend(unused(experiment)?);
    Ok(splits)
}
