//! DeBERTa's relative positions: what the content at one place says of the distance to another and back,
//!
//! ```text
//! score(i, j) = (q_i · k_j + q_i · Wk r(i − j) + k_j · Wq r(j − i)) / sqrt(d · terms)
//! ```
//!
//! with `r` a row of one table for all layers. Far distances share rows, in buckets that grow with the logarithm (v2 and
//! v3).

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::{Config, Deberta};
use super::layers::{LayerNorm, Linear, split_heads};
use super::post_norm::Block;
use super::weights::Weights;
use crate::Result;

/// The table of relative positions.
#[derive(Debug)]
pub(super) struct Relative {
    config: Deberta,
    /// `[2 · span, hidden]`, normed.
    table: Tensor<2>,
    device: Device,
}

/// Rows of the table for all pairs of a batch's places.
pub(super) struct Pass<'a> {
    relative: &'a Relative,
    /// `[1, 1, time, time]`: for query and key.
    forward: Tensor<4, Int>,
    /// The same for key and query.
    backward: Tensor<4, Int>,
}

/// The bucket of a distance: near ones are their own, far ones share one by the logarithm.
fn bucket(distance: i64, buckets: usize, farthest: usize) -> i64 {
    let middle = (buckets / 2) as i64;
    let far = distance.abs();
    if buckets == 0 || far <= middle {
        return distance;
    }
    // In 32 bits, as there: where the steps are whole numbers, rounding decides.
    let (far, half) = (far as f32, middle as f32);
    let reach = ((farthest as f64 - 1.0) / f64::from(half)) as f32;
    let steps = ((far / half).ln() / reach.ln() * (half - 1.0)).ceil();
    (steps as i64 + middle) * distance.signum()
}

impl Relative {
    pub(super) fn read(
        config: &Deberta,
        of: &Config,
        weights: &Weights,
        prefix: &str,
    ) -> Result<Self> {
        let (hidden, rows) = (of.hidden_size, 2 * config.span);
        let name = format!("{prefix}encoder.rel_embeddings.weight");
        let mut table = weights.matrix(&name, [rows, hidden])?;
        if config.normed {
            let name = format!("{prefix}encoder.LayerNorm");
            let norm: LayerNorm = weights.norm(&name, hidden, true, of.eps)?;
            table = norm.forward(table);
        }
        Ok(Self {
            config: config.clone(),
            table,
            device: weights.device().clone(),
        })
    }

    /// For texts of `time` tokens.
    pub(super) fn pass(&self, time: usize) -> Pass<'_> {
        let Deberta {
            span,
            buckets,
            farthest,
            ..
        } = self.config;
        let rows = |sign: i64| -> Tensor<4, Int> {
            let mut rows = Vec::with_capacity(time * time);
            for query in 0..time as i64 {
                for key in 0..time as i64 {
                    let row = sign * bucket(query - key, buckets, farthest) + span as i64;
                    rows.push(row.clamp(0, 2 * span as i64 - 1) as i32);
                }
            }
            Tensor::from_data(TensorData::new(rows, [1, 1, time, time]), &self.device)
        };
        Pass {
            relative: self,
            forward: rows(1),
            backward: rows(-1),
        }
    }
}

impl Pass<'_> {
    /// Terms of a score, by whose number it is divided.
    pub(super) fn terms(&self) -> usize {
        let config = &self.relative.config;
        1 + usize::from(config.content_to_position) + usize::from(config.position_to_content)
    }

    /// What positions add to the scores before these are scaled, `[lanes, heads, time, time]`.
    pub(super) fn scores(
        &self,
        block: &Block,
        queries: &Tensor<4>,
        keys: &Tensor<4>,
        heads: usize,
    ) -> Tensor<4> {
        let [lanes, _, time, _] = queries.dims();
        let shape = [lanes, heads, time, time];
        let config = &self.relative.config;
        let query = block.position_query.as_ref().unwrap_or(&block.query);
        let key = block.position_key.as_ref().unwrap_or(&block.key);
        // [1, heads, 2 · span, d]
        let project = |linear: &Linear| {
            let rows: Tensor<3> = self.relative.table.clone().unsqueeze();
            split_heads(linear.forward(rows), heads)
        };
        let mut sum = Tensor::zeros(shape, &self.relative.device);
        if config.content_to_position {
            let scores = queries
                .clone()
                .matmul(expand(project(key), lanes).swap_dims(2, 3));
            sum = sum + scores.gather(3, self.forward.clone().expand(shape));
        }
        if config.position_to_content {
            let scores = keys
                .clone()
                .matmul(expand(project(query), lanes).swap_dims(2, 3));
            let scores = scores.gather(3, self.backward.clone().expand(shape));
            sum = sum + scores.swap_dims(2, 3);
        }
        sum
    }
}

fn expand(x: Tensor<4>, lanes: usize) -> Tensor<4> {
    let [_, heads, rows, width] = x.dims();
    x.expand([lanes, heads, rows, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_transformers_own() {
        // make_log_bucket_position(x, 8, 32): near ones are their own, 31 is the last of the far ones.
        let got = [-31, -8, -5, -4, -1, 0, 3, 4, 5, 6, 9, 12, 31].map(|d| bucket(d, 8, 32));
        assert_eq!(got, [-7, -6, -5, -4, -1, 0, 3, 4, 5, 5, 6, 6, 7]);
        assert_eq!(bucket(-300, 0, 512), -300);
    }
}
