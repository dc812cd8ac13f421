//! The way forward through the blocks.

use std::ops::Range;

use kernels::dense::{View, product};
use kernels::{Dense, DenseScratch, Isa, math};

use super::attention::{Heads, rotate};
use super::tape::{Layer, Tape, sized};
use super::{Blocks, LoraParameters};
use crate::adapter::Target;
use crate::load::tensors::Linear;

impl Blocks {
    /// Reads sequences, whose rows of `tape.stream` are `spans`; the last hidden states are then there.
    /// `keep`: for a way back. In one piece, in the order of the formulas in [`crate::Decoder`].
    pub(super) fn forward(
        &self,
        adapter: Option<&LoraParameters>,
        spans: &[Range<usize>],
        tape: &mut Tape,
        dense: &mut DenseScratch,
        keep: bool,
    ) {
        let c = &self.config;
        let (isa, width) = (Isa::best(), c.hidden_size);
        let rows = tape.stream.len() / width;
        let half = self.frequencies.len();
        sized(&mut tape.cos, rows * half);
        sized(&mut tape.sin, rows * half);
        let positions = spans.iter().flat_map(|span| 0..span.len());
        let angles = tape.cos.chunks_mut(half).zip(tape.sin.chunks_mut(half));
        for (position, (cos, sin)) in positions.zip(angles) {
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                (*sin, *cos) = (position as f32 * frequency).sin_cos();
            }
        }
        let layers = if keep { c.layers } else { 1 };
        tape.layers.resize_with(layers, Layer::default);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        for (number, block) in self.blocks.iter().enumerate() {
            let layer = &mut tape.layers[if keep { number } else { 0 }];
            let mut project =
                |target: Target, x: &[f32], y: &mut [f32], sides: &mut [Vec<f32>; 7], add| {
                    let side = &mut sides[target as usize];
                    project(
                        block.linear(target),
                        adapter,
                        number,
                        target,
                        x,
                        rows,
                        y,
                        side,
                        add,
                        dense,
                    );
                };
            layer.input.clone_from(&tape.stream);
            let normed = sized(&mut tape.narrow, rows * width);
            norm_rows(isa, &layer.input, &block.attention_norm, c.norm_eps, normed);
            project(
                Target::Query,
                normed,
                sized(&mut layer.query, rows * q),
                &mut layer.sides,
                false,
            );
            project(
                Target::Key,
                normed,
                sized(&mut layer.key, rows * kv),
                &mut layer.sides,
                false,
            );
            project(
                Target::Value,
                normed,
                sized(&mut layer.value, rows * kv),
                &mut layer.sides,
                false,
            );
            let norms = [
                (&block.query_norm, &mut layer.query, &mut layer.raw_query),
                (&block.key_norm, &mut layer.key, &mut layer.raw_key),
            ];
            for (norm, heads, raw) in norms {
                if let Some(weight) = norm {
                    raw.clone_from(heads);
                    norm_rows(isa, raw, weight, c.norm_eps, heads);
                }
                rotate(heads, &tape.cos, &tape.sin, half, false);
            }
            sized(&mut layer.mixed, rows * q);
            for span in spans {
                let heads = Heads::new(c, span.clone());
                heads.attend(isa, layer, &mut tape.scores);
            }
            layer.middle.clone_from(&layer.input);
            project(
                Target::Output,
                &layer.mixed,
                &mut layer.middle,
                &mut layer.sides,
                true,
            );

            let normed = sized(&mut tape.narrow, rows * width);
            norm_rows(
                isa,
                &layer.middle,
                &block.feed_forward_norm,
                c.norm_eps,
                normed,
            );
            let wide = rows * c.intermediate_size;
            project(
                Target::Gate,
                normed,
                sized(&mut layer.gate, wide),
                &mut layer.sides,
                false,
            );
            project(
                Target::Up,
                normed,
                sized(&mut layer.up, wide),
                &mut layer.sides,
                false,
            );
            let inner = sized(&mut tape.wide, wide);
            math::swiglu(isa, &layer.gate, &layer.up, inner);
            tape.stream.clone_from(&layer.middle);
            project(
                Target::Down,
                inner,
                &mut tape.stream,
                &mut layer.sides,
                true,
            );
        }
    }
}

/// `out` = RMSNorm of every row (or head) of `x`.
pub(super) fn norm_rows(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    for (x, out) in x.chunks(n).zip(out.chunks_mut(n)) {
        math::rms_norm(isa, x, weight, eps, out);
    }
}

/// `y (+)= x Wᵀ + b + scale · (x A) B`; `x A` is kept in `side`.
#[allow(clippy::too_many_arguments, reason = "a formula's terms")]
fn project(
    linear: &Linear<Dense>,
    adapter: Option<&LoraParameters>,
    layer: usize,
    target: Target,
    x: &[f32],
    rows: usize,
    y: &mut [f32],
    side: &mut Vec<f32>,
    add: bool,
    dense: &mut DenseScratch,
) {
    let (inputs, outputs) = (linear.matrix.inputs(), linear.matrix.outputs());
    linear.matrix.forward(x, rows, y, add, dense);
    if let Some(bias) = &linear.bias {
        for row in y.chunks_mut(outputs) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    let Some((adapter, pair)) = adapter.and_then(|a| Some((a, a.place(layer, target)?))) else {
        return;
    };
    let (rank, scale) = (adapter.config.rank, adapter.config.scale());
    let a = View::rows(&adapter.values[pair.a.clone()], rank);
    let b = View::rows(&adapter.values[pair.b.clone()], outputs);
    let side = sized(side, rows * rank);
    product(
        [rows, inputs, rank],
        View::rows(x, inputs),
        a,
        side,
        rank,
        false,
        1.0,
    );
    product(
        [rows, rank, outputs],
        View::rows(side, rank),
        b,
        y,
        outputs,
        true,
        scale,
    );
}
