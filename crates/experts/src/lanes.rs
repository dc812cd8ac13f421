//! Where the tokens of each lane come from when prompts are read: from what was kept, from another lane, or from the
//! decoder.

use std::collections::HashMap;
use std::sync::Arc;

use crate::prompts::{Kept, PromptCache, PromptKey};

/// Common tokens from which on reading them once is worth the copies.
const WORTH_SHARING: usize = 8;

/// A plan for the lanes of a group, which are expert-major.
pub(crate) struct LanePlan<'a> {
    keys: &'a [PromptKey],
    sequences: usize,
    /// The first lane that reads the same as this one: only it reads.
    leaders: Vec<usize>,
    /// What was kept of a leader's beginning, and of how many tokens.
    kept: Vec<Option<(Arc<Kept>, usize)>>,
    /// By expert: the leader that reads for the others what all of them begin with, and the length of that.
    common: Vec<Option<(usize, usize)>>,
}

impl<'a> LanePlan<'a> {
    /// A plan for lanes of `sequences` of each expert.
    pub fn new(keys: &'a [PromptKey], sequences: usize, prompts: &PromptCache) -> Self {
        let mut first: HashMap<&PromptKey, usize> = HashMap::new();
        let lanes = keys.iter().enumerate();
        let leaders: Vec<usize> = lanes
            .map(|(lane, key)| *first.entry(key).or_insert(lane))
            .collect();
        let kept = keys.iter().zip(&leaders).enumerate();
        let kept = kept.map(|(lane, (key, leader))| {
            let kept = (*leader == lane).then(|| prompts.find(key)).flatten();
            kept.filter(|(_, n)| *n >= WORTH_SHARING || *n == key.tokens().len())
        });
        let mut plan = Self {
            keys,
            sequences,
            kept: kept.collect(),
            leaders,
            common: Vec::new(),
        };
        for expert in 0..keys.len() / sequences.max(1) {
            let lanes = expert * sequences..(expert + 1) * sequences;
            let open: Vec<usize> = lanes.filter(|&lane| plan.reads(lane)).collect();
            plan.common.push(plan.beginning(&open));
        }
        plan
    }

    /// The first of several lanes, and how many tokens all of them begin with, where reading those once is worth the
    /// copies.
    fn beginning(&self, lanes: &[usize]) -> Option<(usize, usize)> {
        let (&first, rest) = lanes.split_first()?;
        // The last token stays: its distribution is asked for.
        let most = |lane: usize| self.length(lane) - 1;
        let same = |lane: &usize| self.keys[first].common(&self.keys[*lane]).min(most(*lane));
        let length = rest.iter().map(same).fold(most(first), usize::min);
        let begun = lanes.iter().map(|&lane| self.begun(lane)).max()?;
        (!rest.is_empty() && length >= begun + WORTH_SHARING).then_some((first, length))
    }

    /// Tokens of a lane.
    pub fn length(&self, lane: usize) -> usize {
        self.keys[lane].tokens().len()
    }

    /// The lane that this one is a copy of; itself where it is none.
    pub fn leader(&self, lane: usize) -> usize {
        self.leaders[lane]
    }

    /// All of a leader, where that was kept.
    pub fn complete(&self, lane: usize) -> Option<&Kept> {
        let (kept, length) = self.kept[lane].as_ref()?;
        (*length == self.length(lane)).then_some(kept)
    }

    /// What was kept of a leader's beginning, of how many tokens, unless another lane has more.
    pub fn kept(&self, lane: usize) -> Option<(&Kept, usize)> {
        let (kept, length) = self.kept[lane].as_ref()?;
        self.copied(lane).is_none().then_some((kept, *length))
    }

    /// Tokens of a lane that were kept.
    fn begun(&self, lane: usize) -> usize {
        self.kept[lane].as_ref().map_or(0, |(_, length)| *length)
    }

    /// Some of the lane's tokens have to be read.
    fn reads(&self, lane: usize) -> bool {
        self.leaders[lane] == lane && self.complete(lane).is_none()
    }

    /// What a lane's expert reads once for all that it reads: by which lane, and how much.
    fn common(&self, lane: usize) -> Option<(usize, usize)> {
        let common = self.common[lane / self.sequences];
        common.filter(|_| self.reads(lane))
    }

    /// The lane reads its first token itself.
    pub fn begins_empty(&self, lane: usize) -> bool {
        self.reads(lane) && self.kept[lane].is_none() && self.copied(lane).is_none()
    }

    /// The lane from which a leader gets its beginning, and how much.
    pub fn copied(&self, lane: usize) -> Option<(usize, usize)> {
        self.common(lane).filter(|(first, _)| *first != lane)
    }

    /// Tokens that each lane reads for all of its expert.
    pub fn shared(&self) -> Vec<&'a [u32]> {
        let tokens = |lane: usize| match self.common(lane) {
            Some((first, length)) if first == lane => {
                &self.keys[lane].tokens()[self.begun(lane)..length]
            }
            _ => &[],
        };
        (0..self.keys.len()).map(tokens).collect()
    }

    /// Tokens that each lane reads for itself, after those.
    pub fn rest(&self) -> Vec<&'a [u32]> {
        let tokens = |lane: usize| match (self.reads(lane), self.common(lane)) {
            (false, _) => &[],
            (true, Some((_, length))) => &self.keys[lane].tokens()[length..],
            (true, None) => &self.keys[lane].tokens()[self.begun(lane)..],
        };
        (0..self.keys.len()).map(tokens).collect()
    }
}
