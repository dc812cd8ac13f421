//! Rewards: how much of a dimension a response has. One file each, and a variant of [`Scorer`].

mod informativeness;
mod readability;
mod shaped;
mod style;

use lm::chat::Prompt;
use serde::{Deserialize, Serialize};

pub use shaped::{Penalties, Shaped, ShapedReward, Term, Words, repeated_trigrams};

/// A reward: a number that grows with the high end of its dimension.
pub trait Reward: Send + Sync {
    /// Scores a response to a prompt, in the reward's own unit.
    fn score(&self, prompt: &Prompt, response: &str) -> f64;

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
    /// A score in standard deviations of the base's responses.
    pub fn apply(&self, score: f64) -> f64 {
        (score - self.mean) / self.sd
    }
}

/// The rewards that configs can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scorer {
    /// Flesch-Kincaid grade: expertise that a text asks of its reader.
    Readability,
    /// Length times information density.
    Informativeness,
    /// Sentiment and politeness.
    Style,
}

impl Scorer {
    /// The reward behind the name.
    pub fn reward(self) -> Box<dyn Reward> {
        match self {
            Self::Readability => Box::new(readability::Readability),
            Self::Informativeness => Box::new(informativeness::Informativeness),
            Self::Style => Box::new(style::Style::new()),
        }
    }
}
