//! Number formats of a model's matrices.

use serde::{Deserialize, Serialize};

/// Number format of a model's matrices. The book's chapter on speed says what each costs in accuracy.
///
/// ```
/// use mope_lm::Format;
///
/// let format: Format = ron::from_str("Q8")?;
/// assert_eq!(format, Format::Q8);
/// assert_eq!(Format::default(), Format::F32);
/// # Ok::<(), ron::error::SpannedError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
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

impl Format {
    /// All of them, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Q8, Self::Q4];

    /// How packed projections are stored.
    pub(crate) fn projection(self) -> kernels::Format {
        match self {
            Self::F32 => kernels::Format::F32,
            Self::Bf16 => kernels::Format::Bf16,
            Self::Q8 => kernels::Format::Q8,
            Self::Q4 => kernels::Format::Q4,
        }
    }

    /// How packed embeddings and heads are stored.
    pub(crate) fn vocabulary(self) -> kernels::Format {
        match self {
            Self::Q4 => kernels::Format::Q8,
            other => other.projection(),
        }
    }
}
