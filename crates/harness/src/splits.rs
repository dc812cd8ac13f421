//! Prompt sets kept apart: what is compared must not be what was trained or chosen on.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::splits::Splits;
//!
//! let folder = tempfile::tempdir()?;
//! let mut experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let trained = folder.path().join("trained.txt");
//! std::fs::write(&trained, "Who are you?\n")?;
//! experiment.training = vec![trained.clone()];
//! assert!(Splits::load(&experiment)?.warnings.is_empty());
//! // Case and spaces do not make a prompt another one.
//! std::fs::write(&trained, "WHY  is the sky blue?\n")?;
//! let error = Splits::load(&experiment).err().map(|e| e.to_string());
//! assert!(error.is_some_and(|e| e.contains("compare on prompts that no training saw")));
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::prompts::{self, NamedPrompt};

/// Share of word pairs in common from which two prompts count as near duplicates (ours: "Why is the sky
/// blue?" and "Why is the sky so blue?" share a half).
const NEAR: f64 = 0.5;

/// The prompt sets of an experiment.
pub struct Splits {
    /// What is compared.
    pub prompts: Vec<NamedPrompt>,
    /// What is chosen on.
    pub validation: Vec<NamedPrompt>,
    /// Near duplicates between sets, in words.
    pub warnings: Vec<String>,
}

impl Splits {
    /// Reads the sets of an experiment and checks each against those that are compared, and what was trained on
    /// against what is chosen on.
    ///
    /// # Errors
    /// A set that cannot be read, or a prompt that is in two sets.
    pub fn load(experiment: &Experiment) -> Result<Self> {
        let prompts = prompts::load(&experiment.prompts).context("prompts")?;
        let (mut validation, mut warnings) = (Vec::new(), Vec::new());
        let compared = Set {
            what: "compared",
            prompts: &prompts,
        };
        if let Some(file) = &experiment.validation {
            validation = prompts::load(file).context("validation")?;
            let near = compared.apart(file, &validation, "choose on other prompts")?;
            warnings.extend(near);
        }
        let chosen = Set {
            what: "validation",
            prompts: &validation,
        };
        for file in &experiment.training {
            let trained = prompts::load(file).context("training")?;
            let remedy = "compare on prompts that no training saw";
            warnings.extend(compared.apart(file, &trained, remedy)?);
            let remedy = "choose on prompts that no training saw";
            warnings.extend(chosen.apart(file, &trained, remedy)?);
        }
        Ok(Self {
            prompts,
            validation,
            warnings,
        })
    }
}

/// A set that others must keep away from.
struct Set<'a> {
    what: &'static str,
    prompts: &'a [NamedPrompt],
}

impl Set<'_> {
    /// Near duplicates between this set and that of a file, in words.
    ///
    /// # Errors
    /// A prompt that is in both.
    fn apart(&self, path: &Path, others: &[NamedPrompt], remedy: &str) -> Result<Option<String>> {
        let what = self.what;
        let keys: Vec<Key> = self.prompts.iter().map(Key::of).collect();
        let mut near = Vec::new();
        for other in others {
            let other_key = Key::of(other);
            for (prompt, key) in self.prompts.iter().zip(&keys) {
                if other_key.words == key.words {
                    return Err(usage(format!(
                        "{}: prompt '{}' is in the {what} set, too, as '{}'; {remedy}",
                        path.display(),
                        other.id,
                        prompt.id
                    )));
                }
                if other_key.alike(key) >= NEAR {
                    near.push(format!("'{}' and '{}'", other.id, prompt.id));
                }
            }
        }
        if near.is_empty() {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Some(format!(
            "{} prompts of {} are nearly the same as {what} ones: {}.",
            near.len(),
            name.to_string_lossy(),
            near.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        )))
    }
}

/// What a prompt is compared by: case, punctuation and spaces don't count.
struct Key {
    words: Vec<String>,
    pairs: BTreeSet<(String, String)>,
}

impl Key {
    fn of(prompt: &NamedPrompt) -> Self {
        let text = prompt.prompt.question().to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric());
        let words: Vec<String> = words.filter(|w| !w.is_empty()).map(String::from).collect();
        let pairs = words.windows(2).map(|w| (w[0].clone(), w[1].clone()));
        Self {
            pairs: pairs.collect(),
            words,
        }
    }

    /// Jaccard index of the word pairs.
    fn alike(&self, other: &Self) -> f64 {
        let shared = self.pairs.intersection(&other.pairs).count();
        let all = self.pairs.len() + other.pairs.len() - shared;
        shared as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use lm::chat::{Message, Prompt};

    fn key(text: &str) -> Key {
        Key::of(&NamedPrompt {
            id: "1".into(),
            prompt: Prompt::Chat(vec![Message::user(text)]),
        })
    }

    #[test]
    fn wording_counts_and_writing_does_not() {
        assert_eq!(key("Why is it so?").words, key("why  is it SO").words);
        let sky = key("Why is the sky blue?");
        assert!(sky.alike(&key("Why is the sky so blue?")) >= NEAR);
        assert!(sky.alike(&key("Why is the sea salty?")) < NEAR);
        assert_eq!(key("Hi").alike(&key("Ho")), 0.0);
    }
}
