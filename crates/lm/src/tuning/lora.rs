//! Shape and trainable numbers of a LoRA adapter.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, LowRank, Target};
use crate::config::DecoderConfig;
use crate::parameter::above_zero;
use crate::sampling::Draws;
use crate::{Error, Result};

/// Shape of an adapter (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank. Default 8 (LoRA's experiments on GPT-3; PEFT).
    pub rank: usize,
    /// The update is scaled by `alpha / rank`. Default 16 (the usual factor 2; ours).
    pub alpha: f32,
    /// The matrices that get one. Default query, value, output and down (ours: half the cost of all seven;
    /// what the others would add was not tried).
    pub targets: Vec<Target>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        use Target::{Down, Output, Query, Value};
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec![Query, Value, Output, Down],
        }
    }
}

impl LoraConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for rank and alpha, [`Error::NoTargets`], [`Error::SameTarget`].
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 || self.rank > 1024 {
            return Err(Error::parameter("LoRA rank", self.rank, "from 1 to 1024"));
        }
        above_zero("LoRA alpha", self.alpha)?;
        if self.targets.is_empty() {
            return Err(Error::NoTargets);
        }
        for (i, target) in self.targets.iter().enumerate() {
            if self.targets[..i].contains(target) {
                return Err(Error::SameTarget(format!("{target:?}")));
            }
        }
        Ok(())
    }

    /// What the product of a pair is multiplied with.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

/// An adapter's trainable numbers in one row, without the scale: for every layer and target
/// `A [in, r]` and then `B [r, out]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraParameters {
    /// Shape.
    pub config: LoraConfig,
    /// All numbers.
    pub values: Vec<f32>,
    places: HashMap<(usize, Target), Place>,
    layers: usize,
}

/// Where a pair lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub a: Range<usize>,
    pub b: Range<usize>,
}

impl LoraParameters {
    /// A fresh adapter that changes nothing: `A` uniform within `±1/√in` (PEFT's Kaiming with `a = √5`),
    /// `B` zero.
    ///
    /// # Errors
    /// Those of [`LoraConfig::validate`].
    pub fn new(config: &LoraConfig, decoder: &DecoderConfig, seed: u64) -> Result<Self> {
        let mut fresh = Self::zero(config, decoder)?;
        for layer in 0..decoder.layers {
            for &target in &config.targets {
                let bound = 1.0 / (target.size(decoder).0 as f64).sqrt();
                let name = format!("lora {layer} {target:?}");
                let mut draws = Draws::new(&[&seed.to_le_bytes(), name.as_bytes()]);
                let a = fresh.places[&(layer, target)].a.clone();
                for (i, value) in fresh.values[a].iter_mut().enumerate() {
                    *value = ((2.0 * draws.uniform(i) - 1.0) * bound) as f32;
                }
            }
        }
        Ok(fresh)
    }

    fn zero(config: &LoraConfig, decoder: &DecoderConfig) -> Result<Self> {
        config.validate()?;
        let (mut places, mut end) = (HashMap::new(), 0);
        for layer in 0..decoder.layers {
            for target in Target::ALL {
                if !config.targets.contains(&target) {
                    continue;
                }
                let (inputs, outputs) = target.size(decoder);
                let a = end..end + inputs * config.rank;
                let b = a.end..a.end + config.rank * outputs;
                end = b.end;
                places.insert((layer, target), Place { a, b });
            }
        }
        Ok(Self {
            config: config.clone(),
            values: vec![0.0; end],
            places,
            layers: decoder.layers,
        })
    }

    /// Continues a stored adapter.
    ///
    /// # Errors
    /// [`Error::AdapterTargets`] or [`Error::AdapterPair`] where its ranks or matrices differ from the config's, and
    /// those of [`LoraConfig::validate`].
    pub fn from_adapter(
        adapter: &Adapter,
        config: &LoraConfig,
        decoder: &DecoderConfig,
    ) -> Result<Self> {
        let mut out = Self::zero(config, decoder)?;
        let scale = config.scale();
        let fits = |pair: &LowRank| pair.rank == config.rank;
        if adapter.pairs.len() != out.places.len() || !adapter.pairs.values().all(fits) {
            return Err(Error::AdapterTargets {
                rank: config.rank,
                targets: config.targets.iter().map(|t| format!("{t:?}")).collect(),
            });
        }
        for (matrix, pair) in &adapter.pairs {
            let Some(place) = out.places.get(matrix) else {
                return Err(Error::AdapterPair(format!("{:?}", matrix.1)));
            };
            out.values[place.a.clone()].copy_from_slice(&pair.a);
            for (to, from) in out.values[place.b.clone()].iter_mut().zip(&pair.b) {
                *to = from / scale;
            }
        }
        Ok(out)
    }

    /// The shape that a stored adapter has: one rank on the same matrices of every block, scale 1.
    ///
    /// # Errors
    /// [`Error::AdapterRanks`] where its ranks differ, or there are none.
    pub fn shape_of(adapter: &Adapter) -> Result<LoraConfig> {
        let ranks: BTreeSet<usize> = adapter.pairs.values().map(|p| p.rank).collect();
        let targets: BTreeSet<Target> = adapter.pairs.keys().map(|(_, t)| *t).collect();
        match ranks.iter().next() {
            Some(&rank) if ranks.len() == 1 => Ok(LoraConfig {
                rank,
                alpha: rank as f32,
                targets: targets.into_iter().collect(),
            }),
            _ => Err(Error::AdapterRanks(ranks.into_iter().collect())),
        }
    }

    /// The adapter as experts use it.
    pub fn adapter(&self) -> Adapter {
        let scale = self.config.scale();
        let pair = |place: &Place| LowRank {
            rank: self.config.rank,
            a: self.values[place.a.clone()].to_vec(),
            b: self.values[place.b.clone()]
                .iter()
                .map(|v| v * scale)
                .collect(),
        };
        let pairs = self
            .places
            .iter()
            .map(|(matrix, place)| (*matrix, pair(place)));
        Adapter {
            pairs: pairs.collect(),
        }
    }

    /// It was made for a decoder of this shape.
    pub(super) fn fits(&self, decoder: &DecoderConfig) -> bool {
        let fresh = Self::zero(&self.config, decoder);
        fresh.is_ok_and(|f| f.layers == self.layers && f.places == self.places)
    }

    pub(super) fn place(&self, layer: usize, target: Target) -> Option<&Place> {
        self.places.get(&(layer, target))
    }
}
