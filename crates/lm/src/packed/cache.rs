use kernels::Shared;
use kernels::attention::POSITIONS;

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// Keys and values of one lane.
#[derive(Debug)]
struct Lane {
    /// `[layers, kv_heads, padded / 16, head_dim, 16]`.
    keys: Vec<f32>,
    /// `[layers, kv_heads, padded, head_dim]`.
    values: Vec<f32>,
    length: usize,
    /// Tokens that it can hold.
    capacity: usize,
    /// The same in whole blocks of 16.
    padded: usize,
}

/// Keys and values of several lanes; each lane has memory of its own, so one can leave or join while
/// the others go on.
#[derive(Debug)]
pub struct PackedCache {
    lanes: Vec<Lane>,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Lane {
    fn new(shape: Shape, capacity: usize) -> Self {
        let padded = capacity.next_multiple_of(POSITIONS);
        let size = shape.layers * shape.kv_heads * padded * shape.head_dim;
        // Zeroed memory costs nothing until it is written.
        Self {
            keys: vec![0.0; size],
            values: vec![0.0; size],
            length: 0,
            capacity,
            padded,
        }
    }

    /// A copy with room for `capacity` tokens that touches only what was read so far.
    fn fork(&self, shape: Shape, capacity: usize) -> Self {
        let mut copy = Self::new(shape, capacity.max(self.length));
        copy.length = self.length;
        let used = self.length.next_multiple_of(POSITIONS) * shape.head_dim;
        let (from, to) = (self.padded * shape.head_dim, copy.padded * shape.head_dim);
        for head in 0..shape.layers * shape.kv_heads {
            let (old, new) = (head * from..head * from + used, head * to..head * to + used);
            copy.keys[new.clone()].copy_from_slice(&self.keys[old.clone()]);
            copy.values[new].copy_from_slice(&self.values[old]);
        }
        copy
    }
}

impl PackedCache {
    pub(super) fn new(config: &DecoderConfig, lanes: usize, capacity: usize) -> Self {
        let shape = Shape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        Self {
            lanes: (0..lanes).map(|_| Lane::new(shape, capacity)).collect(),
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

    /// Tokens that lane `lane` can hold.
    pub(super) fn capacity(&self, lane: usize) -> usize {
        self.lanes[lane].capacity
    }

    /// Positions of the longest lane, in whole blocks.
    pub(super) fn padded(&self) -> usize {
        self.lanes.iter().map(|l| l.padded).max().unwrap_or(0)
    }

    /// Forgets what lane `lane` read after its first `length` tokens.
    pub fn truncate(&mut self, lane: usize, length: usize) {
        let lane = &mut self.lanes[lane];
        lane.length = lane.length.min(length);
    }

    /// Gives lane `lane` room for `capacity` tokens in all.
    ///
    /// # Panics
    /// When there is no such lane.
    pub fn reserve(&mut self, lane: usize, capacity: usize) {
        if capacity > self.lanes[lane].capacity {
            self.lanes[lane] = self.lanes[lane].fork(self.shape, capacity);
        }
    }

    /// A cache whose lane `i` continues lane `lanes[i]` of this one.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn fork(&self, lanes: &[usize]) -> Result<Self> {
        let pick = |&i: &usize| self.lanes.get(i).map(|l| l.fork(self.shape, l.capacity));
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

    /// Adds the lanes of another cache of the same model behind these.
    ///
    /// # Errors
    /// A cache of another shape.
    pub fn join(&mut self, other: Self) -> Result<()> {
        if self.shape != other.shape {
            return Err(Error::Argument("caches of different models".into()));
        }
        self.lanes.extend(other.lanes);
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
            padded: lane.padded,
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
    padded: usize,
    shape: Shape,
}

impl<'a> SharedLane<'a> {
    fn head(&self, layer: usize, head: usize) -> std::ops::Range<usize> {
        let size = self.padded * self.shape.head_dim;
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
