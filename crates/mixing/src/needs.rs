use experts::Gives;

use crate::{Error, Result};

/// What of an expert's next-token distribution a strategy needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// The likeliest tokens are enough; what is cut off counts as impossible.
    Likeliest,
    /// Every token of the vocabulary.
    Full,
}

/// What a strategy needs of every expert that it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Of the next token.
    pub distribution: Distribution,
    /// Log-probabilities of the prompt.
    pub prompt: bool,
    /// The expert's parameters.
    pub weights: bool,
}

impl Needs {
    /// The likeliest tokens and nothing else.
    pub const LIKELIEST: Self = Self {
        distribution: Distribution::Likeliest,
        prompt: false,
        weights: false,
    };

    /// Full distributions and nothing else.
    pub const FULL: Self = Self {
        distribution: Distribution::Full,
        ..Self::LIKELIEST
    };

    /// All that two strategies need.
    pub fn and(self, other: Self) -> Self {
        let full = [self, other]
            .iter()
            .any(|n| n.distribution == Distribution::Full);
        Self {
            distribution: if full {
                Distribution::Full
            } else {
                Distribution::Likeliest
            },
            prompt: self.prompt || other.prompt,
            weights: self.weights || other.weights,
        }
    }

    /// Compares with what an expert gives.
    ///
    /// # Errors
    /// Names the expert, what is lacking, and strategies that do without.
    pub fn check(&self, expert: &str, gives: &Gives) -> Result<()> {
        let lacking = |what: &str, gives: &str, instead: &str| {
            Err(Error::Argument(format!(
                "it needs {what} of expert '{expert}', which gives {gives}; do without: {instead}"
            )))
        };
        if let (Distribution::Full, Some(k)) = (self.distribution, gives.top_k) {
            let gives = format!("the {k} likeliest tokens only");
            let instead = "Single, Uniform() or Fixed() in probability space";
            return lacking("full next-token distributions", &gives, instead);
        }
        if self.prompt && !gives.prompt {
            let instead = "Fixed, Mod";
            return lacking(
                "log-probabilities of the prompt",
                "the next token only",
                instead,
            );
        }
        if self.weights && !gives.weights {
            let instead = "strategies that mix outputs, such as Fixed and Mod";
            return lacking("the parameters", "probabilities only", instead);
        }
        Ok(())
    }
}
