//! Where a training stands: what its checkpoint keeps, and how the next process resumes from it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use experts::training::Checkpoint;
use lm::tuning::AdamWState;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Job;
use super::file::Training;
use harness::failure::usage;
use harness::store::manifest::{Session, now};

/// What a checkpoint keeps besides parameters and optimiser.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct TrainingState {
    /// The training with all defaults and the hashes of its inputs, to see that it is the same one.
    training: Value,
    /// Iterations or steps made.
    pub done: u64,
    /// All of them are.
    #[serde(default)]
    pub finished: bool,
    /// Weight of the KL divergence.
    pub beta: f64,
    /// One object of numbers per iteration or step.
    pub metrics: Vec<Map<String, Value>>,
    /// The last iteration's responses, as Markdown.
    pub samples: String,
    /// Processes that worked on it.
    pub sessions: Vec<Session>,
}

impl TrainingState {
    /// Keeps the numbers of an iteration or step that is done.
    pub fn record_round(&mut self, round: &impl Serialize) -> Result<()> {
        if let Value::Object(numbers) = serde_json::to_value(round)? {
            // JSON has no NaN and no infinity.
            let lost = |name: &&&str| numbers.get(**name).is_some_and(Value::is_null);
            if let Some(name) = ["loss", "gradient"].iter().find(lost) {
                bail!(
                    "round {}: the {name} is no number (NaN or infinity), so nothing of this round was kept; lower \
                     learning_rate, or look for extreme rewards in the data",
                    self.done
                );
            }
            self.metrics.push(numbers);
        }
        self.done += 1;
        Ok(())
    }

    /// Closes the session of this process, which began then.
    pub fn finish_session(&mut self, began: Instant) {
        if let Some(session) = self.sessions.last_mut() {
            session.finished = Some(now());
            let seconds = began.elapsed().as_secs_f64();
            session.seconds.insert("train".into(), seconds);
        }
    }

    /// Numbers of the last iteration or step, by name.
    pub fn last(&self) -> Map<String, Value> {
        self.metrics.last().cloned().unwrap_or_default()
    }
}

/// The checkpoint of a training's folder.
pub(super) fn checkpoint_file(out: &Path) -> PathBuf {
    out.join("checkpoint.safetensors")
}

/// From a checkpoint's numbers if there is one, which must be of the same training; `values` become those that it
/// holds. `training` is what decides whether it is the same, `beta` the weight of the KL divergence to start with.
///
/// # Errors
/// [`harness::failure::Usage`] for a checkpoint of another training; a damaged file.
pub(super) fn resume(
    job: &Job<'_>,
    training: &Training,
    beta: f64,
    values: &mut Vec<f32>,
) -> Result<(AdamWState, TrainingState)> {
    let file = checkpoint_file(job.out());
    let known = json!({"training": training.anywhere(), "inputs": job.inputs});
    let stored: Option<Checkpoint<TrainingState>> = Checkpoint::load(&file)?;
    let (adam, mut state) = match stored {
        Some(stored) => {
            if !same(&stored.progress.training, &known) || stored.values.len() != values.len() {
                return Err(usage(format!(
                    "{} belongs to a training with other settings or inputs; choose another folder \
                     with --out, or remove it to start anew",
                    file.display()
                )));
            }
            *values = stored.values;
            (stored.adam, stored.progress)
        }
        None => {
            let fresh = TrainingState {
                beta,
                ..TrainingState::default()
            };
            (AdamWState::default(), fresh)
        }
    };
    state.training = known;
    state.sessions.push(Session::start());
    Ok((adam, state))
}

/// Whether two trainings are one, words that have other names by now and defaults that were added since included.
fn same(stored: &Value, known: &Value) -> bool {
    let read = |document: &Value| {
        let training = document.get("training")?.clone();
        serde_json::from_value::<Training>(training).ok()
    };
    let equal = match (read(stored), read(known)) {
        (Some(stored), Some(known)) => stored == known,
        // One of them cannot be read back, as with a number that JSON does not have.
        _ => stored.get("training") == known.get("training"),
    };
    equal && stored.get("inputs") == known.get("inputs")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn training(extra: &str) -> Training {
        let text = format!("(name: \"a\", model: \"m\", recipe: Sft(data: \"d.jsonl\"), {extra})");
        harness::config::parse(Path::new("a.ron"), &text).unwrap()
    }

    #[test]
    fn a_training_is_the_same_by_any_of_its_words() {
        let document = |training: &Training| json!({"training": training, "inputs": ["a"]});
        let known = document(&training("format: Bf16, sampling_format: Q8"));
        let mut before = known.clone();
        let fields = before["training"].as_object_mut().unwrap();
        for (old, new) in [
            ("weights", "format"),
            ("sampling_weights", "sampling_format"),
        ] {
            let value = fields.remove(new).unwrap();
            fields.insert(old.into(), value);
        }
        // A version that did not have this field yet.
        fields.remove("strength").unwrap();
        assert!(same(&before, &known) && same(&known, &known));
        for other in ["format: Bf16", "format: Bf16, sampling_format: Q8, seed: 1"] {
            assert!(!same(&before, &document(&training(other))), "{other}");
        }
        before["inputs"] = json!(["b"]);
        assert!(!same(&before, &known));
        before["training"] = json!("what is this?");
        assert!(!same(&before, &known));
    }
}
