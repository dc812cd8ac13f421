//! Mixtures of experts in a pass: an expert's matrices are read once for all rows that chose it, and not at all
//! where none did.
//!
//! Rows are sorted by expert. A row's outputs are added in the order of its choices, so its result does not depend on
//! the other rows.

use kernels::{Input, InputView, Member, Output, Shared, math, multiply};

use super::decoder::{Gated, PackedDecoder, Routed};
use super::pass::Pass;
use crate::config::{DecoderConfig, Experts};

/// Buffers of the experts; they keep their memory from step to step. A slot is one choice of one row.
#[derive(Debug, Default)]
pub(super) struct RoutedScratch {
    /// The router's logits and then probabilities, `[rows, experts]`.
    scores: Vec<f32>,
    /// Experts that a row chose, the most probable first, and their weights, `[rows, chosen]`.
    choices: Vec<u32>,
    weights: Vec<f32>,
    /// `[slots, hidden]`.
    input: Input,
    /// `[slots, width]`.
    gate: Vec<f32>,
    up: Vec<f32>,
    wide: Input,
    /// `[slots, hidden]`.
    out: Vec<f32>,
    shared: SharedScratch,
}

/// Buffers of the expert that reads every row.
#[derive(Debug, Default)]
struct SharedScratch {
    /// `[rows]`.
    switch: Vec<f32>,
    /// `[rows, width]`.
    gate: Vec<f32>,
    up: Vec<f32>,
    wide: Input,
    /// `[rows, hidden]`.
    out: Vec<f32>,
}

impl RoutedScratch {
    /// Makes room for so many rows; none where the model has no experts.
    pub fn resize(&mut self, config: &DecoderConfig, rows: usize) {
        let Some(experts) = &config.family.experts else {
            return;
        };
        let (hidden, width) = (config.hidden_size, experts.intermediate_size);
        let slots = rows * experts.chosen;
        self.scores.resize(rows * experts.count, 0.0);
        self.choices.resize(slots, 0);
        self.weights.resize(slots, 0.0);
        self.input.resize(slots, hidden);
        self.gate.resize(slots * width, 0.0);
        self.up.resize(slots * width, 0.0);
        self.wide.resize(slots, width);
        self.out.resize(slots * hidden, 0.0);
        let (shared, width) = (&mut self.shared, experts.shared.unwrap_or(0));
        shared.switch.resize(rows, 0.0);
        shared.gate.resize(rows * width, 0.0);
        shared.up.resize(rows * width, 0.0);
        shared.wide.resize(rows, width);
        shared.out.resize(rows * hidden, 0.0);
    }

    pub fn share(&mut self) -> RoutedView<'_> {
        RoutedView {
            scores: Shared::new(&mut self.scores),
            choices: Shared::new(&mut self.choices),
            weights: Shared::new(&mut self.weights),
            input: self.input.share(),
            slots: Feed {
                gate: Shared::new(&mut self.gate),
                up: Shared::new(&mut self.up),
                wide: self.wide.share(),
                out: Shared::new(&mut self.out),
            },
            switch: Shared::new(&mut self.shared.switch),
            shared: Feed {
                gate: Shared::new(&mut self.shared.gate),
                up: Shared::new(&mut self.shared.up),
                wide: self.shared.wide.share(),
                out: Shared::new(&mut self.shared.out),
            },
        }
    }
}

/// [`RoutedScratch`] while a team works on it.
#[derive(Clone, Copy)]
pub(super) struct RoutedView<'a> {
    scores: Shared<'a, f32>,
    choices: Shared<'a, u32>,
    weights: Shared<'a, f32>,
    input: InputView<'a>,
    slots: Feed<'a>,
    switch: Shared<'a, f32>,
    shared: Feed<'a>,
}

/// What a feed-forward layer writes.
#[derive(Clone, Copy)]
struct Feed<'a> {
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    wide: InputView<'a>,
    out: Shared<'a, f32>,
}

/// Which slots belong to which expert.
struct Plan {
    /// First slot of each expert, and the number of slots at the end, `[experts + 1]`.
    starts: Vec<usize>,
    /// The slot of each choice, `[rows, chosen]`.
    slots: Vec<usize>,
}

impl Plan {
    fn new(choices: &[u32], experts: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for &expert in choices {
            starts[expert as usize + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        let slots = choices.iter().map(|&expert| {
            next[expert as usize] += 1;
            next[expert as usize] - 1
        });
        Self {
            slots: slots.collect(),
            starts,
        }
    }
}

impl PackedDecoder {
    /// A mixture of experts, from the rows' normalised inputs to `pass.branch`. Barriers are as in
    /// [`PackedDecoder::work`], after which own rows of the branch are this member's.
    pub(super) fn route(&self, pass: &Pass<'_>, member: &Member<'_>, routed: &Routed) {
        let Some(experts) = &self.config.family.experts else {
            return;
        };
        let view = &pass.routed;
        let rows = pass.rows.len();
        let own = |count: usize| (member.index..count).step_by(member.size());
        let format = self.format.projection();
        let groups = member.share(routed.router.groups());
        let scores = Output::new(view.scores, experts.count);
        // SAFETY: inputs are not written in this phase, and these columns are this member's.
        unsafe {
            multiply(
                self.isa,
                &routed.router,
                &pass.narrow,
                rows,
                groups,
                &scores,
            )
        };
        if let Some(shared) = &routed.shared {
            if member.index == 0 {
                let switch = Output::new(view.switch, 1);
                // SAFETY: as above.
                unsafe { multiply(self.isa, &shared.switch, &pass.narrow, rows, 0..1, &switch) };
            }
            self.widen(member, &shared.feed, &pass.narrow, rows, 0, &view.shared);
        }
        member.sync();
        own(rows).for_each(|row| self.choose(view, experts, row));
        if routed.shared.is_some() {
            for row in own(rows) {
                // SAFETY: own row, written before the last barrier.
                unsafe { view.shared.wide.row(row) }.quantise(self.isa, format);
            }
        }
        member.sync();
        let slots = rows * experts.chosen;
        // SAFETY: written before the last barrier.
        let plan = Plan::new(unsafe { view.choices.read(0..slots) }, experts.count);
        for choice in own(slots) {
            // SAFETY: own slots; nobody writes the rows' inputs.
            let (mut input, from) = unsafe {
                let from = pass.narrow.floats(choice / experts.chosen);
                (view.input.row(plan.slots[choice]), from)
            };
            input.floats.copy_from_slice(from);
            input.quantise(self.isa, format);
        }
        member.sync();
        for (expert, span) in routed.experts.iter().zip(plan.starts.windows(2)) {
            let input = view.input.skip(span[0]);
            self.widen(
                member,
                expert,
                &input,
                span[1] - span[0],
                span[0],
                &view.slots,
            );
        }
        if let Some(shared) = &routed.shared {
            self.narrow(member, &shared.feed, rows, 0, &view.shared);
        }
        member.sync();
        for slot in own(slots) {
            // SAFETY: own slot, written before the last barrier.
            unsafe { view.slots.wide.row(slot) }.quantise(self.isa, format);
        }
        member.sync();
        for (expert, span) in routed.experts.iter().zip(plan.starts.windows(2)) {
            self.narrow(member, expert, span[1] - span[0], span[0], &view.slots);
        }
        member.sync();
        own(rows).for_each(|row| self.gather(pass, &plan, experts, row));
    }

    /// `act(gate x) · up x` for this member's columns of `count` rows, to those from `first` on.
    fn widen(
        &self,
        member: &Member<'_>,
        gated: &Gated,
        input: &InputView<'_>,
        count: usize,
        first: usize,
        to: &Feed<'_>,
    ) {
        let width = gated.gate.matrix.rows();
        let groups = member.share(gated.gate.matrix.groups());
        if count == 0 || groups.is_empty() {
            return;
        }
        for (linear, to) in [(&gated.gate, to.gate), (&gated.up, to.up)] {
            let output = Output::new(to, width).from_row(first);
            // SAFETY: inputs are not written in this phase, and these columns are this member's.
            unsafe {
                multiply(
                    self.isa,
                    &linear.matrix,
                    input,
                    count,
                    groups.clone(),
                    &output,
                )
            };
        }
        let columns = groups.start * kernels::GROUP..(groups.end * kernels::GROUP).min(width);
        for row in first..first + count {
            let part = row * width + columns.start..row * width + columns.end;
            // SAFETY: own columns.
            let (gate, up, out) = unsafe {
                let gate = to.gate.read(part.clone());
                (gate, to.up.read(part), to.wide.part(row, columns.clone()))
            };
            self.activate(gate, up, out);
        }
    }

    /// `down x` for this member's columns of `count` rows from `first` on.
    fn narrow(
        &self,
        member: &Member<'_>,
        gated: &Gated,
        count: usize,
        first: usize,
        feed: &Feed<'_>,
    ) {
        if count == 0 {
            return;
        }
        let matrix = &gated.down.matrix;
        let (input, groups) = (feed.wide.skip(first), member.share(matrix.groups()));
        let output = Output::new(feed.out, matrix.rows()).from_row(first);
        // SAFETY: inputs are not written in this phase, and these columns are this member's.
        unsafe { multiply(self.isa, matrix, &input, count, groups, &output) };
    }

    /// The experts that read a row, and their weights.
    fn choose(&self, view: &RoutedView<'_>, experts: &Experts, row: usize) {
        let (count, chosen) = (experts.count, experts.chosen);
        let part = row * chosen..(row + 1) * chosen;
        // SAFETY: own row; the scores were written before the last barrier.
        let (scores, choices, weights) = unsafe {
            let scores = view.scores.write(row * count..(row + 1) * count);
            (
                scores,
                view.choices.write(part.clone()),
                view.weights.write(part),
            )
        };
        math::softmax(self.isa, scores);
        for (i, weight) in weights.iter_mut().enumerate() {
            let (before, rest) = choices.split_at_mut(i);
            let free = (0..count).filter(|e| !before.contains(&(*e as u32)));
            let best = free.reduce(|best, e| if scores[e] > scores[best] { e } else { best });
            let best = best.unwrap_or(0);
            (rest[0], *weight) = (best as u32, scores[best]);
        }
        if experts.normalised {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
        }
    }

    /// A row's weighted outputs, added in the order of its choices.
    fn gather(&self, pass: &Pass<'_>, plan: &Plan, experts: &Experts, row: usize) {
        let view = &pass.routed;
        let width = self.config.hidden_size;
        let of = |row: usize| row * width..(row + 1) * width;
        let part = row * experts.chosen..(row + 1) * experts.chosen;
        // SAFETY: own row; what is read was written before the last barrier.
        unsafe {
            let branch = pass.branch.write(of(row));
            branch.fill(0.0);
            for (weight, slot) in view
                .weights
                .read(part.clone())
                .iter()
                .zip(&plan.slots[part])
            {
                math::axpy(self.isa, branch, *weight, view.slots.out.read(of(*slot)));
            }
            if experts.shared.is_some() {
                let switch = view.switch.read(row..row + 1)[0];
                let weight = 1.0 / (1.0 + (-switch).exp());
                math::axpy(self.isa, branch, weight, view.shared.out.read(of(row)));
            }
        }
    }
}
