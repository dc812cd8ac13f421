//! The decoder on the processor with packed weights: each is read once per step for all lanes.
//!
//! It computes what [`crate::Decoder`] computes (see there for the formulas), in [`kernels`]' formats,
//! with a team of threads in step. Where it differs:
//!
//! 1. weights may be 16-, 8- or 4-bit ([`Weights`]); 8- and 4-bit ones are multiplied with inputs that are
//!    rounded to 8 bits in blocks of 32
//! 2. a lane's results never depend on the other lanes, bit for bit: it may leave or join at any time
//! 3. keys lie in blocks of 16 positions, so that scores need no sums across a vector

mod adapters;
mod cache;

use std::ops::Range;

use kernels::{
    Format, Input, InputView, Isa, Matrix, Member, Output, Shared, Team, attention, math, multiply,
};
use serde::{Deserialize, Serialize};

pub use adapters::PackedAdapters;
pub use cache::PackedCache;
use cache::SharedLane;

use crate::adapter::Target;
use crate::config::DecoderConfig;
use crate::load::Checkpoint;
use crate::{Error, Result};

/// Number format of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Weights {
    /// 32-bit floats: what the file says (default).
    #[default]
    F32,
    /// 16-bit floats with the exponent of 32-bit ones.
    Bf16,
    /// 8-bit integers in blocks of 32 with a 16-bit scale (GGML's Q8_0); exact for files in it.
    Q8,
    /// 4-bit integers in blocks of 32 with a 16-bit scale and minimum (GGML's Q4_1); the embedding and the
    /// head in Q8. Nearly exact for files in it, else for those who need the memory.
    Q4,
}

impl Weights {
    fn matrix(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::Q8 => Format::Q8,
            Self::Q4 => Format::Q4,
        }
    }

    fn embedding(self) -> Format {
        match self {
            Self::Q4 => Format::Q8,
            other => other.matrix(),
        }
    }
}

#[derive(Debug)]
struct Linear {
    matrix: Matrix,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
struct Block {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A decoder with packed weights.
#[derive(Debug)]
pub struct PackedDecoder {
    config: DecoderConfig,
    weights: Weights,
    isa: Isa,
    embedding: Matrix,
    /// `None`: the embedding is the head, too.
    head: Option<Matrix>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    frequencies: Vec<f32>,
}

/// Rows of one pass through the blocks; more are read in several passes.
const ROWS: usize = 256;

/// One token on its way.
#[derive(Debug, Clone, Copy)]
struct Row {
    lane: usize,
    position: usize,
    token: u32,
    /// Row of the result that its last hidden state goes to.
    result: Option<usize>,
}

/// Buffers of a pass; they keep their memory from step to step.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Row>,
    /// Residual stream, `[rows, hidden]`.
    stream: Vec<f32>,
    /// `[rows, q + 2 kv]`.
    qkv: Vec<f32>,
    /// Gate and then up, `[rows, intermediate]` each.
    gate: Vec<f32>,
    up: Vec<f32>,
    narrow: Input,
    mixed: Input,
    wide: Input,
    /// Inputs of the side paths, `[rows, 3, rank]`.
    sides: Vec<f32>,
    /// `[rows, head_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `[threads, capacity]`.
    scores: Vec<f32>,
    /// Last hidden states, `[results, hidden]`.
    results: Input,
}

/// What all phases of a pass share.
struct Pass<'a> {
    rows: &'a [Row],
    lanes: &'a [SharedLane<'a>],
    adapters: Option<&'a PackedAdapters>,
    /// Lanes of each expert.
    per_expert: usize,
    stream: Shared<'a, f32>,
    qkv: Shared<'a, f32>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    narrow: InputView<'a>,
    mixed: InputView<'a>,
    wide: InputView<'a>,
    sides: Shared<'a, f32>,
    cos: Shared<'a, f32>,
    sin: Shared<'a, f32>,
    scores: Shared<'a, f32>,
    results: InputView<'a>,
}

/// Which results a call wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Of every lane's last token.
    Last,
    /// Of every token, lane after lane.
    All,
}

impl PackedDecoder {
    /// Reads and packs a checkpoint's weights, one tensor at a time.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, weights: Weights) -> Result<Self> {
        let config = checkpoint.config().clone();
        let reader = checkpoint.reader();
        let c = &config;
        let vector = |name: &str, n: usize| reader.get(name, &[n]);
        let block = |layer: usize| -> Result<Block> {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let linear = |target: Target, bias: bool| -> Result<Linear> {
                let (inputs, outputs) = target.size(c);
                let module = format!("model.layers.{layer}.{}", target.module());
                let data = reader.get(&format!("{module}.weight"), &[outputs, inputs])?;
                let bias = bias.then(|| vector(&format!("{module}.bias"), outputs));
                Ok(Linear {
                    matrix: Matrix::pack(weights.matrix(), outputs, inputs, &data),
                    bias: bias.transpose()?,
                })
            };
            let head_norm = |part: &str| {
                let norm = c.qk_norm.then(|| vector(&name(part), c.head_dim));
                norm.transpose()
            };
            Ok(Block {
                attention_norm: vector(&name("input_layernorm"), c.hidden_size)?,
                query: linear(Target::Query, c.qkv_bias)?,
                key: linear(Target::Key, c.qkv_bias)?,
                value: linear(Target::Value, c.qkv_bias)?,
                output: linear(Target::Output, c.output_bias)?,
                query_norm: head_norm("self_attn.q_norm")?,
                key_norm: head_norm("self_attn.k_norm")?,
                feed_forward_norm: vector(&name("post_attention_layernorm"), c.hidden_size)?,
                gate: linear(Target::Gate, c.mlp_bias)?,
                up: linear(Target::Up, c.mlp_bias)?,
                down: linear(Target::Down, c.mlp_bias)?,
            })
        };
        let vocabulary = |name: &str| -> Result<Matrix> {
            let data = reader.get(name, &[c.vocab_size, c.hidden_size])?;
            let format = weights.embedding();
            Ok(Matrix::pack(format, c.vocab_size, c.hidden_size, &data))
        };
        let embedding = vocabulary("model.embed_tokens.weight")?;
        let head = (!c.tied_head).then(|| vocabulary("lm_head.weight"));
        let head = head.transpose()?;
        let blocks = (0..c.layers).map(block).collect::<Result<_>>()?;
        let norm = vector("model.norm.weight", c.hidden_size)?;
        reader.finish()?;
        Ok(Self {
            weights,
            isa: Isa::best(),
            embedding,
            head,
            blocks,
            norm,
            frequencies: c.rope.frequencies(c.head_dim),
            config,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Number format of the weights.
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// Bytes of weights that one step reads.
    pub fn bytes(&self) -> usize {
        let block = |b: &Block| {
            let linears = [
                &b.query, &b.key, &b.value, &b.output, &b.gate, &b.up, &b.down,
            ];
            linears.iter().map(|l| l.matrix.bytes()).sum::<usize>()
        };
        let head = self.head.as_ref().unwrap_or(&self.embedding).bytes();
        self.blocks.iter().map(block).sum::<usize>() + head
    }

    /// An empty cache for this model.
    pub fn cache(&self, lanes: usize, capacity: usize) -> PackedCache {
        PackedCache::new(&self.config, lanes, capacity)
    }

    /// Reads the next tokens of every lane and writes the logits after each lane's last one to
    /// `logits`, `[lanes, vocab]`.
    ///
    /// # Errors
    /// A lane without tokens, a token outside of the vocabulary, lanes that don't match the cache or the
    /// adapters, or more tokens than the context or the cache holds. Nothing is read then.
    pub fn next_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
        logits: &mut [f32],
    ) -> Result<()> {
        if tokens.iter().any(|t| t.is_empty()) {
            let message = "a lane has no token to continue from";
            return Err(Error::Argument(message.into()));
        }
        self.read(tokens, cache, adapters, scratch, Wanted::Last)?;
        self.head(scratch, 0..tokens.len(), logits);
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

    fn check(
        &self,
        tokens: &[&[u32]],
        cache: &PackedCache,
        adapters: Option<&PackedAdapters>,
    ) -> Result<()> {
        let fail = |message: String| Err(Error::Argument(message));
        let lanes = tokens.len();
        if lanes != cache.lanes() || tokens.iter().all(|t| t.is_empty()) {
            let expected = cache.lanes();
            return fail(format!("{lanes} lanes of tokens for a cache of {expected}"));
        }
        if let Some(a) = adapters.filter(|a| !lanes.is_multiple_of(a.experts().max(1))) {
            return fail(format!("{lanes} lanes for {} experts", a.experts()));
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
            let size = self.config.vocab_size;
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= size) {
                return fail(format!("token {id} is outside of the vocabulary of {size}"));
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
        let results = match wanted {
            Wanted::Last => tokens.len(),
            Wanted::All => tokens.iter().map(|t| t.len()).sum(),
        };
        scratch.results.resize(results, self.config.hidden_size);
        let (mut lane, mut at, mut done) = (0, 0, 0);
        while lane < tokens.len() {
            scratch.rows.clear();
            while lane < tokens.len() && scratch.rows.len() < ROWS {
                let (own, before, start) = (tokens[lane], cache.length(lane), at);
                at = own.len().min(at + ROWS - scratch.rows.len());
                for (t, &token) in own.iter().enumerate().take(at).skip(start) {
                    let result = match wanted {
                        Wanted::Last => (t + 1 == own.len()).then_some(lane),
                        Wanted::All => Some(done),
                    };
                    done += 1;
                    scratch.rows.push(Row {
                        lane,
                        position: before + t - start,
                        token,
                        result,
                    });
                }
                if at == own.len() {
                    (lane, at) = (lane + 1, 0);
                }
            }
            if scratch.rows.is_empty() {
                break;
            }
            self.pass(cache, adapters, scratch);
            for i in 0..scratch.rows.len() {
                cache.advance(scratch.rows[i].lane, 1);
            }
        }
        Ok(())
    }

    fn pass(
        &self,
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
    ) {
        let c = &self.config;
        let team = Team::global();
        let count = scratch.rows.len();
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let rank = adapters.map_or(0, PackedAdapters::rank);
        scratch.stream.resize(count * c.hidden_size, 0.0);
        scratch.qkv.resize(count * (q + 2 * kv), 0.0);
        scratch.gate.resize(count * c.intermediate_size, 0.0);
        scratch.up.resize(count * c.intermediate_size, 0.0);
        scratch.narrow.resize(count, c.hidden_size);
        scratch.mixed.resize(count, q);
        scratch.wide.resize(count, c.intermediate_size);
        scratch.sides.resize(count * 3 * rank, 0.0);
        scratch.cos.resize(count * c.head_dim / 2, 0.0);
        scratch.sin.resize(count * c.head_dim / 2, 0.0);
        scratch.scores.resize(team.size() * cache.padded(), 0.0);
        let lanes = cache.lanes();
        let shared = cache.share();
        let pass = Pass {
            rows: &scratch.rows,
            lanes: &shared,
            adapters,
            per_expert: adapters.map_or(1, |a| lanes / a.experts().max(1)),
            stream: Shared::new(&mut scratch.stream),
            qkv: Shared::new(&mut scratch.qkv),
            gate: Shared::new(&mut scratch.gate),
            up: Shared::new(&mut scratch.up),
            narrow: scratch.narrow.share(),
            mixed: scratch.mixed.share(),
            wide: scratch.wide.share(),
            sides: Shared::new(&mut scratch.sides),
            cos: Shared::new(&mut scratch.cos),
            sin: Shared::new(&mut scratch.sin),
            scores: Shared::new(&mut scratch.scores),
            results: scratch.results.share(),
        };
        team.run(&|member| self.work(&pass, member));
    }

    /// One member's part of a pass. Between two barriers a member writes only its own rows or its own
    /// columns, and reads only what was written before the last barrier; every `unsafe` below rests on that.
    fn work(&self, pass: &Pass<'_>, member: &Member<'_>) {
        let c = &self.config;
        let (isa, width) = (self.isa, c.hidden_size);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let own = || (member.index..pass.rows.len()).step_by(member.size);
        let format = self.weights.matrix();
        for row in own() {
            // SAFETY: own row.
            let stream = unsafe { pass.stream.write(row * width..(row + 1) * width) };
            self.embedding.row(pass.rows[row].token as usize, stream);
            self.angles(pass, row);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            // The first blocks follow the embedding of the same rows, later ones a barrier.
            let norm = |weight: &[f32], targets: &[Target]| {
                for row in own() {
                    // SAFETY: own row of the input; the stream is not written in this phase.
                    let (stream, mut input) = unsafe {
                        let stream = pass.stream.read(row * width..(row + 1) * width);
                        (stream, pass.narrow.row(row))
                    };
                    math::rms_norm(isa, stream, weight, c.norm_eps, input.floats);
                    input.quantise(isa, format);
                    self.side_inputs(pass, layer, targets, row, input.floats);
                }
            };
            let attention = [Target::Query, Target::Key, Target::Value];
            norm(&block.attention_norm, &attention);
            member.sync();
            let parts = [(&block.query, 0), (&block.key, q), (&block.value, q + kv)];
            self.linear(
                pass,
                member,
                layer,
                &parts,
                &attention,
                &pass.narrow,
                &Output::new(pass.qkv, q + 2 * kv),
            );
            member.sync();
            self.rotate(pass, member, layer, block);
            member.sync();
            self.attend(pass, member, layer);
            member.sync();
            for row in own() {
                // SAFETY: own row; its heads were written before the barrier.
                let mut input = unsafe { pass.mixed.row(row) };
                input.quantise(isa, format);
                self.side_inputs(pass, layer, &[Target::Output], row, input.floats);
            }
            member.sync();
            let stream = Output::new(pass.stream, width).adding();
            let parts = [(&block.output, 0)];
            self.linear(
                pass,
                member,
                layer,
                &parts,
                &[Target::Output],
                &pass.mixed,
                &stream,
            );
            member.sync();
            norm(&block.feed_forward_norm, &[Target::Gate, Target::Up]);
            member.sync();
            self.feed(pass, member, layer, block);
            member.sync();
            for row in own() {
                // SAFETY: own row; its columns were written before the barrier.
                let mut input = unsafe { pass.wide.row(row) };
                input.quantise(isa, format);
                self.side_inputs(pass, layer, &[Target::Down], row, input.floats);
            }
            member.sync();
            let parts = [(&block.down, 0)];
            self.linear(
                pass,
                member,
                layer,
                &parts,
                &[Target::Down],
                &pass.wide,
                &stream,
            );
            member.sync();
        }
        for row in own() {
            let Some(result) = pass.rows[row].result else {
                continue;
            };
            // SAFETY: each result belongs to one row, which is this member's.
            let (stream, mut input) = unsafe {
                let stream = pass.stream.read(row * width..(row + 1) * width);
                (stream, pass.results.row(result))
            };
            math::rms_norm(isa, stream, &self.norm, c.norm_eps, input.floats);
            input.quantise(isa, self.weights.embedding());
        }
    }

    /// Cosine and sine of a row's rotary angles.
    fn angles(&self, pass: &Pass<'_>, row: usize) {
        let half = self.frequencies.len();
        let part = row * half..(row + 1) * half;
        // SAFETY: own row.
        let (cos, sin) = unsafe { (pass.cos.write(part.clone()), pass.sin.write(part)) };
        let position = pass.rows[row].position as f32;
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
            (*sin, *cos) = (position * frequency).sin_cos();
        }
    }

    /// `x A` of the row's expert for each target.
    fn side_inputs(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        targets: &[Target],
        row: usize,
        x: &[f32],
    ) {
        let Some(adapters) = pass.adapters else {
            return;
        };
        let (rank, expert) = (adapters.rank(), pass.rows[row].lane / pass.per_expert);
        for (slot, &target) in targets.iter().enumerate() {
            if let Some(pair) = adapters.pair(expert, layer, target) {
                let start = (row * 3 + slot) * rank;
                // SAFETY: own row.
                let out = unsafe { pass.sides.write(start..start + pair.a.len()) };
                for (out, a) in out.iter_mut().zip(&pair.a) {
                    *out = math::dot(self.isa, x, a);
                }
            }
        }
    }

    /// This member's columns of some matrices over the same input, with biases and side paths.
    #[allow(clippy::too_many_arguments, reason = "a phase of `work`")]
    fn linear(
        &self,
        pass: &Pass<'_>,
        member: &Member<'_>,
        layer: usize,
        parts: &[(&Linear, usize)],
        targets: &[Target],
        input: &InputView<'_>,
        output: &Output<'_>,
    ) {
        let total: usize = parts.iter().map(|(l, _)| l.matrix.groups()).sum();
        let share = member.share(total);
        let mut before = 0;
        for (slot, (linear, offset)) in parts.iter().enumerate() {
            let groups = linear.matrix.groups();
            let clip = |v: usize| v.clamp(before, before + groups) - before;
            let own = clip(share.start)..clip(share.end);
            before += groups;
            if own.is_empty() {
                continue;
            }
            let output = Output {
                offset: *offset,
                ..*output
            };
            self.columns(
                pass,
                layer,
                linear,
                (slot, targets[slot]),
                own,
                input,
                &output,
            );
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a part of `linear`")]
    fn columns(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        linear: &Linear,
        (slot, target): (usize, Target),
        groups: Range<usize>,
        input: &InputView<'_>,
        output: &Output<'_>,
    ) {
        let matrix = &linear.matrix;
        let first = groups.start * kernels::GROUP;
        let last = (groups.end * kernels::GROUP).min(matrix.rows());
        // SAFETY: inputs are not written in this phase, and these columns are this member's.
        unsafe { multiply(self.isa, matrix, input, pass.rows.len(), groups, output) };
        if linear.bias.is_none() && pass.adapters.is_none() {
            return;
        }
        for (index, row) in pass.rows.iter().enumerate() {
            let start = index * output.width + output.offset;
            // SAFETY: own columns.
            let out = unsafe { output.values.write(start + first..start + last) };
            if let Some(bias) = &linear.bias {
                out.iter_mut()
                    .zip(&bias[first..last])
                    .for_each(|(o, b)| *o += b);
            }
            let Some(adapters) = pass.adapters else {
                continue;
            };
            if let Some(pair) = adapters.pair(row.lane / pass.per_expert, layer, target) {
                let start = (index * 3 + slot) * adapters.rank();
                // SAFETY: written before the last barrier.
                let side = unsafe { pass.sides.read(start..start + pair.b.len()) };
                for (side, b) in side.iter().zip(&pair.b) {
                    math::axpy(self.isa, out, *side, &b[first..last]);
                }
            }
        }
    }

    /// Norms and rotates queries and keys, and stores keys and values; a member takes whole heads of rows.
    fn rotate(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize, block: &Block) {
        let c = &self.config;
        let (n, half) = (c.head_dim, c.head_dim / 2);
        let (q, kv) = (c.heads * n, c.kv_heads * n);
        let scale = (n as f32).powf(-0.5);
        let units = c.heads + c.kv_heads;
        let turn = |head: &mut [f32], norm: &Option<Vec<f32>>, row: usize, scale: f32| {
            if let Some(weight) = norm {
                let mean = head.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
                let inverse = (1.0 / (mean + f64::from(c.norm_eps)).sqrt()) as f32;
                head.iter_mut()
                    .zip(weight)
                    .for_each(|(v, w)| *v = *v * inverse * w);
            }
            let part = row * half..(row + 1) * half;
            // SAFETY: written before the last barrier.
            let (cos, sin) = unsafe { (pass.cos.read(part.clone()), pass.sin.read(part)) };
            let (low, high) = head.split_at_mut(half);
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b) = (*low, *high);
                *low = (a * cos - b * sin) * scale;
                *high = (b * cos + a * sin) * scale;
            }
        };
        let tasks = pass.rows.len() * units;
        for task in (member.index..tasks).step_by(member.size) {
            let (row, unit) = (task / units, task % units);
            let start = row * (q + 2 * kv);
            if unit < c.heads {
                let from = start + unit * n;
                // SAFETY: this head of this row is this member's.
                let head = unsafe { pass.qkv.write(from..from + n) };
                turn(head, &block.query_norm, row, scale);
                continue;
            }
            let head = unit - c.heads;
            let from = start + q + head * n;
            let Row { lane, position, .. } = pass.rows[row];
            // SAFETY: this head of this row, and its place in the cache, are this member's.
            unsafe {
                let key = pass.qkv.write(from..from + n);
                turn(key, &block.key_norm, row, 1.0);
                let value = pass.qkv.read(from + kv..from + kv + n);
                pass.lanes[lane].store(layer, head, position, key, value);
            }
        }
    }

    fn attend(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize) {
        let c = &self.config;
        let n = c.head_dim;
        let (q, kv) = (c.heads * n, c.kv_heads * n);
        let group = c.heads / c.kv_heads;
        let capacity = pass.scores.len() / member.size;
        let window = c.sliding_window.unwrap_or(usize::MAX);
        // SAFETY: own part.
        let scores = unsafe {
            let start = member.index * capacity;
            pass.scores.write(start..start + capacity)
        };
        let tasks = pass.rows.len() * c.heads;
        for task in (member.index..tasks).step_by(member.size) {
            let (row, head) = (task / c.heads, task % c.heads);
            let Row { lane, position, .. } = pass.rows[row];
            let from = row * (q + 2 * kv) + head * n;
            // SAFETY: queries and cache were written before the last barrier; this head of the mixed
            // values is this member's.
            let (query, (keys, values), out) = unsafe {
                let query = pass.qkv.read(from..from + n);
                let cached = pass.lanes[lane].read(layer, head / group);
                (
                    query,
                    cached,
                    pass.mixed.part(row, head * n..(head + 1) * n),
                )
            };
            let span = (position + 1).saturating_sub(window)..position + 1;
            attention::attend(self.isa, query, keys, values, span, scores, out);
        }
    }

    /// `silu(gate) · up` for this member's columns.
    fn feed(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize, block: &Block) {
        let n = self.config.intermediate_size;
        let own = member.share(block.gate.matrix.groups());
        if own.is_empty() {
            return;
        }
        let (gate, up) = ((0, Target::Gate), (1, Target::Up));
        let (to_gate, to_up) = (Output::new(pass.gate, n), Output::new(pass.up, n));
        self.columns(
            pass,
            layer,
            &block.gate,
            gate,
            own.clone(),
            &pass.narrow,
            &to_gate,
        );
        self.columns(
            pass,
            layer,
            &block.up,
            up,
            own.clone(),
            &pass.narrow,
            &to_up,
        );
        let (first, last) = (
            own.start * kernels::GROUP,
            (own.end * kernels::GROUP).min(n),
        );
        for row in 0..pass.rows.len() {
            let part = row * n + first..row * n + last;
            // SAFETY: own columns.
            let (gate, up, out) = unsafe {
                let gate = pass.gate.read(part.clone());
                (gate, pass.up.read(part), pass.wide.part(row, first..last))
            };
            math::swiglu(self.isa, gate, up, out);
        }
    }

    /// Logits of some of the results.
    fn head(&self, scratch: &mut Scratch, results: Range<usize>, logits: &mut [f32]) {
        let matrix = self.head.as_ref().unwrap_or(&self.embedding);
        let vocab = self.config.vocab_size;
        assert_eq!(logits.len(), results.len() * vocab, "room for the logits");
        let input = scratch.results.share().skip(results.start);
        let values = Shared::new(logits);
        let output = Output::new(values, vocab);
        Team::global().run(&|member| {
            let own = member.share(matrix.groups());
            // SAFETY: the input is not written now, and these columns are this member's.
            unsafe { multiply(self.isa, matrix, &input, results.len(), own, &output) };
        });
    }
}
