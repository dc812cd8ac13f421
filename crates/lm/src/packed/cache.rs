use kernels::Shared;
use kernels::attention::POSITIONS;

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// Keys and values of one lane.
#[derive(Debug, Clone)]
struct Lane {
    /// `[layers, kv_heads, capacity / 16, head_dim, 16]`.
    keys: Vec<f32>,
    /// `[layers, kv_heads, capacity, head_dim]`.
    values: Vec<f32>,
    length: usize,
}

/// Keys and values of several lanes; each lane has memory of its own, so one can leave while the
/// others go on.
#[derive(Debug, Clone)]
pub struct PackedCache {
    lanes: Vec<Lane>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    kv_heads: usize,
    head_dim: usize,
    /// In whole blocks of 16 positions.
    padded: usize,
    /// Tokens asked for.
    tokens: usize,
    size: usize,
}

impl PackedCache {
    pub(super) fn new(config: &DecoderConfig, lanes: usize, capacity: usize) -> Self {
        let blocks = capacity.div_ceil(POSITIONS);
        let shape = Shape {
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            padded: blocks * POSITIONS,
            tokens: capacity,
            size: config.layers * config.kv_heads * blocks * POSITIONS * config.head_dim,
        };
        // Zeroed memory costs nothing until it is written.
        let lane = || Lane {
            keys: vec![0.0; shape.size],
            values: vec![0.0; shape.size],
            length: 0,
        };
        Self {
            lanes: (0..lanes).map(|_| lane()).collect(),
            shape,
        }
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Tokens that each lane has read, `[lanes]`.
    pub fn lengths(&self) -> Vec<usize> {
        self.lanes.iter().map(|l| l.length).collect()
    }

    /// Tokens that a lane can hold.
    pub fn capacity(&self) -> usize {
        self.shape.tokens
    }

    /// Forgets what lane `lane` read after its first `length` tokens.
    pub fn truncate(&mut self, lane: usize, length: usize) {
        let lane = &mut self.lanes[lane];
        lane.length = lane.length.min(length);
    }

    /// A cache whose lane `i` continues lane `lanes[i]` of this one.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn fork(&self, lanes: &[usize]) -> Result<Self> {
        let pick = |&i: &usize| self.lanes.get(i).cloned();
        let picked: Option<Vec<Lane>> = lanes.iter().map(pick).collect();
        let missing = || Error::Argument(format!("no such lane among {lanes:?}"));
        Ok(Self {
            lanes: picked.ok_or_else(missing)?,
            shape: self.shape,
        })
    }

    /// Keeps only the lanes `keep`, in this order, without copying; each at most once.
    ///
    /// # Errors
    /// A lane that is not there, or twice.
    pub fn retain(&mut self, keep: &[usize]) -> Result<()> {
        let mut old: Vec<Option<Lane>> = self.lanes.drain(..).map(Some).collect();
        for &i in keep {
            let lane = old.get_mut(i).and_then(Option::take);
            let wrong = || Error::Argument(format!("lane {i} is not there, or is kept twice"));
            self.lanes.push(lane.ok_or_else(wrong)?);
        }
        Ok(())
    }

    pub(super) fn length(&self, lane: usize) -> usize {
        self.lanes[lane].length
    }

    pub(super) fn advance(&mut self, lane: usize, tokens: usize) {
        self.lanes[lane].length += tokens;
    }

    /// Every lane's memory, for a team to share.
    pub(super) fn share<'a>(&'a mut self) -> Vec<SharedLane<'a>> {
        let shape = self.shape;
        let shared = |lane: &'a mut Lane| SharedLane {
            keys: Shared::new(&mut lane.keys),
            values: Shared::new(&mut lane.values),
            shape,
        };
        self.lanes.iter_mut().map(shared).collect()
    }
}

/// One lane while a team works on it.
#[derive(Clone, Copy)]
pub(super) struct SharedLane<'a> {
    keys: Shared<'a, f32>,
    values: Shared<'a, f32>,
    shape: Shape,
}

impl<'a> SharedLane<'a> {
    fn head(&self, layer: usize, head: usize) -> std::ops::Range<usize> {
        let size = self.shape.padded * self.shape.head_dim;
        let start = (layer * self.shape.kv_heads + head) * size;
        start..start + size
    }

    /// Stores key and value of one position, `[head_dim]` each.
    ///
    /// # Safety
    /// Nobody else uses this head of this layer at this position meanwhile.
    pub unsafe fn store(&self, layer: usize, head: usize, at: usize, key: &[f32], value: &[f32]) {
        let width = self.shape.head_dim;
        let start = self.head(layer, head).start;
        let block = start + at / POSITIONS * POSITIONS * width + at % POSITIONS;
        for (d, key) in key.iter().enumerate() {
            let place = block + d * POSITIONS;
            // SAFETY: the caller's.
            unsafe { self.keys.write(place..place + 1)[0] = *key };
        }
        let place = start + at * width;
        // SAFETY: the caller's.
        unsafe {
            self.values
                .write(place..place + width)
                .copy_from_slice(value)
        };
    }

    /// Keys and values of a head, as [`kernels::attention::attend`] reads them.
    ///
    /// # Safety
    /// Nobody writes this head of this layer meanwhile.
    pub unsafe fn read(&self, layer: usize, head: usize) -> (&'a [f32], &'a [f32]) {
        let part = self.head(layer, head);
        // SAFETY: the caller's.
        unsafe { (self.keys.read(part.clone()), self.values.read(part)) }
    }
}
