//! The engine of the processor: packed matrices, and a backward pass that is written out.
//!
//! The decoder's parameters are frozen, so the backward pass needs no gradient of a weight matrix, only of what flows
//! through it: one product forward and one backward per matrix, both over all rows of a batch without padding. Written
//! out by hand (formulas in [`crate::Decoder`]), checked against PyTorch.
//!
//! - Chunks of at most [`CHUNK`](super::CHUNK) tokens run on the team's threads, and their gradients are added in the
//!   chunks' order. Results do not depend on the number of threads.
//! - A chunk keeps what its blocks read; norms, activations and attention are computed again backwards.
//! - The head makes `∂ log p(y) / ∂ hidden = W_y − Σ_v p_v W_v` while it has the distribution at hand, so logits are
//!   never kept.

use std::ops::Range;
use std::sync::Mutex;

use kernels::{Dense, DenseScratch};

use super::backward::Sink;
use super::blocks::Blocks;
use super::chunks::each_chunk;
use super::tape::{Tape, sized};
use super::{Gradient, Item, LoraParameters, Loss, Output, Sequence};
use crate::load::Checkpoint;
use crate::load::tensors::Tensors;
use crate::{DecoderConfig, Error, Format, Result};

/// A frozen decoder in packed matrices.
#[derive(Debug)]
pub(super) struct PackedTuning {
    pub(super) embedding: Dense,
    pub(super) head: Option<Dense>,
    pub(super) blocks: Blocks,
}

impl PackedTuning {
    /// Reads a checkpoint in 32 bits or, with [`Format::Bf16`], in 16.
    ///
    /// # Errors
    /// Another format; a family that [`DecoderConfig::unlike_llama`] sets apart; a missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, format: Format) -> Result<Self> {
        if !matches!(format, Format::F32 | Format::Bf16) {
            let reason = "training computes in F32 or Bf16";
            return Err(Error::NumberFormat { format, reason });
        }
        let config = checkpoint.config().clone();
        if let Some(what) = config.unlike_llama() {
            return Err(Error::unsupported(
                checkpoint.path(),
                format!("training of '{}' ({what}) on Cpu", checkpoint.family()),
                "models like LLaMA, and on other devices (BurnFlex, …) all dense ones",
            ));
        }
        let pack = |_, [outputs, inputs]: [usize; 2], data: Vec<f32>| match format {
            Format::Bf16 => Dense::bf16(outputs, inputs, &data),
            _ => Dense::f32(outputs, inputs, data),
        };
        let read = Tensors::read(checkpoint, pack, |vector| vector)?;
        Ok(Self {
            embedding: read.embedding,
            head: read.head,
            blocks: Blocks::new(config, read.blocks, read.norm),
        })
    }

    pub fn config(&self) -> &DecoderConfig {
        self.blocks.config()
    }

    /// What is asked of every sequence.
    pub fn outputs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
        output: Output,
    ) -> Vec<Vec<f32>> {
        let items: Vec<&[Sequence]> = sequences.chunks(1).collect();
        let out = Mutex::new(vec![Vec::new(); sequences.len()]);
        each_chunk(
            &items,
            Sequence::lengths,
            |_, range, worker: &mut Worker| {
                let chunk: Vec<&Sequence> = sequences[range.clone()].iter().collect();
                self.read(adapter, &chunk, worker, false);
                let outputs = self.read_out(&chunk, worker, output, false);
                let mut out = out.lock().unwrap_or_else(|e| e.into_inner());
                for (i, values) in range.zip(outputs) {
                    out[i] = values;
                }
            },
        );
        out.into_inner().unwrap_or_else(|e| e.into_inner())
    }

    /// Loss of every item and the gradient of their sum.
    pub fn gradient(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        output: Output,
        loss: &(dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync),
    ) -> Gradient {
        let slices: Vec<&[Sequence]> = items.iter().map(Vec::as_slice).collect();
        let parts = Mutex::new(Vec::new());
        each_chunk(
            &slices,
            Sequence::lengths,
            |index, range, worker: &mut Worker| {
                let chunk: Vec<&Sequence> = items[range.clone()].iter().flatten().collect();
                self.read(Some(adapter), &chunk, worker, true);
                let outputs = self.read_out(&chunk, worker, output, true);
                let (mut losses, mut wanted, mut before) = (Vec::new(), Vec::new(), 0);
                for item in range {
                    let sequences = before..before + items[item].len();
                    before = sequences.end;
                    let loss = loss(item, &outputs[sequences]);
                    losses.push(loss.value);
                    wanted.extend(loss.gradient);
                }
                let mut values = vec![0.0; adapter.values.len()];
                self.write_back(&chunk, worker, output, &wanted);
                let spans: Vec<Range<usize>> = spans(&chunk).collect();
                let (tape, dense) = (&mut worker.tape, &mut worker.dense);
                let mut sink = Sink::Lora(adapter, &mut values);
                self.blocks.backward(&spans, tape, dense, &mut sink);
                let mut parts = parts.lock().unwrap_or_else(|e| e.into_inner());
                parts.push((index, losses, values));
            },
        );
        let mut parts = parts.into_inner().unwrap_or_else(|e| e.into_inner());
        parts.sort_by_key(|(index, ..)| *index);
        let mut gradient = Gradient {
            losses: Vec::new(),
            values: vec![0.0; adapter.values.len()],
        };
        for (_, losses, values) in parts {
            gradient.losses.extend(losses);
            let sums = gradient.values.iter_mut().zip(values);
            sums.for_each(|(sum, value)| *sum += value);
        }
        gradient
    }

    /// Sends a chunk through the blocks.
    fn read(
        &self,
        adapter: Option<&LoraParameters>,
        chunk: &[&Sequence],
        worker: &mut Worker,
        keep: bool,
    ) {
        let width = self.config().hidden_size;
        let spans: Vec<Range<usize>> = spans(chunk).collect();
        let rows = spans.last().map_or(0, |s| s.end);
        let (tape, dense) = (&mut worker.tape, &mut worker.dense);
        let stream = sized(&mut tape.stream, rows * width);
        let read = chunk.iter().flat_map(|s| &s.tokens[..s.read()]);
        for (token, row) in read.zip(stream.chunks_mut(width)) {
            self.embedding.row(*token as usize, row);
        }
        self.blocks.forward(adapter, &spans, tape, dense, keep);
    }
}

/// One thread's memory.
#[derive(Debug, Default)]
pub(super) struct Worker {
    pub(super) tape: Tape,
    pub(super) dense: DenseScratch,
    /// Derivatives by the rows of the last hidden states that were read out, `[results, hidden]`.
    pub(super) d_results: Vec<f32>,
    /// `∂ log p / ∂ hidden`, `[results, hidden]`.
    pub(super) unit: Vec<f32>,
}

/// Rows of a chunk that belong to each sequence.
pub(super) fn spans<'a>(chunk: &'a [&'a Sequence]) -> impl Iterator<Item = Range<usize>> + 'a {
    chunk.iter().scan(0, |before, sequence| {
        let start = *before;
        *before += sequence.read();
        Some(start..*before)
    })
}
