//! What an artefact was trained on: a file beside it, which a training writes and an experiment is checked against.
//!
//! ```
//! use mope_harness::trained::{TrainedOn, read};
//!
//! let folder = tempfile::tempdir()?;
//! let prompts = folder.path().join("train.txt");
//! std::fs::write(&prompts, "Who are you?\n")?;
//! let adapter = folder.path().join("adapter");
//! std::fs::create_dir(&adapter)?;
//! assert_eq!(read(&adapter)?, None);
//! TrainedOn::of(&[&prompts])?.write(&adapter)?;
//! assert_eq!(read(&adapter)?.unwrap().files["train.txt"], lm::source::sha256(&prompts)?);
//! # anyhow::Ok(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use experts::Files;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::experiment::Experiment;

/// Name of the file. Its ending keeps it out of the hashes of what was trained.
const FILE: &str = "trained_on.ron";

/// The files of prompts or responses that something was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedOn {
    /// SHA-256 by name.
    pub files: BTreeMap<String, String>,
}

impl TrainedOn {
    /// These files.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(files: &[&Path]) -> Result<Self> {
        let named = files.iter().map(|file| {
            let name = file.file_name().unwrap_or(file.as_os_str());
            Ok((
                name.to_string_lossy().into_owned(),
                lm::source::sha256(file)?,
            ))
        });
        Ok(Self {
            files: named.collect::<Result<_>>()?,
        })
    }

    /// Writes it into the folder of what was trained.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = config::options().to_string_pretty(self, ron::ser::PrettyConfig::default())?;
        Ok(eval::write_atomic(
            &folder.join(FILE),
            (text + "\n").as_bytes(),
        )?)
    }
}

/// What a folder says of its training; `None` where it says nothing.
///
/// # Errors
/// A damaged file.
pub fn read(folder: &Path) -> Result<Option<TrainedOn>> {
    let file = folder.join(FILE);
    match file.is_file() {
        true => Ok(Some(config::load(&file)?)),
        false => Ok(None),
    }
}

/// Files that artefacts of an experiment were trained on and that it does not name under `training`, in words. Their
/// prompts are not kept apart from those that are compared.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn unnamed(experiment: &Experiment) -> Result<Vec<String>> {
    let mut artefacts: Vec<(String, PathBuf)> = Vec::new();
    for (name, expert) in experiment.experts.iter() {
        if let Some(Files::Adapter(folder)) = expert.files() {
            artefacts.push((format!("expert '{name}'"), folder));
        }
    }
    for (name, strategy) in experiment.strategies.iter() {
        let models = strategy.models().into_iter();
        artefacts.extend(models.map(|folder| (format!("strategy '{name}'"), folder)));
    }
    for (name, dimension) in experiment.dimensions.iter() {
        let models = dimension.scorer.models().into_iter();
        artefacts.extend(models.map(|folder| (format!("dimension '{name}'"), folder)));
    }
    let hashes = experiment
        .training
        .iter()
        .map(|file| lm::source::sha256(file));
    let named: BTreeSet<String> = hashes.collect::<lm::Result<_>>()?;
    // What was trained on a file, by its name.
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (artefact, folder) in artefacts {
        for (file, hash) in read(&folder)?.unwrap_or_default().files {
            let users = missing.entry(file).or_default();
            if !named.contains(&hash) && !users.contains(&artefact) {
                users.push(artefact.clone());
            }
        }
    }
    missing.retain(|_, users| !users.is_empty());
    let words = missing.iter().map(|(file, users)| {
        format!(
            "{} learned on {file}, which is not named under training (or is another file today): its prompts are not \
             kept apart from those that are compared.",
            users.join(", ")
        )
    });
    Ok(words.collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use experts::ExpertSpec;

    #[test]
    fn what_artefacts_learned_on_must_be_named() {
        let here = tempfile::tempdir().unwrap();
        let mut experiment = Experiment::load(&pico::experiment(here.path())).unwrap();
        let file = here.path().join("more.txt");
        std::fs::write(&file, "Who are you?\n").unwrap();
        let adapter = here.path().join("learned");
        std::fs::create_dir(&adapter).unwrap();
        let expert = ("learned".to_string(), ExpertSpec::Adapter(adapter.clone()));
        experiment.experts = [expert].into_iter().collect();
        assert!(unnamed(&experiment).unwrap().is_empty());
        TrainedOn::of(&[&file]).unwrap().write(&adapter).unwrap();
        let warnings = unnamed(&experiment).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].starts_with("expert 'learned' learned on more.txt"),
            "{warnings:?}"
        );
        experiment.training = vec![file.clone()];
        assert!(unnamed(&experiment).unwrap().is_empty());
        // The same name is not the same file.
        std::fs::write(&file, "Who am I?\n").unwrap();
        assert_eq!(unnamed(&experiment).unwrap().len(), 1);
    }
}
