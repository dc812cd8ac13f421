use kernels::dense::{View, product};
use kernels::{Dense, DenseScratch, Isa, math};

use super::attention::{HeadGradients, Heads, rotate};
use super::forward::{norm_rows, sized};
use super::{LoraParameters, Sequence, TuningDecoder, Worker, spans};
use crate::adapter::Target;

impl TuningDecoder {
    /// Walks back through a chunk that [`Self::forward`] kept: from the derivative by the last hidden states
    /// in `tape.stream` to that by the adapter, added to `values`.
    pub(super) fn backward(
        &self,
        adapter: &LoraParameters,
        chunk: &[&Sequence],
        worker: &mut Worker,
        values: &mut [f32],
    ) {
        let c = &self.config;
        let (isa, width, half) = (Isa::best(), c.hidden_size, self.frequencies.len());
        let (tape, dense) = (&mut worker.tape, &mut worker.dense);
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
            let mut project = |target: Target, x: &[f32], dy: &[f32], dx: &mut [f32], add| {
                let back = Back {
                    adapter,
                    layer: number,
                    target,
                    rows,
                };
                let side = &sides[target as usize];
                let matrix = &block.linear(target).matrix;
                back.run(matrix, x, side, dy, dx, add, values, &mut d_side, dense);
            };

            // Feed-forward: stream = middle + Wdown (silu(gate) · up).
            let inner = sized(&mut tape.wide, rows * c.intermediate_size);
            math::swiglu(isa, &layer.gate, &layer.up, inner);
            let mut d_inner = vec![0.0; inner.len()];
            project(Target::Down, inner, &d_stream, &mut d_inner, false);
            math::swiglu_backward(isa, &mut layer.gate, &mut layer.up, &d_inner);
            let normed = sized(&mut tape.narrow, rows * width);
            let eps = c.norm_eps;
            norm_rows(isa, &layer.middle, &block.feed_forward_norm, eps, normed);
            let d_normed = sized(&mut d_narrow, rows * width);
            project(Target::Gate, normed, &layer.gate, d_normed, false);
            project(Target::Up, normed, &layer.up, d_normed, true);
            let weight = &block.feed_forward_norm;
            norm_rows_backward(isa, &layer.middle, weight, eps, d_normed, &mut d_stream);

            // Attention: middle = input + Wo · attention.
            let d_mixed = sized(&mut d_mixed, rows * q);
            project(Target::Output, &layer.mixed, &d_stream, d_mixed, false);
            for (buffer, n) in [(&mut d_query, q), (&mut d_key, kv), (&mut d_value, kv)] {
                sized(buffer, rows * n).fill(0.0);
            }
            let mut out = HeadGradients {
                query: &mut d_query,
                key: &mut d_key,
                value: &mut d_value,
            };
            for span in spans(chunk) {
                Heads::new(c, span).backward(isa, layer, d_mixed, &mut out, &mut tape.scores);
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
            project(Target::Query, normed, &d_query, d_normed, false);
            project(Target::Key, normed, &d_key, d_normed, true);
            project(Target::Value, normed, &d_value, d_normed, true);
            let weight = &block.attention_norm;
            norm_rows_backward(isa, &layer.input, weight, eps, d_normed, &mut d_stream);
            layer.sides = sides;
        }
    }
}

fn norm_rows_backward(isa: Isa, x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32]) {
    let n = weight.len();
    let rows = x.chunks(n).zip(dy.chunks(n)).zip(dx.chunks_mut(n));
    for ((x, dy), dx) in rows {
        math::rms_norm_backward(isa, x, weight, eps, dy, dx);
    }
}

/// One projection's way back.
struct Back<'a> {
    adapter: &'a LoraParameters,
    layer: usize,
    target: Target,
    rows: usize,
}

impl Back<'_> {
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
        values: &mut [f32],
        d_side: &mut Vec<f32>,
        dense: &mut DenseScratch,
    ) {
        let (rows, inputs, outputs) = (self.rows, matrix.inputs(), matrix.outputs());
        matrix.backward(dy, rows, dx, add, dense);
        let Some(place) = self.adapter.place(self.layer, self.target) else {
            return;
        };
        let config = &self.adapter.config;
        let (rank, scale) = (config.rank, config.scale());
        let a = View::rows(&self.adapter.values[place.a.clone()], rank);
        let b = View::rows(&self.adapter.values[place.b.clone()], outputs);
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
        let d_b = &mut values[place.b.clone()];
        product([rank, rows, outputs], h, dy, d_b, outputs, true, scale);
        let d_side = View::rows(d_side, rank);
        let x = View::rows(x, inputs).transposed();
        let d_a = &mut values[place.a.clone()];
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
