//! One pass of tokens through the blocks, by a team of threads in step.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Input, InputView, Member, Output, Shared, Team, math, multiply};

use super::adapters::PackedAdapters;
use super::cache::{PackedCache, SharedLane};
use super::decoder::{Block, Gated, Linear, PackedDecoder};
use super::routed::{RoutedScratch, RoutedView};
use crate::adapter::Target;
use crate::config::{Activation, Norms};
use crate::load::tensors::FeedForward;

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
    /// Rotary frequencies of each lane, `[lanes][embeddings][rotated / 2]`, where they follow its length; else empty.
    pub(super) stages: Vec<Vec<Vec<f32>>>,
    /// Residual stream, `[rows, hidden]`.
    pub(super) stream: Vec<f32>,
    /// What attention or a feed-forward layer gave, where it is not added to the stream as it is, `[rows, hidden]`.
    pub(super) branch: Vec<f32>,
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
    /// `[embeddings, rows, rotated / 2]`.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    /// `[threads, heads of a group, capacity]`.
    pub(super) scores: Vec<f32>,
    /// Last hidden states, `[results, hidden]`.
    pub(super) results: Input,
    pub(super) routed: RoutedScratch,
}

/// What all phases of a pass share.
pub(super) struct Pass<'a> {
    pub(super) rows: &'a [Row],
    inputs: &'a [f32],
    stages: &'a [Vec<Vec<f32>>],
    lanes: &'a [SharedLane<'a>],
    /// No lane has two rows, so no row reads another's keys.
    alone: bool,
    adapters: Option<&'a PackedAdapters>,
    /// Lanes of each expert.
    per_expert: usize,
    stream: Shared<'a, f32>,
    pub(super) branch: Shared<'a, f32>,
    qkv: Shared<'a, f32>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    pub(super) narrow: InputView<'a>,
    mixed: InputView<'a>,
    wide: InputView<'a>,
    sides: Shared<'a, f32>,
    cos: Shared<'a, f32>,
    sin: Shared<'a, f32>,
    scores: Shared<'a, f32>,
    results: InputView<'a>,
    pub(super) routed: RoutedView<'a>,
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
        let angles = self.frequencies.len() * count * c.rotated() / 2;
        scratch.cos.resize(angles, 0.0);
        scratch.sin.resize(angles, 0.0);
        let branch = !self.adds_directly() || c.family.experts.is_some();
        let branch = if branch { count * c.hidden_size } else { 0 };
        scratch.branch.resize(branch, 0.0);
        scratch.routed.resize(c, count);
        let scores = c.heads / c.kv_heads * cache.padded();
        scratch.scores.resize(team.size() * scores, 0.0);
        let lanes = cache.lanes();
        let shared = cache.share();
        let pass = Pass {
            rows: &scratch.rows,
            inputs: &scratch.inputs,
            stages: &scratch.stages,
            lanes: &shared,
            alone: scratch.rows.windows(2).all(|w| w[0].lane != w[1].lane),
            adapters,
            per_expert: adapters.map_or(1, |a| lanes / a.experts().max(1)),
            stream: Shared::new(&mut scratch.stream),
            branch: Shared::new(&mut scratch.branch),
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
            routed: scratch.routed.share(),
            overflowed: AtomicUsize::new(usize::MAX),
        };
        team.run(&|member| self.work(&pass, member));
        let lane = pass.overflowed.into_inner();
        (lane != usize::MAX).then_some(lane)
    }

    /// What attention and feed-forward layers give is added to the stream as it is.
    fn adds_directly(&self) -> bool {
        let family = &self.config.family;
        family.norms == Norms::Before && family.residual_multiplier == 1.0
    }

    /// One member's part of a pass. Between two barriers a member writes only its own rows or its own
    /// columns, and reads only what was written before the last barrier; every `unsafe` below rests on that. In one
    /// piece, so that barriers stand in one place; those of feed-forward layers are in theirs.
    fn work(&self, pass: &Pass<'_>, member: &Member<'_>) {
        let c = &self.config;
        let (isa, width) = (self.isa, c.hidden_size);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let own_rows = || (member.index..pass.rows.len()).step_by(member.size());
        let direct = self.adds_directly();
        let stream = match direct {
            true => Output::new(pass.stream, width).adding(),
            false => Output::new(pass.branch, width),
        };
        own_rows().for_each(|row| self.embed(pass, row));
        for (layer, block) in self.blocks.iter().enumerate() {
            // The first blocks follow the embedding of the same rows, later ones a barrier.
            let enter = |norm: &[f32], targets: &[Target]| {
                own_rows().for_each(|row| self.enter(pass, layer, norm, targets, row));
            };
            let leave = |first: &[f32], post: &Option<Vec<f32>>| {
                let norm = match c.family.norms {
                    Norms::After => Some(first),
                    _ => post.as_deref(),
                };
                own_rows().for_each(|row| self.leave(pass, norm, row));
            };
            let attention = [Target::Query, Target::Key, Target::Value];
            enter(&block.attention_norm, &attention);
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
            if c.family.wide_qk_norm {
                own_rows().for_each(|row| self.norm_wide(pass, block, row));
                member.sync();
            }
            self.attention(pass, member, layer, block);
            member.sync();
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
            if !direct {
                leave(&block.attention_norm, &block.attention_post_norm);
            }
            enter(&block.feed_forward_norm, &[Target::Gate, Target::Up]);
            member.sync();
            match &block.feed_forward {
                FeedForward::Dense(gated) => {
                    self.feed_forward(pass, member, layer, gated, &stream);
                    if !direct {
                        member.sync();
                        leave(&block.feed_forward_norm, &block.feed_forward_post_norm);
                    }
                }
                FeedForward::Routed(routed) => {
                    self.route(pass, member, routed);
                    leave(&block.feed_forward_norm, &block.feed_forward_post_norm);
                }
            }
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

    /// A feed-forward layer, from the rows' normalised inputs to `stream`. Barriers are as in [`Self::work`].
    fn feed_forward(
        &self,
        pass: &Pass<'_>,
        member: &Member<'_>,
        layer: usize,
        gated: &Gated,
        stream: &Output<'_>,
    ) {
        self.feed(pass, member, layer, gated);
        member.sync();
        for row in (member.index..pass.rows.len()).step_by(member.size()) {
            // SAFETY: own row; its columns were written before the barrier.
            let mut input = unsafe { pass.wide.row(row) };
            input.quantise(self.isa, self.format.projection());
            self.side_inputs(pass, layer, &[Target::Down], row, input.floats);
        }
        member.sync();
        let (parts, targets) = ([(&gated.down, 0)], [Target::Down]);
        self.linear(pass, member, layer, &parts, &targets, &pass.wide, stream);
    }

    /// Begins a row's stream, and lays out its angles.
    fn embed(&self, pass: &Pass<'_>, row: usize) {
        let width = self.config.hidden_size;
        // SAFETY: own row.
        let stream = unsafe { pass.stream.write(row * width..(row + 1) * width) };
        match pass.inputs {
            [] => {
                self.embedding.row(pass.rows[row].token as usize, stream);
                let multiplier = self.config.family.embedding_multiplier;
                if multiplier != 1.0 {
                    stream.iter_mut().for_each(|v| *v *= multiplier);
                }
            }
            inputs => {
                let number = pass.rows[row].number;
                stream.copy_from_slice(&inputs[number * width..(number + 1) * width]);
            }
        }
        self.angles(pass, row);
    }

    /// A row's input of attention or feed-forward layer, from the stream.
    fn enter(&self, pass: &Pass<'_>, layer: usize, norm: &[f32], targets: &[Target], row: usize) {
        let c = &self.config;
        let part = row * c.hidden_size..(row + 1) * c.hidden_size;
        // SAFETY: own row of the input; the stream is not written by others in this phase.
        let (stream, mut input) = unsafe { (pass.stream.read(part), pass.narrow.row(row)) };
        match c.family.norms {
            Norms::After => input.floats.copy_from_slice(stream),
            Norms::Before | Norms::Around => {
                math::rms_norm(self.isa, stream, norm, c.norm_eps, input.floats);
            }
        }
        input.quantise(self.isa, self.format.projection());
        self.side_inputs(pass, layer, targets, row, input.floats);
    }

    /// Adds what attention or feed-forward layer gave a row to its stream, normalised where the family does so.
    fn leave(&self, pass: &Pass<'_>, norm: Option<&[f32]>, row: usize) {
        let c = &self.config;
        let part = row * c.hidden_size..(row + 1) * c.hidden_size;
        // SAFETY: own row; the branch was written before the last barrier or by this member, and nobody reads the input.
        let (stream, branch, input) = unsafe {
            let stream = pass.stream.write(part.clone());
            (stream, pass.branch.read(part), pass.narrow.row(row))
        };
        let given = match norm {
            Some(norm) => {
                math::rms_norm(self.isa, branch, norm, c.norm_eps, input.floats);
                &*input.floats
            }
            None => branch,
        };
        math::axpy(self.isa, stream, c.family.residual_multiplier, given);
    }

    /// RMSNorm of a row's queries and of its keys, all heads together.
    fn norm_wide(&self, pass: &Pass<'_>, block: &Block, row: usize) {
        let c = &self.config;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let start = row * (q + 2 * kv);
        let parts = [
            (&block.query_norm, start..start + q),
            (&block.key_norm, start + q..start + q + kv),
        ];
        for (norm, part) in parts {
            if let Some(weight) = norm {
                // SAFETY: own row; its columns were written before the last barrier.
                norm_in_place(unsafe { pass.qkv.write(part) }, weight, c.norm_eps);
            }
        }
    }

    /// Cosine and sine of a row's rotary angles.
    fn angles(&self, pass: &Pass<'_>, row: usize) {
        let Row { lane, position, .. } = pass.rows[row];
        let position = position as f32;
        let ropes = self.config.ropes().zip(&self.frequencies);
        for (number, (rope, frequencies)) in ropes.enumerate() {
            let stretched = pass.stages.get(lane).map(|ropes| &ropes[number]);
            let frequencies = stretched.unwrap_or(frequencies);
            let half = frequencies.len();
            let first = (number * pass.rows.len() + row) * half;
            let part = first..first + half;
            // SAFETY: own row.
            let (cos, sin) = unsafe { (pass.cos.write(part.clone()), pass.sin.write(part)) };
            let magnitude = rope.magnitude();
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                let (s, c) = (position * frequency).sin_cos();
                (*sin, *cos) = (s * magnitude, c * magnitude);
            }
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
        let n = c.head_dim;
        let (q, kv) = (c.heads * n, c.kv_heads * n);
        let group = c.heads / c.kv_heads;
        let scale = c.query_scale();
        let half = c.rotated() / 2;
        let angles = self.kinds[layer].rope.map(|rope| {
            let first = (rope * pass.rows.len() + row) * half;
            let part = first..first + half;
            // SAFETY: written before the last barrier.
            unsafe { (pass.cos.read(part.clone()), pass.sin.read(part)) }
        });
        let turn = |values: &mut [f32], norm: &Option<Vec<f32>>, scale: f32| {
            if let Some(weight) = norm.as_ref().filter(|_| !c.family.wide_qk_norm) {
                norm_in_place(values, weight, c.norm_eps);
            }
            let rest = match angles {
                Some((cos, sin)) => {
                    let (turned, rest) = values.split_at_mut(2 * half);
                    math::rotate(self.isa, turned, cos, sin, scale);
                    rest
                }
                None => values,
            };
            rest.iter_mut().for_each(|v| *v *= scale);
        };
        let start = row * (q + 2 * kv);
        let Row { lane, position, .. } = pass.rows[row];
        // SAFETY: these heads of this row, and their place in the cache, are this member's.
        unsafe {
            for query in head * group..(head + 1) * group {
                let from = start + query * n;
                let query = pass.qkv.write(from..from + n);
                turn(query, &block.query_norm, scale);
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
        let window = self.kinds[layer].window;
        let span = (position + 1).saturating_sub(window)..position + 1;
        // SAFETY: the scores are this member's own. Queries and cache were written by itself or before the
        // last barrier; these heads of the mixed values are this member's.
        unsafe {
            let start = member.index * capacity;
            let scores = pass.scores.write(start..start + capacity);
            let queries = pass.qkv.read(from + heads.start * n..from + heads.end * n);
            let out = pass.mixed.part(row, heads.start * n..heads.end * n);
            let lane = &pass.lanes[lane];
            let cap = c.family.attention_cap;
            lane.attend(self.isa, (layer, head), queries, span, cap, scores, out);
        }
    }

    /// `act(gate) · up` for this member's columns.
    fn feed(&self, pass: &Pass<'_>, member: &Member<'_>, layer: usize, gated: &Gated) {
        let n = self.config.intermediate_size;
        let groups = member.share(gated.gate.matrix.groups());
        if groups.is_empty() {
            return;
        }
        let (gate, up) = ((0, Target::Gate), (1, Target::Up));
        let (to_gate, to_up) = (Output::new(pass.gate, n), Output::new(pass.up, n));
        self.columns(
            pass,
            layer,
            &gated.gate,
            gate,
            groups.clone(),
            &pass.narrow,
            &to_gate,
        );
        self.columns(
            pass,
            layer,
            &gated.up,
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
            self.activate(gate, up, out);
        }
    }

    /// `act(gate) · up`.
    pub(super) fn activate(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self.config.family.activation {
            Activation::Silu => math::swiglu(self.isa, gate, up, out),
            Activation::GeluTanh => math::geglu(self.isa, gate, up, out),
        }
    }
}

/// RMSNorm of a head, or of several together.
fn norm_in_place(values: &mut [f32], weight: &[f32], eps: f32) {
    let mean = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
    let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
    values
        .iter_mut()
        .zip(weight)
        .for_each(|(v, w)| *v = *v * inverse * w);
}
