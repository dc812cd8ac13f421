//! ModernBERT (arXiv 2412.13663): blocks that norm what they read, rotary positions, and a gated feed-forward,
//!
//! ```text
//! x = x + Wo · attention(rope(Wq n), rope(Wk n), Wv n)      n = norm(x), in the first block x itself
//! x = x + Wdown · (f(Wi m) * Wg m)                          m = norm(x)
//! ```
//!
//! Most layers see some tokens to each side, the others all.

use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::Batch;
use super::config::{Config, ModernBert as Shape};
use super::layers::{Activation, LayerNorm, Linear, attend, split_heads};
use super::weights::Weights;
use crate::Result;

/// The blocks of a ModernBERT on a device.
#[derive(Debug)]
pub(super) struct ModernBert {
    embedding: Tensor<2>,
    norm: LayerNorm,
    blocks: Vec<Block>,
    last_norm: LayerNorm,
    heads: usize,
    activation: Activation,
    device: Device,
}

#[derive(Debug)]
struct Block {
    base: f64,
    window: Option<usize>,
    attention_norm: Option<LayerNorm>,
    /// Query, key and value below each other.
    qkv: Linear,
    output: Linear,
    norm: LayerNorm,
    /// Input and gate below each other.
    up: Linear,
    down: Linear,
}

impl ModernBert {
    /// Reads the tensors whose names start with `prefix`.
    pub(super) fn read(c: &Config, shape: &Shape, weights: &Weights, prefix: &str) -> Result<Self> {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let norm =
            |name: &str| weights.norm(&format!("{prefix}{name}"), hidden, shape.norm_bias, c.eps);
        let block = |(layer, &(base, window)): (usize, &(f64, Option<usize>))| -> Result<Block> {
            let start = format!("{prefix}layers.{layer}.");
            let linear =
                |name: &str, sizes, bias| weights.linear(&format!("{start}{name}"), sizes, bias);
            let attention_norm = (layer > 0).then(|| norm(&format!("layers.{layer}.attn_norm")));
            Ok(Block {
                base,
                window,
                attention_norm: attention_norm.transpose()?,
                qkv: linear("attn.Wqkv", [3 * hidden, hidden], shape.attention_bias)?,
                output: linear("attn.Wo", [hidden, hidden], shape.attention_bias)?,
                norm: norm(&format!("layers.{layer}.mlp_norm"))?,
                up: linear("mlp.Wi", [2 * inner, hidden], shape.mlp_bias)?,
                down: linear("mlp.Wo", [hidden, inner], shape.mlp_bias)?,
            })
        };
        let name = format!("{prefix}embeddings.tok_embeddings.weight");
        Ok(Self {
            embedding: weights.matrix(&name, [c.vocab_size, hidden])?,
            norm: norm("embeddings.norm")?,
            blocks: shape
                .layers
                .iter()
                .enumerate()
                .map(block)
                .collect::<Result<_>>()?,
            last_norm: norm("final_norm")?,
            heads: c.heads,
            activation: c.activation,
            device: weights.device().clone(),
        })
    }

    /// The last hidden states, `[lanes, time, hidden]`.
    pub(super) fn forward(&self, batch: &Batch) -> Tensor<3> {
        let [lanes, time] = batch.shape;
        let hidden = self.embedding.dims()[1];
        let x = self.embedding.clone().select(0, batch.ids.clone());
        let mut x = self.norm.forward(x.reshape([lanes, time, hidden]));
        for block in &self.blocks {
            x = self.block(block, x, batch);
        }
        self.last_norm.forward(x)
    }

    fn block(&self, block: &Block, x: Tensor<3>, batch: &Batch) -> Tensor<3> {
        let hidden = x.dims()[2];
        let n = match &block.attention_norm {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        let qkv = block.qkv.forward(n);
        let part = |i: usize| split_heads(qkv.clone().narrow(2, i * hidden, hidden), self.heads);
        let [q, k, v] = [0, 1, 2].map(part);
        let (q, k) = (self.rotate(q, block.base), self.rotate(k, block.base));
        let scale = (q.dims()[3] as f32).powf(-0.5);
        let unseen = match block.window {
            Some(window) => self.beyond(batch, window),
            None => batch.hidden.clone(),
        };
        let x = x + block
            .output
            .forward(attend([q, k, v], scale, None, &unseen));
        let both = block.up.forward(block.norm.forward(x.clone()));
        let inner = both.dims()[2] / 2;
        let input = self.activation.forward(both.clone().narrow(2, 0, inner));
        x + block.down.forward(input * both.narrow(2, inner, inner))
    }

    /// What lies more than `window` tokens away is hidden, too: `[lanes, 1, time, time]`.
    fn beyond(&self, batch: &Batch, window: usize) -> Tensor<4, Bool> {
        let [lanes, time] = batch.shape;
        let far = (0..time * time).map(|i| (i / time).abs_diff(i % time) > window);
        let far = TensorData::new(far.collect::<Vec<bool>>(), [1, 1, time, time]);
        let far: Tensor<4, Bool> = Tensor::from_data(far, &self.device);
        let shape = [lanes, 1, time, time];
        far.expand(shape)
            .bool_or(batch.hidden.clone().expand(shape))
    }

    /// Turns each pair `(j, j + d / 2)` of `[lanes, heads, time, d]` by its place.
    fn rotate(&self, x: Tensor<4>, base: f64) -> Tensor<4> {
        let [_, _, time, width] = x.dims();
        let half = width / 2;
        let (mut cos, mut sin) = (vec![0.0f32; time * width], vec![0.0f32; time * width]);
        for t in 0..time {
            for j in 0..half {
                let frequency = base.powf(-2.0 * j as f64 / width as f64) as f32;
                let (s, c) = (t as f32 * frequency).sin_cos();
                let at = t * width + j;
                (cos[at], cos[at + half]) = (c, c);
                (sin[at], sin[at + half]) = (-s, s);
            }
        }
        let table =
            |data| Tensor::from_data(TensorData::new(data, [1, 1, time, width]), &self.device);
        let (cos, sin): (Tensor<4>, Tensor<4>) = (table(cos), table(sin));
        let halves = vec![
            x.clone().narrow(3, half, half),
            x.clone().narrow(3, 0, half),
        ];
        x * cos + Tensor::cat(halves, 3) * sin
    }
}
