//! What responses are like, whatever they are worth: how diverse, how repetitive.

pub mod bleu;
mod diversity;

pub use diversity::{distinct, repetition};
