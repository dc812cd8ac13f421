//! Language models: loading, running over lanes, tokenising, sampling, saving.

pub mod adapter;
pub mod chat;
pub mod config;
mod decoder;
pub mod device;
pub mod engine;
mod error;
mod kv_cache;
pub mod load;
mod model;
pub mod objectives;
pub mod packed;
pub mod sampling;
pub mod save;
pub mod source;
pub mod tokenizer;
pub mod tuning;

pub use adapter::{Adapter, AdapterStack};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use device::DeviceSpec;
pub use engine::Engine;
pub use error::{Error, Result};
pub use kv_cache::KvCache;
pub use model::{LanguageModel, prompt_tokens, to_host};
pub use packed::Weights;
pub use tokenizer::Tokenizer;
