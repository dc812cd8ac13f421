//! Preference experts: language models that each stand for one preference.
//!
//! An [`Expert`] is a model, perhaps with an adapter, perhaps with an instruction in its prompt. An
//! [`ExpertPool`] runs several of them over the same sequences, one forward pass for all that share
//! a base.

#![forbid(unsafe_code)]

pub mod classifier;
mod expert;
mod pool;
pub mod training;

pub use expert::{Expert, ExpertSpec, Gives};
pub use pool::{ExpertPool, NextTokens, PoolState};

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the language model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// From one expert's model or adapter.
    #[error("expert '{expert}': {source}")]
    Expert {
        /// Its name.
        expert: String,
        /// What went wrong.
        source: lm::Error,
    },
    /// Experts that cannot be mixed.
    #[error(
        "experts '{first}' and '{second}' have different vocabularies ({reason}); next-token \
         probabilities can only be mixed over the same tokens"
    )]
    Vocabulary {
        /// One expert.
        first: String,
        /// The other.
        second: String,
        /// Where they differ.
        reason: String,
    },
    /// A training's state that cannot be written or read.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file.
        path: std::path::PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A classifier that cannot be written or read.
    #[error("{}: {message}", path.display())]
    Classifier {
        /// The file.
        path: std::path::PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A training's environment failed: sampling or scoring.
    #[error("{0}")]
    Environment(String),
    /// An argument outside of what an operation accepts.
    #[error("{0}")]
    Argument(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
