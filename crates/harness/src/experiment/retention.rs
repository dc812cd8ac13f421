//! What an experiment checks that its strategies still know.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Checks that a strategy has not forgotten what the base knew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Prose, passages separated by empty lines: its perplexity as a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// JSON lines with `question`, `options` and `answer` (a place in the options, from 0): how often the right
    /// option is the likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<PathBuf>,
    /// Preferences that are read for. Default: all of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<String>,
}

impl Retention {
    /// Takes its paths as relative to a file's folder.
    pub fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.text, &mut self.questions].into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.text, &self.questions].into_iter().flatten()
    }
}
