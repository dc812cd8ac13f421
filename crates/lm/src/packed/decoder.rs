//! What a packed decoder is made of.

use kernels::{Isa, Matrix};

use crate::Format;
use crate::config::DecoderConfig;
use crate::load::tensors;

pub(super) type Linear = tensors::Linear<Matrix>;
pub(super) type Block = tensors::Block<Matrix>;

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
    pub(super) frequencies: Vec<f32>,
}
