//! The base's responses, which utility refers to.

use std::collections::BTreeMap;

/// The base's response to a prompt.
#[derive(Debug, Clone, Default)]
pub(super) struct Reference {
    /// Its tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Normalised rewards of its beginnings by their length, as far as they were asked for.
    pub rewards: BTreeMap<usize, Vec<f64>>,
}
