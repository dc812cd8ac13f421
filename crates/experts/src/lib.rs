//! Preference experts: language models that each stand for one preference.
//!
//! An [`Expert`] is a model, perhaps with an adapter, perhaps with an instruction in its prompt. An
//! [`ExpertPool`] runs several of them over the same sequences, one forward pass for all that share
//! a base. A [`PromptCache`] keeps what they have read.

#![forbid(unsafe_code)]

pub mod classifier;
mod error;
mod expert;
mod kinds;
mod lanes;
mod open;
mod pool;
pub mod prompts;
pub mod training;

pub use error::{Error, Result};
pub use expert::Expert;
pub use kinds::{Capabilities, ExpertSpec, Files};
pub use pool::{ExpertPool, NextTokens, PoolState, vocabulary_difference};
pub use prompts::PromptCache;
