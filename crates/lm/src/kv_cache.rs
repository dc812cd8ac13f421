//! Keys and values of what each lane has read so far.

use burn::tensor::{Device, Tensor};

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// Preallocated keys and values, `[lanes, kv_heads, capacity, head_dim]` per layer.
///
/// One forward pass writes the same columns for every lane, so ragged lanes leave holes. Which
/// column holds which position of which lane is kept beside the tensors, and attention sees only
/// columns that hold something: no padding token is ever read, and a lane's positions count from 0.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// `[lanes][used columns]`: position in the lane, or [`HOLE`].
    columns: Vec<Vec<u32>>,
    lengths: Vec<usize>,
    /// What each lane has read, where the decoder has it remembered.
    tokens: Vec<Vec<u32>>,
    /// Which rotary frequencies each lane's keys were turned by; see [`crate::config::Rope::stage`].
    stages: Vec<usize>,
    capacity: usize,
}

/// A column that a lane does not use.
pub(crate) const HOLE: u32 = u32::MAX;

impl KvCache {
    /// An empty cache of `capacity` columns for `lanes` lanes.
    pub fn new(config: &DecoderConfig, lanes: usize, capacity: usize, device: &Device) -> Self {
        let shape = [lanes, config.kv_heads, capacity, config.head_dim];
        let empty = || Tensor::zeros(shape, device);
        Self {
            layers: (0..config.layers).map(|_| (empty(), empty())).collect(),
            columns: vec![Vec::with_capacity(capacity); lanes],
            lengths: vec![0; lanes],
            tokens: vec![vec![]; lanes],
            stages: vec![0; lanes],
            capacity,
        }
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that each lane has read, `[lanes]`.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Columns used so far, holes included.
    pub fn used(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// Columns in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets what lane `lane` read after its first `length` tokens.
    pub fn truncate(&mut self, lane: usize, length: usize) {
        self.lengths[lane] = self.lengths[lane].min(length);
        self.tokens[lane].truncate(length);
        for position in &mut self.columns[lane] {
            if *position != HOLE && *position as usize >= length {
                *position = HOLE;
            }
        }
        // Columns at the end that nobody uses any more can be written again.
        let empty = |columns: &Vec<u32>| columns.iter().rev().take_while(|&&p| p == HOLE).count();
        let free = self.columns.iter().map(empty).min().unwrap_or(0);
        for columns in &mut self.columns {
            columns.truncate(columns.len() - free);
        }
    }

    /// A cache whose lane `i` continues lane `lanes[i]` of this one, such as one prefilled prompt
    /// for several samples.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn fork(&self, lanes: &[usize]) -> Result<Self> {
        if let Some(&lane) = lanes.iter().find(|&&lane| lane >= self.lanes()) {
            let lanes = self.lanes();
            return Err(Error::NoLane { lane, lanes });
        }
        let Some((keys, _)) = self.layers.first() else {
            return Ok(self.clone());
        };
        let ids: Vec<i32> = lanes.iter().map(|&lane| lane as i32).collect();
        let ids = Tensor::from_data(ids.as_slice(), &keys.device());
        let pick = |t: &Tensor<4>| t.clone().select(0, ids.clone());
        Ok(Self {
            layers: self
                .layers
                .iter()
                .map(|(k, v)| (pick(k), pick(v)))
                .collect(),
            columns: lanes
                .iter()
                .map(|&lane| self.columns[lane].clone())
                .collect(),
            lengths: lanes.iter().map(|&lane| self.lengths[lane]).collect(),
            tokens: lanes
                .iter()
                .map(|&lane| self.tokens[lane].clone())
                .collect(),
            stages: lanes.iter().map(|&lane| self.stages[lane]).collect(),
            capacity: self.capacity,
        })
    }

    /// Reserves `time` columns and gives lane `i` the first `counts[i]` of them. Returns the index
    /// of the first.
    pub(crate) fn reserve(&mut self, counts: &[usize], time: usize) -> Result<usize> {
        let start = self.used();
        if start + time > self.capacity {
            return Err(Error::TooLong {
                tokens: start + time,
                limit: self.capacity,
                what: "the capacity of the KV cache",
            });
        }
        for ((columns, length), &count) in
            self.columns.iter_mut().zip(&mut self.lengths).zip(counts)
        {
            let position = |t: usize| {
                if t < count {
                    (*length + t) as u32
                } else {
                    HOLE
                }
            };
            columns.extend((0..time).map(position));
            *length += count;
        }
        Ok(start)
    }

    /// Takes note of the tokens that are being read.
    pub(crate) fn remember(&mut self, tokens: &[&[u32]]) {
        for (read, tokens) in self.tokens.iter_mut().zip(tokens) {
            read.extend_from_slice(tokens);
        }
    }

    /// Makes ready for frequencies of these stages: what all lanes have read, where the keys of one are turned by
    /// others.
    pub(crate) fn enter_stages(&mut self, stages: Vec<usize>) -> Option<Vec<Vec<u32>>> {
        let mut lanes = self.stages.iter().zip(&stages).zip(&self.lengths);
        let again = lanes.any(|((before, stage), length)| before != stage && *length > 0);
        self.stages = stages;
        again.then(|| self.tokens.clone())
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.columns.iter_mut().for_each(Vec::clear);
        self.tokens.iter_mut().for_each(Vec::clear);
        self.lengths.fill(0);
    }

    /// Positions of the used columns of a lane.
    pub(crate) fn columns(&self, lane: usize) -> &[u32] {
        &self.columns[lane]
    }

    /// Writes keys and values `[lanes, kv_heads, time, head_dim]` from column `start` on and
    /// returns all that is used.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        start: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let [lanes, kv_heads, time, head_dim] = keys.dims();
        let span = [0..lanes, 0..kv_heads, start..start + time, 0..head_dim];
        let used = [0..lanes, 0..kv_heads, 0..start + time, 0..head_dim];
        let (k, v) = &mut self.layers[layer];
        // Taken out, so that the backend may write in place.
        k.inplace(|k| k.slice_assign(span.clone(), keys));
        v.inplace(|v| v.slice_assign(span, values));
        (k.clone().slice(used.clone()), v.clone().slice(used))
    }
}
