//! What all encoders are made of.

use burn::tensor::activation::{gelu, gelu_approximate, relu, silu, softmax};
use burn::tensor::{Bool, Tensor};
use serde::Deserialize;

/// Score of a key that a query must not see; `exp` of it is 0 beside any real score.
const MASKED: f32 = -1e9;

/// `y = x W + b`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    /// `[inputs, outputs]`.
    pub(super) matrix: Tensor<2>,
    /// `[outputs]`.
    pub(super) bias: Option<Tensor<1>>,
}

impl Linear {
    /// Of the last dimension.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let mut shape = x.dims();
        let inputs = shape[D - 1];
        let rows: usize = shape[..D - 1].iter().product();
        let mut y = x.reshape([rows, inputs]).matmul(self.matrix.clone());
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        shape[D - 1] = y.dims()[1];
        y.reshape(shape)
    }
}

/// `(x − mean) / sqrt(variance + eps) · weight + bias` over the last dimension.
#[derive(Debug, Clone)]
pub(super) struct LayerNorm {
    pub(super) weight: Tensor<1>,
    pub(super) bias: Option<Tensor<1>>,
    pub(super) eps: f32,
}

impl LayerNorm {
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let centred = x.clone() - x.mean_dim(D - 1);
        let variance = centred.clone().powf_scalar(2.0).mean_dim(D - 1);
        let y = centred * (variance + self.eps).sqrt().recip() * self.weight.clone().unsqueeze();
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}

/// The functions between two projections, as configs name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    Gelu,
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    Relu,
    #[serde(alias = "swish")]
    Silu,
    Tanh,
}

impl Activation {
    pub(super) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => gelu(x),
            Self::GeluNew => gelu_approximate(x),
            Self::Relu => relu(x),
            Self::Silu => silu(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// `[lanes, time, heads · d]` as `[lanes, heads, time, d]`.
pub(super) fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [lanes, time, width] = x.dims();
    x.reshape([lanes, time, heads, width / heads])
        .swap_dims(1, 2)
}

/// Attention of every query to the keys that it may see.
///
/// - queries, keys, values: `[lanes, heads, time, d]`
/// - more: added to the scaled scores, `[lanes, heads, time, time]`
/// - hidden: true where a query must not look, `[lanes or 1, 1, time or 1, time]`
/// - output: `[lanes, time, heads · d]`
pub(super) fn attend(
    [queries, keys, values]: [Tensor<4>; 3],
    scale: f32,
    more: Option<Tensor<4>>,
    hidden: &Tensor<4, Bool>,
) -> Tensor<3> {
    let [lanes, heads, time, width] = queries.dims();
    let mut scores = queries.matmul(keys.swap_dims(2, 3)) * scale;
    if let Some(more) = more {
        scores = scores + more;
    }
    let hidden = hidden.clone().expand([lanes, heads, time, time]);
    let weights = softmax(scores.mask_fill(hidden, MASKED), 3);
    let mixed = weights.matmul(values).swap_dims(1, 2);
    mixed.reshape([lanes, time, heads * width])
}
