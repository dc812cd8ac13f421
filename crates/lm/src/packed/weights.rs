//! Number formats, and reading a checkpoint into packed weights.

use kernels::{Format, Isa, Matrix};
use serde::{Deserialize, Serialize};

use super::PackedDecoder;
use crate::Result;
use crate::adapter::Target;
use crate::load::Checkpoint;

/// Number format of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Weights {
    /// 32-bit floats: what the file says (default).
    #[default]
    F32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
    /// 8-bit integers in blocks of 32 with a 16-bit scale (GGML's Q8_0); exact for files in it.
    Q8,
    /// 4-bit integers in blocks of 32 with a 16-bit scale and minimum (GGML's Q4_1); the embedding and the
    /// head in Q8. Nearly exact for files in it, else for those who need the memory.
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

#[derive(Debug)]
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) query_norm: Option<Vec<f32>>,
    pub(super) key_norm: Option<Vec<f32>>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl PackedDecoder {
    /// Reads and packs a checkpoint's weights, one tensor at a time.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, weights: Weights) -> Result<Self> {
        let config = checkpoint.config().clone();
        let reader = checkpoint.reader();
        let c = &config;
        let vector = |name: &str, n: usize| reader.get(name, &[n]);
        let block = |layer: usize| -> Result<Block> {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let linear = |target: Target, bias: bool| -> Result<Linear> {
                let (inputs, outputs) = target.size(c);
                let module = format!("model.layers.{layer}.{}", target.module());
                let data = reader.get(&format!("{module}.weight"), &[outputs, inputs])?;
                let bias = bias.then(|| vector(&format!("{module}.bias"), outputs));
                Ok(Linear {
                    matrix: Matrix::pack(weights.matrix(), outputs, inputs, &data),
                    bias: bias.transpose()?,
                })
            };
            let head_norm = |part: &str| {
                let norm = c.qk_norm.then(|| vector(&name(part), c.head_dim));
                norm.transpose()
            };
            Ok(Block {
                attention_norm: vector(&name("input_layernorm"), c.hidden_size)?,
                query: linear(Target::Query, c.qkv_bias)?,
                key: linear(Target::Key, c.qkv_bias)?,
                value: linear(Target::Value, c.qkv_bias)?,
                output: linear(Target::Output, c.output_bias)?,
                query_norm: head_norm("self_attn.q_norm")?,
                key_norm: head_norm("self_attn.k_norm")?,
                feed_forward_norm: vector(&name("post_attention_layernorm"), c.hidden_size)?,
                gate: linear(Target::Gate, c.mlp_bias)?,
                up: linear(Target::Up, c.mlp_bias)?,
                down: linear(Target::Down, c.mlp_bias)?,
            })
        };
        let vocabulary = |name: &str| -> Result<Matrix> {
            let data = reader.get(name, &[c.vocab_size, c.hidden_size])?;
            let format = weights.embedding();
            Ok(Matrix::pack(format, c.vocab_size, c.hidden_size, &data))
        };
        let embedding = vocabulary("model.embed_tokens.weight")?;
        let head = (!c.tied_head).then(|| vocabulary("lm_head.weight"));
        let head = head.transpose()?;
        let blocks = (0..c.layers).map(block).collect::<Result<_>>()?;
        let norm = vector("model.norm.weight", c.hidden_size)?;
        reader.finish()?;
        Ok(Self {
            weights,
            isa: Isa::best(),
            embedding,
            head,
            blocks,
            norm,
            frequencies: c.rope.frequencies(c.head_dim),
            config,
        })
    }
}
