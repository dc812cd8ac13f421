//! What an iteration did.

use pcm::Fit;
use serde::Serialize;

/// What an iteration did; means over its responses.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    pub iteration: u64,
    pub utility: f64,
    /// Divergence from the base in nats per token, where it is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    pub length: f64,
    pub ended: f64,
    #[serde(flatten)]
    pub fit: Fit,
}
