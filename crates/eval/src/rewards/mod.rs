//! Rewards: how much of a dimension a response has. One file each, and a variant of [`Scorer`].

mod informativeness;
mod model;
mod readability;
mod reader;
mod shaped;
mod style;
mod sum;
mod whole;

use std::path::{Path, PathBuf};

use lm::chat::Prompt;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use model::{Card, HeldOut, PreferencePair, RewardModel, RewardModelConfig};
pub use shaped::{Penalties, Shaped, ShapedReward, Words, repeated_trigrams};
pub use sum::Term;

/// A reward: a number that grows with the high end of its dimension.
pub trait Reward: Send + Sync {
    /// Scores a response to a prompt, in the reward's own unit.
    ///
    /// # Errors
    /// What a model behind the reward reports; scorers of text have none.
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

    /// Brings scores to mean 0 and standard deviation 1 on the base model's responses.
    fn normaliser(&self) -> Normaliser;
}

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
    /// A standard deviation that is none.
    pub fn validate(self) -> Result<()> {
        if self.sd > 0.0 && self.sd.is_finite() && self.mean.is_finite() {
            return Ok(());
        }
        let Self { mean, sd } = self;
        Err(Error::Argument(format!(
            "normaliser: mean {mean} and sd {sd} must be numbers, sd above 0"
        )))
    }

    /// A score in standard deviations of the base's responses.
    pub fn apply(&self, score: f64) -> f64 {
        (score - self.mean) / self.sd
    }
}

/// The rewards that configs can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Scorer {
    /// Flesch-Kincaid grade: expertise that a text asks of its reader.
    Readability,
    /// Length times information density.
    Informativeness,
    /// Sentiment and politeness.
    Style,
    /// A trained reward model, by its folder.
    Model(PathBuf),
    /// Several of them, weighted.
    Sum(Vec<Term>),
    /// Another one, of responses up to their last whole sentence.
    Whole(Box<Scorer>),
}

impl Scorer {
    /// The reward behind the name.
    ///
    /// # Errors
    /// A reward model that cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Reward>> {
        Ok(match self {
            Self::Readability => Box::new(readability::Readability),
            Self::Informativeness => Box::new(informativeness::Informativeness),
            Self::Style => Box::new(style::Style::new()),
            Self::Model(folder) => Box::new(RewardModel::load(folder)?),
            Self::Sum(terms) => Box::new(sum::Sum::open(terms)?),
            Self::Whole(scorer) => Box::new(whole::Whole(scorer.open()?)),
        })
    }

    /// Checks its numbers, and that the reward models that it names are there.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Model(folder) => {
                let card = folder.join("reward.json");
                if card.is_file() {
                    return Ok(());
                }
                Err(Error::Argument(format!(
                    "{} is not there; a reward model is a folder that a training with a recipe Reward writes",
                    card.display()
                )))
            }
            Self::Sum(terms) => sum::check(terms),
            Self::Whole(scorer) => scorer.validate(),
            _ => Ok(()),
        }
    }

    /// Folders of the trained reward models in it.
    pub fn models(&self) -> Vec<&Path> {
        match self {
            Self::Model(folder) => vec![folder],
            Self::Sum(terms) => terms.iter().flat_map(|t| t.scorer.models()).collect(),
            Self::Whole(scorer) => scorer.models(),
            _ => Vec::new(),
        }
    }

    /// The same, to be changed.
    pub fn models_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Model(folder) => vec![folder],
            Self::Sum(terms) => {
                let each = terms.iter_mut().flat_map(|t| t.scorer.models_mut());
                each.collect()
            }
            Self::Whole(scorer) => scorer.models_mut(),
            _ => Vec::new(),
        }
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        for path in self.models_mut() {
            *path = folder.join(&*path);
        }
    }
}
