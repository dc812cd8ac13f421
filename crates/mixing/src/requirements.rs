//! What a strategy needs of its experts, and whether they can give it.

use experts::Capabilities;

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
pub struct Requirements {
    /// Of the next token.
    pub distribution: Distribution,
    /// Log-probabilities of the prompt.
    pub prompt: bool,
    /// The expert's parameters, which are merged with those of others.
    pub parameters: bool,
}

impl Requirements {
    /// The likeliest tokens and nothing else.
    pub const LIKELIEST: Self = Self {
        distribution: Distribution::Likeliest,
        prompt: false,
        parameters: false,
    };

    /// Full distributions and nothing else.
    pub const FULL: Self = Self {
        distribution: Distribution::Full,
        ..Self::LIKELIEST
    };

    /// Parameters to merge, and of the merged expert the likeliest tokens.
    pub const PARAMETERS: Self = Self {
        parameters: true,
        ..Self::LIKELIEST
    };

    /// All that two strategies need.
    ///
    /// ```
    /// use mope_mixing::Requirements;
    /// let both = Requirements::FULL.and(Requirements::PARAMETERS);
    /// assert_eq!(both, Requirements { parameters: true, ..Requirements::FULL });
    /// ```
    pub fn and(self, other: Self) -> Self {
        let distributions = [self.distribution, other.distribution];
        Self {
            distribution: if distributions.contains(&Distribution::Full) {
                Distribution::Full
            } else {
                Distribution::Likeliest
            },
            prompt: self.prompt || other.prompt,
            parameters: self.parameters || other.parameters,
        }
    }

    /// Compares with what an expert can tell.
    ///
    /// # Errors
    /// [`Error::Requirement`] names the expert, what is lacking, and strategies that do without.
    pub fn check(&self, expert: &str, capabilities: &Capabilities) -> Result<()> {
        let refuse = |needed, given: &str, instead| {
            Err(Error::Requirement {
                expert: expert.into(),
                needed,
                given: given.into(),
                instead,
            })
        };
        if let (Distribution::Full, Some(k)) = (self.distribution, capabilities.top_k) {
            let given = format!("the {k} likeliest tokens only");
            let instead = "Single, Uniform() or Fixed() in probability space";
            return refuse("full next-token distributions", &given, instead);
        }
        if self.prompt && !capabilities.prompt {
            let needed = "log-probabilities of the prompt";
            return refuse(needed, "the next token only", "Fixed, Mod");
        }
        if self.parameters && !capabilities.parameters {
            let instead = "strategies that mix outputs, such as Fixed and Mod";
            return refuse("the parameters", "probabilities only", instead);
        }
        Ok(())
    }
}
