//! Keys and values of lanes, each in memory of its own.

use std::ops::Range;

use half::f16;
use half::vec::HalfBitsVecExt;
use kernels::attention::{Cached, POSITIONS, attend_capped};
use kernels::{Element, Isa, Shared, advise_large};

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// How a cache keeps its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheFormat {
    F32,
    F16,
    /// With a scale for each head of each position.
    I8,
}

/// Keys and values of several lanes; each lane has memory of its own, so one can leave or join while
/// the others go on.
#[derive(Debug)]
pub struct PackedCache {
    lanes: Vec<Lane>,
    shape: Shape,
}

/// Keys and values of one lane.
#[derive(Debug)]
struct Lane {
    storage: LaneStorage,
    length: usize,
    /// What was read, where [`Shape::remembers`] says so.
    tokens: Vec<u32>,
    /// Which rotary frequencies its keys were turned by; see [`crate::config::Rope::stage`].
    stage: usize,
    /// Tokens that it can hold.
    capacity: usize,
    /// The same in whole blocks of 16.
    padded: usize,
}

#[derive(Debug)]
enum LaneStorage {
    F32(Storage<f32>),
    F16(Storage<f16>),
    I8(Storage<i8>),
}

#[derive(Debug)]
struct Storage<E> {
    /// `[layers, kv_heads, padded / 16, head_dim, 16]`.
    keys: Vec<E>,
    /// `[layers, kv_heads, padded, head_dim]`.
    values: Vec<E>,
    /// `[layers, kv_heads, padded]`; empty where numbers have no scale.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    format: CacheFormat,
    /// Frequencies follow the length, so that a lane may have to be read again.
    remembers: bool,
}

impl<E: Element> Storage<E> {
    /// Room for `padded` positions of `heads` heads in all. Where few of them are never used, large pages waste
    /// little.
    fn new(heads: usize, padded: usize, room: impl Fn() -> Vec<E>) -> Self {
        const FEW: usize = 1024;
        let (mut keys, mut values) = (room(), room());
        if padded <= FEW {
            advise_large(&mut keys);
            advise_large(&mut values);
        }
        let scales = if E::SCALED { heads * padded } else { 0 };
        Self {
            keys,
            values,
            key_scales: vec![0.0; scales],
            value_scales: vec![0.0; scales],
        }
    }

    fn bytes(&self) -> usize {
        let scales = self.key_scales.len() + self.value_scales.len();
        (self.keys.len() + self.values.len()) * size_of::<E>() + scales * size_of::<f32>()
    }

    /// Copies the first `used` positions of every head from one that has another number of them.
    fn copy(&mut self, from: &Self, heads: usize, used: usize, width: usize) {
        fn heads_of<T: Copy>(to: &mut [T], from: &[T], heads: usize, used: usize) {
            let [to_width, from_width] = [to.len(), from.len()].map(|len| (len / heads).max(1));
            let pairs = to.chunks_mut(to_width).zip(from.chunks(from_width));
            pairs.for_each(|(to, from)| to[..used].copy_from_slice(&from[..used]));
        }
        heads_of(&mut self.keys, &from.keys, heads, used * width);
        heads_of(&mut self.values, &from.values, heads, used * width);
        heads_of(&mut self.key_scales, &from.key_scales, heads, used);
        heads_of(&mut self.value_scales, &from.value_scales, heads, used);
    }

    fn share(&mut self) -> SharedStorage<'_, E> {
        SharedStorage {
            keys: Shared::new(&mut self.keys),
            values: Shared::new(&mut self.values),
            key_scales: Shared::new(&mut self.key_scales),
            value_scales: Shared::new(&mut self.value_scales),
        }
    }
}

impl Lane {
    fn new(shape: Shape, capacity: usize) -> Self {
        let padded = capacity.next_multiple_of(POSITIONS);
        let heads = shape.layers * shape.kv_heads;
        let size = heads * padded * shape.head_dim;
        // Zeroed memory costs nothing until it is written.
        let half = || vec![0u16; size].reinterpret_into();
        let storage = match shape.format {
            CacheFormat::F32 => LaneStorage::F32(Storage::new(heads, padded, || vec![0.0; size])),
            CacheFormat::F16 => LaneStorage::F16(Storage::new(heads, padded, half)),
            CacheFormat::I8 => LaneStorage::I8(Storage::new(heads, padded, || vec![0; size])),
        };
        Self {
            storage,
            length: 0,
            tokens: vec![],
            stage: 0,
            capacity,
            padded,
        }
    }

    fn bytes(&self) -> usize {
        match &self.storage {
            LaneStorage::F32(storage) => storage.bytes(),
            LaneStorage::F16(storage) => storage.bytes(),
            LaneStorage::I8(storage) => storage.bytes(),
        }
    }

    /// A copy with room for `capacity` tokens that touches only what was read so far.
    fn fork(&self, shape: Shape, capacity: usize) -> Self {
        self.prefix(shape, self.length, capacity)
    }

    /// A copy of what was read first, at most `length` tokens, with room for `capacity`.
    fn prefix(&self, shape: Shape, length: usize, capacity: usize) -> Self {
        let length = length.min(self.length);
        let mut copy = Self::new(shape, capacity.max(length));
        copy.length = length;
        copy.tokens = self.tokens[..length.min(self.tokens.len())].to_vec();
        copy.stage = self.stage;
        let used = length.next_multiple_of(POSITIONS);
        let (heads, width) = (shape.layers * shape.kv_heads, shape.head_dim);
        match (&mut copy.storage, &self.storage) {
            (LaneStorage::F32(to), LaneStorage::F32(from)) => to.copy(from, heads, used, width),
            (LaneStorage::F16(to), LaneStorage::F16(from)) => to.copy(from, heads, used, width),
            (LaneStorage::I8(to), LaneStorage::I8(from)) => to.copy(from, heads, used, width),
            _ => unreachable!("lanes of one shape"),
        }
        copy
    }
}

impl PackedCache {
    pub(super) fn new(config: &DecoderConfig, format: CacheFormat, capacities: &[usize]) -> Self {
        let shape = Shape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            format,
            remembers: config.depends_on_length(),
        };
        Self {
            lanes: capacities.iter().map(|&c| Lane::new(shape, c)).collect(),
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
        lane.tokens.truncate(length);
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

    /// Bytes of all lanes, used or not.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(Lane::bytes).sum()
    }

    /// A cache of one lane, which has read the first `length` tokens of lane `lane` and has room for `capacity`.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn prefix(&self, lane: usize, length: usize, capacity: usize) -> Result<Self> {
        let from = self.lane(lane)?;
        Ok(Self {
            lanes: vec![from.prefix(self.shape, length, capacity)],
            shape: self.shape,
        })
    }

    /// Lane `to` becomes the only lane of another cache of the same model.
    ///
    /// # Errors
    /// A cache of another shape or number of lanes, a lane that is not there.
    pub fn replace(&mut self, to: usize, mut other: Self) -> Result<()> {
        let (lane, lanes) = (to, self.lanes.len());
        match (self.lanes.get_mut(to), other.lanes.pop()) {
            (Some(old), Some(new)) if self.shape == other.shape && other.lanes.is_empty() => {
                *old = new;
                Ok(())
            }
            (None, _) => Err(Error::NoLane { lane, lanes }),
            _ => Err(Error::OtherModel),
        }
    }

    fn lane(&self, lane: usize) -> Result<&Lane> {
        let lanes = self.lanes.len();
        self.lanes.get(lane).ok_or(Error::NoLane { lane, lanes })
    }

    /// A cache whose lane `i` continues lane `lanes[i]` of this one.
    ///
    /// # Errors
    /// A lane that is not there.
    pub fn fork(&self, lanes: &[usize]) -> Result<Self> {
        let pick = |&lane: &usize| {
            let from = self.lane(lane)?;
            Ok(from.fork(self.shape, from.capacity))
        };
        Ok(Self {
            lanes: lanes.iter().map(pick).collect::<Result<_>>()?,
            shape: self.shape,
        })
    }

    /// Keeps only the lanes `keep`, in this order, without copying; each at most once.
    ///
    /// # Errors
    /// A lane that is not there, or twice.
    pub fn retain(&mut self, keep: &[usize]) -> Result<()> {
        let mut old: Vec<Option<Lane>> = self.lanes.drain(..).map(Some).collect();
        let lanes = old.len();
        for &lane in keep {
            let kept = old.get_mut(lane).and_then(Option::take);
            self.lanes.push(kept.ok_or(Error::NoLane { lane, lanes })?);
        }
        Ok(())
    }

    /// Adds the lanes of another cache of the same model behind these.
    ///
    /// # Errors
    /// A cache of another shape.
    pub fn join(&mut self, other: Self) -> Result<()> {
        if self.shape != other.shape {
            return Err(Error::OtherModel);
        }
        self.lanes.extend(other.lanes);
        Ok(())
    }

    pub(super) fn length(&self, lane: usize) -> usize {
        self.lanes[lane].length
    }

    /// Takes note of a token that was read.
    pub(super) fn advance(&mut self, lane: usize, token: u32) {
        let lane = &mut self.lanes[lane];
        lane.length += 1;
        if self.shape.remembers {
            lane.tokens.push(token);
        }
    }

    /// Makes ready for reading up to some length in all, whose frequencies are those of `stage`: what lane `lane` has
    /// read so far, to be read again where its keys are turned by others.
    pub(super) fn enter_stage(&mut self, lane: usize, stage: usize) -> Vec<u32> {
        let lane = &mut self.lanes[lane];
        if lane.stage == stage {
            return vec![];
        }
        (lane.stage, lane.length) = (stage, 0);
        std::mem::take(&mut lane.tokens)
    }

    /// Every lane's memory, for a team to share.
    pub(super) fn share(&mut self) -> Vec<SharedLane<'_>> {
        let shape = self.shape;
        let lanes = self.lanes.iter_mut();
        let shared = lanes.map(|lane| SharedLane {
            storage: match &mut lane.storage {
                LaneStorage::F32(storage) => SharedLaneStorage::F32(storage.share()),
                LaneStorage::F16(storage) => SharedLaneStorage::F16(storage.share()),
                LaneStorage::I8(storage) => SharedLaneStorage::I8(storage.share()),
            },
            padded: lane.padded,
            shape,
        });
        shared.collect()
    }
}

/// Positions of a head whose keys are asked for before its turn: what is worked on at once.
const AHEAD: usize = 4 * POSITIONS;

/// One lane while a team works on it.
#[derive(Clone, Copy)]
pub(super) struct SharedLane<'a> {
    storage: SharedLaneStorage<'a>,
    padded: usize,
    shape: Shape,
}

#[derive(Clone, Copy)]
enum SharedLaneStorage<'a> {
    F32(SharedStorage<'a, f32>),
    F16(SharedStorage<'a, f16>),
    I8(SharedStorage<'a, i8>),
}

/// [`Storage`] while a team works on it.
#[derive(Clone, Copy)]
struct SharedStorage<'a, E> {
    keys: Shared<'a, E>,
    values: Shared<'a, E>,
    key_scales: Shared<'a, f32>,
    value_scales: Shared<'a, f32>,
}

/// The same for numbers of each kind.
macro_rules! each_kind {
    ($lane:expr, $storage:ident => $body:expr) => {
        match $lane {
            SharedLaneStorage::F32($storage) => $body,
            SharedLaneStorage::F16($storage) => $body,
            SharedLaneStorage::I8($storage) => $body,
        }
    };
}

impl SharedLane<'_> {
    /// Positions of a head among those of all heads.
    fn head(&self, layer: usize, head: usize) -> Range<usize> {
        let start = (layer * self.shape.kv_heads + head) * self.padded;
        start..start + self.padded
    }

    /// Stores key and value of position `at`, `[head_dim]` each.
    ///
    /// # Safety
    /// Nobody else uses this head of this layer at this position meanwhile.
    pub unsafe fn store(
        &self,
        isa: Isa,
        (layer, head): (usize, usize),
        at: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let start = self.head(layer, head).start;
        // SAFETY: the caller's.
        each_kind!(&self.storage, storage => unsafe { storage.store(isa, start, at, key, value) });
    }

    /// Asks for the first keys of a head.
    pub fn prefetch(&self, layer: usize, head: usize) {
        let width = self.shape.head_dim;
        let start = self.head(layer, head).start * width;
        each_kind!(&self.storage, storage => storage.keys.prefetch(start, AHEAD * width));
    }

    /// Attention of the queries that share a head, `[queries, head_dim]`, over the positions `span`; see
    /// [`attend_capped`].
    ///
    /// # Safety
    /// Nobody writes to this head of this layer meanwhile.
    #[allow(clippy::too_many_arguments, reason = "those of `attend_capped`")]
    pub unsafe fn attend(
        &self,
        isa: Isa,
        (layer, head): (usize, usize),
        queries: &[f32],
        span: Range<usize>,
        cap: Option<f32>,
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let (width, part) = (self.shape.head_dim, self.head(layer, head));
        each_kind!(&self.storage, storage => {
            // SAFETY: the caller's.
            let cached = unsafe { storage.read(part, width) };
            attend_capped(isa, width, queries, cached, span, cap, scores, out);
        });
    }
}

impl<'a, E: Element> SharedStorage<'a, E> {
    /// # Safety
    /// Nobody writes to these positions meanwhile.
    unsafe fn read(&self, positions: Range<usize>, width: usize) -> Cached<'a, E> {
        let numbers = positions.start * width..positions.end * width;
        let scales = if E::SCALED { positions } else { 0..0 };
        // SAFETY: the caller's.
        unsafe {
            Cached {
                keys: self.keys.read(numbers.clone()),
                values: self.values.read(numbers),
                key_scales: self.key_scales.read(scales.clone()),
                value_scales: self.value_scales.read(scales),
            }
        }
    }

    /// # Safety
    /// Nobody else uses position `at` of the head that begins at position `start`.
    unsafe fn store(&self, isa: Isa, start: usize, at: usize, key: &[f32], value: &[f32]) {
        let width = key.len();
        let block = (start + at / POSITIONS * POSITIONS) * width + at % POSITIONS;
        let first = (start + at) * width;
        // SAFETY: the caller's.
        unsafe {
            // The value's place serves the key first.
            let to = self.values.write(first..first + width);
            let key_scale = E::round(isa, key, to);
            for (d, key) in to.iter().enumerate() {
                self.keys.set(block + d * POSITIONS, *key);
            }
            let value_scale = E::round(isa, value, to);
            if E::SCALED {
                self.key_scales.set(start + at, key_scale);
                self.value_scales.set(start + at, value_scale);
            }
        }
    }
}
