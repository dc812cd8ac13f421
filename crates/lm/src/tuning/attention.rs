//! Attention of whole sequences, forward and back.

use std::ops::Range;

use kernels::dense::{View, product};
use kernels::{Isa, math};

use super::tape::{Layer, sized};
use crate::config::DecoderConfig;

/// The attention heads of one sequence.
pub(super) struct Heads<'a> {
    config: &'a DecoderConfig,
    /// Its rows in the chunk.
    rows: Range<usize>,
}

/// Derivatives by queries, keys and values, in their shapes.
pub(super) struct HeadGradients<'a> {
    pub query: &'a mut [f32],
    pub key: &'a mut [f32],
    pub value: &'a mut [f32],
}

impl<'a> Heads<'a> {
    pub fn new(config: &'a DecoderConfig, rows: Range<usize>) -> Self {
        Self { config, rows }
    }

    /// Widths of queries and of keys, and what a score is multiplied with.
    fn widths(&self) -> (usize, usize, f32) {
        let c = self.config;
        let scale = (c.head_dim as f32).powf(-0.5);
        (c.heads * c.head_dim, c.kv_heads * c.head_dim, scale)
    }

    /// Where a head's query and its key begin.
    fn starts(&self, head: usize) -> (usize, usize) {
        let c = self.config;
        let (q, kv, _) = self.widths();
        let key = head / (c.heads / c.kv_heads);
        let first = self.rows.start;
        (first * q + head * c.head_dim, first * kv + key * c.head_dim)
    }

    /// Probabilities of one head, `[time, time]`: softmax over the keys that a query sees, else 0.
    fn probabilities(&self, isa: Isa, layer: &Layer, head: usize, scores: &mut [f32]) {
        let (time, n) = (self.rows.len(), self.config.head_dim);
        let (q, kv, scale) = self.widths();
        let (query, key) = self.starts(head);
        let queries = View::rows(&layer.query[query..], q);
        let keys = View::rows(&layer.key[key..], kv).transposed();
        product([time, n, time], queries, keys, scores, time, false, scale);
        let window = self.config.sliding_window.unwrap_or(usize::MAX);
        for (t, row) in scores.chunks_mut(time).enumerate() {
            let first = (t + 1).saturating_sub(window);
            math::softmax(isa, &mut row[first..=t]);
            row[..first].fill(0.0);
            row[t + 1..].fill(0.0);
        }
    }

    /// Writes the sequence's rows of `layer.mixed`.
    pub fn attend(&self, isa: Isa, layer: &mut Layer, scores: &mut Vec<f32>) {
        let (time, n) = (self.rows.len(), self.config.head_dim);
        let (q, kv, _) = self.widths();
        let scores = sized(scores, time * time);
        for head in 0..self.config.heads {
            let (query, key) = self.starts(head);
            self.probabilities(isa, layer, head, scores);
            let values = View::rows(&layer.value[key..], kv);
            let mixed = &mut layer.mixed[query..];
            let scores = View::rows(scores, time);
            product([time, time, n], scores, values, mixed, q, false, 1.0);
        }
    }

    /// From the derivative by `layer.mixed` to those by queries, keys and values (zeros before).
    pub fn backward(
        &self,
        isa: Isa,
        layer: &Layer,
        d_mixed: &[f32],
        out: &mut HeadGradients<'_>,
        scores: &mut Vec<f32>,
    ) {
        let (time, n) = (self.rows.len(), self.config.head_dim);
        let (q, kv, scale) = self.widths();
        let (scores, d_scores) = sized(scores, 2 * time * time).split_at_mut(time * time);
        for head in 0..self.config.heads {
            let (query, key) = self.starts(head);
            self.probabilities(isa, layer, head, scores);
            let d = View::rows(&d_mixed[query..], q);
            let probabilities = View::rows(scores, time).transposed();
            let d_value = &mut out.value[key..];
            product([time, time, n], probabilities, d, d_value, kv, true, 1.0);
            let values = View::rows(&layer.value[key..], kv).transposed();
            product([time, n, time], d, values, d_scores, time, false, 1.0);
            let rows = d_scores.chunks_mut(time).zip(scores.chunks(time));
            for (t, (d, p)) in rows.enumerate() {
                let along = math::dot(isa, &d[..=t], &p[..=t]);
                for (d, p) in d.iter_mut().zip(p) {
                    *d = p * (*d - along);
                }
            }
            let d_scores = View::rows(d_scores, time);
            let keys = View::rows(&layer.key[key..], kv);
            let d_query = &mut out.query[query..];
            product([time, time, n], d_scores, keys, d_query, q, true, scale);
            let queries = View::rows(&layer.query[query..], q);
            let d_key = &mut out.key[key..];
            let turned = d_scores.transposed();
            product([time, time, n], turned, queries, d_key, kv, true, scale);
        }
    }
}

/// Turns every pair `(j, j + half)` of every head by its row's angle, or back; `[rows, heads · 2 · half]`
/// and `[rows, half]`.
pub(super) fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32], half: usize, back: bool) {
    let rows = cos.len() / half;
    let width = heads.len() / rows.max(1);
    let angles = cos.chunks(half).zip(sin.chunks(half));
    for (row, (cos, sin)) in heads.chunks_mut(width.max(1)).zip(angles) {
        for head in row.chunks_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let sin = if back { -sin } else { *sin };
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
    }
}
