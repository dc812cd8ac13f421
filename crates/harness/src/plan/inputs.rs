//! The files that a run is made from, each hashed once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::experiment::Experiment;
use crate::models::hashes;

/// SHA-256 of every file that something consists of, by the file's name.
pub type FileHashes = BTreeMap<String, String>;

/// What input files belong to. Its text is the key in `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The base model.
    Model,
    /// An expert's adapter or model.
    Expert(String),
    /// A trained model that a strategy uses: the strategy's name, the model's number.
    Strategy(String, usize),
    /// A trained model that a dimension's scorer uses: the dimension's name, the model's number.
    Dimension(String, usize),
    /// The prompts that are compared.
    Prompts,
    /// The prompts that are chosen on.
    Validation,
    /// A prompt set that something was trained on, by its number.
    Training(usize),
    /// What the retention checks read.
    Retention,
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model => f.write_str("model"),
            Self::Expert(name) => write!(f, "expert {name}"),
            Self::Strategy(name, 0) => write!(f, "strategy {name}"),
            Self::Strategy(name, number) => write!(f, "strategy {name} {}", number + 1),
            Self::Dimension(name, 0) => write!(f, "dimension {name}"),
            Self::Dimension(name, number) => write!(f, "dimension {name} {}", number + 1),
            Self::Prompts => f.write_str("prompts"),
            Self::Validation => f.write_str("validation"),
            Self::Training(number) => write!(f, "training {number}"),
            Self::Retention => f.write_str("retention"),
        }
    }
}

/// All input files of a run.
#[derive(Debug, Default)]
pub struct Inputs {
    by_user: BTreeMap<Input, FileHashes>,
    /// The same by where they lie: what a strategy or a scorer names.
    by_path: BTreeMap<PathBuf, FileHashes>,
    /// The commits of what came from the hub.
    commits: BTreeMap<Input, String>,
}

impl Inputs {
    /// The prompt sets and texts of an experiment.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn of_files(experiment: &Experiment) -> Result<Self> {
        let mut inputs = Self::default();
        // These two have one file each, which the manifest calls by what it is.
        let fixed = |path: &Path| -> Result<FileHashes> {
            Ok([("prompts".into(), lm::source::sha256(path)?)].into())
        };
        let by_user = &mut inputs.by_user;
        by_user.insert(Input::Prompts, fixed(&experiment.prompts)?);
        if let Some(file) = &experiment.validation {
            by_user.insert(Input::Validation, fixed(file)?);
        }
        let named = experiment.training.iter().enumerate();
        let named = named.map(|(number, file)| (Input::Training(number), file));
        let retention = experiment.retention.iter().flat_map(|r| r.files());
        for (input, file) in named.chain(retention.map(|file| (Input::Retention, file))) {
            let name = file.file_name().unwrap_or(file.as_os_str());
            let name = name.to_string_lossy().into_owned();
            let hash = lm::source::sha256(file)?;
            by_user.entry(input).or_default().insert(name, hash);
        }
        Ok(inputs)
    }

    /// Hashes the files of a model, an adapter or a trained model, once per path.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn add(&mut self, input: Input, path: &Path) -> Result<&FileHashes> {
        let files = match self.by_path.get(path) {
            Some(files) => files.clone(),
            None => hashes(path)?,
        };
        self.by_path.insert(path.into(), files.clone());
        if let Some(commit) = lm::source::hub::commit_of(path) {
            self.commits.insert(input.clone(), commit.into());
        }
        Ok(self.by_user.entry(input).or_insert(files))
    }

    /// The files of what was [added](Self::add) under this path.
    ///
    /// # Errors
    /// A path that was not: its content would be missing from a key.
    pub(super) fn at(&self, path: &Path) -> Result<&FileHashes> {
        let files = self.by_path.get(path);
        files.with_context(|| format!("{} was not hashed", path.display()))
    }

    /// The files of the base model.
    ///
    /// # Errors
    /// None were added.
    pub(super) fn model(&self) -> Result<&FileHashes> {
        let files = self.by_user.get(&Input::Model);
        files.context("the base model was not hashed")
    }

    /// The commits of what came from the hub, as the manifest holds them.
    pub fn commits(&self) -> BTreeMap<String, String> {
        let commits = self.commits.iter();
        commits
            .map(|(input, commit)| (input.to_string(), commit.clone()))
            .collect()
    }

    /// All of them, as the manifest holds them.
    pub fn named(&self) -> BTreeMap<String, FileHashes> {
        let inputs = self.by_user.iter();
        inputs
            .map(|(input, files)| (input.to_string(), files.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn files_are_found_by_path_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for (path, text) in [(&one, "1"), (&two, "2")] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("config.json"), text).unwrap();
        }
        let mut inputs = Inputs::default();
        inputs.add(Input::Strategy("a".into(), 0), &one).unwrap();
        inputs.add(Input::Strategy("a".into(), 1), &two).unwrap();
        assert_ne!(inputs.at(&one).unwrap(), inputs.at(&two).unwrap());
        let error = inputs.at(folder.path()).unwrap_err().to_string();
        assert!(error.contains("was not hashed"), "{error}");
        let named = inputs.named();
        let names: Vec<&str> = named.keys().map(String::as_str).collect();
        assert_eq!(names, ["strategy a", "strategy a 2"]);
    }
}
