//! What a pass forward keeps for the way back.

/// What the blocks read on the way, for the way back.
#[derive(Debug, Default)]
pub(super) struct Tape {
    /// One per block, or a single one where there is no way back.
    pub layers: Vec<Layer>,
    /// Last hidden states before the last norm, `[rows, hidden]`.
    pub stream: Vec<f32>,
    /// Cosine and sine of every row's rotary angles, `[rows, head_dim / 2]`.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    /// Buffers: `[rows, hidden]` and `[rows, intermediate]`.
    pub narrow: Vec<f32>,
    pub wide: Vec<f32>,
    /// Attention's scores of one head and sequence.
    pub scores: Vec<f32>,
}

/// What one block read.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// The block's input, `[rows, hidden]`.
    pub input: Vec<f32>,
    /// Queries and keys as projected where they are normed (else empty).
    pub raw_query: Vec<f32>,
    pub raw_key: Vec<f32>,
    /// After norm and rotation, `[rows, heads · head_dim]` and `[rows, kv_heads · head_dim]`.
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    /// Attention's result, `[rows, heads · head_dim]`.
    pub mixed: Vec<f32>,
    /// The stream between attention and feed-forward, `[rows, hidden]`.
    pub middle: Vec<f32>,
    /// `[rows, intermediate]`.
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    /// `x A` by target, `[rows, r]`.
    pub sides: [Vec<f32>; 7],
}

/// Gives a buffer `n` numbers, whatever they are.
pub(super) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    buffer.resize(n, 0.0);
    buffer
}
