//! Reading a checkpoint into packed matrices.

use kernels::{Isa, Matrix};

use super::decoder::{Kind, PackedDecoder, frequencies};
use crate::load::Checkpoint;
use crate::load::tensors::{Role, Tensors};
use crate::{Format, Result};

impl PackedDecoder {
    /// Reads and packs a checkpoint's parameters, one tensor at a time.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, format: Format) -> Result<Self> {
        let config = checkpoint.config().clone();
        let pack = |role, [outputs, inputs]: [usize; 2], data: Vec<f32>| {
            let packed = match role {
                Role::Vocabulary => format.vocabulary(),
                Role::Projection => format.projection(),
                Role::Router => kernels::Format::F32,
            };
            Matrix::pack(packed, outputs, inputs, &data)
        };
        let read = Tensors::read(checkpoint, pack, |vector| vector)?;
        Ok(Self {
            format,
            isa: Isa::best(),
            embedding: read.embedding,
            head: read.head,
            blocks: read.blocks,
            norm: read.norm,
            frequencies: frequencies(&config),
            kinds: Kind::all(&config),
            config,
        })
    }
}
