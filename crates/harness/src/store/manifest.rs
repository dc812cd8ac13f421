//! `manifest.json`: what a run was made from and how long it took. Times live here and nowhere else.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::models::Pools;
//! use mope_harness::plan::RunPlan;
//! use mope_harness::store::manifest::{Manifest, Session};
//!
//! let folder = tempfile::tempdir()?;
//! let file = pico::experiment(folder.path());
//! let experiment = Experiment::load(&file)?;
//! let plan = RunPlan::resolve(&experiment, &mut Pools::open(&experiment)?)?;
//! let mut manifest = Manifest::new(&plan, std::fs::read_to_string(&file)?, folder.path());
//! manifest.sessions.push(Session::start());
//! manifest.save(folder.path())?;
//! let manifest = Manifest::load(folder.path())?;
//! // `base` runs one expert, `uniform` two.
//! assert_eq!((manifest.passes["base"], manifest.passes["uniform"]), (1.0, 2.0));
//! assert_eq!(manifest.inputs["prompts"]["prompts"].len(), 64);
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use eval::rewards::Normaliser;
use serde::{Deserialize, Serialize};

use super::preregistration::Registered;
use crate::experiment::Experiment;
use crate::plan::RunPlan;

/// SHA-256 of the files of rows, by part and name: `scores/pcm.0f….parquet`.
pub type RowHashes = BTreeMap<String, String>;

/// Everything a reader needs to make the run again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this program.
    pub version: String,
    /// Commit of the checkout that holds the experiment file, if it lies in one.
    pub commit: Option<String>,
    /// Versions of the libraries that results depend on.
    pub crates: BTreeMap<String, String>,
    /// The experiment with all defaults filled in.
    pub experiment: Experiment,
    /// The experiment file as it was written.
    pub source: String,
    /// Number of prompts.
    pub prompts: usize,
    /// SHA-256 of every input file.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
    /// Commits of what came from the hub, by the names of [`Self::inputs`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hub: BTreeMap<String, String>,
    /// SHA-256 of every file of rows, by folder and name; empty until the run is finished, and in version 0.1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rows: RowHashes,
    /// Forward passes of experts per token that is kept, by strategy, averaged over preferences.
    #[serde(default)]
    pub passes: BTreeMap<String, f64>,
    /// What rewards are normalised by, by dimension: the experiment's, or the scorer's own.
    #[serde(default)]
    pub normalisers: BTreeMap<String, Normaliser>,
    /// What was written down before the run; `None` where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preregistration: Option<Registered>,
    /// Runs on this machine that had answered these prompts when the run began, itself included; 0 where that is not known.
    #[serde(default)]
    pub openings: usize,
    /// What a reader must know before believing the tables.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Every time that the run was worked on.
    pub sessions: Vec<Session>,
}

/// One process that worked on the run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Session {
    /// Seconds since 1970 (UTC).
    pub started: u64,
    /// The same; missing when the process did not get to the end.
    pub finished: Option<u64>,
    /// Processor model and number of its threads.
    pub machine: String,
    /// Wall time by stage, in seconds.
    pub seconds: BTreeMap<String, f64>,
    /// Tokens generated in this session and kept, by strategy.
    pub tokens: BTreeMap<String, u64>,
    /// Seconds that took, by strategy, without reading prompts.
    pub generating: BTreeMap<String, f64>,
    /// What the experts read of the prompts; missing in version 0.1, where each strategy's seconds include it.
    #[serde(default)]
    pub prompts: PromptsRead,
    /// Largest resident memory of the process in bytes while it did, by strategy: all experts that are open, too.
    #[serde(default)]
    pub peak_bytes: BTreeMap<String, u64>,
    /// What was chosen on the validation set, by strategy and preference.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, BTreeMap<String, String>>,
}

/// What experts read of prompts while a session generated. A lane is one expert's reading of one prompt; a lane that
/// another strategy, preference, sample or candidate had asked for before need not be read again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptsRead {
    /// Lanes that were asked for.
    pub asked: u64,
    /// Lanes that were read.
    pub read: u64,
    /// Tokens of the lanes that were asked for.
    pub tokens_asked: u64,
    /// Tokens that were read.
    pub tokens_read: u64,
    /// Seconds that took.
    pub seconds: f64,
}

impl PromptsRead {
    /// A stage read more.
    pub fn add(&mut self, reading: experts::prompts::Reading) {
        self.asked += reading.asked;
        self.read += reading.read;
        self.tokens_asked += reading.tokens_asked;
        self.tokens_read += reading.tokens_read;
        self.seconds += reading.time.as_secs_f64();
    }
}

impl Manifest {
    /// What is known before the run starts.
    pub fn new(plan: &RunPlan<'_>, source: String, folder: &Path) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit(folder),
            crates: crates(),
            experiment: plan.experiment.clone(),
            source,
            prompts: plan.splits.prompts.len(),
            inputs: plan.inputs.named(),
            hub: plan.inputs.commits(),
            rows: RowHashes::new(),
            passes: plan.passes(),
            normalisers: BTreeMap::new(),
            preregistration: None,
            openings: 0,
            warnings: plan.warnings.clone(),
            sessions: vec![],
        }
    }

    /// What was chosen on the validation set, by strategy and preference: the same in every session.
    pub fn chosen(&self) -> Option<&BTreeMap<String, BTreeMap<String, String>>> {
        let mut chosen = self.sessions.iter().rev().map(|s| &s.chosen);
        chosen.find(|c| !c.is_empty())
    }

    /// Seconds per token of a strategy over all sessions that generated for it, the sequences of a batch
    /// sharing them.
    pub fn seconds_per_token(&self, strategy: &str) -> Option<f64> {
        let sum = |session: &Session| {
            let seconds = session.generating.get(strategy)?;
            Some((*seconds, *session.tokens.get(strategy)? as f64))
        };
        let all = self.sessions.iter().filter_map(sum);
        let (seconds, tokens) = all.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        (tokens > 0.0).then(|| seconds / tokens)
    }

    /// Largest resident memory in bytes while any session generated for a strategy.
    pub fn peak_bytes(&self, strategy: &str) -> Option<u64> {
        let peaks = self
            .sessions
            .iter()
            .filter_map(|s| s.peak_bytes.get(strategy));
        peaks.copied().max().filter(|bytes| *bytes > 0)
    }

    /// Reads the manifest of a run folder.
    ///
    /// # Errors
    /// A folder that is no run, or a damaged file.
    pub fn load(root: &Path) -> Result<Self> {
        let path = root.join("manifest.json");
        let text = lm::load::read_text(&path)
            .with_context(|| format!("{} (is this a run folder?)", path.display()))?;
        serde_json::from_str(&upgraded(text))
            .with_context(|| format!("{}: damaged", path.display()))
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn save(&self, root: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(eval::write_atomic(
            &root.join("manifest.json"),
            text.as_bytes(),
        )?)
    }
}

/// The text of a manifest in today's words: where earlier ones say `Flex`, the device is called `Cpu` now. (A text,
/// because a parsed value would lose the order of preferences and strategies.)
fn upgraded(text: String) -> String {
    // The first key of this name is the experiment's; quotes inside of strings are escaped.
    let key = "\"device\"";
    let flex = text.match_indices(key).find_map(|(at, _)| {
        let value = text[at + key.len()..].trim_start().strip_prefix(':')?;
        let rest = value.trim_start().strip_prefix("\"Flex\"")?;
        Some(format!("{}{key}: \"Cpu\"{rest}", &text[..at]))
    });
    flex.unwrap_or(text)
}

impl Session {
    /// A session that starts now.
    pub fn start() -> Self {
        Self {
            started: now(),
            machine: machine(),
            ..Self::default()
        }
    }
}

/// Seconds since 1970 (UTC).
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// Processor model and threads.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split(':').nth(1))
        .map_or(std::env::consts::ARCH, str::trim);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {threads} threads")
}

/// The commit of the checkout that holds a folder, if it lies in one.
pub fn commit(folder: &Path) -> Option<String> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["rev-parse", "HEAD"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_string())
}

/// Versions of the libraries that results depend on, as the build script read them from the lock file.
fn crates() -> BTreeMap<String, String> {
    let named = env!("MOPE_LIBRARIES").split(',');
    named
        .filter_map(|library| library.split_once('='))
        .map(|(name, version)| (name.into(), version.into()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flex_of_an_earlier_manifest_is_the_processor_and_nothing_else_changes() {
        let text = |device: &str| {
            format!(
                "{{\"source\": \"// \\\"device\\\": \\\"Flex\\\"\", \"experiment\": \
                 {{\"name\": \"device\", {device}, \"z\": 1, \"a\": 2}}}}"
            )
        };
        for spaced in ["\"device\": \"Flex\"", "\"device\":\"Flex\""] {
            assert_eq!(upgraded(text(spaced)), text("\"device\": \"Cpu\""));
        }
        for other in ["\"device\": \"BurnFlex\"", "\"device\": {\"Cuda\": 0}"] {
            assert_eq!(upgraded(text(other)), text(other));
        }
    }
}
