//! Training an adapter: log-probabilities of responses and their derivatives.
//!
//! The decoder's parameters are frozen, so its backward pass needs no gradient of a weight matrix, only of
//! what flows through it: one product forward and one backward per matrix, both over all rows of a batch
//! without padding. Written out by hand (formulas in [`crate::Decoder`]), checked against PyTorch.
//!
//! - A batch is cut into chunks of at most [`CHUNK`] tokens, whole items each, so memory is
//!   bounded; chunks run on the team's threads, and their gradients are added in the chunks' order.
//!   Results do not depend on the number of threads.
//! - A chunk keeps what its blocks read; norms, activations and attention are computed again backwards.
//! - The head makes `∂ log p(y) / ∂ hidden = W_y − Σ_v p_v W_v` while it has the distribution at hand, so
//!   logits are never kept.
//!
//! ```
//! use mope_lm::Format;
//! use mope_lm::load::Checkpoint;
//! use mope_lm::tuning::{LoraConfig, LoraParameters, Sequence, TuningDecoder};
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! let decoder = TuningDecoder::load(&checkpoint, Format::F32)?;
//! let sequences = [Sequence::new(&[1, 2], &[3, 4, 5])];
//! let before = decoder.log_probs(None, &sequences)?;
//! assert_eq!(before[0].len(), 3);
//! // A fresh adapter changes nothing.
//! let fresh = LoraParameters::new(&LoraConfig::default(), decoder.config(), 7);
//! assert_eq!(decoder.log_probs(fresh.ok().as_ref(), &sequences)?, before);
//! # Ok::<(), mope_lm::Error>(())
//! ```

mod attention;
mod backward;
mod blocks;
mod chunks;
mod forward;
mod gradient;
mod head;
mod lora;
mod optimiser;
mod tape;

use std::ops::Range;
use std::sync::Mutex;

use kernels::{Dense, DenseScratch};

use crate::load::Checkpoint;
use crate::load::tensors::Tensors;
use crate::{DecoderConfig, Error, Format, Result};

pub use lora::{LoraConfig, LoraParameters};
pub use optimiser::{AdamW, AdamWConfig, AdamWState, Optimisation, Schedule};

use backward::Sink;
pub use blocks::{Blocks, Layout, Part, normal};
pub use chunks::CHUNK;
use chunks::each_chunk;
pub use gradient::BlockGradient;
use tape::{Tape, sized};

/// A frozen decoder through which gradients flow.
#[derive(Debug)]
pub struct TuningDecoder {
    embedding: Dense,
    head: Option<Dense>,
    blocks: Blocks,
    /// Divides the logits before log-probabilities are taken; 1 is the model's own distribution. A policy that
    /// is sampled at a temperature is trained at that temperature.
    pub temperature: f32,
}

/// Tokens, of which those from `from` on are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Prompt and response.
    pub tokens: Vec<u32>,
    /// First token of the response, at least 1.
    pub from: usize,
}

impl Sequence {
    /// A prompt and its response.
    pub fn new(prompt: &[u32], response: &[u32]) -> Self {
        Self {
            tokens: [prompt, response].concat(),
            from: prompt.len(),
        }
    }

    /// Number of tokens that are scored.
    pub fn scored(&self) -> usize {
        self.tokens.len() - self.from
    }

    fn lengths(item: &&[Self]) -> usize {
        item.iter().map(Self::read).sum()
    }

    /// Tokens that the decoder has to read: the last one's prediction is not asked for.
    fn read(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// Sequences whose losses belong together: one for fine-tuning, a pair for preferences.
pub type Item = Vec<Sequence>;

/// An item's loss and its derivatives by what was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// By each sequence's outputs, in their shape.
    pub gradient: Vec<Vec<f32>>,
}

/// Losses of all items and the gradient of their sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gradient {
    /// Per item.
    pub losses: Vec<f64>,
    /// By the adapter's parameters, as [`LoraParameters::values`] has them.
    pub values: Vec<f32>,
}

/// What a chunk's last hidden states are turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Log-probabilities of the scored tokens.
    LogProbs,
    /// The last token's hidden state, normalised, `[hidden]`.
    Hidden,
}

impl TuningDecoder {
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
                format!("training of '{}' ({what})", checkpoint.family()),
                "training of dense models like LLaMA; other models run, and serve as experts",
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
            temperature: 1.0,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.blocks.config
    }

    /// Log-probability in nats of every scored token of every sequence, with the adapter or, without one, of
    /// the base.
    ///
    /// # Errors
    /// A sequence that is empty, too long or has tokens outside of the vocabulary.
    pub fn log_probs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        self.outputs(adapter, sequences, Output::LogProbs)
    }

    /// Hidden state of every sequence's last token after the last norm, `[hidden]` each.
    ///
    /// # Errors
    /// Those of [`Self::log_probs`].
    pub fn hidden(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        self.outputs(adapter, sequences, Output::Hidden)
    }

    /// Loss of every item and the gradient of their sum. `loss` gets an item's number and its
    /// sequences' log-probabilities.
    ///
    /// # Errors
    /// Those of [`Self::log_probs`].
    pub fn gradient(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        loss: &(dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync),
    ) -> Result<Gradient> {
        self.gradient_of(adapter, items, Output::LogProbs, loss)
    }

    /// The same for losses of the sequences' last hidden states.
    ///
    /// # Errors
    /// Those of [`Self::log_probs`].
    pub fn hidden_gradient(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        loss: &(dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync),
    ) -> Result<Gradient> {
        self.gradient_of(adapter, items, Output::Hidden, loss)
    }

    fn outputs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
        output: Output,
    ) -> Result<Vec<Vec<f32>>> {
        self.check(adapter, sequences)?;
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
        Ok(out.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn gradient_of(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        output: Output,
        loss: &(dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync),
    ) -> Result<Gradient> {
        items
            .iter()
            .try_for_each(|item| self.check(Some(adapter), item))?;
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
        Ok(gradient)
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

    fn check(&self, adapter: Option<&LoraParameters>, sequences: &[Sequence]) -> Result<()> {
        let c = self.config();
        if let Some(adapter) = adapter.filter(|a| !a.fits(c)) {
            let rank = adapter.config.rank;
            return Err(Error::AdapterModel { rank });
        }
        for sequence in sequences {
            let length = sequence.tokens.len();
            if sequence.from == 0 || sequence.from > length || length < 2 {
                let from = sequence.from;
                return Err(Error::Sequence { length, from });
            }
            if sequence.read() > c.context_length {
                return Err(Error::TooLong {
                    tokens: sequence.read(),
                    limit: c.context_length,
                    what: "the model's context",
                });
            }
            let outside = |id: &&u32| **id as usize >= c.vocab_size;
            if let Some(&id) = sequence.tokens.iter().find(outside) {
                let vocab_size = c.vocab_size;
                return Err(Error::Token { id, vocab_size });
            }
        }
        Ok(())
    }
}

/// One thread's memory.
#[derive(Debug, Default)]
struct Worker {
    tape: Tape,
    dense: DenseScratch,
    /// Derivatives by the rows of the last hidden states that were read out, `[results, hidden]`.
    d_results: Vec<f32>,
    /// `∂ log p / ∂ hidden`, `[results, hidden]`.
    unit: Vec<f32>,
}

/// Rows of a chunk that belong to each sequence.
fn spans<'a>(chunk: &'a [&'a Sequence]) -> impl Iterator<Item = Range<usize>> + 'a {
    chunk.iter().scan(0, |before, sequence| {
        let start = *before;
        *before += sequence.read();
        Some(start..*before)
    })
}
