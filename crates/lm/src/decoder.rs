//! A LLaMA-family decoder over lanes, through burn on any device.
//!
//! Each of the `layers` blocks computes, for the residual stream `x`,
//!
//! ```text
//! x = x + Wo · attention(rope(Wq n), rope(Wk n), Wv n)      n = RMSNorm(x)
//! x = x + Wdown · (silu(Wgate m) * Wup m)                   m = RMSNorm(x)
//! ```
//!
//! and the head gives `logits = Whead · RMSNorm(x)`. LLaMA (arXiv 2302.13971), Mistral, SmolLM2, Qwen2
//! (biases) and Qwen3 (RMSNorm on each head of q and k) are this with other constants.
//!
//! A *lane* is one sequence under one expert. All lanes go through the matrices together, so the
//! base weights are read once per step however many experts share them; experts differ in the
//! low-rank side paths of an [`AdapterStack`] and in their prompts.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::adapter::{AdapterStack, Target};
use crate::config::DecoderConfig;
use crate::device::{float_format, to_host};
use crate::kv_cache::{HOLE, KvCache};
use crate::load::Checkpoint;
use crate::load::tensors::{self, Tensors};
use crate::{Error, Format, Result};

/// Score of a key that a query must not see; `exp` of it is 0 beside any real score.
const MASKED: f32 = -1e9;

type Linear = tensors::Linear<Tensor<2>, Tensor<1>>;
type Block = tensors::Block<Tensor<2>, Tensor<1>>;

impl Linear {
    fn forward(&self, x: &Tensor<3>) -> Tensor<3> {
        let [lanes, time, inputs] = x.dims();
        let rows = x.clone().reshape([lanes * time, inputs]);
        let mut y = times(rows, &self.matrix);
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        let outputs = y.dims()[1];
        y.reshape([lanes, time, outputs])
    }
}

/// `x · matrixᵀ`. In 16 bits the factors are rounded and the device adds up as it does; the product is in 32 again.
fn times(x: Tensor<2>, matrix: &Tensor<2>) -> Tensor<2> {
    let matrix = matrix.clone().transpose();
    match matrix.dtype() {
        DType::F32 => x.matmul(matrix),
        format => x.cast(format).matmul(matrix).cast(FloatDType::F32),
    }
}

/// The weights of a decoder on a device.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    embedding: Tensor<2>,
    blocks: Vec<Block>,
    norm: Tensor<1>,
    head: Tensor<2>,
    /// Radians per token of each rotated pair, `[head_dim / 2]`.
    frequencies: Vec<f32>,
}

/// What one pass needs beside the weights: where every query stands and what it sees.
struct Pass {
    /// First cache column written.
    start: usize,
    /// `[lanes, 1, time, head_dim]`, the angle of a pair in both halves.
    cos: Tensor<4>,
    sin: Tensor<4>,
    /// `[lanes, 1, group · time, columns]`, true where a query must not look; `None`: sees all.
    mask: Option<Tensor<4, Bool>>,
}

impl Decoder {
    /// Reads a checkpoint's weights onto `device`, one tensor at a time: in 32 bits, or with `Bf16` the matrices in 16,
    /// while norms, biases, attention, adapters and all sums between products stay in 32.
    ///
    /// # Errors
    /// A format that the device lacks; a missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, device: &Device, format: Format) -> Result<Self> {
        let format = float_format(device, format)?;
        let config = checkpoint.config().clone();
        let matrix = |_, shape: [usize; 2], data| {
            let matrix = Tensor::<2>::from_data(TensorData::new(data, shape), device);
            matrix.cast(format)
        };
        let vector = |data: Vec<f32>| {
            let shape = [data.len()];
            Tensor::<1>::from_data(TensorData::new(data, shape), device)
        };
        let read = Tensors::read(checkpoint, matrix, vector)?;
        let frequencies = config.rope.frequencies(config.head_dim);
        Ok(Self {
            device: device.clone(),
            head: read.head.unwrap_or_else(|| read.embedding.clone()),
            embedding: read.embedding,
            blocks: read.blocks,
            norm: read.norm,
            frequencies,
            config,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The embedding of a token, `[hidden]`.
    pub(crate) fn embedding_row(&self, token: u32) -> Result<Vec<f32>> {
        let id: Tensor<1, Int> = Tensor::from_data([token as i32].as_slice(), &self.device);
        to_host(self.embedding.clone().select(0, id).cast(FloatDType::F32))
    }

    /// An empty cache for this model.
    pub fn cache(&self, lanes: usize, capacity: usize) -> KvCache {
        KvCache::new(&self.config, lanes, capacity, &self.device)
    }

    /// Reads the next tokens of every lane and returns the last hidden states, normalised.
    ///
    /// Lane `i` reads `tokens[i]`, which may be longer or shorter than the others' and empty.
    ///
    /// # Shapes
    /// - output: `[lanes, time, hidden]`, `time` the longest lane; rows after a lane's own tokens
    ///   hold nothing of use
    ///
    /// # Errors
    /// No tokens, a token outside of the vocabulary, lanes that don't match the cache or the
    /// adapters, or more tokens than the context or the cache holds. Nothing is read then.
    pub fn hidden(
        &self,
        tokens: &[&[u32]],
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<Tensor<3>> {
        let c = &self.config;
        self.check(tokens, cache, adapters)?;
        let (lanes, time) = (
            tokens.len(),
            tokens.iter().map(|t| t.len()).max().unwrap_or(0),
        );
        let pass = self.pass(tokens, time, cache)?;
        let mut ids = vec![0i32; lanes * time];
        for (row, tokens) in ids.chunks_mut(time).zip(tokens) {
            for (id, &token) in row.iter_mut().zip(*tokens) {
                *id = token as i32;
            }
        }
        let ids: Tensor<1, Int> = Tensor::from_data(ids.as_slice(), &self.device);
        let mut x: Tensor<3> = self
            .embedding
            .clone()
            .select(0, ids)
            .cast(FloatDType::F32)
            .reshape([lanes, time, c.hidden_size]);
        for (layer, block) in self.blocks.iter().enumerate() {
            x = self.block(layer, block, x, &pass, cache, adapters);
        }
        Ok(rms_norm(x, &self.norm, c.norm_eps))
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - input: `[rows, hidden]`
    /// - output: `[rows, vocab]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        times(hidden, &self.head)
    }

    /// Reads the next tokens of every lane and returns the logits after each lane's last one.
    ///
    /// # Shapes
    /// - output: `[lanes, vocab]`
    ///
    /// # Errors
    /// Those of [`Self::hidden`], and a lane without tokens.
    pub fn next_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<Tensor<2>> {
        if tokens.iter().any(|t| t.is_empty()) {
            return Err(Error::EmptyLane);
        }
        let hidden = self.hidden(tokens, cache, adapters)?;
        let [lanes, time, width] = hidden.dims();
        let last = |(lane, tokens): (usize, &&[u32])| (lane * time + tokens.len() - 1) as i32;
        let rows: Vec<i32> = tokens.iter().enumerate().map(last).collect();
        let rows = Tensor::from_data(rows.as_slice(), &self.device);
        Ok(self.logits(hidden.reshape([lanes * time, width]).select(0, rows)))
    }

    fn check(
        &self,
        tokens: &[&[u32]],
        cache: &KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<()> {
        let lanes = tokens.len();
        if lanes != cache.lanes() || tokens.iter().all(|t| t.is_empty()) {
            let cache = cache.lanes();
            return Err(Error::CacheLanes { lanes, cache });
        }
        if let Some(stack) = adapters.filter(|s| !lanes.is_multiple_of(s.experts().max(1))) {
            let experts = stack.experts();
            return Err(Error::ExpertLanes { lanes, experts });
        }
        for (tokens, read) in tokens.iter().zip(cache.lengths()) {
            let needed = read + tokens.len();
            if needed > self.config.context_length {
                let limit = self.config.context_length;
                return Err(Error::TooLong {
                    tokens: needed,
                    limit,
                    what: "the model's context",
                });
            }
            let vocab_size = self.config.vocab_size;
            if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::Token { id, vocab_size });
            }
        }
        Ok(())
    }

    /// Reserves the cache's columns and lays out angles and mask.
    fn pass(&self, tokens: &[&[u32]], time: usize, cache: &mut KvCache) -> Result<Pass> {
        let c = &self.config;
        let lanes = tokens.len();
        let before = cache.lengths().to_vec();
        let counts: Vec<usize> = tokens.iter().map(|t| t.len()).collect();
        let start = cache.reserve(&counts, time)?;

        let half = c.head_dim / 2;
        let mut cos = vec![0.0f32; lanes * time * c.head_dim];
        let mut sin = cos.clone();
        for (row, (cos, sin)) in cos
            .chunks_mut(c.head_dim)
            .zip(sin.chunks_mut(c.head_dim))
            .enumerate()
        {
            let position = (before[row / time] + row % time) as f32;
            for (j, frequency) in self.frequencies.iter().enumerate() {
                let (s, k) = (position * frequency).sin_cos();
                (cos[j], cos[j + half]) = (k, k);
                // rotate_half: the first half gets minus the second.
                (sin[j], sin[j + half]) = (-s, s);
            }
        }
        let table = |data| {
            Tensor::from_data(
                TensorData::new(data, [lanes, 1, time, c.head_dim]),
                &self.device,
            )
        };

        let columns = start + time;
        let window = c.sliding_window.unwrap_or(usize::MAX);
        let mut hidden = vec![false; lanes * time * columns];
        for (row, hidden) in hidden.chunks_mut(columns).enumerate() {
            let (lane, t) = (row / time, row % time);
            // A padding query looks where the lane's last token does; its result is not used.
            let query = before[lane] + t.min(counts[lane].saturating_sub(1));
            for (hidden, &key) in hidden.iter_mut().zip(cache.columns(lane)) {
                let seen = key != HOLE && key as usize <= query && query - (key as usize) < window;
                *hidden = !seen;
            }
        }
        let mask = hidden.contains(&true).then(|| {
            let mask = TensorData::new(hidden, [lanes, 1, time, columns]);
            let mask: Tensor<4, Bool> = Tensor::from_data(mask, &self.device);
            mask.repeat_dim(2, c.heads / c.kv_heads)
        });
        Ok(Pass {
            start,
            cos: table(cos),
            sin: table(sin),
            mask,
        })
    }

    fn block(
        &self,
        layer: usize,
        block: &Block,
        x: Tensor<3>,
        pass: &Pass,
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Tensor<3> {
        let c = &self.config;
        let [lanes, time, _] = x.dims();
        let project = |linear: &Linear, target: Target, x: &Tensor<3>| {
            let y = linear.forward(x);
            match adapters.and_then(|a| a.side(layer, target, x)) {
                Some(side) => y + side,
                None => y,
            }
        };
        let split = |y: Tensor<3>, heads: usize| -> Tensor<4> {
            y.reshape([lanes, time, heads, c.head_dim]).swap_dims(1, 2)
        };

        let n = rms_norm(x.clone(), &block.attention_norm, c.norm_eps);
        let mut q = split(project(&block.query, Target::Query, &n), c.heads);
        let mut k = split(project(&block.key, Target::Key, &n), c.kv_heads);
        let v = split(project(&block.value, Target::Value, &n), c.kv_heads);
        if let Some(norm) = &block.query_norm {
            q = rms_norm(q, norm, c.norm_eps);
        }
        if let Some(norm) = &block.key_norm {
            k = rms_norm(k, norm, c.norm_eps);
        }
        let (k, v) = cache.append(layer, pass.start, pass.rotate(k), v);

        // The query heads of one key head stand below each other: nothing is repeated.
        let group = c.heads / c.kv_heads;
        let q = pass
            .rotate(q)
            .reshape([lanes, c.kv_heads, group * time, c.head_dim]);
        let scores = q.matmul(k.swap_dims(2, 3)) * (c.head_dim as f32).powf(-0.5);
        let scores = match &pass.mask {
            Some(mask) => {
                let shape = scores.dims();
                scores.mask_fill(mask.clone().expand(shape), MASKED)
            }
            None => scores,
        };
        let mixed = softmax(scores, 3)
            .matmul(v)
            .reshape([lanes, c.heads, time, c.head_dim]);
        let mixed = mixed
            .swap_dims(1, 2)
            .reshape([lanes, time, c.heads * c.head_dim]);
        let x = x + project(&block.output, Target::Output, &mixed);

        let m = rms_norm(x.clone(), &block.feed_forward_norm, c.norm_eps);
        let gate = silu(project(&block.gate, Target::Gate, &m));
        let inner = gate * project(&block.up, Target::Up, &m);
        x + project(&block.down, Target::Down, &inner)
    }
}

impl Pass {
    /// RoPE: turns each pair `(j, j + head_dim / 2)` of `[lanes, heads, time, head_dim]`.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let swapped = Tensor::cat(
            vec![
                x.clone().narrow(3, half, half),
                x.clone().narrow(3, 0, half),
            ],
            3,
        );
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f32) -> Tensor<D> {
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(D - 1);
    x * (mean_square + eps).sqrt().recip() * weight.clone().unsqueeze()
}
