//! What was written down before a run, and how often its prompts were opened.
//!
//! A registration holds the hypotheses, which are one family, the smallest effects that matter, seeds and the hashes of
//! everything that the run is made from. It is written once, before anything is generated, and is never written over.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::models::Pools;
//! use mope_harness::plan::RunPlan;
//! use mope_harness::store::preregistration::register;
//!
//! let folder = tempfile::tempdir()?;
//! let mut experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let file = folder.path().join("registered.json");
//! let first = register(&RunPlan::resolve(&experiment, &mut Pools::open(&experiment)?)?, &file)?;
//! // The same once more is the same registration; another seed is another one.
//! let again = register(&RunPlan::resolve(&experiment, &mut Pools::open(&experiment)?)?, &file)?;
//! assert_eq!(first, again);
//! experiment.seed += 1;
//! let other = register(&RunPlan::resolve(&experiment, &mut Pools::open(&experiment)?)?, &file);
//! assert!(other.err().is_some_and(|e| e.to_string().contains("registered for another run")));
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::{commit, now};
use crate::failure::usage;
use crate::plan::RunPlan;

/// A registration, as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Its file.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// When it was written, in seconds since 1970 (UTC).
    pub written: u64,
}

/// What must be the same: everything but time and commit.
fn content(plan: &RunPlan<'_>) -> Value {
    let experiment = plan.experiment;
    let family: Vec<&str> = experiment.hypotheses.names();
    json!({
        "experiment": experiment.name,
        "hypotheses": experiment.hypotheses,
        "family": family,
        "correction": "Holm",
        "seed": experiment.seed,
        "samples": experiment.samples,
        "repeats": experiment.repeats,
        "prompts": plan.splits.prompts.len(),
        "definition": experiment,
        "inputs": plan.inputs.named(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Writes the registration of a run, or finds it where the same was written before.
///
/// # Errors
/// A file that registers another run: a mistake of usage. A file that cannot be written.
pub fn register(plan: &RunPlan<'_>, file: &Path) -> Result<Registered> {
    let content = content(plan);
    let written = match file.exists() {
        true => {
            let text = lm::load::read_text(file)?;
            let before: Value = serde_json::from_str(&text)
                .map_err(|e| usage(format!("{}: {e}; it is no registration", file.display())))?;
            if before["registered"] != content {
                return Err(usage(format!(
                    "{}: it was registered for another run; a registration is never written over, so take back the \
                     change, or register under another name",
                    file.display()
                )));
            }
            before["written"].as_u64().context("written: no time")?
        }
        false => {
            let written = now();
            let beside = plan.experiment.prompts.parent().unwrap_or(Path::new("."));
            let whole =
                json!({"registered": content, "written": written, "commit": commit(beside)});
            let text = serde_json::to_string_pretty(&whole)? + "\n";
            eval::write_atomic(file, text.as_bytes())?;
            written
        }
    };
    Ok(Registered {
        file: file.display().to_string(),
        sha256: lm::source::sha256(file)?,
        written,
    })
}

/// A run that answered a prompt set.
#[derive(Debug, Serialize, Deserialize)]
struct Opening {
    /// SHA-256 of the prompt set.
    prompts: String,
    /// The run folder.
    run: String,
    /// When, in seconds since 1970 (UTC).
    opened: u64,
}

/// Notes that a run answers the prompts with this hash, and returns how many runs on this machine have, itself included.
/// Going on with a run is no new opening. The notes are `openings.jsonl` in the cache folder.
///
/// # Errors
/// No cache folder, or one that cannot be written.
pub fn open(prompts: &str, run: &Path) -> Result<usize> {
    let folder = lm::source::cache_folder()?;
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let file = folder.join("openings.jsonl");
    let run = std::path::absolute(run)?.display().to_string();
    let text = match file.exists() {
        true => lm::load::read_text(&file)?,
        false => String::new(),
    };
    // A line that is torn counts nothing.
    let openings = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Opening>(line).ok());
    let mut runs: BTreeSet<String> = openings
        .filter(|opening| opening.prompts == prompts)
        .map(|opening| opening.run)
        .collect();
    if runs.insert(run.clone()) {
        let prompts = prompts.to_string();
        let opened = now();
        let line = serde_json::to_string(&Opening {
            prompts,
            run,
            opened,
        })? + "\n";
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.create(true).append(true).open(&file)?;
        out.write_all(line.as_bytes())?;
    }
    Ok(runs.len())
}
