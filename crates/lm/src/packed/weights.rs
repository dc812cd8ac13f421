//! Number formats, and reading a checkpoint into packed weights.

use kernels::{Format, Isa, Matrix};
use serde::{Deserialize, Serialize};

use super::PackedDecoder;
use crate::Result;
use crate::load::Checkpoint;
use crate::load::tensors::{self, Role, Tensors};

/// Number format of the weights. What each costs in accuracy stands in the book's chapter on speed and is measured by
/// `mope bench --accuracy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Weights {
    /// 32-bit floats: what the file says (default). Keys, values and adapters, too.
    #[default]
    F32,
    /// 16-bit floats with the exponent of 32-bit ones; keys, values and adapters in half precision.
    Bf16,
    /// 8-bit integers in blocks of 32 with a 16-bit scale (GGML's Q8_0), exact for files in it; inputs are
    /// rounded in the same way. Keys and values in 8 bits, adapters in half precision.
    Q8,
    /// 4-bit integers in blocks of 32 with a 16-bit scale and minimum (GGML's Q4_1), the embedding and the
    /// head in Q8; all else as beside `Q8`. Nearly exact for files in it, else for those who need the memory.
    Q4,
}

impl Weights {
    pub(super) fn matrix(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::Q8 => Format::Q8,
            Self::Q4 => Format::Q4,
        }
    }

    pub(super) fn embedding(self) -> Format {
        match self {
            Self::Q4 => Format::Q8,
            other => other.matrix(),
        }
    }
}

pub(super) type Linear = tensors::Linear<Matrix>;
pub(super) type Block = tensors::Block<Matrix>;

impl PackedDecoder {
    /// Reads and packs a checkpoint's weights, one tensor at a time.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, weights: Weights) -> Result<Self> {
        let config = checkpoint.config().clone();
        let pack = |role, [outputs, inputs]: [usize; 2], data: Vec<f32>| {
            let format = match role {
                Role::Vocabulary => weights.embedding(),
                Role::Projection => weights.matrix(),
            };
            Matrix::pack(format, outputs, inputs, &data)
        };
        let read = Tensors::read(checkpoint, pack, |vector| vector)?;
        Ok(Self {
            weights,
            isa: Isa::best(),
            embedding: read.embedding,
            head: read.head,
            blocks: read.blocks,
            norm: read.norm,
            frequencies: config.rope.frequencies(config.head_dim),
            config,
        })
    }
}
