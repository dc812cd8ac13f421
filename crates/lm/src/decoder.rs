//! A decoder over lanes, through burn on any device.
//!
//! Each of the `layers` blocks computes, for the residual stream `x`,
//!
//! ```text
//! x = x + Wo · attention(rope(Wq n), rope(Wk n), Wv n)      n = RMSNorm(x)
//! x = x + Wdown · (silu(Wgate m) * Wup m)                   m = RMSNorm(x)
//! ```
//!
//! and the head gives `logits = Whead · RMSNorm(x)`. LLaMA (arXiv 2302.13971), Mistral, SmolLM2, Qwen2
//! (biases) and Qwen3 (RMSNorm on each head of q and k) are this with other constants; what other families change is
//! in [`crate::config::Family`].
//!
//! A *lane* is one sequence under one expert. All lanes go through the matrices together, so the
//! base weights are read once per step however many experts share them; experts differ in the
//! low-rank side paths of an [`AdapterStack`] and in their prompts.

use std::borrow::Cow;

use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Bool, DType, Device, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::adapter::{AdapterStack, Target};
use crate::config::{Activation, DecoderConfig, Norms, Rope};
use crate::device::{float_format, to_host};
use crate::kv_cache::{HOLE, KvCache};
use crate::load::Checkpoint;
use crate::load::tensors::{self, FeedForward, Role, Tensors};
use crate::{Error, Format, Result};

/// Score of a key that a query must not see; `exp` of it is 0 beside any real score.
const MASKED: f32 = -1e9;

type Linear = tensors::Linear<Tensor<2>, Tensor<1>>;
type Gated = tensors::Gated<Tensor<2>, Tensor<1>>;
type Routed = tensors::Routed<Tensor<2>, Tensor<1>>;
type Block = tensors::Block<Tensor<2>, Tensor<1>>;

impl Linear {
    fn forward(&self, x: &Tensor<3>) -> Tensor<3> {
        let [lanes, time, inputs] = x.dims();
        let rows = x.clone().reshape([lanes * time, inputs]);
        let mut y = times(rows, &self.matrix);
        if let Some(bias) = &self.bias {
            y = y + bias.clone().unsqueeze();
        }
        let outputs = y.dims()[1];
        y.reshape([lanes, time, outputs])
    }
}

/// `x · matrixᵀ`. In 16 bits the factors are rounded and the device adds up as it does; the product is in 32 again.
fn times(x: Tensor<2>, matrix: &Tensor<2>) -> Tensor<2> {
    let matrix = matrix.clone().transpose();
    match matrix.dtype() {
        DType::F32 => x.matmul(matrix),
        format => x.cast(format).matmul(matrix).cast(FloatDType::F32),
    }
}

/// The weights of a decoder on a device.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    device: Device,
    embedding: Tensor<2>,
    blocks: Vec<Block>,
    norm: Tensor<1>,
    head: Tensor<2>,
    /// Radians per token of each rotated pair, `[embeddings][rotated / 2]`, within the original context.
    frequencies: Vec<Vec<f32>>,
}

/// What one pass needs beside the weights: where every query stands and what it sees.
pub(crate) struct Pass {
    /// First cache column written.
    start: usize,
    /// Of each of the config's embeddings.
    angles: Vec<Angles>,
    /// By the window of a layer.
    masks: Vec<(usize, Mask)>,
}

/// Cosines and sines, `[lanes, 1, time, rotated]`, the angle of a pair in both halves.
struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

/// `[lanes, 1, group · time, columns]`, true where a query must not look; `None`: sees all.
type Mask = Option<Tensor<4, Bool>>;

impl Decoder {
    /// Reads a checkpoint's weights onto `device`, one tensor at a time: in 32 bits, or with `Bf16` the matrices in 16,
    /// while norms, biases, attention, adapters and all sums between products stay in 32.
    ///
    /// # Errors
    /// A format that the device lacks; a missing, misshapen or unknown tensor.
    pub fn load(checkpoint: &Checkpoint, device: &Device, format: Format) -> Result<Self> {
        let format = float_format(device, format)?;
        let config = checkpoint.config().clone();
        let matrix = |role, shape: [usize; 2], data| {
            let matrix = Tensor::<2>::from_data(TensorData::new(data, shape), device);
            match role {
                Role::Router => matrix,
                Role::Vocabulary | Role::Projection => matrix.cast(format),
            }
        };
        let vector = |data: Vec<f32>| {
            let shape = [data.len()];
            Tensor::<1>::from_data(TensorData::new(data, shape), device)
        };
        let read = Tensors::read(checkpoint, matrix, vector)?;
        let ropes = config.ropes();
        let frequencies = ropes.map(|rope| rope.frequencies(config.rotated()));
        Ok(Self {
            frequencies: frequencies.collect(),
            device: device.clone(),
            head: read.head.unwrap_or_else(|| read.embedding.clone()),
            embedding: read.embedding,
            blocks: read.blocks,
            norm: read.norm,
            config,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The embedding of a token, `[hidden]`.
    pub(crate) fn embedding_row(&self, token: u32) -> Result<Vec<f32>> {
        let id: Tensor<1, Int> = Tensor::from_data([token as i32].as_slice(), &self.device);
        to_host(self.embedding.clone().select(0, id).cast(FloatDType::F32))
    }

    /// An empty cache for this model.
    pub fn cache(&self, lanes: usize, capacity: usize) -> KvCache {
        KvCache::new(&self.config, lanes, capacity, &self.device)
    }

    /// Reads the next tokens of every lane and returns the last hidden states, normalised.
    ///
    /// Lane `i` reads `tokens[i]`, which may be longer or shorter than the others' and empty.
    ///
    /// # Shapes
    /// - output: `[lanes, time, hidden]`, `time` the longest lane; rows after a lane's own tokens
    ///   hold nothing of use
    ///
    /// # Errors
    /// No tokens, a token outside of the vocabulary, lanes that don't match the cache or the
    /// adapters, or more tokens than the context or the cache holds. Nothing is read then.
    pub fn hidden(
        &self,
        tokens: &[&[u32]],
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<Tensor<3>> {
        self.check(tokens, cache, adapters)?;
        let Some(known) = self.known(tokens, cache) else {
            return self.read(tokens, cache, adapters);
        };
        // Where the length brings other frequencies, what was read so far is read again.
        cache.clear();
        let longer = known.iter().zip(tokens);
        let longer: Vec<Vec<u32>> = longer.map(|(known, t)| [known, *t].concat()).collect();
        let lanes: Vec<&[u32]> = longer.iter().map(Vec::as_slice).collect();
        let x = self.read(&lanes, cache, adapters)?;
        let [lanes, longest, width] = x.dims();
        let time = tokens.iter().map(|t| t.len()).max().unwrap_or(0);
        let row = |lane: usize, t: usize| lane * longest + (known[lane].len() + t).min(longest - 1);
        let rows = (0..lanes).flat_map(|lane| (0..time).map(move |t| row(lane, t) as i32));
        let rows: Vec<i32> = rows.collect();
        let rows = Tensor::from_data(rows.as_slice(), &self.device);
        let x = x.reshape([lanes * longest, width]).select(0, rows);
        Ok(x.reshape([lanes, time, width]))
    }

    /// What all lanes have read, where one of them has to be read again.
    fn known(&self, tokens: &[&[u32]], cache: &mut KvCache) -> Option<Vec<Vec<u32>>> {
        let time = tokens.iter().map(|t| t.len()).max().unwrap_or(0);
        // Where there is no room, nothing is to change.
        if !self.config.depends_on_length() || cache.used() + time > cache.capacity() {
            return None;
        }
        let lengths = cache.lengths().to_vec();
        let stages = lengths.iter().zip(tokens);
        let stages = stages.map(|(read, tokens)| self.config.stage(read + tokens.len()));
        cache.enter_stages(stages.collect())
    }

    fn read(
        &self,
        tokens: &[&[u32]],
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<Tensor<3>> {
        let (lanes, time) = (
            tokens.len(),
            tokens.iter().map(|t| t.len()).max().unwrap_or(0),
        );
        let pass = self.pass(tokens, time, cache)?;
        let mut ids = vec![0i32; lanes * time];
        for (row, tokens) in ids.chunks_mut(time).zip(tokens) {
            for (id, &token) in row.iter_mut().zip(*tokens) {
                *id = token as i32;
            }
        }
        let mut x = self.embed(&ids, lanes);
        let side = |layer: usize, target: Target, x: &Tensor<3>| {
            let adapters = adapters?;
            adapters.side(layer, target, x)
        };
        for layer in 0..self.blocks.len() {
            let mut keep = |k, v| cache.append(layer, pass.start, k, v);
            x = self.block(layer, x, &pass, &mut keep, &side)?;
        }
        Ok(self.last_norm(x))
    }

    /// Embeddings of lanes of tokens, `[lanes · time]` to `[lanes, time, hidden]`.
    pub(crate) fn embed(&self, ids: &[i32], lanes: usize) -> Tensor<3> {
        let time = ids.len() / lanes;
        let ids: Tensor<1, Int> = Tensor::from_data(ids, &self.device);
        let rows = self.embedding.clone().select(0, ids).cast(FloatDType::F32);
        let multiplier = self.config.family.embedding_multiplier;
        let rows = if multiplier == 1.0 {
            rows
        } else {
            rows * multiplier
        };
        rows.reshape([lanes, time, self.config.hidden_size])
    }

    /// What the head reads, from the last block's output.
    pub(crate) fn last_norm<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        rms_norm(x, &self.norm, self.config.norm_eps)
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - input: `[rows, hidden]`
    /// - output: `[rows, vocab]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let family = &self.config.family;
        let mut logits = times(hidden, &self.head);
        if family.logit_divisor != 1.0 {
            logits = logits / family.logit_divisor;
        }
        match family.logit_cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }

    /// Reads the next tokens of every lane and returns the logits after each lane's last one.
    ///
    /// # Shapes
    /// - output: `[lanes, vocab]`
    ///
    /// # Errors
    /// Those of [`Self::hidden`], and a lane without tokens.
    pub fn next_logits(
        &self,
        tokens: &[&[u32]],
        cache: &mut KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<Tensor<2>> {
        if tokens.iter().any(|t| t.is_empty()) {
            return Err(Error::EmptyLane);
        }
        let hidden = self.hidden(tokens, cache, adapters)?;
        let [lanes, time, width] = hidden.dims();
        let last = |(lane, tokens): (usize, &&[u32])| (lane * time + tokens.len() - 1) as i32;
        let rows: Vec<i32> = tokens.iter().enumerate().map(last).collect();
        let rows = Tensor::from_data(rows.as_slice(), &self.device);
        Ok(self.logits(hidden.reshape([lanes * time, width]).select(0, rows)))
    }

    fn check(
        &self,
        tokens: &[&[u32]],
        cache: &KvCache,
        adapters: Option<&AdapterStack>,
    ) -> Result<()> {
        let lanes = tokens.len();
        if lanes != cache.lanes() || tokens.iter().all(|t| t.is_empty()) {
            let cache = cache.lanes();
            return Err(Error::CacheLanes { lanes, cache });
        }
        if let Some(stack) = adapters.filter(|s| !lanes.is_multiple_of(s.experts().max(1))) {
            let experts = stack.experts();
            return Err(Error::ExpertLanes { lanes, experts });
        }
        for (tokens, read) in tokens.iter().zip(cache.lengths()) {
            let needed = read + tokens.len();
            if needed > self.config.context_length {
                let limit = self.config.context_length;
                return Err(Error::TooLong {
                    tokens: needed,
                    limit,
                    what: "the model's context",
                });
            }
            let vocab_size = self.config.vocab_size;
            if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::Token { id, vocab_size });
            }
        }
        Ok(())
    }

    /// Reserves the cache's columns and lays out angles and mask.
    fn pass(&self, tokens: &[&[u32]], time: usize, cache: &mut KvCache) -> Result<Pass> {
        let before = cache.lengths().to_vec();
        let counts: Vec<usize> = tokens.iter().map(|t| t.len()).collect();
        let start = cache.reserve(&counts, time)?;
        if self.config.depends_on_length() {
            cache.remember(tokens);
        }
        Ok(self.lay_out(&before, &counts, start, time, &|lane| cache.columns(lane)))
    }

    /// Angles and mask for sequences that are read from their beginning, without a cache: lane `i` reads `counts[i]`
    /// of `time` tokens.
    pub(crate) fn whole(&self, counts: &[usize], time: usize) -> Pass {
        let columns: Vec<u32> = (0..time as u32).collect();
        self.lay_out(&vec![0; counts.len()], counts, 0, time, &|_| &columns)
    }

    /// Angles and mask of lanes that have read `before` tokens and read `counts` more of `time`; `columns` says which
    /// of a lane's positions each column of keys holds.
    fn lay_out<'a>(
        &self,
        before: &[usize],
        counts: &[usize],
        start: usize,
        time: usize,
        columns: &dyn Fn(usize) -> &'a [u32],
    ) -> Pass {
        let shape = [counts.len(), time];
        let position = |lane: usize, t: usize| before[lane] + t;
        let length = |lane: usize| before[lane] + counts[lane];
        let width = start + time;
        let mask = |window: usize| {
            let mut hidden = vec![false; counts.len() * time * width];
            for (row, hidden) in hidden.chunks_mut(width).enumerate() {
                let (lane, t) = (row / time, row % time);
                // A padding query looks where the lane's last token does; its result is not used.
                let query = before[lane] + t.min(counts[lane].saturating_sub(1));
                for (hidden, &key) in hidden.iter_mut().zip(columns(lane)) {
                    let seen =
                        key != HOLE && key as usize <= query && query - (key as usize) < window;
                    *hidden = !seen;
                }
            }
            hidden.contains(&true).then(|| {
                let mask = TensorData::new(hidden, [counts.len(), 1, time, width]);
                let mask: Tensor<4, Bool> = Tensor::from_data(mask, &self.device);
                mask.repeat_dim(2, self.config.heads / self.config.kv_heads)
            })
        };
        let mut windows: Vec<usize> = (0..self.blocks.len())
            .map(|layer| self.config.window(layer))
            .collect();
        windows.sort();
        windows.dedup();
        Pass {
            start,
            angles: self.angles(shape, &position, &length),
            masks: windows
                .into_iter()
                .map(|window| (window, mask(window)))
                .collect(),
        }
    }

    /// Cosines and sines of each of the config's embeddings, by the position of each token and the length of each lane.
    fn angles(
        &self,
        [lanes, time]: [usize; 2],
        position: &dyn Fn(usize, usize) -> usize,
        length: &dyn Fn(usize) -> usize,
    ) -> Vec<Angles> {
        let rotated = self.config.rotated();
        let half = rotated / 2;
        let angles = |(rope, plain): (&Rope, &Vec<f32>)| {
            let mut cos = vec![0.0f32; lanes * time * rotated];
            let mut sin = cos.clone();
            let magnitude = rope.magnitude();
            for lane in 0..lanes {
                let frequencies = match rope.stage(length(lane)) {
                    0 => Cow::Borrowed(plain),
                    _ => Cow::Owned(rope.frequencies_at(rotated, length(lane))),
                };
                for t in 0..time {
                    let position = position(lane, t) as f32;
                    let part = (lane * time + t) * rotated..(lane * time + t + 1) * rotated;
                    let (cos, sin) = (&mut cos[part.clone()], &mut sin[part]);
                    for (j, frequency) in frequencies.iter().enumerate() {
                        let (s, k) = (position * frequency).sin_cos();
                        let (s, k) = (s * magnitude, k * magnitude);
                        (cos[j], cos[j + half]) = (k, k);
                        // rotate_half: the first half gets minus the second.
                        (sin[j], sin[j + half]) = (-s, s);
                    }
                }
            }
            let table = |data| {
                let data = TensorData::new(data, [lanes, 1, time, rotated]);
                Tensor::from_data(data, &self.device)
            };
            Angles {
                cos: table(cos),
                sin: table(sin),
            }
        };
        let ropes = self.config.ropes().zip(&self.frequencies);
        ropes.map(angles).collect()
    }

    /// One block. `keep` gets the new keys and values, `[lanes, kv_heads, time, head_dim]`, and returns all that the
    /// queries look at; `side` is what adapters add to the product of a matrix.
    ///
    /// # Errors
    /// What the device reports where experts are chosen.
    pub(crate) fn block(
        &self,
        layer: usize,
        x: Tensor<3>,
        pass: &Pass,
        keep: &mut dyn FnMut(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>),
        side: &dyn Fn(usize, Target, &Tensor<3>) -> Option<Tensor<3>>,
    ) -> Result<Tensor<3>> {
        let c = &self.config;
        let block = &self.blocks[layer];
        let project = |linear: &Linear, target: Target, x: &Tensor<3>| {
            let y = linear.forward(x);
            match side(layer, target, x) {
                Some(side) => y + side,
                None => y,
            }
        };
        let enter = |x: &Tensor<3>, norm: &Tensor<1>| match c.family.norms {
            Norms::After => x.clone(),
            Norms::Before | Norms::Around => rms_norm(x.clone(), norm, c.norm_eps),
        };
        let leave = |x: Tensor<3>, y: Tensor<3>, norm: &Tensor<1>, post: &Option<Tensor<1>>| {
            let y = match (c.family.norms, post) {
                (Norms::After, _) => rms_norm(y, norm, c.norm_eps),
                (_, Some(post)) => rms_norm(y, post, c.norm_eps),
                (_, None) => y,
            };
            match c.family.residual_multiplier {
                1.0 => x + y,
                multiplier => x + y * multiplier,
            }
        };
        let n = enter(&x, &block.attention_norm);
        let y = self.attention(layer, &n, pass, keep, &project);
        let x = leave(x, y, &block.attention_norm, &block.attention_post_norm);

        let m = enter(&x, &block.feed_forward_norm);
        let y = match &block.feed_forward {
            FeedForward::Dense(gated) => {
                let gate = self.activate(project(&gated.gate, Target::Gate, &m));
                let inner = gate * project(&gated.up, Target::Up, &m);
                project(&gated.down, Target::Down, &inner)
            }
            FeedForward::Routed(routed) => self.route(routed, m)?,
        };
        Ok(leave(
            x,
            y,
            &block.feed_forward_norm,
            &block.feed_forward_post_norm,
        ))
    }

    /// Attention of a block, from its normalised input `[lanes, time, hidden]`.
    fn attention(
        &self,
        layer: usize,
        n: &Tensor<3>,
        pass: &Pass,
        keep: &mut dyn FnMut(Tensor<4>, Tensor<4>) -> (Tensor<4>, Tensor<4>),
        project: &dyn Fn(&Linear, Target, &Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let c = &self.config;
        let block = &self.blocks[layer];
        let [lanes, time, _] = n.dims();
        let split = |y: Tensor<3>, heads: usize| -> Tensor<4> {
            y.reshape([lanes, time, heads, c.head_dim]).swap_dims(1, 2)
        };
        // Each head by itself, or all together.
        let normed = |y: Tensor<3>, norm: &Option<Tensor<1>>, heads: usize| match norm {
            None => split(y, heads),
            Some(norm) if c.family.wide_qk_norm => split(rms_norm(y, norm, c.norm_eps), heads),
            Some(norm) => rms_norm(split(y, heads), norm, c.norm_eps),
        };
        let q = project(&block.query, Target::Query, n);
        let k = project(&block.key, Target::Key, n);
        let v = split(project(&block.value, Target::Value, n), c.kv_heads);
        let q = normed(q, &block.query_norm, c.heads);
        let k = normed(k, &block.key_norm, c.kv_heads);
        let rotate = |x: Tensor<4>| match c.layer_rope(layer) {
            Some(rope) => pass.angles[rope].rotate(x),
            None => x,
        };
        let (k, v) = keep(rotate(k), v);

        // The query heads of one key head stand below each other: nothing is repeated.
        let group = c.heads / c.kv_heads;
        let q = rotate(q).reshape([lanes, c.kv_heads, group * time, c.head_dim]);
        let scores = q.matmul(k.swap_dims(2, 3)) * c.query_scale();
        let scores = match c.family.attention_cap {
            Some(cap) => soft_cap(scores, cap),
            None => scores,
        };
        let window = c.window(layer);
        let mask = pass.masks.iter().find(|(of, _)| *of == window);
        let scores = match mask.and_then(|(_, mask)| mask.as_ref()) {
            Some(mask) => {
                let shape = scores.dims();
                scores.mask_fill(mask.clone().expand(shape), MASKED)
            }
            None => scores,
        };
        let mixed = softmax(scores, 3)
            .matmul(v)
            .reshape([lanes, c.heads, time, c.head_dim]);
        let mixed = mixed
            .swap_dims(1, 2)
            .reshape([lanes, time, c.heads * c.head_dim]);
        project(&block.output, Target::Output, &mixed)
    }

    fn activate<const D: usize>(&self, gate: Tensor<D>) -> Tensor<D> {
        match self.config.family.activation {
            Activation::Silu => silu(gate),
            Activation::GeluTanh => {
                let cube = gate.clone().powf_scalar(3.0) * 0.044_715;
                let inner = (gate.clone() + cube) * (2.0 / std::f64::consts::PI).sqrt();
                gate * (inner.tanh() + 1.0) * 0.5
            }
        }
    }

    fn gated(&self, gated: &Gated, x: Tensor<3>) -> Tensor<3> {
        let inner = self.activate(gated.gate.forward(&x)) * gated.up.forward(&x);
        gated.down.forward(&inner)
    }

    /// A mixture of experts, `[lanes, time, hidden]`: each expert reads the rows that chose it at once.
    fn route(&self, routed: &Routed, x: Tensor<3>) -> Result<Tensor<3>> {
        let Some(experts) = &self.config.family.experts else {
            return Ok(x);
        };
        let [lanes, time, hidden] = x.dims();
        let (count, chosen) = (experts.count, experts.chosen);
        let rows = x.reshape([lanes * time, hidden]);
        let probabilities = softmax(times(rows.clone(), &routed.router), 1);
        let choices: Vec<i32> = to_host(probabilities.clone())?
            .chunks(count)
            .flat_map(|row| most_probable(row, chosen))
            .collect();
        let ids = TensorData::new(choices.clone(), [lanes * time, chosen]);
        let ids: Tensor<2, Int> = Tensor::from_data(ids, &self.device);
        let mut weights = probabilities.gather(1, ids);
        if experts.normalised {
            weights = weights.clone() / weights.sum_dim(1);
        }
        let weights = weights.reshape([lanes * time * chosen, 1]);
        let mut out = Tensor::zeros([lanes * time, hidden], &self.device);
        for (expert, gated) in routed.experts.iter().enumerate() {
            let slots = choices
                .iter()
                .enumerate()
                .filter(|(_, e)| **e == expert as i32);
            let slots: Vec<i32> = slots.map(|(slot, _)| slot as i32).collect();
            if slots.is_empty() {
                continue;
            }
            let of: Vec<i32> = slots.iter().map(|slot| slot / chosen as i32).collect();
            let slots: Tensor<1, Int> = Tensor::from_data(slots.as_slice(), &self.device);
            let of: Tensor<1, Int> = Tensor::from_data(of.as_slice(), &self.device);
            let y = self.gated(gated, rows.clone().select(0, of.clone()).unsqueeze());
            let y: Tensor<2> = y.squeeze_dim(0);
            let y = y * weights.clone().select(0, slots);
            out = out.select_assign(0, of, y, IndexingUpdateOp::Add);
        }
        if let Some(shared) = &routed.shared {
            let weight = sigmoid(times(rows.clone(), &shared.switch));
            let y: Tensor<2> = self.gated(&shared.feed, rows.unsqueeze()).squeeze_dim(0);
            out = out + y * weight;
        }
        Ok(out.reshape([lanes, time, hidden]))
    }
}

/// The largest of a row's probabilities, largest first.
fn most_probable(row: &[f32], chosen: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..row.len() as i32).collect();
    order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
    order.truncate(chosen);
    order
}

impl Angles {
    /// RoPE: turns each pair `(j, j + rotated / 2)` of `[lanes, heads, time, head_dim]`.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let (width, rotated) = (x.dims()[3], self.cos.dims()[3]);
        if rotated < width {
            let rest = x.clone().narrow(3, rotated, width - rotated);
            let turned = self.rotate(x.narrow(3, 0, rotated));
            return Tensor::cat(vec![turned, rest], 3);
        }
        let half = rotated / 2;
        let swapped = Tensor::cat(
            vec![
                x.clone().narrow(3, half, half),
                x.clone().narrow(3, 0, half),
            ],
            3,
        );
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

/// `cap · tanh(x / cap)`.
fn soft_cap<const D: usize>(x: Tensor<D>, cap: f32) -> Tensor<D> {
    (x / cap).tanh() * cap
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension.
fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f32) -> Tensor<D> {
    let mean_square = x.clone().powf_scalar(2.0).mean_dim(D - 1);
    x * (mean_square + eps).sqrt().recip() * weight.clone().unsqueeze()
}
