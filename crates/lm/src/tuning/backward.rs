//! The way back through the blocks.

use std::ops::Range;

use kernels::dense::{View, product};
use kernels::{Dense, DenseScratch, Isa, math};

use super::attention::{HeadGradients, Heads, rotate};
use super::forward::norm_rows;
use super::tape::{Tape, sized};
use super::{Blocks, Layout, LoraParameters, Part};
use crate::adapter::Target;

/// Where derivatives by parameters go.
pub(super) enum Sink<'a> {
    /// By an adapter's parameters.
    Lora(&'a LoraParameters, &'a mut [f32]),
    /// By all parameters of the blocks.
    Full(&'a Layout, &'a mut [f32]),
}

impl Blocks {
    /// Walks back through what [`Self::forward`] kept: from the derivative by the last hidden states in
    /// `tape.stream` to that by the inputs, in the same place; derivatives by parameters are added to the sink. In
    /// one piece, in the opposite order of [`Self::forward`].
    pub(super) fn backward(
        &self,
        spans: &[Range<usize>],
        tape: &mut Tape,
        dense: &mut DenseScratch,
        sink: &mut Sink<'_>,
    ) {
        let c = &self.config;
        let (isa, width, half) = (Isa::best(), c.hidden_size, self.frequencies.len());
        let rows = tape.stream.len() / width;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut d_stream = std::mem::take(&mut tape.stream);
        let [
            mut d_narrow,
            mut d_mixed,
            mut d_query,
            mut d_key,
            mut d_value,
        ] = [const { Vec::new() }; 5];
        let mut d_side = Vec::new();
        for (number, block) in self.blocks.iter().enumerate().rev() {
            let layer = &mut tape.layers[number];
            let sides = std::mem::take(&mut layer.sides);
            let mut project = |sink: &mut Sink<'_>,
                               target: Target,
                               x: &[f32],
                               dy: &[f32],
                               dx: &mut [f32],
                               add| {
                let back = Back {
                    layer: number,
                    target,
                    rows,
                };
                let side = &sides[target as usize];
                let matrix = &block.linear(target).matrix;
                back.run(matrix, x, side, dy, dx, add, sink, &mut d_side, dense);
            };

            // Feed-forward: stream = middle + Wdown (silu(gate) · up).
            let inner = sized(&mut tape.wide, rows * c.intermediate_size);
            math::swiglu(isa, &layer.gate, &layer.up, inner);
            let mut d_inner = vec![0.0; inner.len()];
            project(sink, Target::Down, inner, &d_stream, &mut d_inner, false);
            math::swiglu_backward(isa, &mut layer.gate, &mut layer.up, &d_inner);
            let normed = sized(&mut tape.narrow, rows * width);
            let eps = c.norm_eps;
            norm_rows(isa, &layer.middle, &block.feed_forward_norm, eps, normed);
            let d_normed = sized(&mut d_narrow, rows * width);
            project(sink, Target::Gate, normed, &layer.gate, d_normed, false);
            project(sink, Target::Up, normed, &layer.up, d_normed, true);
            let weight = &block.feed_forward_norm;
            norm_rows_backward(isa, &layer.middle, weight, eps, d_normed, &mut d_stream);
            let norm = Part::FeedForwardNorm(number);
            sink.norm(norm, &layer.middle, eps, d_normed);

            // Attention: middle = input + Wo · attention.
            let d_mixed = sized(&mut d_mixed, rows * q);
            project(
                sink,
                Target::Output,
                &layer.mixed,
                &d_stream,
                d_mixed,
                false,
            );
            for (buffer, n) in [(&mut d_query, q), (&mut d_key, kv), (&mut d_value, kv)] {
                sized(buffer, rows * n).fill(0.0);
            }
            let mut out = HeadGradients {
                query: &mut d_query,
                key: &mut d_key,
                value: &mut d_value,
            };
            for span in spans {
                Heads::new(c, span.clone()).backward(
                    isa,
                    layer,
                    d_mixed,
                    &mut out,
                    &mut tape.scores,
                );
            }
            let norms = [
                (&block.query_norm, &mut d_query, &layer.raw_query),
                (&block.key_norm, &mut d_key, &layer.raw_key),
            ];
            for (norm, d, raw) in norms {
                rotate(d, &tape.cos, &tape.sin, half, true);
                if let Some(weight) = norm {
                    let mut before = vec![0.0; d.len()];
                    norm_rows_backward(isa, raw, weight, eps, d, &mut before);
                    *d = before;
                }
            }
            norm_rows(isa, &layer.input, &block.attention_norm, eps, normed);
            project(sink, Target::Query, normed, &d_query, d_normed, false);
            project(sink, Target::Key, normed, &d_key, d_normed, true);
            project(sink, Target::Value, normed, &d_value, d_normed, true);
            let weight = &block.attention_norm;
            norm_rows_backward(isa, &layer.input, weight, eps, d_normed, &mut d_stream);
            let norm = Part::AttentionNorm(number);
            sink.norm(norm, &layer.input, eps, d_normed);
            layer.sides = sides;
        }
        tape.stream = d_stream;
    }
}

pub(super) fn norm_rows_backward(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
) {
    let n = weight.len();
    let rows = x.chunks(n).zip(dy.chunks(n)).zip(dx.chunks_mut(n));
    for ((x, dy), dx) in rows {
        math::rms_norm_backward(isa, x, weight, eps, dy, dx);
    }
}

impl Sink<'_> {
    /// Adds the derivative by a norm's weight.
    pub fn norm(&mut self, part: Part, x: &[f32], eps: f32, dy: &[f32]) {
        let Sink::Full(layout, values) = self else {
            return;
        };
        let d = &mut values[layout.place(part)];
        let n = d.len();
        for (x, dy) in x.chunks(n).zip(dy.chunks(n)) {
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
            let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
            for ((d, x), dy) in d.iter_mut().zip(x).zip(dy) {
                *d += x * inverse * dy;
            }
        }
    }
}

/// One projection's way back.
struct Back {
    layer: usize,
    target: Target,
    rows: usize,
}

impl Back {
    /// `dx (+)= dy W + dh Aᵀ` with `dh = scale · dy Bᵀ`; `dA += xᵀ dh`, `dB += scale · hᵀ dy`, where
    /// `h = x A` is `side`.
    #[allow(clippy::too_many_arguments, reason = "a formula's terms")]
    fn run(
        &self,
        matrix: &Dense,
        x: &[f32],
        side: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        add: bool,
        sink: &mut Sink<'_>,
        d_side: &mut Vec<f32>,
        dense: &mut DenseScratch,
    ) {
        let (rows, inputs, outputs) = (self.rows, matrix.inputs(), matrix.outputs());
        matrix.backward(dy, rows, dx, add, dense);
        let (adapter, values) = match sink {
            Sink::Full(layout, values) => {
                let range = layout.place(Part::Matrix(self.layer, self.target));
                let (dy, x) = (View::rows(dy, outputs), View::rows(x, inputs));
                let d = &mut values[range];
                let shape = [outputs, rows, inputs];
                return product(shape, dy.transposed(), x, d, inputs, true, 1.0);
            }
            Sink::Lora(adapter, values) => (*adapter, values),
        };
        let Some(pair) = adapter.place(self.layer, self.target) else {
            return;
        };
        let config = &adapter.config;
        let (rank, scale) = (config.rank, config.scale());
        let a = View::rows(&adapter.values[pair.a.clone()], rank);
        let b = View::rows(&adapter.values[pair.b.clone()], outputs);
        let d_side = sized(d_side, rows * rank);
        let dy = View::rows(dy, outputs);
        product(
            [rows, outputs, rank],
            dy,
            b.transposed(),
            d_side,
            rank,
            false,
            scale,
        );
        let h = View::rows(side, rank).transposed();
        let d_b = &mut values[pair.b.clone()];
        product([rank, rows, outputs], h, dy, d_b, outputs, true, scale);
        let d_side = View::rows(d_side, rank);
        let x = View::rows(x, inputs).transposed();
        let d_a = &mut values[pair.a.clone()];
        product([inputs, rows, rank], x, d_side, d_a, rank, true, 1.0);
        product(
            [rows, rank, inputs],
            d_side,
            a.transposed(),
            dx,
            inputs,
            true,
            1.0,
        );
    }
}
