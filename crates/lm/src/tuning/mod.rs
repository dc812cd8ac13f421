//! Training an adapter: log-probabilities of responses and their derivatives, through either of two engines.
//!
//! A recipe sees a response's log-probabilities (or the hidden state that a reward model's head reads) and gives back
//! the derivatives of its loss by them; the engine carries those back to the adapter's parameters. So both engines
//! share every loss, the optimiser and the checkpoints, and what one began the other continues:
//!
//! - on `Cpu` packed matrices and a backward pass that is written out (`packed.rs`)
//! - on every other device burn's operations and its automatic differentiation (`autodiff.rs`)
//!
//! The decoder's parameters are frozen, in 32 bits or in 16; adapters, their gradients and the optimiser are in 32. A
//! matrix with an adapter computes `x W + s (x A) B`: the product `A B` is never made. A batch is cut into chunks of
//! bounded size, whole items each, so memory is bounded, too; logits are there for some rows at a time.
//!
//! ```
//! use mope_lm::{DeviceSpec, Format};
//! use mope_lm::load::Checkpoint;
//! use mope_lm::tuning::{LoraConfig, LoraParameters, Sequence, TuningDecoder};
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! let decoder = TuningDecoder::load(&checkpoint, &DeviceSpec::Cpu, Format::F32)?;
//! let sequences = [Sequence::new(&[1, 2], &[3, 4, 5])];
//! let before = decoder.log_probs(None, &sequences)?;
//! assert_eq!(before[0].len(), 3);
//! // A fresh adapter changes nothing.
//! let fresh = LoraParameters::new(&LoraConfig::default(), decoder.config(), 7);
//! assert_eq!(decoder.log_probs(fresh.ok().as_ref(), &sequences)?, before);
//! # Ok::<(), mope_lm::Error>(())
//! ```

mod attention;
mod autodiff;
mod backward;
mod blocks;
mod chunks;
mod forward;
mod gradient;
mod head;
mod lora;
mod optimiser;
mod packed;
mod tape;

use crate::load::Checkpoint;
use crate::{DecoderConfig, DeviceSpec, Error, Format, Result};

pub use lora::{LoraConfig, LoraParameters};
pub use optimiser::{AdamW, AdamWConfig, AdamWState, Optimisation, Schedule};

pub use blocks::{Blocks, Layout, Part, normal};
pub use chunks::CHUNK;
pub use gradient::BlockGradient;

use autodiff::AutodiffTuning;
use packed::PackedTuning;

/// A frozen decoder through which gradients flow.
#[derive(Debug)]
pub struct TuningDecoder {
    engine: Engine,
    /// Divides the logits before log-probabilities are taken; 1 is the model's own distribution. A policy that
    /// is sampled at a temperature is trained at that temperature.
    pub temperature: f32,
}

#[derive(Debug)]
enum Engine {
    Packed(Box<PackedTuning>),
    Autodiff(Box<AutodiffTuning>),
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

    /// Rows whose hidden states are read out, and the tokens that they predict, where the sequence's first token is in
    /// row `start`.
    fn results(&self, start: usize, output: Output) -> impl Iterator<Item = (usize, u32)> {
        let from = match output {
            Output::LogProbs { .. } => self.from,
            Output::Hidden => self.tokens.len() - 1,
        };
        let predicted = self.tokens.iter().enumerate().skip(from);
        predicted.map(move |(t, token)| (start + t - 1, *token))
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
#[derive(Debug, Clone, Copy, PartialEq)]
enum Output {
    /// Log-probabilities of the scored tokens, the logits divided by the temperature.
    LogProbs { temperature: f32 },
    /// The last token's hidden state, normalised, `[hidden]`.
    Hidden,
}

/// An objective: gets an item's number and its sequences' outputs.
type Objective<'a> = &'a (dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync);

impl TuningDecoder {
    /// Reads a checkpoint onto a device, in 32 bits or, with [`Format::Bf16`], its matrices in 16.
    ///
    /// # Errors
    /// A device that this build lacks, another format or one that the device lacks; a family that the device's engine
    /// does not train; a missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, device: &DeviceSpec, format: Format) -> Result<Self> {
        let engine = match device {
            DeviceSpec::Cpu => Engine::Packed(Box::new(PackedTuning::load(checkpoint, format)?)),
            _ => {
                let engine = AutodiffTuning::load(checkpoint, &device.open()?, format)?;
                Engine::Autodiff(Box::new(engine))
            }
        };
        let temperature = 1.0;
        Ok(Self {
            engine,
            temperature,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        match &self.engine {
            Engine::Packed(engine) => engine.config(),
            Engine::Autodiff(engine) => engine.config(),
        }
    }

    /// Log-probability in nats of every scored token of every sequence, with the adapter or, without one, of
    /// the base.
    ///
    /// # Errors
    /// A sequence that is empty, too long or has tokens outside of the vocabulary; an adapter for another model; a device
    /// that fails.
    pub fn log_probs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        self.outputs(adapter, sequences, self.log_probabilities())
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
        self.gradient_of(adapter, items, self.log_probabilities(), loss)
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

    fn log_probabilities(&self) -> Output {
        let temperature = self.temperature;
        Output::LogProbs { temperature }
    }

    fn outputs(
        &self,
        adapter: Option<&LoraParameters>,
        sequences: &[Sequence],
        output: Output,
    ) -> Result<Vec<Vec<f32>>> {
        self.check(adapter, sequences)?;
        match &self.engine {
            Engine::Packed(engine) => Ok(engine.outputs(adapter, sequences, output)),
            Engine::Autodiff(engine) => engine.outputs(adapter, sequences, output),
        }
    }

    fn gradient_of(
        &self,
        adapter: &LoraParameters,
        items: &[Item],
        output: Output,
        loss: Objective<'_>,
    ) -> Result<Gradient> {
        items
            .iter()
            .try_for_each(|item| self.check(Some(adapter), item))?;
        match &self.engine {
            Engine::Packed(engine) => Ok(engine.gradient(adapter, items, output, loss)),
            Engine::Autodiff(engine) => engine.gradient(adapter, items, output, loss),
        }
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
