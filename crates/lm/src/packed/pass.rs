//! One pass of tokens through the blocks, by a team of threads in step.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Input, InputView, Member, Output, Shared, Team, math, multiply};

use super::adapters::PackedAdapters;
use super::cache::{PackedCache, SharedLane};
use super::decoder::{Block, Linear, PackedDecoder};
use crate::adapter::Target;

/// One token on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Number of the row among all of a call.
    pub(super) number: usize,
    pub(super) lane: usize,
    pub(super) position: usize,
    pub(super) token: u32,
    /// Row of the result that its last hidden state goes to.
    pub(super) result: Option<usize>,
}

/// Buffers of a pass; they keep their memory from step to step.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) rows: Vec<Row>,
    /// Inputs of all rows of a call in place of embedded tokens, `[rows, hidden]`; empty: tokens count.
    pub(super) inputs: Vec<f32>,
    /// Residual stream, `[rows, hidden]`.
    pub(super) stream: Vec<f32>,
    /// `[rows, q + 2 kv]`.
    pub(super) qkv: Vec<f32>,
    /// Gate and then up, `[rows, intermediate]` each.
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) narrow: Input,
    pub(super) mixed: Input,
    pub(super) wide: Input,
    /// Inputs of the side paths, `[rows, 3, rank]`.
    pub(super) sides: Vec<f32>,
    /// `[rows, head_dim / 2]`.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    /// `[threads, heads of a group, capacity]`.
    pub(super) scores: Vec<f32>,
    /// Last hidden states, `[results, hidden]`.
    pub(super) results: Input,
}

/// What all phases of a pass share.
struct Pass<'a> {
    rows: &'a [Row],
    inputs: &'a [f32],
    lanes: &'a [SharedLane<'a>],
    /// No lane has two rows, so no row reads another's keys.
    alone: bool,
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
    /// The first lane with a key or a value that is NaN or infinite; `usize::MAX`: none.
    overflowed: AtomicUsize,
}

impl PackedDecoder {
    /// Sends the scratch's rows through the blocks. Returns the first lane with a key or a value that is NaN or
    /// infinite: a cache in 16 or 8 bits could not keep it, and what comes after would look like numbers.
    pub(super) fn pass(
        &self,
        cache: &mut PackedCache,
        adapters: Option<&PackedAdapters>,
        scratch: &mut Scratch,
    ) -> Option<usize> {
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
        let scores = c.heads / c.kv_heads * cache.padded();
        scratch.scores.resize(team.size() * scores, 0.0);
        let lanes = cache.lanes();
        let shared = cache.share();
        let pass = Pass {
            rows: &scratch.rows,
            inputs: &scratch.inputs,
            lanes: &shared,
            alone: scratch.rows.windows(2).all(|w| w[0].lane != w[1].lane),
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
            overflowed: AtomicUsize::new(usize::MAX),
        };
        team.run(&|member| self.work(&pass, member));
        let lane = pass.overflowed.into_inner();
        (lane != usize::MAX).then_some(lane)
    }

    /// One member's part of a pass. Between two barriers a member writes only its own rows or its own
    /// columns, and reads only what was written before the last barrier; every `unsafe` below rests on that. In one
    /// piece, so that all barriers stand in one place.
    fn work(&self, pass: &Pass<'_>, member: &Member<'_>) {
        let c = &self.config;
        let (isa, width) = (self.isa, c.hidden_size);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let own_rows = || (member.index..pass.rows.len()).step_by(member.size());
        let format = self.format.projection();
        for row in own_rows() {
            // SAFETY: own row.
            let stream = unsafe { pass.stream.write(row * width..(row + 1) * width) };
            match pass.inputs {
                [] => self.embedding.row(pass.rows[row].token as usize, stream),
                inputs => {
                    let number = pass.rows[row].number;
                    stream.copy_from_slice(&inputs[number * width..(number + 1) * width]);
                }
            }
            self.angles(pass, row);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            // The first blocks follow the embedding of the same rows, later ones a barrier.
            let norm = |weight: &[f32], targets: &[Target]| {
                for row in own_rows() {
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
            self.attention(pass, member, layer, block);
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
            for row in own_rows() {
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
            if !member.regroup() {
                return;
            }
        }
        for row in own_rows() {
            let Some(result) = pass.rows[row].result else {
                continue;
            };
            // SAFETY: each result belongs to one row, which is this member's.
            let (stream, mut input) = unsafe {
                let stream = pass.stream.read(row * width..(row + 1) * width);
                (stream, pass.results.row(result))
            };
            math::rms_norm(isa, stream, &self.norm, c.norm_eps, input.floats);
            input.quantise(isa, self.format.vocabulary());
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
            if let Some(path) = adapters.path(expert, layer, target) {
                let start = (row * 3 + slot) * rank;
                // SAFETY: own row.
                let out = unsafe { pass.sides.write(start..start + path.rank()) };
                path.narrow(self.isa, x, out);
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
            let columns = clip(share.start)..clip(share.end);
            before += groups;
            if columns.is_empty() {
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
                columns,
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
            if let Some(path) = adapters.path(row.lane / pass.per_expert, layer, target) {
                let start = (index * 3 + slot) * adapters.rank();
                // SAFETY: written before the last barrier.
                let side = unsafe { pass.sides.read(start..start + path.rank()) };
                path.widen(self.isa, side, first..last, out);
            }
        }
    }

    /// From queries, keys and values to rounded inputs of the output projection. A member takes whole rows
    /// where they can be shared out evenly, else what shares keys and values, else single heads.
    fn attention(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize, block: &Block) {
        let (rows, heads) = (pass.rows.len(), self.config.kv_heads);
        let group = self.config.heads / heads;
        let rotate = |(row, head)| self.rotate(pass, layer, block, row, head);
        let attend = |(row, head): (usize, usize)| {
            let queries = head * group..(head + 1) * group;
            self.attend(pass, member, layer, row, queries);
        };
        let own_rows = || (member.index..rows).step_by(member.size());
        if rows >= 4 * member.size() || rows.is_multiple_of(member.size()) {
            let of = |row: usize| (0..heads).map(move |head| (row, head));
            if !pass.alone {
                own_rows().flat_map(of).for_each(rotate);
                member.sync();
            }
            for row in own_rows() {
                if pass.alone {
                    of(row).for_each(rotate);
                }
                let next = (row + member.size()).min(rows - 1);
                let ahead = of(row).skip(1).chain([(next, 0)]);
                for (task, (row, head)) in of(row).zip(ahead) {
                    pass.lanes[pass.rows[row].lane].prefetch(layer, head);
                    attend(task);
                }
                self.round_mixed(pass, layer, row);
            }
            return;
        }
        let tasks = rows * heads;
        let own_tasks = || {
            let numbers = (member.index..tasks).step_by(member.size());
            numbers.map(|task| (task / heads, task % heads))
        };
        let together = tasks >= member.size();
        for task in own_tasks() {
            rotate(task);
            if pass.alone && together {
                attend(task);
            }
        }
        if !(pass.alone && together) {
            member.sync();
            if together {
                own_tasks().for_each(attend);
            } else {
                let heads = self.config.heads;
                for task in (member.index..rows * heads).step_by(member.size()) {
                    let head = task % heads;
                    self.attend(pass, member, layer, task / heads, head..head + 1);
                }
            }
        }
        member.sync();
        own_rows().for_each(|row| self.round_mixed(pass, layer, row));
    }

    /// Rounds a row of mixed values.
    fn round_mixed(&self, pass: &Pass<'_>, layer: usize, row: usize) {
        // SAFETY: the row is this member's; its heads were written by itself or before the last barrier.
        let mut input = unsafe { pass.mixed.row(row) };
        input.quantise(self.isa, self.format.projection());
        self.side_inputs(pass, layer, &[Target::Output], row, input.floats);
    }

    /// Norms and rotates the queries and the key of a head of a row, and stores key and value.
    fn rotate(&self, pass: &Pass<'_>, layer: usize, block: &Block, row: usize, head: usize) {
        let c = &self.config;
        let (n, half) = (c.head_dim, c.head_dim / 2);
        let (q, kv) = (c.heads * n, c.kv_heads * n);
        let group = c.heads / c.kv_heads;
        let turn = |values: &mut [f32], norm: &Option<Vec<f32>>, scale: f32| {
            if let Some(weight) = norm {
                let mean = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
                let inverse = (1.0 / (mean + f64::from(c.norm_eps)).sqrt()) as f32;
                values
                    .iter_mut()
                    .zip(weight)
                    .for_each(|(v, w)| *v = *v * inverse * w);
            }
            let part = row * half..(row + 1) * half;
            // SAFETY: written before the last barrier.
            let (cos, sin) = unsafe { (pass.cos.read(part.clone()), pass.sin.read(part)) };
            math::rotate(self.isa, values, cos, sin, scale);
        };
        let start = row * (q + 2 * kv);
        let Row { lane, position, .. } = pass.rows[row];
        // SAFETY: these heads of this row, and their place in the cache, are this member's.
        unsafe {
            for query in head * group..(head + 1) * group {
                let from = start + query * n;
                let query = pass.qkv.write(from..from + n);
                turn(query, &block.query_norm, (n as f32).powf(-0.5));
            }
            let from = start + q + head * n;
            let key = pass.qkv.write(from..from + n);
            turn(key, &block.key_norm, 1.0);
            let value = pass.qkv.read(from + kv..from + kv + n);
            if !(math::all_finite(self.isa, key) && math::all_finite(self.isa, value)) {
                pass.overflowed.fetch_min(lane, Ordering::Relaxed);
            }
            pass.lanes[lane].store(self.isa, (layer, head), position, key, value);
        }
    }

    /// Attention of some query heads of a row that share keys and values.
    fn attend(
        &self,
        pass: &Pass<'_>,
        member: &Member<'_>,
        layer: usize,
        row: usize,
        heads: Range<usize>,
    ) {
        let c = &self.config;
        let n = c.head_dim;
        let (q, kv) = (c.heads * n, c.kv_heads * n);
        let head = heads.start / (c.heads / c.kv_heads);
        let capacity = pass.scores.len() / member.size();
        let Row { lane, position, .. } = pass.rows[row];
        let from = row * (q + 2 * kv);
        let window = c.sliding_window.unwrap_or(usize::MAX);
        let span = (position + 1).saturating_sub(window)..position + 1;
        // SAFETY: the scores are this member's own. Queries and cache were written by itself or before the
        // last barrier; these heads of the mixed values are this member's.
        unsafe {
            let start = member.index * capacity;
            let scores = pass.scores.write(start..start + capacity);
            let queries = pass.qkv.read(from + heads.start * n..from + heads.end * n);
            let out = pass.mixed.part(row, heads.start * n..heads.end * n);
            let lane = &pass.lanes[lane];
            lane.attend(self.isa, (layer, head), queries, span, scores, out);
        }
    }

    /// `silu(gate) · up` for this member's columns.
    fn feed(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize, block: &Block) {
        let n = self.config.intermediate_size;
        let groups = member.share(block.gate.matrix.groups());
        if groups.is_empty() {
            return;
        }
        let (gate, up) = ((0, Target::Gate), (1, Target::Up));
        let (to_gate, to_up) = (Output::new(pass.gate, n), Output::new(pass.up, n));
        self.columns(
            pass,
            layer,
            &block.gate,
            gate,
            groups.clone(),
            &pass.narrow,
            &to_gate,
        );
        self.columns(
            pass,
            layer,
            &block.up,
            up,
            groups.clone(),
            &pass.narrow,
            &to_up,
        );
        let (first, last) = (
            groups.start * kernels::GROUP,
            (groups.end * kernels::GROUP).min(n),
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
}
