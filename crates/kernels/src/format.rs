//! How matrices are stored: number formats, and the sizes of groups and blocks.

/// Output rows that lie interleaved.
pub const GROUP: usize = 16;

/// Inputs that share a scale in the 8- and 4-bit formats.
pub const BLOCK: usize = 32;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
    /// Blocks of 32 inputs: 8-bit integers −127..=127 and a 16-bit float `d`; `w = d q`. 8.5 bits a weight.
    Q8,
    /// Blocks of 32 inputs: 4-bit integers 0..=15 and 16-bit floats `d`, `m`; `w = d q + m`. 5 bits a weight.
    Q4,
}
