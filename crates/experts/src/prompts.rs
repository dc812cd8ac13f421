//! Prompts that were read: keys and values, and the logits after the last token, by model, adapter and token ids.
//!
//! A prompt that several strategies, preferences, samples or candidates ask the same expert is read once. So is what a
//! prompt has in common with an earlier one. Only engines whose lanes are independent keep anything: what they give
//! for a prompt does not depend on what else is read, to the bit.
//!
//! What does not fit into the memory budget is given up. Where the uses to come are known
//! ([`PromptCache::expect`]), that is the prompt whose next use is farthest away (Belády, "A study of replacement
//! algorithms for a virtual-storage computer", 1966), and prompts without a next use are not kept; else it is the one
//! whose last use is longest ago.
//!
//! ```
//! use std::sync::Arc;
//!
//! use lm::chat::Prompt;
//! use mope_experts::{ExpertPool, ExpertSpec, NextTokens, PromptCache};
//!
//! let expert = pico::expert("base", &ExpertSpec::Base, &pico::model(pico::BASE));
//! let prompts = Arc::new(PromptCache::new(1 << 20));
//! let pool = ExpertPool::new(vec![expert])?.with_prompts(prompts.clone());
//! let (why, mut next) = ([Prompt::Raw("Why?".into())], NextTokens::default());
//! pool.begin(&why, 8, &mut next)?;
//! let first = next.log_probs.clone();
//! pool.begin(&why, 8, &mut next)?;
//! assert_eq!(next.log_probs, first);
//! let reading = prompts.reading();
//! assert_eq!((reading.asked, reading.read), (2, 1));
//! # Ok::<(), mope_experts::Error>(())
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Sub;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lm::engine::Cache;
use lm::{Adapter, LanguageModel};

use crate::Expert;

/// Memory for prompts at most where nobody says, in bytes: this, or a quarter of what is free (ours).
const BUDGET: u64 = 1 << 30;
/// What an entry takes beside its numbers, about.
const OVERHEAD: usize = 512;

/// Prompts that were read, for all pools of a process that it is given to ([`crate::ExpertPool::with_prompts`]).
pub struct PromptCache {
    budget: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    used: usize,
    slots: BTreeMap<PromptKey, Slot>,
    likelihoods: BTreeMap<PromptKey, (f64, Owner)>,
    /// Uses to come; `None` where nobody knows them.
    uses: Option<Uses>,
    /// Number of the step under way.
    step: u64,
    /// Counts lookups.
    ticks: u64,
    reading: Reading,
}

/// The steps in which a prompt is used, in order, and how often in each.
type Uses = HashMap<PromptKey, VecDeque<(u64, usize)>>;

/// What an expert reads: its model, its adapter, token ids. Experts are told apart by where they lie in memory, so
/// equal files that were opened twice are two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PromptKey {
    model: usize,
    adapter: usize,
    tokens: Vec<u32>,
}

/// Keeps the addresses in a key from being used again, though not what lies there.
#[derive(Clone)]
struct Owner {
    model: Weak<LanguageModel>,
    adapter: Option<Weak<Adapter>>,
}

struct Slot {
    kept: Arc<Kept>,
    owner: Owner,
    bytes: usize,
    /// The step of the next use; `u64::MAX` where there is none or nobody knows.
    next: u64,
    /// When it was used last.
    tick: u64,
}

/// One lane after a prompt.
pub(crate) struct Kept {
    pub cache: Cache,
    /// After the last token, `[vocab]`.
    pub logits: Vec<f32>,
}

/// How much was read, and how much would have been without what was kept. A lane is one expert's reading of one
/// prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Lanes that were asked for.
    pub asked: u64,
    /// Lanes of which some tokens had to be read.
    pub read: u64,
    /// Tokens of the lanes that were asked for.
    pub tokens_asked: u64,
    /// Tokens that were read.
    pub tokens_read: u64,
    /// Time that took.
    pub time: Duration,
}

impl Sub for Reading {
    type Output = Self;

    /// What came after `before`.
    fn sub(self, before: Self) -> Self {
        Self {
            asked: self.asked - before.asked,
            read: self.read - before.read,
            tokens_asked: self.tokens_asked - before.tokens_asked,
            tokens_read: self.tokens_read - before.tokens_read,
            time: self.time.saturating_sub(before.time),
        }
    }
}

impl PromptKey {
    /// What an expert reads as these tokens.
    pub fn new(expert: &Expert, tokens: Vec<u32>) -> Self {
        let adapter = expert.adapter.as_ref();
        Self {
            model: Arc::as_ptr(&expert.model).addr(),
            adapter: adapter.map_or(0, |adapter| Arc::as_ptr(adapter).addr()),
            tokens,
        }
    }

    /// Token ids.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens that two readings of the same expert begin with.
    pub(crate) fn common(&self, other: &Self) -> usize {
        if (self.model, self.adapter) != (other.model, other.adapter) {
            return 0;
        }
        let pairs = self.tokens.iter().zip(&other.tokens);
        pairs.take_while(|(a, b)| a == b).count()
    }
}

impl Owner {
    fn of(expert: &Expert) -> Self {
        Self {
            model: Arc::downgrade(&expert.model),
            adapter: expert.adapter.as_ref().map(Arc::downgrade),
        }
    }

    /// Someone still has the model and the adapter.
    fn lives(&self) -> bool {
        let adapter = self.adapter.as_ref();
        self.model.strong_count() > 0 && adapter.is_none_or(|a| a.strong_count() > 0)
    }
}

impl std::fmt::Debug for PromptCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner();
        f.debug_struct("PromptCache")
            .field("budget", &self.budget)
            .field("used", &inner.used)
            .field("prompts", &inner.slots.len())
            .field("reading", &inner.reading)
            .finish_non_exhaustive()
    }
}

impl PromptCache {
    /// Room for `budget` bytes of prompts; 0 keeps nothing.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            inner: Mutex::default(),
        }
    }

    /// Room for what the environment variable `MOPE_PROMPT_CACHE` says where [`Self::asked`] understands it; else for
    /// 1 GiB, or a quarter of the memory that is free if that is less.
    pub fn of_this_machine() -> Self {
        let free = kernels::memory::available_bytes().unwrap_or(u64::MAX);
        let standard = usize::try_from((free / 4).min(BUDGET)).unwrap_or(usize::MAX);
        Self::new(Self::asked().ok().flatten().unwrap_or(standard))
    }

    /// Bytes for prompts that the environment variable `MOPE_PROMPT_CACHE` asks for, which is in MiB.
    ///
    /// # Errors
    /// What is wrong with it, in words: it is no number from 0 on.
    pub fn asked() -> Result<Option<usize>, String> {
        match std::env::var_os("MOPE_PROMPT_CACHE") {
            None => Ok(None),
            Some(text) => mebibytes(&text.to_string_lossy()).map(Some),
        }
    }

    /// Bytes that prompts may take.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes that prompts take now.
    pub fn used(&self) -> usize {
        self.inner().used
    }

    /// How much was read so far.
    pub fn reading(&self) -> Reading {
        self.inner().reading
    }

    /// Says which prompts are used in which steps from now on, steps in ascending order, in place of what was said
    /// before. A prompt comes once for every lane that asks for it. Step 0 begins.
    pub fn expect(&self, uses: impl IntoIterator<Item = (PromptKey, Vec<u64>)>) {
        let mut all = Uses::new();
        for (key, steps) in uses {
            let queue = all.entry(key).or_default();
            for step in steps {
                match queue.back_mut() {
                    Some((last, count)) if *last == step => *count += 1,
                    _ => queue.push_back((step, 1)),
                }
            }
        }
        // Two readings that turned out to be the same one.
        for queue in all.values_mut() {
            queue.make_contiguous().sort_unstable();
        }
        let mut inner = self.inner();
        inner.uses = Some(all);
        inner.begin(0);
    }

    /// Step `step` begins: uses in earlier ones are over.
    pub fn begin(&self, step: u64) {
        self.inner().begin(step);
    }

    /// Nobody knows any more what is used next, and nothing is kept of what was.
    pub fn clear(&self) {
        let mut inner = self.inner();
        let reading = inner.reading;
        *inner = Inner {
            reading,
            ..Inner::default()
        };
    }

    /// What was kept of the longest beginning of a prompt, and the length of that beginning in tokens: the whole
    /// prompt where the logits after it are there, too, and else one token less at most.
    pub(crate) fn find(&self, key: &PromptKey) -> Option<(Arc<Kept>, usize)> {
        let mut inner = self.inner();
        inner.ticks += 1;
        let tick = inner.ticks;
        // In lexicographic order, what shares the longest beginning stands beside it.
        let before = inner.slots.range(..=key).next_back();
        let after = inner.slots.range(key..).next();
        let both = before.into_iter().chain(after);
        let pairs = both.map(|(other, _)| {
            let whole = key.tokens == other.tokens;
            let limit = key.tokens.len() - usize::from(!whole);
            (key.common(other).min(limit), other)
        });
        let (length, other) = pairs.max_by_key(|(length, _)| *length)?;
        if length == 0 {
            return None;
        }
        let other = other.clone();
        let slot = inner.slots.get_mut(&other)?;
        slot.tick = tick;
        Some((slot.kept.clone(), length))
    }

    /// A lane asked for a prompt.
    pub(crate) fn used_once(&self, key: &PromptKey) {
        let mut inner = self.inner();
        let step = inner.step;
        let Some(uses) = &mut inner.uses else { return };
        if let Some(queue) = uses.get_mut(key)
            && let Some((first, count)) = queue.front_mut()
            && *first == step
        {
            *count -= 1;
            if *count == 0 {
                queue.pop_front();
            }
        }
        inner.look_ahead(key);
    }

    /// Somebody may ask for the prompt again.
    pub(crate) fn wants(&self, key: &PromptKey) -> bool {
        self.budget > 0 && self.inner().next_use(key).is_some()
    }

    /// Keeps a prompt, if it is more useful than what has to leave for it.
    pub(crate) fn keep(&self, key: PromptKey, expert: &Expert, kept: Kept) {
        let floats = kept.logits.len() * size_of::<f32>();
        let ids = key.tokens.len() * size_of::<u32>();
        let bytes = kept.cache.bytes().unwrap_or(0) + floats + ids + OVERHEAD;
        let mut inner = self.inner();
        let Some(next) = inner.next_use(&key) else {
            return;
        };
        if bytes > self.budget || inner.slots.contains_key(&key) {
            return;
        }
        if inner.used + bytes > self.budget {
            inner.drop_dead();
        }
        while inner.used + bytes > self.budget {
            let rank = |slot: &Slot| (slot.next, u64::MAX - slot.tick);
            let worst = inner.slots.iter().max_by_key(|(_, slot)| rank(slot));
            let Some((worst, slot)) = worst else { return };
            if slot.next <= next && inner.uses.is_some() {
                return;
            }
            let worst = worst.clone();
            inner.drop_slot(&worst);
        }
        inner.used += bytes;
        let slot = Slot {
            kept: Arc::new(kept),
            owner: Owner::of(expert),
            bytes,
            next,
            tick: inner.ticks,
        };
        inner.slots.insert(key, slot);
    }

    /// A prompt's mean negative log-probability in nats, where it was kept.
    pub(crate) fn likelihood(&self, key: &PromptKey) -> Option<f64> {
        self.inner().likelihoods.get(key).map(|(nll, _)| *nll)
    }

    /// Keeps a prompt's mean negative log-probability in nats.
    pub(crate) fn keep_likelihood(&self, key: PromptKey, expert: &Expert, nll: f64) {
        if self.budget > 0 {
            let owner = Owner::of(expert);
            self.inner().likelihoods.insert(key, (nll, owner));
        }
    }

    /// Adds to what was read.
    pub(crate) fn count(&self, more: Reading) {
        let reading = &mut self.inner().reading;
        reading.asked += more.asked;
        reading.read += more.read;
        reading.tokens_asked += more.tokens_asked;
        reading.tokens_read += more.tokens_read;
        reading.time += more.time;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn begin(&mut self, step: u64) {
        self.step = step;
        let Some(uses) = &mut self.uses else { return };
        for queue in uses.values_mut() {
            while queue.front().is_some_and(|(first, _)| *first < step) {
                queue.pop_front();
            }
        }
        uses.retain(|_, queue| !queue.is_empty());
        let keys: Vec<PromptKey> = self.slots.keys().cloned().collect();
        keys.iter().for_each(|key| self.look_ahead(key));
    }

    /// The step of the next use of a prompt; `None` where there is none, `u64::MAX` where nobody knows.
    fn next_use(&self, key: &PromptKey) -> Option<u64> {
        match &self.uses {
            None => Some(u64::MAX),
            Some(uses) => uses.get(key)?.front().map(|(step, _)| *step),
        }
    }

    /// Notes the next use of what is kept, and lets go what has none.
    fn look_ahead(&mut self, key: &PromptKey) {
        match (self.next_use(key), self.slots.get_mut(key)) {
            (Some(next), Some(slot)) => slot.next = next,
            (None, Some(_)) => self.drop_slot(key),
            (_, None) => {}
        }
    }

    fn drop_slot(&mut self, key: &PromptKey) {
        if let Some(slot) = self.slots.remove(key) {
            self.used -= slot.bytes;
        }
    }

    /// Lets go what nobody can ask for.
    fn drop_dead(&mut self) {
        let dead = self.slots.iter().filter(|(_, slot)| !slot.owner.lives());
        let dead: Vec<PromptKey> = dead.map(|(key, _)| key.clone()).collect();
        dead.iter().for_each(|key| self.drop_slot(key));
        self.likelihoods.retain(|_, (_, owner)| owner.lives());
    }
}

fn mebibytes(text: &str) -> Result<usize, String> {
    let number = text.trim().parse::<usize>().ok();
    let bytes = number.and_then(|n| n.checked_mul(1 << 20));
    bytes.ok_or_else(|| format!("MOPE_PROMPT_CACHE is '{text}', not a number of MiB from 0 on"))
}
