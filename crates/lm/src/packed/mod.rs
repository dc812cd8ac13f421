//! The decoder on the processor with packed weights: each is read once per step for all lanes.
//!
//! It computes what [`crate::Decoder`] computes (see there for the formulas), in [`kernels`]' formats,
//! with a team of threads in step. Where it differs:
//!
//! 1. matrices may be 16-, 8- or 4-bit ([`Format`]); 8- and 4-bit ones are multiplied with inputs that are
//!    rounded to 8 bits in blocks of 32
//! 2. a lane's results never depend on the other lanes, bit for bit: it may leave or join at any time
//! 3. keys lie in blocks of 16 positions, so that scores need no sums across a vector
//! 4. beside matrices that are not in 32 bits, adapters are kept in 16-bit floats; so are keys and values beside
//!    `Bf16`, while beside `Q8` and `Q4` those are 8-bit integers with a scale for each head of each position
//!
//! ```
//! use mope_lm::Format;
//! use mope_lm::load::Checkpoint;
//! use mope_lm::packed::PackedDecoder;
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! let exact = PackedDecoder::load(&checkpoint, Format::F32)?;
//! let small = PackedDecoder::load(&checkpoint, Format::Q8)?;
//! assert!(small.bytes() < exact.bytes() / 3);
//! # Ok::<(), mope_lm::Error>(())
//! ```

mod adapters;
mod cache;
mod decoder;
mod load;
mod pass;
mod routed;

use std::ops::Range;

use kernels::{Isa, Matrix, Output, Shared, Team, multiply};

pub use adapters::PackedAdapters;
use cache::CacheFormat;
pub use cache::PackedCache;
pub use decoder::PackedDecoder;
use decoder::{Block, Kind, Linear, frequencies};
use pass::Row;
pub use pass::Scratch;

use crate::adapter::Adapter;
use crate::config::DecoderConfig;
use crate::load::tensors::FeedForward;
use crate::{Error, Format, Result};

/// Rows of one pass through the blocks; more are read in several passes.
const ROWS: usize = 256;

/// Which results a call wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Of the last token of every lane with tokens.
    Last,
    /// Of every token, lane after lane.
    All,
}

impl PackedDecoder {
    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Number format of the matrices.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The embedding of a token, `[hidden]`.
    pub(crate) fn embedding_row(&self, token: usize, out: &mut [f32]) {
        self.embedding.row(token, out);
    }

    /// Bytes of weights that one step reads; of a mixture of experts, if all of them are chosen.
    pub fn bytes(&self) -> usize {
        let total = |linears: &[&Linear]| -> usize {
            let bytes = linears.iter().map(|l| l.matrix.bytes());
            bytes.sum()
        };
        let block = |b: &Block| {
            let attention = total(&[&b.query, &b.key, &b.value, &b.output]);
            attention
                + match &b.feed_forward {
                    FeedForward::Dense(gated) => total(&gated.linears()),
                    FeedForward::Routed(routed) => {
                        let experts = routed.experts.iter();
                        let shared = routed.shared.iter().map(|shared| &shared.feed);
                        let all = experts.chain(shared).map(|g| total(&g.linears()));
                        all.sum::<usize>() + routed.router.bytes()
                    }
                }
        };
        let head = self.head.as_ref().unwrap_or(&self.embedding).bytes();
        self.blocks.iter().map(block).sum::<usize>() + head
    }

    /// An empty cache for this model.
    pub fn cache(&self, lanes: usize, capacity: usize) -> PackedCache {
        self.cache_of(&vec![capacity; lanes])
    }

    /// An empty cache for this model, with room for another number of tokens in each lane.
    pub fn cache_of(&self, capacities: &[usize]) -> PackedCache {
        let format = match self.format {
            Format::F32 => CacheFormat::F32,
            Format::Bf16 => CacheFormat::F16,
            Format::Q8 | Format::Q4 => CacheFormat::I8,
        };
        PackedCache::new(&self.config, format, capacities)
    }

    /// Adapters for this model, one per expert; `None` is the base itself.
    pub fn adapters(&self, adapters: &[Option<&Adapter>]) -> PackedAdapters {
        PackedAdapters::new(adapters, &self.config, self.format != Format::F32)
    }

    /// Reads the next tokens of every lane and writes the logits after each lane's last one to
    /// `logits`, `[lanes, vocab]`.
    ///
    /// # Errors
    /// A lane without tokens, a token outside of the vocabulary, lanes that don't match the cache or the
    /// adapters, or more tokens than the context or the cache holds. Nothing is read then. [`Error::NoNumbers`] where
    /// activations overflow before the last block; after it, logits are NaN.
    pub fn next_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
        logits: &mut [f32],
    ) -> Result<()> {
        if tokens.iter().any(|t| t.is_empty()) {
            return Err(Error::EmptyLane);
        }
        self.fill(tokens, cache, adapters, scratch, Some(logits))
    }

    /// [`Self::next_logits`] of some of the lanes: those without tokens stay as they are. `logits` are of the others,
    /// one after another, `[lanes with tokens, vocab]`, where they are asked for.
    ///
    /// # Errors
    /// Those of [`Self::next_logits`]; no lane with tokens.
    pub fn fill(
        &self,
        tokens: &[&[u32]],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
        logits: Option<&mut [f32]>,
    ) -> Result<()> {
        self.read(tokens, cache, adapters, scratch, Wanted::Last)?;
        if let Some(logits) = logits {
            let lanes = tokens.iter().filter(|t| !t.is_empty()).count();
            self.head(scratch, 0..lanes, logits);
        }
        Ok(())
    }

    /// Reads the next tokens of every lane and calls `row` with the logits after each token: its number,
    /// lane after lane, and `[vocab]`.
    ///
    /// # Errors
    /// Those of [`Self::next_logits`], though lanes may be empty.
    pub fn all_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        mut row: impl FnMut(usize, &mut [f32]),
    ) -> Result<()> {
        let mut scratch = Scratch::default();
        self.read(tokens, cache, adapters, &mut scratch, Wanted::All)?;
        let total: usize = tokens.iter().map(|t| t.len()).sum();
        let vocab = self.config.vocab_size;
        // Few rows at a time: a vocabulary is wide.
        let mut logits = vec![0.0; total.min(32) * vocab];
        for start in (0..total).step_by(32) {
            let end = (start + 32).min(total);
            let part = &mut logits[..(end - start) * vocab];
            self.head(&mut scratch, start..end, part);
            for (i, logits) in part.chunks_mut(vocab).enumerate() {
                row(start + i, logits);
            }
        }
        Ok(())
    }

    /// Blocks in 32 bits that get their inputs from outside, with a head of `[outputs, hidden]`; read by
    /// [`Self::next_outputs`].
    pub(crate) fn from_blocks(
        mut config: DecoderConfig,
        blocks: Vec<Block>,
        norm: Vec<f32>,
        head: &[f32],
    ) -> Self {
        (config.vocab_size, config.tied_head) = (1, false);
        let width = config.hidden_size;
        let pack = |rows, data: &[f32]| Matrix::pack(kernels::Format::F32, rows, width, data);
        Self {
            format: Format::F32,
            isa: Isa::best(),
            embedding: pack(1, &vec![0.0; width]),
            head: Some(pack(head.len() / width, head)),
            blocks,
            norm,
            frequencies: frequencies(&config),
            kinds: Kind::all(&config),
            config,
        }
    }

    /// Reads the next inputs of every lane, `[rows, hidden]` each, in place of embedded tokens, and writes
    /// the head's outputs after each lane's last one, `[lanes, outputs]`.
    ///
    /// # Errors
    /// Those of [`Self::next_logits`].
    pub fn next_outputs(
        &self,
        inputs: &[&[f32]],
        cache: &mut PackedCache,
        scratch: &mut Scratch,
        outputs: &mut [f32],
    ) -> Result<()> {
        let rows = |input: &&[f32]| vec![0; input.len() / self.config.hidden_size];
        let tokens: Vec<Vec<u32>> = inputs.iter().map(rows).collect();
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        scratch.inputs = inputs.concat();
        let read = self.next_logits(&tokens, cache, None, scratch, outputs);
        scratch.inputs.clear();
        read
    }

    fn check(
        &self,
        tokens: &[&[u32]],
        cache: &PackedCache,
        adapters: Option<&PackedAdapters>,
    ) -> Result<()> {
        let lanes = tokens.len();
        if lanes != cache.lanes() || tokens.iter().all(|t| t.is_empty()) {
            let cache = cache.lanes();
            return Err(Error::CacheLanes { lanes, cache });
        }
        if let Some(a) = adapters.filter(|a| !lanes.is_multiple_of(a.experts().max(1))) {
            let experts = a.experts();
            return Err(Error::ExpertLanes { lanes, experts });
        }
        for (lane, tokens) in tokens.iter().enumerate() {
            let needed = cache.length(lane) + tokens.len();
            let limits = [
                (self.config.context_length, "the model's context"),
                (cache.capacity(lane), "the capacity of the cache"),
            ];
            if let Some((limit, what)) = limits.into_iter().find(|(limit, _)| needed > *limit) {
                return Err(Error::TooLong {
                    tokens: needed,
                    limit,
                    what,
                });
            }
            let vocab_size = self.config.vocab_size;
            if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::Token { id, vocab_size });
            }
        }
        Ok(())
    }

    /// Sends all tokens through the blocks, at most [`ROWS`] at a time; the wanted hidden states are then
    /// in `scratch.results`.
    fn read(
        &self,
        tokens: &[&[u32]],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
        wanted: Wanted,
    ) -> Result<()> {
        self.check(tokens, cache, adapters)?;
        if !self.config.depends_on_length() {
            return self.read_on(tokens, &[], cache, adapters, scratch, wanted);
        }
        // Where the length brings other frequencies, what was read so far is read again.
        let again = |(lane, tokens): (usize, &&[u32])| {
            let stage = self.config.stage(cache.length(lane) + tokens.len());
            cache.enter_stage(lane, stage)
        };
        let again: Vec<Vec<u32>> = tokens.iter().enumerate().map(again).collect();
        let longer = tokens.iter().zip(&again);
        let longer: Vec<Vec<u32>> = longer.map(|(t, again)| [again, *t].concat()).collect();
        let longer: Vec<&[u32]> = longer.iter().map(Vec::as_slice).collect();
        let known: Vec<usize> = again.iter().map(Vec::len).collect();
        self.read_on(&longer, &known, cache, adapters, scratch, wanted)
    }

    /// The same when that is decided: results of the first `known` tokens of each lane are not wanted.
    fn read_on(
        &self,
        tokens: &[&[u32]],
        known: &[usize],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
        wanted: Wanted,
    ) -> Result<()> {
        let known = |lane: usize| known.get(lane).copied().unwrap_or(0);
        let results = match wanted {
            Wanted::Last => tokens.iter().filter(|t| !t.is_empty()).count(),
            Wanted::All => {
                let lanes = tokens.iter().enumerate();
                lanes.map(|(lane, t)| t.len() - known(lane)).sum()
            }
        };
        scratch.stages.clear();
        if self.config.depends_on_length() {
            let lanes = tokens.iter().enumerate();
            let end = |(lane, t): (usize, &&[u32])| cache.length(lane) + t.len();
            let stretched = lanes.map(end).map(|end| self.stretched(end));
            scratch.stages.extend(stretched);
        }
        scratch.results.resize(results, self.config.hidden_size);
        let (mut lane, mut at, mut number) = (0, 0, 0);
        // Results so far.
        let mut done = 0;
        while lane < tokens.len() {
            scratch.rows.clear();
            while lane < tokens.len() && scratch.rows.len() < ROWS {
                let (own_tokens, before, start) = (tokens[lane], cache.length(lane), at);
                at = own_tokens.len().min(at + ROWS - scratch.rows.len());
                for (t, &token) in own_tokens.iter().enumerate().take(at).skip(start) {
                    let asked = match wanted {
                        Wanted::Last => t + 1 == own_tokens.len(),
                        Wanted::All => t >= known(lane),
                    };
                    let result = asked.then_some(done);
                    (done, number) = (done + usize::from(asked), number + 1);
                    scratch.rows.push(Row {
                        number: number - 1,
                        lane,
                        position: before + t - start,
                        token,
                        result,
                    });
                }
                if at == own_tokens.len() {
                    (lane, at) = (lane + 1, 0);
                }
            }
            if scratch.rows.is_empty() {
                break;
            }
            if let Some(lane) = self.pass(cache, adapters, scratch) {
                return Err(Error::NoNumbers { lane });
            }
            for row in &scratch.rows {
                cache.advance(row.lane, row.token);
            }
        }
        Ok(())
    }

    /// Rotary frequencies in a sequence of this length.
    fn stretched(&self, length: usize) -> Vec<Vec<f32>> {
        let rotated = self.config.rotated();
        let ropes = self.config.ropes();
        ropes
            .map(|rope| rope.frequencies_at(rotated, length))
            .collect()
    }

    /// Logits of some of the results.
    fn head(&self, scratch: &mut Scratch, results: Range<usize>, logits: &mut [f32]) {
        let matrix = self.head.as_ref().unwrap_or(&self.embedding);
        let vocab = matrix.rows();
        assert_eq!(logits.len(), results.len() * vocab, "room for the logits");
        let input = scratch.results.share().skip(results.start);
        let values = Shared::new(logits);
        let output = Output::new(values, vocab);
        Team::global().run(&|member| {
            let groups = member.share(matrix.groups());
            // SAFETY: the input is not written now, and these columns are this member's.
            unsafe {
                multiply(
                    self.isa,
                    matrix,
                    &input,
                    results.len(),
                    groups.clone(),
                    &output,
                )
            };
            if self.config.family.logit_divisor == 1.0 && self.config.family.logit_cap.is_none() {
                return;
            }
            let columns = groups.start * kernels::GROUP..(groups.end * kernels::GROUP).min(vocab);
            for row in 0..results.len() {
                let part =
                    row * vocab + columns.start..row * vocab + columns.end.max(columns.start);
                // SAFETY: these columns are this member's.
                self.scale_logits(unsafe { values.write(part) });
            }
        });
    }

    /// Logits as the family has them, from products with the head.
    fn scale_logits(&self, logits: &mut [f32]) {
        let family = &self.config.family;
        if family.logit_divisor != 1.0 {
            logits.iter_mut().for_each(|v| *v /= family.logit_divisor);
        }
        if let Some(cap) = family.logit_cap {
            kernels::math::soft_cap(self.isa, logits, cap);
        }
    }
}
