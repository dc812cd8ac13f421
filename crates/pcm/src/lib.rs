//! The Preference Control Model (PCM, arXiv 2407.04181): a small decoder that reads a preference and the
//! context and gives, at every token, weights over the experts.
//!
//! This crate knows no expert and no reward, only recorded numbers: a [`Rollout`] holds the experts'
//! log-probabilities of the sampled tokens, `[tokens, experts]`, and that is all that training needs. With
//! `α = softmax(z)` and `p = Σ α_i p_i` the gradient is `∂ ln p(y) / ∂z_i = α_i (p_i(y) / p(y) − 1)`, so an
//! epoch runs no expert and builds nothing as wide as their vocabulary. Where experts are multiplied instead
//! ([`Output`]), the record holds the likeliest tokens of each step and the mass of the others, too
//! ([`Support`]).

#![forbid(unsafe_code)]

mod config;
mod credit;
mod error;
mod held_out;
mod model;
mod output;
mod pairs;
mod pretrained;
mod rollout;
#[cfg(feature = "tables")]
mod rollout_files;
mod runner;
mod trainer;

pub use config::{Origin, PcmConfig, PreferenceInput};
pub use credit::Credit;
pub use error::{Error, Result};
pub use model::{Context, Pcm, PcmGradient};
pub use output::{Moments, Output, Support, mixture};
pub use rollout::{Prefixes, Rollout};
#[cfg(feature = "tables")]
pub use rollout_files::{read_rollouts, write_rollouts};
pub use runner::{Runner, Sequence};
pub use trainer::{Algorithm, Fit, PcmTrainer, TrainerConfig};
