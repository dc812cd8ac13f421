//! Mixing: strategies that turn several experts' next-token distributions into one, and the
//! generator that decodes with them.
//!
//! One strategy is one file in `strategies/` and one variant of [`Strategy`].

#![forbid(unsafe_code)]

mod generator;
pub mod merging;
mod mixer;
mod named;
mod needs;
mod preference;
pub mod strategies;

pub use generator::{Generation, Generator, Request, Response, TemperatureOf};
pub use mixer::{
    Candidate, History, Mixed, Mixer, Plan, Step, mix_logs, mix_probabilities, normalise,
};
pub use named::Named;
pub use needs::{Distribution, Needs};
pub use preference::Preference;
pub use strategies::Strategy;

/// Name of the expert that is always there: the base model as it is.
pub const BASE: &str = "base";

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From an expert or the pool.
    #[error(transparent)]
    Experts(#[from] experts::Error),
    /// From the PCM.
    #[error(transparent)]
    Pcm(#[from] pcm::Error),
    /// From the language model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// A strategy whose parameters make no sense, or that does not fit the preference or the
    /// experts.
    #[error("{0}")]
    Argument(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Argument(message.into()))
}
