//! Low-rank adapters (LoRA, arXiv 2106.09685) as side paths of the decoder's matrices:
//! `y = x Wᵀ + x A B`, with `A [in, r]`, `B [r, out]` and the scale `α / r` folded into `B`.
//!
//! ```
//! use mope_lm::adapter::{Adapter, LowRank, Target};
//!
//! // Rank 1: A is [2, 1], B is [1, 2]; what is added to the weight is their product, [out, in].
//! let pair = LowRank { rank: 1, a: vec![1.0, 2.0], b: vec![10.0, 20.0] };
//! let adapter = Adapter { pairs: [((0, Target::Query), pair)].into() };
//! let mut weight = vec![0.0; 4];
//! adapter.add_to("model.layers.0.self_attn.q_proj.weight", &mut weight)?;
//! assert_eq!(weight, [10.0, 20.0, 20.0, 40.0]);
//! # Ok::<(), mope_lm::Error>(())
//! ```

use std::collections::HashMap;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// The matrices of a block that can carry an adapter.
#[allow(missing_docs, reason = "the names are the projections'")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Target {
    /// All of them, in the order of a block.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Module name in Hugging Face checkpoints and PEFT folders.
    pub fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// A part of the feed-forward layer.
    pub(crate) fn is_feed_forward(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }

    /// Inputs and outputs of the matrix.
    pub fn size(self, c: &DecoderConfig) -> (usize, usize) {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        match self {
            Self::Query => (c.hidden_size, q),
            Self::Key | Self::Value => (c.hidden_size, kv),
            Self::Output => (q, c.hidden_size),
            Self::Gate | Self::Up => (c.hidden_size, c.intermediate_size),
            Self::Down => (c.intermediate_size, c.hidden_size),
        }
    }
}

/// The pair of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// Rank r.
    pub rank: usize,
    /// `[in, r]`, row-major.
    pub a: Vec<f32>,
    /// `[r, out]`, row-major, scale included.
    pub b: Vec<f32>,
}

impl LowRank {
    /// `(A B)ᵀ`, what the pair adds to a stored weight, `[out, in]`.
    pub fn product(&self) -> Vec<f32> {
        let (inputs, outputs) = (
            self.a.len() / self.rank.max(1),
            self.b.len() / self.rank.max(1),
        );
        let a = transposed(&self.a, inputs, self.rank);
        let mut product = vec![0.0; outputs * inputs];
        for (out, row) in product.chunks_mut(inputs.max(1)).enumerate() {
            for (k, a) in a.chunks(inputs.max(1)).enumerate() {
                let b = self.b[k * outputs + out];
                row.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
        }
        product
    }
}

/// One adapter on the host: pairs by layer and matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adapter {
    /// The matrices that have a side path.
    pub pairs: HashMap<(usize, Target), LowRank>,
}

impl Adapter {
    /// What the adapter adds to the weight of that Hugging Face name, `[out, in]`; `None` where nothing.
    pub fn delta(&self, name: &str) -> Option<Vec<f32>> {
        let matrix = place(name.strip_suffix(".weight")?)?;
        Some(self.pairs.get(&matrix)?.product())
    }

    /// Adds the adapter to the weight of that Hugging Face name, `[out, in]`; others stay as they are.
    ///
    /// # Errors
    /// A pair of another shape than the weight.
    pub fn add_to(&self, name: &str, weight: &mut [f32]) -> Result<()> {
        let Some(product) = self.delta(name) else {
            return Ok(());
        };
        if product.len() != weight.len() {
            return Err(Error::AdapterShape {
                weight: name.into(),
                expected: weight.len(),
                got: product.len(),
            });
        }
        weight.iter_mut().zip(product).for_each(|(w, p)| *w += p);
        Ok(())
    }
}

/// Where a language model's layers stand in the modules that contain it.
const LAYERS: [&str; 4] = [
    "model.layers.",
    "layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
];

/// `model.layers.3.self_attn.q_proj` to layer and target; `None` for any other module, be it a vision
/// tower's whose name ends alike.
pub(crate) fn place(module: &str) -> Option<(usize, Target)> {
    let rest = LAYERS.iter().find_map(|body| module.strip_prefix(body))?;
    let (number, rest) = rest.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    let target = Target::ALL.into_iter().find(|t| t.module() == rest)?;
    // "00" and "+1" are no names of layers.
    (layer.to_string() == number).then_some((layer, target))
}

/// `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns * rows)
        .map(|i| data[i % rows * columns + i / rows])
        .collect()
}

/// Adapters of several experts stacked for one pass: `A [experts, in, r]`, `B [experts, r, out]` per
/// matrix, smaller ranks and absent pairs filled with zeros (which add exactly nothing).
///
/// Lanes are expert-major: with `s` lanes per expert, lane `e · s + i` belongs to expert `e`.
#[derive(Debug, Clone)]
pub struct AdapterStack {
    experts: usize,
    pairs: HashMap<(usize, Target), (Tensor<3>, Tensor<3>)>,
}

impl AdapterStack {
    /// Stacks one adapter per expert; `None` is the base itself.
    pub fn new(adapters: &[Option<&Adapter>], config: &DecoderConfig, device: &Device) -> Self {
        let experts = adapters.len();
        let mut pairs = HashMap::new();
        for layer in 0..config.layers {
            for target in Target::ALL {
                let stacked: Vec<Option<&LowRank>> = adapters
                    .iter()
                    .map(|a| a.and_then(|a| a.pairs.get(&(layer, target))))
                    .collect();
                let rank = stacked.iter().flatten().map(|p| p.rank).max().unwrap_or(0);
                if rank == 0 {
                    continue;
                }
                let (inputs, outputs) = target.size(config);
                let mut a = vec![0.0; experts * inputs * rank];
                let mut b = vec![0.0; experts * rank * outputs];
                for (expert, pair) in stacked.iter().enumerate() {
                    let Some(pair) = pair else { continue };
                    for (to, from) in a[expert * inputs * rank..]
                        .chunks_mut(rank)
                        .zip(pair.a.chunks(pair.rank))
                    {
                        to[..pair.rank].copy_from_slice(from);
                    }
                    let start = expert * rank * outputs;
                    b[start..start + pair.b.len()].copy_from_slice(&pair.b);
                }
                let a = TensorData::new(a, [experts, inputs, rank]);
                let b = TensorData::new(b, [experts, rank, outputs]);
                let tensors = (Tensor::from_data(a, device), Tensor::from_data(b, device));
                pairs.insert((layer, target), tensors);
            }
        }
        Self { experts, pairs }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// What the side path of a matrix adds to `[lanes, time, out]` for inputs `[lanes, time, in]`;
    /// `None` where no expert adapts it.
    pub(crate) fn side(&self, layer: usize, target: Target, x: &Tensor<3>) -> Option<Tensor<3>> {
        let (a, b) = self.pairs.get(&(layer, target))?;
        let [lanes, time, inputs] = x.dims();
        let rows = lanes / self.experts * time;
        let y = x
            .clone()
            .reshape([self.experts, rows, inputs])
            .matmul(a.clone())
            .matmul(b.clone());
        let outputs = y.dims()[2];
        Some(y.reshape([lanes, time, outputs]))
    }
}
