//! Several experts over several sequences, the weights of a shared base read once per step.
//!
//! Results come to the host: a mixer is then a pure function on slices, the same on every device,
//! and what crosses is `experts · sequences · vocab` floats per token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Isa, Team, math};
use lm::chat::Prompt;
use lm::engine::{Adapters, Cache};
use lm::sampling::keep_likeliest;
use lm::{Adapter, LanguageModel, Tokenizer};

use crate::{Error, Expert, Result};

/// Common tokens from which on reading them once is worth the copies.
const WORTH_SHARING: usize = 8;

/// Experts that run together.
#[derive(Debug)]
pub struct ExpertPool {
    experts: Vec<Expert>,
    /// Runs beside them, with prompts of its own.
    reference: Option<Reference>,
    groups: Vec<Group>,
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
            vocab,
        })
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
            let capacity = longest + max_new_tokens;
            let (mut cache, shared) = self.prefix(group, &tokens, prompts.len(), capacity)?;
            let parts = tokens.iter().enumerate();
            let lanes: Vec<&[u32]> = parts
                .map(|(lane, t)| &t[shared[lane / prompts.len()]..])
                .collect();
            self.forward(group, &lanes, &mut cache, next)?;
            caches.push(cache);
        }
        self.finish(next)?;
        Ok(PoolState {
            caches,
            sequences: prompts.len(),
        })
    }

    /// A cache in which each expert has read what all of its sequences begin with, once for all of them;
    /// and how many tokens that is, by expert.
    fn prefix(
        &self,
        group: &Group,
        tokens: &[Vec<u32>],
        sequences: usize,
        capacity: usize,
    ) -> Result<(Cache, Vec<usize>)> {
        let engine = &group.model.engine;
        let experts = group.members.len();
        let common = |prompts: &[Vec<u32>]| {
            let (first, rest) = (&prompts[0], &prompts[1..]);
            let length = |other: &Vec<u32>| {
                let pairs = first.iter().zip(other);
                // The last token stays: its distribution is asked for.
                pairs
                    .take_while(|(a, b)| a == b)
                    .count()
                    .min(other.len() - 1)
            };
            rest.iter().map(length).fold(first.len() - 1, usize::min)
        };
        let shared: Vec<usize> = tokens.chunks(sequences).map(common).collect();
        let worth = shared.iter().all(|&n| n >= WORTH_SHARING);
        if sequences < 2 || !worth || !self.supports_continuous_batching() {
            return Ok((engine.cache(tokens.len(), capacity), vec![0; experts]));
        }
        let mut cache = engine.cache(experts, capacity);
        let lanes: Vec<&[u32]> = (0..experts)
            .map(|e| &tokens[e * sequences][..shared[e]])
            .collect();
        let mut unused = vec![0.0; experts * group.model.config().vocab_size];
        engine
            .next_logits(&lanes, &mut cache, group.adapters.as_ref(), &mut unused)
            .map_err(|e| self.blame(group, 1, e))?;
        let copies: Vec<usize> = (0..experts).flat_map(|e| vec![e; sequences]).collect();
        Ok((cache.fork(&copies)?, shared))
    }

    /// Mean negative log-probability of a prompt's tokens after the first, as each expert reads it, in
    /// nats, `[prompts][experts]`.
    ///
    /// # Errors
    /// Those of [`Self::begin`].
    pub fn prompt_nll(&self, prompts: &[Prompt]) -> Result<Vec<Vec<f64>>> {
        let mut out = vec![vec![0.0; self.experts.len()]; prompts.len()];
        for group in &self.groups {
            let mut tokens = Vec::new();
            for &member in &group.members {
                for prompt in prompts {
                    tokens.push(self.member(member).tokens(prompt)?);
                }
            }
            let first: Vec<&[u32]> = tokens.iter().map(|t| &t[..1]).collect();
            let rest: Vec<&[u32]> = tokens.iter().map(|t| &t[1..]).collect();
            let scored = group
                .model
                .log_probs(&first, &rest, group.adapters.as_ref())
                .map_err(|e| self.blame(group, prompts.len(), e))?;
            for (lane, log_probs) in scored.iter().enumerate() {
                let (member, prompt) = (lane / prompts.len(), lane % prompts.len());
                let total: f64 = log_probs.iter().map(|v| f64::from(*v)).sum();
                // The reference is nobody's expert.
                let Some(nll) = out[prompt].get_mut(group.members[member]) else {
                    continue;
                };
                *nll = -total / log_probs.len().max(1) as f64;
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
