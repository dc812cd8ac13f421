//! Adapters of several experts, packed for the side paths of one pass.

use kernels::LowRank;

use crate::adapter::{Adapter, Target};
use crate::config::DecoderConfig;

/// Adapters of several experts for one pass; lanes are expert-major.
#[derive(Debug, Clone)]
pub struct PackedAdapters {
    experts: Vec<Vec<Option<LowRank>>>,
    rank: usize,
}

impl PackedAdapters {
    /// One adapter per expert; `None` is the base itself. With `half` they are kept in 16 bits.
    pub(super) fn new(adapters: &[Option<&Adapter>], config: &DecoderConfig, half: bool) -> Self {
        let mut rank = 0;
        let mut expert = |adapter: &Option<&Adapter>| -> Vec<Option<LowRank>> {
            let targets = (0..config.layers).flat_map(|l| Target::ALL.map(|t| (l, t)));
            let path = |target: (usize, Target)| {
                let low = adapter.as_ref()?.pairs.get(&target)?;
                rank = rank.max(low.rank);
                let (inputs, outputs) = target.1.size(config);
                let size = [inputs, outputs];
                Some(LowRank::pack(low.rank, size, &low.a, &low.b, half))
            };
            targets.map(path).collect()
        };
        Self {
            experts: adapters.iter().map(&mut expert).collect(),
            rank,
        }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts.len()
    }

    /// Bytes of all side paths.
    pub fn bytes(&self) -> usize {
        let paths = self.experts.iter().flatten().flatten();
        paths.map(LowRank::bytes).sum()
    }

    /// Largest rank.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn path(&self, expert: usize, layer: usize, target: Target) -> Option<&LowRank> {
        self.experts[expert][layer * Target::ALL.len() + target as usize].as_ref()
    }
}
