//! Several experts over several sequences, the weights of a shared base read once per step.
//!
//! Results come to the host: a mixer is then a pure function on slices, the same on every device,
//! and what crosses is `experts · sequences · vocab` floats per token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kernels::{Isa, Team, math};
use lm::chat::Prompt;
use lm::engine::{Adapters, Cache};
use lm::sampling::keep_likeliest;
use lm::{Adapter, LanguageModel, Tokenizer};

use crate::lanes::LanePlan;
use crate::prompts::{Kept, PromptCache, PromptKey, Reading};
use crate::{Error, Expert, Result};

/// Experts that run together.
#[derive(Debug)]
pub struct ExpertPool {
    experts: Vec<Expert>,
    /// Runs beside them, with prompts of its own.
    reference: Option<Reference>,
    groups: Vec<Group>,
    /// Prompts that were read, perhaps by other pools.
    prompts: Arc<PromptCache>,
    /// Tokens that all of them have; some pad their embeddings behind these.
    vocab: usize,
}

/// What the experts are measured against.
#[derive(Debug)]
enum Reference {
    /// One of them.
    Member(usize),
    /// None of them: it comes after the last.
    Extra(Expert),
}

/// Experts with the same model.
#[derive(Debug)]
struct Group {
    model: Arc<LanguageModel>,
    /// Indices into the pool.
    members: Vec<usize>,
    adapters: Option<Adapters>,
}

/// What the experts have read so far.
#[derive(Debug)]
pub struct PoolState {
    /// One cache per group; lanes are expert-major.
    caches: Vec<Cache>,
    sequences: usize,
}

/// Log-probabilities of the next token, in nats.
#[derive(Debug, Clone, Default)]
pub struct NextTokens {
    /// Number of experts.
    pub experts: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Which expert's rows are the reference's, if there is one; `experts` where it is none of them.
    pub reference: Option<usize>,
    /// `[experts, sequences, vocab]`, row-major; the rows of a reference that is none of them come last.
    pub log_probs: Vec<f32>,
    /// Divides every expert's logits before they become log-probabilities; `None` is 1.
    pub temperature: Option<f32>,
}

impl NextTokens {
    /// One expert's log-probabilities for one sequence, `[vocab]`.
    ///
    /// # Panics
    /// When there is no such expert or sequence.
    pub fn row(&self, expert: usize, sequence: usize) -> &[f32] {
        let experts = self.experts.max(self.reference.map_or(0, |r| r + 1));
        assert!(expert < experts && sequence < self.sequences, "no such row");
        &self.log_probs[(expert * self.sequences + sequence) * self.vocab..][..self.vocab]
    }
}

impl ExpertPool {
    /// Groups experts by model.
    ///
    /// # Errors
    /// No expert, two of the same name, or vocabularies that differ.
    pub fn new(experts: Vec<Expert>) -> Result<Self> {
        Self::build(experts, None)
    }

    /// Experts with a reference beside them, which reads the prompts as they are asked and whose
    /// distributions nobody mixes. Where prompts are not `rephrased` for the experts and one of them is
    /// the reference anyway, it costs nothing.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn with_reference(
        experts: Vec<Expert>,
        reference: Expert,
        rephrased: bool,
    ) -> Result<Self> {
        let member = experts.iter().position(|e| {
            let plain = e.adapter.is_none() && e.instruction.is_none() && e.top_k.is_none();
            plain && !rephrased && Arc::ptr_eq(&e.model, &reference.model)
        });
        let reference = member.map_or(Reference::Extra(reference), Reference::Member);
        Self::build(experts, Some(reference))
    }

    fn build(experts: Vec<Expert>, reference: Option<Reference>) -> Result<Self> {
        let Some(first) = experts.first() else {
            return Err(Error::EmptyPool);
        };
        for (i, expert) in experts.iter().enumerate() {
            if experts[..i].iter().any(|other| other.name == expert.name) {
                return Err(Error::SameName(expert.name.clone()));
            }
            same_vocabulary(first, expert)?;
        }
        let extra = match &reference {
            Some(Reference::Extra(extra)) => Some(extra),
            _ => None,
        };
        if let Some(extra) = extra {
            same_vocabulary(first, extra)?;
        }
        let all: Vec<&Expert> = experts.iter().chain(extra).collect();
        let sizes = all.iter().map(|e| e.model.config().vocab_size);
        let vocab = sizes.min().unwrap_or(0);
        let mut groups: Vec<Group> = Vec::new();
        for (i, expert) in all.iter().enumerate() {
            match groups
                .iter_mut()
                .find(|g| Arc::ptr_eq(&g.model, &expert.model))
            {
                Some(group) => group.members.push(i),
                None => groups.push(Group {
                    model: expert.model.clone(),
                    members: vec![i],
                    adapters: None,
                }),
            }
        }
        for group in &mut groups {
            let adapters: Vec<Option<&Adapter>> = group
                .members
                .iter()
                .map(|&i| all[i].adapter.as_deref())
                .collect();
            if adapters.iter().any(Option::is_some) {
                group.adapters = Some(group.model.engine.adapters(&adapters));
            }
        }
        Ok(Self {
            experts,
            reference,
            groups,
            prompts: Arc::new(PromptCache::new(0)),
            vocab,
        })
    }

    /// Prompts are kept in `prompts` and taken from it, so that pools of one process read each once.
    #[must_use]
    pub fn with_prompts(mut self, prompts: Arc<PromptCache>) -> Self {
        self.prompts = prompts;
        self
    }

    /// The expert or the reference of that index.
    fn member(&self, index: usize) -> &Expert {
        match &self.reference {
            Some(Reference::Extra(extra)) if index == self.experts.len() => extra,
            _ => &self.experts[index],
        }
    }

    /// Distributions that a step computes for each sequence.
    pub fn passes(&self) -> usize {
        let extra = matches!(self.reference, Some(Reference::Extra(_)));
        self.experts.len() + usize::from(extra)
    }

    /// The experts in the order of [`NextTokens`].
    pub fn experts(&self) -> &[Expert] {
        &self.experts
    }

    /// Size of the shared vocabulary, without rows that only fill an embedding up.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Longest sequence that every expert can read, in tokens.
    pub fn context_length(&self) -> usize {
        let all = (0..self.passes()).map(|i| self.member(i));
        let lengths = all.map(|e| e.model.config().context_length);
        lengths.min().unwrap_or(0)
    }

    /// Reads the prompts with every expert; `max_new_tokens` can follow. `next` gets the
    /// distribution of the first token.
    ///
    /// # Errors
    /// A prompt that an expert's template refuses or that leaves no room in the context; [`Error::NoNumbers`].
    pub fn begin(
        &self,
        prompts: &[Prompt],
        max_new_tokens: usize,
        next: &mut NextTokens,
    ) -> Result<PoolState> {
        self.begin_beside(prompts, prompts, max_new_tokens, next)
    }

    /// [`Self::begin`] where a reference that is none of the experts reads `asked`.
    ///
    /// # Errors
    /// Those of [`Self::begin`], and another number of prompts for the reference.
    pub fn begin_beside(
        &self,
        prompts: &[Prompt],
        asked: &[Prompt],
        max_new_tokens: usize,
        next: &mut NextTokens,
    ) -> Result<PoolState> {
        if asked.len() != prompts.len() {
            let (got, expected) = (asked.len(), prompts.len());
            return Err(Error::ReferencePrompts { got, expected });
        }
        let start = Instant::now();
        self.prepare(next, prompts.len());
        let mut caches = Vec::new();
        for group in &self.groups {
            let mut tokens = Vec::new();
            for &member in &group.members {
                let read = match member == self.experts.len() {
                    true => asked,
                    false => prompts,
                };
                for prompt in read {
                    tokens.push(self.member(member).tokens(prompt)?);
                }
            }
            let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
            let limit = group.model.config().context_length;
            if longest + max_new_tokens > limit {
                let tokens = longest + max_new_tokens;
                return Err(lm::Error::TooLong {
                    tokens,
                    limit,
                    what: "the model's context",
                }
                .into());
            }
            caches.push(if self.supports_continuous_batching() {
                self.read(group, tokens, prompts.len(), max_new_tokens, next)?
            } else {
                let capacity = longest + max_new_tokens;
                let mut cache = group.model.engine.cache(tokens.len(), capacity);
                let lanes: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
                self.forward(group, &lanes, &mut cache, next)?;
                let read = tokens.len() as u64;
                let ids = tokens.iter().map(|t| t.len() as u64).sum();
                self.prompts.count(Reading {
                    asked: read,
                    read,
                    tokens_asked: ids,
                    tokens_read: ids,
                    ..Reading::default()
                });
                cache
            });
        }
        self.finish(next)?;
        self.prompts.count(Reading {
            time: start.elapsed(),
            ..Reading::default()
        });
        Ok(PoolState {
            caches,
            sequences: prompts.len(),
        })
    }

    /// Reads the prompts of a group's lanes, each distinct one once, and only what no earlier one began with. Lanes
    /// have room for what they read and `max_new_tokens` more.
    fn read(
        &self,
        group: &Group,
        tokens: Vec<Vec<u32>>,
        sequences: usize,
        max_new_tokens: usize,
        next: &mut NextTokens,
    ) -> Result<Cache> {
        let engine = &group.model.engine;
        let expert = |lane: usize| self.member(group.members[lane / sequences]);
        let keys = tokens.into_iter().enumerate();
        let keys: Vec<PromptKey> = keys
            .map(|(lane, tokens)| PromptKey::new(expert(lane), tokens))
            .collect();
        let plan = LanePlan::new(&keys, sequences, &self.prompts);
        let lanes = 0..keys.len();
        let room = |lane: usize| plan.length(lane) + max_new_tokens;
        let sizes = lanes.clone().map(|lane| match plan.begins_empty(lane) {
            true => room(lane),
            false => 0,
        });
        let mut cache = engine.cache_of(&sizes.collect::<Vec<_>>());
        for lane in lanes.clone() {
            if let Some((kept, length)) = plan.kept(lane) {
                cache.replace(lane, kept.cache.prefix(0, length, room(lane))?)?;
            }
        }
        let blame = |error| self.blame(group, sequences, error);
        let adapters = group.adapters.as_ref();
        let (shared, rest) = (plan.shared(), plan.rest());
        if shared.iter().any(|tokens| !tokens.is_empty()) {
            let filled = engine.fill(&shared, &mut cache, adapters, None);
            filled.map_err(blame)?;
        }
        for lane in lanes.clone() {
            if let Some((from, length)) = plan.copied(lane) {
                cache.replace(lane, cache.prefix(from, length, room(lane))?)?;
            }
        }
        let read = lanes.clone().filter(|&lane| !rest[lane].is_empty());
        let read: Vec<usize> = read.collect();
        let rows = group.model.config().vocab_size;
        let mut logits = vec![0.0; read.len() * rows];
        if !read.is_empty() {
            let filled = engine.fill(&rest, &mut cache, adapters, Some(&mut logits));
            filled.map_err(blame)?;
        }
        keys.iter().for_each(|key| self.prompts.used_once(key));
        let mut after: Vec<Option<&[f32]>> = vec![None; keys.len()];
        for (&lane, logits) in read.iter().zip(logits.chunks(rows)) {
            after[lane] = Some(logits);
            if self.prompts.wants(&keys[lane]) {
                let kept = Kept {
                    cache: cache.prefix(lane, plan.length(lane), plan.length(lane))?,
                    logits: logits.to_vec(),
                };
                self.prompts.keep(keys[lane].clone(), expert(lane), kept);
            }
        }
        for lane in lanes {
            let leader = plan.leader(lane);
            if leader != lane {
                cache.replace(lane, cache.prefix(leader, plan.length(lane), room(lane))?)?;
            }
            let kept = plan.complete(leader).map(|kept| kept.logits.as_slice());
            let row = group.members[lane / sequences] * sequences + lane % sequences;
            let to = &mut next.log_probs[row * next.vocab..][..next.vocab];
            // What stands behind the shared vocabulary is padding.
            if let Some(logits) = after[leader].or(kept) {
                to.copy_from_slice(&logits[..next.vocab]);
            }
        }
        let count = |lanes: &[&[u32]]| lanes.iter().map(|t| t.len() as u64).sum::<u64>();
        self.prompts.count(Reading {
            asked: keys.len() as u64,
            read: read.len() as u64,
            tokens_asked: keys.iter().map(|key| key.tokens().len() as u64).sum(),
            tokens_read: count(&shared) + count(&rest),
            ..Reading::default()
        });
        Ok(cache)
    }

    /// Mean negative log-probability of a prompt's tokens after the first, as each expert reads it, in
    /// nats, `[prompts][experts]`.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    pub fn prompt_nll(&self, prompts: &[Prompt]) -> Result<Vec<Vec<f64>>> {
        let mut out = vec![vec![0.0; self.experts.len()]; prompts.len()];
        for group in &self.groups {
            let mut keys = Vec::new();
            for &member in &group.members {
                let expert = self.member(member);
                for prompt in prompts {
                    keys.push(PromptKey::new(expert, expert.tokens(prompt)?));
                }
            }
            let known = keys.iter().map(|key| self.prompts.likelihood(key));
            let known: Vec<Option<f64>> = known.collect();
            let first: Vec<&[u32]> = keys.iter().map(|key| &key.tokens()[..1]).collect();
            let rest = keys.iter().zip(&known).map(|(key, known)| match known {
                Some(_) => &[],
                None => &key.tokens()[1..],
            });
            let rest: Vec<&[u32]> = rest.collect();
            let (tokens, asked) = (|t: &[u32]| 1 + t.len() as u64, keys.len() as u64);
            let start = Instant::now();
            let scored = match known.iter().all(Option::is_some) {
                true => vec![Vec::new(); keys.len()],
                false => group
                    .model
                    .log_probs(&first, &rest, group.adapters.as_ref())
                    .map_err(|e| self.blame(group, prompts.len(), e))?,
            };
            self.prompts.count(Reading {
                asked,
                read: known.iter().filter(|known| known.is_none()).count() as u64,
                tokens_asked: keys.iter().map(|key| key.tokens().len() as u64).sum(),
                tokens_read: rest.iter().map(|rest| tokens(rest)).sum(),
                time: start.elapsed(),
            });
            for (lane, log_probs) in scored.iter().enumerate() {
                let (member, prompt) = (group.members[lane / prompts.len()], lane % prompts.len());
                let nll = known[lane].unwrap_or_else(|| {
                    let total: f64 = log_probs.iter().map(|v| f64::from(*v)).sum();
                    -total / log_probs.len().max(1) as f64
                });
                if known[lane].is_none() && self.supports_continuous_batching() {
                    let expert = self.member(member);
                    self.prompts
                        .keep_likelihood(keys[lane].clone(), expert, nll);
                }
                // The reference is nobody's expert.
                if let Some(to) = out[prompt].get_mut(member) {
                    *to = nll;
                }
            }
        }
        Ok(out)
    }

    /// Appends one token to every sequence; `next` gets the distribution after it.
    ///
    /// # Errors
    /// Another number of tokens than sequences, or a full context; [`Error::NoNumbers`].
    pub fn step(&self, state: &mut PoolState, tokens: &[u32], next: &mut NextTokens) -> Result<()> {
        if tokens.len() != state.sequences {
            let (got, expected) = (tokens.len(), state.sequences);
            return Err(Error::StepTokens { got, expected });
        }
        self.prepare(next, tokens.len());
        for (group, cache) in self.groups.iter().zip(&mut state.caches) {
            let one_each = tokens
                .chunks(1)
                .cycle()
                .take(group.members.len() * tokens.len());
            let lanes: Vec<&[u32]> = one_each.collect();
            self.forward(group, &lanes, cache, next)?;
        }
        self.finish(next)?;
        Ok(())
    }

    /// Sequences leave and join at no cost to the others, whose results do not change by a bit.
    pub fn supports_continuous_batching(&self) -> bool {
        let packed = |g: &Group| matches!(g.model.engine, lm::Engine::Packed(_));
        self.groups.iter().all(packed)
    }

    /// Adds the sequences of `other` behind those of `state`.
    ///
    /// # Errors
    /// Where the engine's sequences are not [`Self::supports_continuous_batching`].
    pub fn join(&self, state: &mut PoolState, other: PoolState) -> Result<()> {
        let (old, new) = (state.sequences, other.sequences);
        let pairs = state.caches.iter_mut().zip(other.caches);
        for ((cache, other), group) in pairs.zip(&self.groups) {
            let experts = group.members.len();
            cache.join(other)?;
            // From all old lanes and then all new ones to expert after expert.
            let order: Vec<usize> = (0..experts)
                .flat_map(|e| {
                    let before = e * old..(e + 1) * old;
                    before.chain(experts * old + e * new..experts * old + (e + 1) * new)
                })
                .collect();
            cache.retain(&order)?;
        }
        state.sequences += new;
        Ok(())
    }

    /// Keeps only the sequences `keep`, in this order.
    ///
    /// # Errors
    /// A sequence that is not there.
    pub fn retain(&self, state: &mut PoolState, keep: &[usize]) -> Result<()> {
        for (group, cache) in self.groups.iter().zip(&mut state.caches) {
            let experts = 0..group.members.len();
            let lanes: Vec<usize> = experts
                .flat_map(|e| keep.iter().map(move |s| (e, *s)))
                .map(|(e, s)| e * state.sequences + s)
                .collect();
            cache.retain(&lanes)?;
        }
        state.sequences = keep.len();
        Ok(())
    }

    fn prepare(&self, next: &mut NextTokens, sequences: usize) {
        (next.experts, next.sequences, next.vocab) = (self.experts.len(), sequences, self.vocab());
        next.reference = self.reference.as_ref().map(|reference| match reference {
            Reference::Member(index) => *index,
            Reference::Extra(_) => self.experts.len(),
        });
        next.log_probs
            .resize(self.passes() * next.sequences * next.vocab, 0.0);
    }

    fn forward(
        &self,
        group: &Group,
        lanes: &[&[u32]],
        cache: &mut Cache,
        next: &mut NextTokens,
    ) -> Result<()> {
        let width = next.sequences * next.vocab;
        let engine = &group.model.engine;
        let members = &group.members;
        let rows = group.model.config().vocab_size;
        // Members that stand together are written in place.
        let (first, count) = (members[0], members.len());
        if rows == next.vocab && members.iter().enumerate().all(|(i, m)| *m == first + i) {
            let logits = &mut next.log_probs[first * width..(first + count) * width];
            return engine
                .next_logits(lanes, cache, group.adapters.as_ref(), logits)
                .map_err(|e| self.blame(group, next.sequences, e));
        }
        let mut logits = vec![0.0; count * next.sequences * rows];
        engine
            .next_logits(lanes, cache, group.adapters.as_ref(), &mut logits)
            .map_err(|e| self.blame(group, next.sequences, e))?;
        for (&member, logits) in members.iter().zip(logits.chunks(next.sequences * rows)) {
            let targets = next.log_probs[member * width..][..width].chunks_mut(next.vocab);
            // What stands behind the shared vocabulary is padding.
            for (target, logits) in targets.zip(logits.chunks(rows)) {
                target.copy_from_slice(&logits[..next.vocab]);
            }
        }
        Ok(())
    }

    /// Names the expert of a lane, of which there are `sequences` an expert.
    fn blame(&self, group: &Group, sequences: usize, error: lm::Error) -> Error {
        match error {
            lm::Error::NoNumbers { lane } => {
                let member = group.members[lane / sequences.max(1)];
                Error::NoNumbers {
                    expert: self.member(member).name.clone(),
                    sequence: lane % sequences.max(1),
                }
            }
            other => other.into(),
        }
    }

    /// Logits to log-probabilities, as far as each expert shows them.
    ///
    /// # Errors
    /// [`Error::NoNumbers`] for the first row without a normaliser.
    fn finish(&self, next: &mut NextTokens) -> Result<()> {
        let without = AtomicUsize::new(usize::MAX);
        let (vocab, isa) = (next.vocab, Isa::best());
        let inverse = next.temperature.map(|t| 1.0 / t);
        let sequences = next.sequences;
        let log_probs = &mut next.log_probs[..self.passes() * sequences * vocab];
        Team::global().for_each_row(log_probs, vocab, |i, row| {
            if let Some(inverse) = inverse {
                row.iter_mut().for_each(|v| *v *= inverse);
            }
            if !math::log_softmax(isa, row).is_finite() {
                without.fetch_min(i, Ordering::Relaxed);
                return;
            }
            if let Some(k) = self.member(i / sequences).top_k {
                keep_likeliest(row, k);
            }
        });
        match without.into_inner() {
            usize::MAX => Ok(()),
            i => Err(Error::NoNumbers {
                expert: self.member(i / next.sequences).name.clone(),
                sequence: i % next.sequences,
            }),
        }
    }
}

fn same_vocabulary(first: &Expert, second: &Expert) -> Result<()> {
    if Arc::ptr_eq(&first.model, &second.model) {
        return Ok(());
    }
    let differ = |reason: String| {
        Err(Error::Vocabulary {
            first: first.name.clone(),
            second: second.name.clone(),
            reason,
        })
    };
    let experts = [first, second];
    let tokenizers = experts.map(|e| &e.model.tokenizer);
    let sizes = experts.map(|e| e.model.config().vocab_size);
    match vocabulary_difference(tokenizers, sizes) {
        None => Ok(()),
        Some(reason) => differ(reason),
    }
}

/// Where the tokens of two models differ, in words; `sizes` are the rows of their embeddings. Rows without a
/// token, by which one is larger, make no difference.
pub fn vocabulary_difference(tokenizers: [&Tokenizer; 2], sizes: [usize; 2]) -> Option<String> {
    let [one, two] = tokenizers;
    let shared = sizes[0].min(sizes[1]);
    for id in 0..shared as u32 {
        if one.piece(id) != two.piece(id) {
            return Some(format!(
                "token {id} is {:?} and {:?}",
                one.piece(id),
                two.piece(id)
            ));
        }
    }
    let larger = if sizes[0] > sizes[1] { one } else { two };
    let rest = shared as u32..sizes[0].max(sizes[1]) as u32;
    rest.filter_map(|id| Some((id, larger.piece(id)?)))
        .map(|(id, piece)| {
            format!(
                "{} and {} entries: only one of them has token {id}, {piece:?}",
                sizes[0], sizes[1]
            )
        })
        .next()
}
