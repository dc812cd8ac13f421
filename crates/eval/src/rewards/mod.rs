//! Rewards: how much of a dimension a response has. One file each, and a variant of [`Scorer`].
//!
//! A new reward is a file with a type that implements [`Reward`] and `Definition`, and in this file its `mod` line, a
//! documented variant of [`Scorer`], and its line in `Scorer::definition`.
//!
//! ```
//! use mope_eval::rewards::Scorer;
//! use lm::chat::Prompt;
//! let reward = Scorer::Readability.open()?;
//! let prompt = Prompt::Raw("Why is the sky blue?".into());
//! let plain = reward.score(&prompt, "Blue light is bent the most. So we see it all over.")?;
//! let learned = reward.score(&prompt, "Atmospheric scattering preferentially redistributes shorter wavelengths.")?;
//! assert!(learned > plain);
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod classifier;
mod command;
mod complete_sentences;
mod endpoint;
mod hub;
mod informativeness;
mod judged;
mod model;
mod outside;
mod readability;
mod reader;
mod relevance;
mod shaped;
mod style;
mod sum;

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use classifier::Classifier;
pub use command::Command;
pub use endpoint::{Endpoint, Protocol};
pub use hub::HubReward;
pub use model::{Card, HeldOut, PreferencePair, RewardModel, RewardModelConfig};
pub use relevance::Relevance;
pub use shaped::{Penalties, Shaped, ShapedReward, Words, repeated_trigrams};
pub use sum::Term;

/// A reward: a number that grows with the high end of its dimension.
pub trait Reward: Send + Sync {
    /// Scores a response to a prompt, in the reward's own unit.
    ///
    /// # Errors
    /// Those of the model behind the reward; scorers of text have none.
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64>;

    /// Scores several responses, each to its prompt; faster than one by one where a model scores.
    ///
    /// # Errors
    /// Those of [`Self::score`].
    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let scores = items
            .iter()
            .map(|(prompt, response)| self.score(prompt, response));
        scores.collect()
    }

    /// Brings scores to mean 0 and standard deviation 1 on the base model's responses, as far as that was measured
    /// before. Default: `None`, a run measures it on the responses that it refers to.
    fn normaliser(&self) -> Option<Normaliser> {
        None
    }

    /// Length of the responses, in tokens at most, that [`Self::normaliser`] was measured on. Default: `None`, it is
    /// taken for all lengths.
    fn measured_at(&self) -> Option<usize> {
        None
    }
}

/// Longest response, in tokens, of those that the text scorers' normalisers were measured on
/// (`experiments/rewards/rewards.ron`).
pub const MEASURED_AT: usize = 128;

/// `(score - mean) / sd`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normaliser {
    /// Mean score of the base's responses.
    pub mean: f64,
    /// Their standard deviation, above 0.
    pub sd: f64,
}

impl Normaliser {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a mean or standard deviation that is none.
    pub fn validate(self) -> Result<()> {
        for (name, value, good, expected) in [
            (
                "normaliser: mean",
                self.mean,
                self.mean.is_finite(),
                "finite",
            ),
            (
                "normaliser: sd",
                self.sd,
                self.sd > 0.0 && self.sd.is_finite(),
                "a number above 0",
            ),
        ] {
            if !good {
                return Err(Error::Parameter {
                    name,
                    value,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// A score in standard deviations of the base's responses.
    pub fn apply(&self, score: f64) -> f64 {
        (score - self.mean) / self.sd
    }
}

/// What a config says of a reward. Every method is required, so that no new reward forgets one.
trait Definition {
    /// Opens the reward; models in it run on `device`, unless the config names one for them.
    ///
    /// # Errors
    /// A reward model that cannot be opened.
    fn open(&self, device: &DeviceSpec) -> Result<Box<dyn Reward>>;

    /// Checks numbers, and that the named reward models are there.
    ///
    /// # Errors
    /// A parameter that makes no sense; a folder that holds no reward model.
    fn validate(&self) -> Result<()>;

    /// The same scorer over other folders of reward models: `change` is asked for each, in order, those of nested
    /// scorers among them.
    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer;
}

/// The rewards that configs can name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum Scorer {
    /// Flesch-Kincaid grade: expertise that a text asks of its reader.
    Readability,
    /// Length times information density.
    Informativeness,
    /// Sentiment and politeness.
    Style,
    /// A trained reward model, by its folder.
    Model(PathBuf),
    /// A reward model of the hub.
    RewardModel(HubReward),
    /// A label of a classifier of the hub.
    Classifier(Classifier),
    /// Likeness of prompt and response, by a sentence encoder.
    Relevance(Relevance),
    /// A program of one's own.
    Command(Command),
    /// A server.
    Endpoint(Endpoint),
    /// Several of them, weighted.
    Sum(Vec<Term>),
    /// None: only judges and people tell how much of it a response has.
    #[default]
    Judged,
    /// Another one, of responses up to the end of their last complete sentence.
    #[serde(alias = "Whole")]
    CompleteSentences(Box<Scorer>),
}

impl Scorer {
    fn definition(&self) -> Box<dyn Definition + '_> {
        match self {
            Self::Readability => Box::new(readability::Readability),
            Self::Informativeness => Box::new(informativeness::Informativeness),
            Self::Style => Box::new(style::Style),
            Self::Model(folder) => Box::new(model::Folder(folder)),
            Self::RewardModel(model) => Box::new(model),
            Self::Classifier(classifier) => Box::new(classifier),
            Self::Relevance(relevance) => Box::new(relevance),
            Self::Command(command) => Box::new(command),
            Self::Endpoint(endpoint) => Box::new(endpoint),
            Self::Sum(terms) => Box::new(sum::Terms(terms)),
            Self::Judged => Box::new(judged::Judged),
            Self::CompleteSentences(scorer) => Box::new(complete_sentences::Of(scorer)),
        }
    }

    /// The reward behind the name.
    ///
    /// # Errors
    /// A reward model that cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Reward>> {
        self.open_on(&DeviceSpec::default())
    }

    /// The same, reward models running on a device: in `Bf16`, or in `F32` where it does not compute in that.
    ///
    /// # Errors
    /// A device that this build lacks, a reward model that cannot be opened.
    pub fn open_on(&self, device: &DeviceSpec) -> Result<Box<dyn Reward>> {
        self.definition().open(device)
    }

    /// Checks its numbers, and that the reward models that it names are there.
    ///
    /// # Errors
    /// A parameter that makes no sense; a folder that holds no reward model.
    pub fn validate(&self) -> Result<()> {
        self.definition().validate()
    }

    /// Folders of the trained reward models in it, those of nested scorers among them.
    pub fn models(&self) -> Vec<PathBuf> {
        self.clone().take_models()
    }

    /// [`Self::models`]; their places are left empty.
    pub fn take_models(&mut self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let taken = self.definition().with_models(&mut |folder| {
            folders.push(folder.to_path_buf());
            PathBuf::new()
        });
        *self = taken;
        folders
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        let resolved = self.definition().with_models(&mut |path| folder.join(path));
        *self = resolved;
    }
}
