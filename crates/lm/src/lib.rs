//! Language models: loading, running over lanes, tokenising, sampling.
#![warn(missing_docs)]

pub mod adapter;
pub mod config;
mod decoder;
mod error;
mod kv_cache;
pub mod load;

pub use adapter::{Adapter, AdapterStack};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use kv_cache::KvCache;
