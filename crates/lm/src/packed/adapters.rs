use crate::adapter::{Adapter, Target};
use crate::config::DecoderConfig;

/// A side path with `A` transposed, so that each of its `r` inputs is one dot product.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// `[r][in]`.
    pub a: Vec<Vec<f32>>,
    /// `[r][out]`, scale included.
    pub b: Vec<Vec<f32>>,
}

/// Adapters of several experts for one pass; lanes are expert-major.
#[derive(Debug, Clone)]
pub struct PackedAdapters {
    experts: Vec<Vec<Option<Pair>>>,
    rank: usize,
}

impl PackedAdapters {
    /// One adapter per expert; `None` is the base itself.
    pub fn new(adapters: &[Option<&Adapter>], config: &DecoderConfig) -> Self {
        let mut rank = 0;
        let mut expert = |adapter: &Option<&Adapter>| -> Vec<Option<Pair>> {
            let places = (0..config.layers).flat_map(|l| Target::ALL.map(|t| (l, t)));
            let pair = |place: (usize, Target)| {
                let low = adapter.as_ref()?.pairs.get(&place)?;
                rank = rank.max(low.rank);
                let (inputs, outputs) = place.1.size(config);
                let column = |j: usize| (0..inputs).map(|i| low.a[i * low.rank + j]).collect();
                Some(Pair {
                    a: (0..low.rank).map(column).collect(),
                    b: low.b.chunks(outputs).map(<[f32]>::to_vec).collect(),
                })
            };
            places.map(pair).collect()
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

    /// Largest rank.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn pair(&self, expert: usize, layer: usize, target: Target) -> Option<&Pair> {
        self.experts[expert][layer * Target::ALL.len() + target as usize].as_ref()
    }
}
