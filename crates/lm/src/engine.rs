//! One decoder, two ways to run it: packed weights on the processor, burn's operations elsewhere.
//!
//! ```
//! use mope_lm::load::Checkpoint;
//! use mope_lm::{DeviceSpec, Engine, Format};
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! let engine = Engine::load(&checkpoint, &DeviceSpec::Cpu, Format::F32)?;
//! // Two sequences read side by side what each would have read alone.
//! let vocab = engine.config().vocab_size;
//! let mut logits = vec![0.0; 2 * vocab];
//! engine.next_logits(&[&[1, 2, 3], &[4]], &mut engine.cache(2, 8), None, &mut logits)?;
//! let mut alone = vec![0.0; vocab];
//! engine.next_logits(&[&[4]], &mut engine.cache(1, 8), None, &mut alone)?;
//! assert_eq!(logits[vocab..], alone);
//! # Ok::<(), mope_lm::Error>(())
//! ```

use burn::tensor::{Device, Tensor};

use crate::adapter::{Adapter, AdapterStack};
use crate::config::DecoderConfig;
use crate::device::{DeviceSpec, to_host};
use crate::kv_cache::KvCache;
use crate::load::Checkpoint;
use crate::packed::{PackedAdapters, PackedCache, PackedDecoder, Scratch};
use crate::{Decoder, Error, Format, Result};

/// A decoder that is ready to run.
#[derive(Debug)]
pub enum Engine {
    /// Through burn, on any device.
    Burn(Box<Decoder>),
    /// Packed weights on the processor.
    Packed(Box<PackedDecoder>),
}

/// What the lanes of an [`Engine`] have read.
#[derive(Debug)]
pub enum Cache {
    /// Of [`Engine::Burn`].
    Burn(KvCache),
    /// Of [`Engine::Packed`], with the buffers of its steps.
    Packed(PackedCache, Box<Scratch>),
}

/// Adapters of several experts, ready for an [`Engine`]; lanes are expert-major.
#[derive(Debug)]
pub enum Adapters {
    /// Of [`Engine::Burn`].
    Burn(AdapterStack),
    /// Of [`Engine::Packed`].
    Packed(PackedAdapters),
}

fn foreign<T>() -> Result<T> {
    Err(Error::OtherEngine)
}

impl Engine {
    /// Loads a checkpoint: packed on `Cpu`, through burn on other devices, which have `F32` and, where they compute in
    /// it, `Bf16`.
    ///
    /// # Errors
    /// A format that the device lacks, a device that this build lacks, or what loading reports. A mixture of experts on
    /// WebGPU: some have wrong logits there.
    pub fn load(checkpoint: &Checkpoint, device: &DeviceSpec, format: Format) -> Result<Self> {
        if *device == DeviceSpec::Cpu {
            let decoder = PackedDecoder::load(checkpoint, format)?;
            return Ok(Self::Packed(Box::new(decoder)));
        }
        if matches!(device, DeviceSpec::Wgpu(_)) && checkpoint.config().family.experts.is_some() {
            let what = "a mixture of experts on WebGPU";
            return Err(Error::unsupported(checkpoint.path(), what, "other devices"));
        }
        Self::burn(checkpoint, &device.open()?, format)
    }

    /// Loads a checkpoint to be run through burn.
    ///
    /// # Errors
    /// Those of [`Decoder::load`].
    pub fn burn(checkpoint: &Checkpoint, device: &Device, format: Format) -> Result<Self> {
        let decoder = Decoder::load(checkpoint, device, format)?;
        Ok(Self::Burn(Box::new(decoder)))
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        match self {
            Self::Burn(decoder) => decoder.config(),
            Self::Packed(decoder) => decoder.config(),
        }
    }

    /// Bytes of weights that one step reads, where the engine says.
    pub fn bytes(&self) -> Option<usize> {
        match self {
            Self::Burn(_) => None,
            Self::Packed(decoder) => Some(decoder.bytes()),
        }
    }

    /// The embedding of a token, `[hidden]`, in the number format of the matrices.
    ///
    /// # Errors
    /// A token outside of the vocabulary, or what the device reports.
    pub fn embedding(&self, token: u32, out: &mut [f32]) -> Result<()> {
        let vocab_size = self.config().vocab_size;
        if token as usize >= vocab_size {
            return Err(Error::Token {
                id: token,
                vocab_size,
            });
        }
        match self {
            Self::Burn(decoder) => out.copy_from_slice(&decoder.embedding_row(token)?),
            Self::Packed(decoder) => decoder.embedding_row(token as usize, out),
        }
        Ok(())
    }

    /// An empty cache for this model.
    pub fn cache(&self, lanes: usize, capacity: usize) -> Cache {
        match self {
            Self::Burn(decoder) => Cache::Burn(decoder.cache(lanes, capacity)),
            Self::Packed(decoder) => Cache::Packed(decoder.cache(lanes, capacity), Box::default()),
        }
    }

    /// An empty cache with room for another number of tokens in each lane, where lanes have memory of their own; else
    /// for the largest of them in all.
    pub fn cache_of(&self, capacities: &[usize]) -> Cache {
        match self {
            Self::Burn(_) => {
                let capacity = capacities.iter().max().copied().unwrap_or(0);
                self.cache(capacities.len(), capacity)
            }
            Self::Packed(decoder) => Cache::Packed(decoder.cache_of(capacities), Box::default()),
        }
    }

    /// Bytes of the keys and values of one token in a lane, where the engine says.
    pub fn bytes_per_token(&self) -> Option<usize> {
        match self {
            Self::Burn(_) => None,
            // Lanes grow by whole blocks.
            Self::Packed(decoder) => Some(decoder.cache(1, 1024).bytes() / 1024),
        }
    }

    /// One adapter per expert for this engine; `None` is the base itself.
    pub fn adapters(&self, adapters: &[Option<&Adapter>]) -> Adapters {
        match self {
            Self::Burn(decoder) => {
                let stack = AdapterStack::new(adapters, decoder.config(), decoder.device());
                Adapters::Burn(stack)
            }
            Self::Packed(decoder) => Adapters::Packed(decoder.adapters(adapters)),
        }
    }

    /// Reads the next tokens of every lane and writes the logits after each lane's last one to
    /// `logits`, `[lanes, vocab]`.
    ///
    /// # Errors
    /// Those of [`Decoder::next_logits`]; a cache or adapters of another engine.
    pub fn next_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut Cache,
        adapters: Option<&Adapters>,
        logits: &mut [f32],
    ) -> Result<()> {
        match (self, cache) {
            (Self::Burn(decoder), Cache::Burn(cache)) => {
                let stack = match adapters {
                    None => None,
                    Some(Adapters::Burn(stack)) => Some(stack),
                    Some(Adapters::Packed(_)) => return foreign(),
                };
                let values = to_host(decoder.next_logits(tokens, cache, stack)?)?;
                logits.copy_from_slice(&values);
                Ok(())
            }
            (Self::Packed(decoder), Cache::Packed(cache, scratch)) => {
                let stack = match adapters {
                    None => None,
                    Some(Adapters::Packed(stack)) => Some(stack),
                    Some(Adapters::Burn(_)) => return foreign(),
                };
                decoder.next_logits(tokens, cache, stack, scratch, logits)
            }
            _ => foreign(),
        }
    }

    /// [`Self::next_logits`] of some of the lanes, where lanes are independent: those without tokens stay as they are.
    /// `logits` are of the others, one after another, `[lanes with tokens, vocab]`, where they are asked for.
    ///
    /// # Errors
    /// Those of [`Self::next_logits`]; an engine whose lanes share their columns.
    pub fn fill(
        &self,
        tokens: &[&[u32]],
        cache: &mut Cache,
        adapters: Option<&Adapters>,
        logits: Option<&mut [f32]>,
    ) -> Result<()> {
        match (self, cache, adapters) {
            (Self::Packed(decoder), Cache::Packed(cache, scratch), None) => {
                decoder.fill(tokens, cache, None, scratch, logits)
            }
            (
                Self::Packed(decoder),
                Cache::Packed(cache, scratch),
                Some(Adapters::Packed(stack)),
            ) => decoder.fill(tokens, cache, Some(stack), scratch, logits),
            _ => foreign(),
        }
    }

    /// Reads whole sequences from an empty cache, one lane each, and calls `row` with the logits after
    /// every token: lane, number of the token, `[vocab]`.
    ///
    /// # Errors
    /// Those of [`Self::next_logits`], though lanes may be empty.
    pub fn all_logits(
        &self,
        tokens: &[&[u32]],
        adapters: Option<&Adapters>,
        mut row: impl FnMut(usize, usize, &mut [f32]),
    ) -> Result<()> {
        let longest = tokens.iter().map(|l| l.len()).max().unwrap_or(0);
        let lane_and_token = |flat: usize| {
            let mut start = 0;
            for (lane, tokens) in tokens.iter().enumerate() {
                if flat < start + tokens.len() {
                    return (lane, flat - start);
                }
                start += tokens.len();
            }
            (tokens.len(), 0)
        };
        match (self, adapters) {
            (Self::Packed(decoder), None | Some(Adapters::Packed(_))) => {
                let stack = match adapters {
                    Some(Adapters::Packed(stack)) => Some(stack),
                    _ => None,
                };
                let mut cache = decoder.cache(tokens.len(), longest);
                decoder.all_logits(tokens, &mut cache, stack, |flat, logits| {
                    let (lane, t) = lane_and_token(flat);
                    row(lane, t, logits);
                })
            }
            (Self::Burn(decoder), None | Some(Adapters::Burn(_))) => {
                let stack = match adapters {
                    Some(Adapters::Burn(stack)) => Some(stack),
                    _ => None,
                };
                let mut cache = decoder.cache(tokens.len(), longest);
                let hidden = decoder.hidden(tokens, &mut cache, stack)?;
                let [lanes, time, width] = hidden.dims();
                let hidden = hidden.reshape([lanes * time, width]);
                let total: Vec<(usize, usize)> = tokens
                    .iter()
                    .enumerate()
                    .flat_map(|(lane, tokens)| (0..tokens.len()).map(move |t| (lane, t)))
                    .collect();
                let vocab = decoder.config().vocab_size;
                // Few rows at a time: a vocabulary is wide.
                for places in total.chunks(64) {
                    let rows: Vec<i32> =
                        places.iter().map(|(l, t)| (l * time + t) as i32).collect();
                    let rows = Tensor::from_data(rows.as_slice(), decoder.device());
                    let mut logits = to_host(decoder.logits(hidden.clone().select(0, rows)))?;
                    for ((lane, t), logits) in places.iter().zip(logits.chunks_mut(vocab)) {
                        row(*lane, *t, logits);
                    }
                }
                Ok(())
            }
            _ => foreign(),
        }
    }
}

impl Cache {
    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        match self {
            Self::Burn(cache) => cache.lanes(),
            Self::Packed(cache, _) => cache.lanes(),
        }
    }

    /// Keeps only the lanes `keep`, in this order.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn retain(&mut self, keep: &[usize]) -> Result<()> {
        match self {
            Self::Burn(cache) => *cache = cache.fork(keep)?,
            Self::Packed(cache, _) => cache.retain(keep)?,
        }
        Ok(())
    }

    /// Copies of the lanes `lanes`, which may come several times.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn fork(&self, lanes: &[usize]) -> Result<Self> {
        Ok(match self {
            Self::Burn(cache) => Self::Burn(cache.fork(lanes)?),
            Self::Packed(cache, _) => Self::Packed(cache.fork(lanes)?, Box::default()),
        })
    }

    /// Bytes of all lanes, used or not, where the engine says.
    pub fn bytes(&self) -> Option<usize> {
        match self {
            Self::Burn(_) => None,
            Self::Packed(cache, _) => Some(cache.bytes()),
        }
    }

    /// A cache of one lane, which has read the first `length` tokens of lane `lane` and has room for `capacity`.
    ///
    /// # Errors
    /// A lane that is not there; an engine whose lanes share their columns.
    pub fn prefix(&self, lane: usize, length: usize, capacity: usize) -> Result<Self> {
        match self {
            Self::Burn(_) => foreign(),
            Self::Packed(cache, _) => {
                let prefix = cache.prefix(lane, length, capacity)?;
                Ok(Self::Packed(prefix, Box::default()))
            }
        }
    }

    /// Lane `to` becomes the only lane of another cache of the same model.
    ///
    /// # Errors
    /// Caches of different models, or of an engine whose lanes share their columns; a lane that is not there.
    pub fn replace(&mut self, to: usize, other: Self) -> Result<()> {
        match (self, other) {
            (Self::Packed(cache, _), Self::Packed(other, _)) => cache.replace(to, other),
            _ => foreign(),
        }
    }

    /// Adds the lanes of another cache of the same model behind these.
    ///
    /// # Errors
    /// Caches of different models, or of an engine whose lanes share their columns.
    pub fn join(&mut self, other: Self) -> Result<()> {
        match (self, other) {
            (Self::Packed(cache, _), Self::Packed(other, _)) => cache.join(other),
            _ => foreign(),
        }
    }
}
