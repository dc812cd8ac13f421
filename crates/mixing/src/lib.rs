//! Mixing: strategies that turn several experts' next-token distributions into one, and the
//! generator that decodes with them.
//!
//! One strategy is one file in `strategies/` and one variant of [`Strategy`].

#![forbid(unsafe_code)]

mod error;
mod generator;
pub mod merging;
mod mixer;
mod named;
mod plan;
mod preference;
mod registry;
mod requirements;
pub mod strategies;

pub use error::{Error, Result};
pub use generator::{Generation, Generator, Request, Response, TemperatureOf};
pub use mixer::{CloneMixer, History, Mixed, Mixer, Step, mix_logs, mix_probabilities, normalise};
pub use named::Named;
pub use plan::{Candidate, Plan};
pub use preference::Preference;
pub use requirements::{Distribution, Requirements};
pub use strategies::Strategy;

/// Name of the expert that is always there: the base model as it is.
pub const BASE: &str = "base";

/// Owned copies of names.
pub(crate) fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}
