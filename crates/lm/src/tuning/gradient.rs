//! Passes through [`Blocks`] forward and back, chunk by chunk on the team's threads.

use std::ops::Range;
use std::sync::Mutex;

use kernels::{DenseScratch, Isa};

use super::backward::{Sink, norm_rows_backward};
use super::blocks::{Blocks, Layout, Part};
use super::chunks::each_chunk;
use super::forward::norm_rows;
use super::tape::Tape;

/// Derivatives of a loss.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BlockGradient {
    /// By all parameters, in the order of [`Layout`].
    pub values: Vec<f32>,
    /// By every item's inputs, `[rows, hidden]` each.
    pub inputs: Vec<Vec<f32>>,
}

impl Blocks {
    /// Last hidden states, normed, of every item's rows: `[rows, hidden]` in, the same out. Each item is one
    /// sequence from position 0 on.
    pub fn hidden(&self, items: &[&[f32]]) -> Vec<Vec<f32>> {
        let out = Mutex::new(vec![Vec::new(); items.len()]);
        let rows = |item: &&[f32]| item.len() / self.config.hidden_size;
        each_chunk(items, rows, |_, range, memory: &mut Memory| {
            let spans = self.take(&items[range.clone()], memory);
            self.forward(None, &spans, &mut memory.tape, &mut memory.dense, false);
            let normed = self.normed(memory);
            let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
            for (item, span) in range.zip(spans) {
                out[item] = normed[self.floats(&span)].to_vec();
            }
        });
        out.into_inner().unwrap_or_else(|e| e.into_inner())
    }

    /// Derivatives by parameters and inputs. `loss` gets an item's number and its last hidden states and returns
    /// the derivative by them; the parameters' derivatives of all items are added in the items' order.
    pub fn gradient(
        &self,
        items: &[&[f32]],
        loss: impl Fn(usize, &[f32]) -> Vec<f32> + Sync,
    ) -> BlockGradient {
        let layout = Layout::new(&self.config);
        let parts = Mutex::new(Vec::new());
        let rows = |item: &&[f32]| item.len() / self.config.hidden_size;
        let eps = self.config.norm_eps;
        each_chunk(items, rows, |index, range, memory: &mut Memory| {
            let spans = self.take(&items[range.clone()], memory);
            self.forward(None, &spans, &mut memory.tape, &mut memory.dense, true);
            let normed = self.normed(memory);
            let mut d_normed = Vec::with_capacity(normed.len());
            for (item, span) in range.zip(&spans) {
                d_normed.extend(loss(item, &normed[self.floats(span)]));
            }
            let mut values = vec![0.0; layout.len()];
            let stream = std::mem::take(&mut memory.tape.stream);
            let mut d_stream = vec![0.0; stream.len()];
            let mut sink = Sink::Full(&layout, &mut values);
            sink.norm(Part::LastNorm, &stream, eps, &d_normed);
            norm_rows_backward(
                Isa::best(),
                &stream,
                &self.norm,
                eps,
                &d_normed,
                &mut d_stream,
            );
            memory.tape.stream = d_stream;
            self.backward(&spans, &mut memory.tape, &mut memory.dense, &mut sink);
            let inputs = spans
                .iter()
                .map(|s| memory.tape.stream[self.floats(s)].to_vec());
            let inputs: Vec<Vec<f32>> = inputs.collect();
            let mut parts = parts.lock().unwrap_or_else(|e| e.into_inner());
            parts.push((index, values, inputs));
        });
        let mut parts = parts.into_inner().unwrap_or_else(|e| e.into_inner());
        parts.sort_by_key(|(index, ..)| *index);
        let mut out = BlockGradient {
            values: vec![0.0; layout.len()],
            inputs: Vec::new(),
        };
        for (_, values, inputs) in parts {
            let sums = out.values.iter_mut().zip(values);
            sums.for_each(|(sum, value)| *sum += value);
            out.inputs.extend(inputs);
        }
        out
    }

    /// Lays the items' rows behind each other.
    fn take(&self, items: &[&[f32]], memory: &mut Memory) -> Vec<Range<usize>> {
        memory.tape.stream = items.concat();
        let mut end = 0;
        let mut spans = Vec::new();
        for item in items {
            let rows = item.len() / self.config.hidden_size;
            spans.push(end..end + rows);
            end += rows;
        }
        spans
    }

    fn floats(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.config.hidden_size..rows.end * self.config.hidden_size
    }

    fn normed(&self, memory: &Memory) -> Vec<f32> {
        let stream = &memory.tape.stream;
        let mut normed = vec![0.0; stream.len()];
        norm_rows(
            Isa::best(),
            stream,
            &self.norm,
            self.config.norm_eps,
            &mut normed,
        );
        normed
    }
}

/// One thread's memory.
#[derive(Debug, Default)]
struct Memory {
    tape: Tape,
    dense: DenseScratch,
}
