//! What a packed decoder is made of.

use kernels::{Isa, Matrix};

use crate::Format;
use crate::config::DecoderConfig;
use crate::load::tensors;

pub(super) type Linear = tensors::Linear<Matrix>;
pub(super) type Gated = tensors::Gated<Matrix>;
pub(super) type Routed = tensors::Routed<Matrix>;
pub(super) type Block = tensors::Block<Matrix>;

/// What a layer's attention sees, and how its queries and keys are rotated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// Tokens that a query sees, itself included.
    pub window: usize,
    /// Which of [`PackedDecoder::frequencies`]; `None`: not rotated.
    pub rope: Option<usize>,
}

impl Kind {
    /// Of every layer.
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let kind = |layer| Self {
            window: config.window(layer),
            rope: config.layer_rope(layer),
        };
        (0..config.layers).map(kind).collect()
    }
}

/// Rotary frequencies of each of the config's embeddings, for sequences within the original context.
pub(super) fn frequencies(config: &DecoderConfig) -> Vec<Vec<f32>> {
    let rotated = config.rotated();
    config
        .ropes()
        .map(|rope| rope.frequencies(rotated))
        .collect()
}

/// A decoder with packed weights.
#[derive(Debug)]
pub struct PackedDecoder {
    pub(super) config: DecoderConfig,
    pub(super) format: Format,
    pub(super) isa: Isa,
    pub(super) embedding: Matrix,
    /// `None`: the embedding is the head, too.
    pub(super) head: Option<Matrix>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Vec<f32>,
    /// `[embeddings][rotated / 2]`.
    pub(super) frequencies: Vec<Vec<f32>>,
    /// `[layers]`.
    pub(super) kinds: Vec<Kind>,
}
