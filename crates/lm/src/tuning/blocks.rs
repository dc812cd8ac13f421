//! The blocks of a decoder between inputs and last hidden states, for those who bring their own inputs
//! and outputs, and perhaps train all parameters.

use std::ops::Range;

use kernels::{Dense, Matrix};

use crate::adapter::Target;
use crate::config::DecoderConfig;
use crate::load::tensors::{Block, FeedForward, Gated, Linear};
use crate::packed::PackedDecoder;
use crate::sampling::Draws;
use crate::{Error, Result};

/// Blocks and last norm of a decoder.
#[derive(Debug, Clone)]
pub struct Blocks {
    pub(super) config: DecoderConfig,
    pub(super) blocks: Vec<Block<Dense>>,
    pub(super) norm: Vec<f32>,
    pub(super) frequencies: Vec<f32>,
}

/// A part of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Of a block's attention, `[hidden]`.
    AttentionNorm(usize),
    /// Of a block's feed-forward layer, `[hidden]`.
    FeedForwardNorm(usize),
    /// A projection of a block, `[out, in]`.
    Matrix(usize, Target),
    /// Before the head, `[hidden]`.
    LastNorm,
}

/// Where each part lies among all parameters in one row. Biases and norms of heads are not trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    places: Vec<Range<usize>>,
    len: usize,
}

const PARTS: usize = Target::ALL.len() + 2;

impl Layout {
    /// Of a decoder of this shape.
    pub fn new(config: &DecoderConfig) -> Self {
        let (mut places, mut len) = (Vec::new(), 0);
        let mut add = |n: usize| {
            places.push(len..len + n);
            len += n;
        };
        for _ in 0..config.layers {
            add(config.hidden_size);
            add(config.hidden_size);
            for target in Target::ALL {
                let (inputs, outputs) = target.size(config);
                add(inputs * outputs);
            }
        }
        add(config.hidden_size);
        Self { places, len }
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a part lies.
    ///
    /// # Panics
    /// When the decoder has no such block.
    pub fn place(&self, part: Part) -> Range<usize> {
        let index = match part {
            Part::AttentionNorm(layer) => layer * PARTS,
            Part::FeedForwardNorm(layer) => layer * PARTS + 1,
            Part::Matrix(layer, target) => layer * PARTS + 2 + target as usize,
            Part::LastNorm => self.places.len() - 1,
        };
        self.places[index].clone()
    }
}

impl Blocks {
    pub(super) fn new(config: DecoderConfig, blocks: Vec<Block<Dense>>, norm: Vec<f32>) -> Self {
        let frequencies = config.rope.frequencies(config.head_dim);
        Self {
            config,
            blocks,
            norm,
            frequencies,
        }
    }

    /// Fresh parameters: matrices normal with standard deviation `0.02`, those that write to the stream divided
    /// by `√(2 layers)` (GPT-2's initialisation), norms 1.
    ///
    /// # Errors
    /// Those of [`DecoderConfig::validate`]; [`Error::TrainedBlocks`] for biases and norms of heads.
    pub fn random(config: &DecoderConfig, seed: u64) -> Result<Self> {
        let residual = 0.02 / (2.0 * config.layers as f64).sqrt();
        Self::fresh(config, |layer, target, len| {
            let sd = match target {
                Target::Output | Target::Down => residual,
                _ => 0.02,
            };
            let name = format!("{layer} {target:?}");
            normal(len, sd, &[&seed.to_le_bytes(), name.as_bytes()])
        })
    }

    /// Matrices of zeros, to be set.
    ///
    /// # Errors
    /// Those of [`DecoderConfig::validate`]; [`Error::TrainedBlocks`] for biases and norms of heads.
    pub fn zeros(config: &DecoderConfig) -> Result<Self> {
        Self::fresh(config, |_, _, len| vec![0.0; len])
    }

    fn fresh(
        config: &DecoderConfig,
        values: impl Fn(usize, Target, usize) -> Vec<f32>,
    ) -> Result<Self> {
        config.validate()?;
        let other = config.unlike_llama().is_some() || config.qk_norm;
        if other || config.qkv_bias || config.output_bias || config.mlp_bias {
            return Err(Error::TrainedBlocks);
        }
        let matrix = |layer: usize, target: Target| {
            let (inputs, outputs) = target.size(config);
            let data = values(layer, target, inputs * outputs);
            Linear {
                matrix: Dense::f32(outputs, inputs, data),
                bias: None,
            }
        };
        let block = |layer: usize| Block {
            attention_norm: vec![1.0; config.hidden_size],
            attention_post_norm: None,
            query: matrix(layer, Target::Query),
            key: matrix(layer, Target::Key),
            value: matrix(layer, Target::Value),
            output: matrix(layer, Target::Output),
            query_norm: None,
            key_norm: None,
            feed_forward_norm: vec![1.0; config.hidden_size],
            feed_forward_post_norm: None,
            feed_forward: FeedForward::Dense(Gated {
                gate: matrix(layer, Target::Gate),
                up: matrix(layer, Target::Up),
                down: matrix(layer, Target::Down),
            }),
        };
        let blocks = (0..config.layers).map(block).collect();
        Ok(Self::new(
            config.clone(),
            blocks,
            vec![1.0; config.hidden_size],
        ))
    }

    /// Shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// All parameters in one row, in the order of [`Layout`].
    pub fn parameters(&self) -> Vec<f32> {
        let layout = Layout::new(&self.config);
        let mut all = vec![0.0; layout.len()];
        for (layer, block) in self.blocks.iter().enumerate() {
            all[layout.place(Part::AttentionNorm(layer))].copy_from_slice(&block.attention_norm);
            all[layout.place(Part::FeedForwardNorm(layer))]
                .copy_from_slice(&block.feed_forward_norm);
            for target in Target::ALL {
                let matrix = &block.linear(target).matrix;
                let range = layout.place(Part::Matrix(layer, target));
                let rows = all[range].chunks_mut(matrix.inputs());
                rows.enumerate().for_each(|(i, row)| matrix.row(i, row));
            }
        }
        all[layout.place(Part::LastNorm)].copy_from_slice(&self.norm);
        all
    }

    /// Takes all parameters from one row.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn set_parameters(&mut self, all: &[f32]) {
        let layout = Layout::new(&self.config);
        assert_eq!(all.len(), layout.len(), "parameters of the blocks");
        let part = |part: Part| &all[layout.place(part)];
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            block
                .attention_norm
                .copy_from_slice(part(Part::AttentionNorm(layer)));
            block
                .feed_forward_norm
                .copy_from_slice(part(Part::FeedForwardNorm(layer)));
            for target in Target::ALL {
                let data = part(Part::Matrix(layer, target)).to_vec();
                let matrix = &mut block.linear_mut(target).matrix;
                *matrix = Dense::f32(matrix.outputs(), matrix.inputs(), data);
            }
        }
        self.norm.copy_from_slice(part(Part::LastNorm));
    }

    /// The same blocks packed for decoding, in 32 bits, with a head of `[outputs, hidden]`; to be read by
    /// [`PackedDecoder::next_outputs`].
    ///
    /// # Panics
    /// When the head's rows are not as wide as the blocks.
    pub fn packed(&self, head: &[f32]) -> PackedDecoder {
        let width = self.config.hidden_size;
        assert!(head.len().is_multiple_of(width), "rows of a head");
        let linear = |dense: &Linear<Dense>| {
            let (outputs, inputs) = (dense.matrix.outputs(), dense.matrix.inputs());
            let mut data = vec![0.0; outputs * inputs];
            let rows = data.chunks_mut(inputs);
            rows.enumerate()
                .for_each(|(i, row)| dense.matrix.row(i, row));
            Linear {
                matrix: Matrix::pack(kernels::Format::F32, outputs, inputs, &data),
                bias: dense.bias.clone(),
            }
        };
        let blocks = self.blocks.iter().map(|block| block.map(linear)).collect();
        PackedDecoder::from_blocks(self.config.clone(), blocks, self.norm.clone(), head)
    }
}

/// Normal numbers of standard deviation `sd` (Box and Muller).
pub fn normal(n: usize, sd: f64, parts: &[&[u8]]) -> Vec<f32> {
    let mut draws = Draws::new(parts);
    let mut one = |i: usize| {
        let radius = (-2.0 * (1.0 - draws.uniform(2 * i)).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * draws.uniform(2 * i + 1);
        (sd * radius * angle.cos()) as f32
    };
    (0..n).map(&mut one).collect()
}
