//! How diverse and how repetitive responses are, apart from their utility.
//!
//! ```
//! use mope_eval::metrics::bleu;
//! let [response, reference] = ["the cat sat", "the cat sat down"].map(bleu::tokens);
//! let score = bleu::sentence(&response, &[&reference]);
//! assert!(score > 50.0 && score < 100.0);
//! ```

pub mod bleu;
mod diversity;

pub use diversity::{distinct, repetition};
