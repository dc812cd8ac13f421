//! Language models: loading, running over lanes, tokenising, sampling, saving.

#![warn(clippy::undocumented_unsafe_blocks)]

pub mod adapter;
pub mod chat;
pub mod config;
mod decoder;
pub mod device;
pub mod encoders;
pub mod engine;
mod error;
pub mod footprint;
mod format;
mod kv_cache;
pub mod load;
mod model;
pub mod objectives;
pub mod packed;
pub mod parameter;
pub mod sampling;
pub mod save;
pub mod scored;
pub mod shape;
pub mod source;
mod token_text;
pub mod tokenizer;
pub mod tuning;

pub use adapter::{Adapter, AdapterStack};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use device::{DeviceSpec, to_host};
pub use engine::Engine;
pub use error::{Error, Result};
pub use format::Format;
pub use kv_cache::KvCache;
pub use model::{LanguageModel, prompt_tokens};
pub use tokenizer::Tokenizer;
