//! One training file, many trainings: fields set from outside.

use anyhow::Result;

use super::file::{Recipe, Training};
use harness::failure::usage;
use harness::sweep::{Setting, combinations};

/// Every combination of the settings: a name for those that vary, and the training.
///
/// # Errors
/// A field that is not there, or a value that does not fit.
pub fn trainings(training: &Training, settings: &[Setting]) -> Result<Vec<(String, Training)>> {
    let mut sweep = combinations(training, settings)?;
    for (_, set) in &mut sweep {
        // A document sorts by name; the file's order is that of the PCM's experts.
        if let (Recipe::Pcm(new), Recipe::Pcm(old)) = (&mut set.recipe, &training.recipe) {
            new.dimensions.sort_like(&old.dimensions.names());
            new.experts.sort_like(&old.experts.names());
        }
        set.validate().map_err(|e| usage(format!("--set: {e:#}")))?;
    }
    Ok(sweep)
}
