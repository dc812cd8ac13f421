//! Parameter merging: several experts' parameters become one expert's before decoding.
//!
//! One method is one file here, its `mod` and `use` lines and its lines in [`Method`]. A method is a pure function of one tensor of
//! the base and of every expert, so a model is merged tensor by tensor as it is read or written. Adapters
//! over the base take part with their changes of it.

mod breadcrumbs;
mod dare;
mod della;
mod model_stock;
mod ram;
mod recipe;
mod slerp;
mod soup;
mod task_arithmetic;
mod ties;

use std::borrow::Cow;

use lm::Adapter;
use serde::{Deserialize, Serialize};

pub use breadcrumbs::Breadcrumbs;
pub use dare::Dare;
pub use della::Della;
pub use model_stock::ModelStock;
pub use ram::Ram;
pub use recipe::{Merged, Recipe, Source};
pub use slerp::Slerp;
pub use soup::{Average, Soup};
pub use task_arithmetic::TaskArithmetic;
pub use ties::Ties;

use crate::error::share;
use crate::registry::registry;
use crate::{Error, Result};

registry! {
    /// How parameters are merged, as configs name it.
    pub enum Method: Rule, instances () () -> Instance {
        /// Weighted average: rewarded and personalized soups.
        Soup,
        /// The base plus scaled differences.
        TaskArithmetic,
        /// Along the arc between two experts.
        Slerp,
        /// Trim, elect signs, merge what agrees.
        Ties,
        /// Drop differences at random and rescale the rest.
        Dare,
        /// Drop differences at random, small ones more often, and rescale the rest.
        Della,
        /// Leave out the smallest and the largest differences.
        Breadcrumbs,
        /// As far from the base as the experts agree.
        ModelStock,
        /// Average what is shared, keep what is one expert's own.
        Ram,
    }
}

/// What a method's file says of it.
pub(crate) trait Rule {
    /// The merged tensor.
    fn merge(&self, tensors: &Tensors<'_>) -> Vec<f32>;

    /// Refuses parameters that make no sense, and numbers of experts that it cannot merge.
    fn check(&self, experts: usize) -> Result<()>;

    /// All weight on one expert gives exactly that expert. Where it says so, tests hold it to that.
    fn reproduces_single_expert(&self) -> bool;

    /// The experts' weights play a role.
    fn weighted(&self) -> bool {
        true
    }

    /// It is about adapters' factors and cannot merge anything else.
    fn needs_adapters(&self) -> bool {
        false
    }

    /// Merges adapters into an adapter where that is exact, or where the method is about adapters.
    fn adapters(&self, _: &[(&Adapter, f64)]) -> Option<Result<Adapter>> {
        None
    }

    /// Instances for tests.
    fn instances() -> Vec<Instance<Self>>
    where
        Self: Sized;
}

/// A method for tests, and what they may expect of it.
#[derive(Debug, Clone)]
pub struct Instance<M = Method> {
    /// The method.
    pub method: M,
    /// Its key in `scripts/fixtures/merging.py`, which says what mergekit makes of some tensors, and the models and
    /// weights that it gets there; `None` where mergekit does not have it.
    pub reference: Option<(&'static str, &'static [(&'static str, f64)])>,
    /// It draws random numbers for each expert, so that the order of experts matters.
    pub random: bool,
}

/// Three models with different weights, as the script merges them.
const UNEQUAL: &[(&str, f64)] = &[("a", 0.5), ("b", 0.3), ("c", 0.2)];

/// Three models with equal weights, as the script merges them.
const EQUAL: &[(&str, f64)] = &[("a", 1.0 / 3.0), ("b", 1.0 / 3.0), ("c", 1.0 / 3.0)];

impl<M> Instance<M> {
    /// One that the script does not know and that leaves nothing to chance.
    fn new(method: M) -> Self {
        Self {
            method,
            reference: None,
            random: false,
        }
    }

    /// It stands in the script under `key`, for these models and weights.
    fn reference(self, key: &'static str, models: &'static [(&'static str, f64)]) -> Self {
        Self {
            reference: Some((key, models)),
            ..self
        }
    }

    /// It draws random numbers.
    fn random(self) -> Self {
        Self {
            random: true,
            ..self
        }
    }

    fn map<T>(self, change: impl FnOnce(M) -> T) -> Instance<T> {
        Instance {
            method: change(self.method),
            reference: self.reference,
            random: self.random,
        }
    }
}

impl Method {
    /// All weight on one expert gives exactly that expert.
    pub fn reproduces_single_expert(&self) -> bool {
        self.variant().reproduces_single_expert()
    }

    /// The experts' weights play a role.
    pub fn weighted(&self) -> bool {
        self.variant().weighted()
    }

    /// Merges one tensor.
    ///
    /// ```
    /// use mope_mixing::merging::{Method, Part, Soup, Tensors};
    /// let merged = Method::Soup(Soup::default()).merge(&Tensors {
    ///     shape: &[1, 2],
    ///     base: &[1.0, 1.0],
    ///     parts: &[Part::Delta(vec![2.0, 0.0]), Part::Same],
    ///     weights: &[0.75, 0.25],
    ///     chance: &|_| vec![0.0; 2],
    /// });
    /// assert_eq!(merged, [2.5, 1.0]);
    /// ```
    pub fn merge(&self, tensors: &Tensors<'_>) -> Vec<f32> {
        // Where no expert differs from the base there is nothing to merge.
        if tensors.parts.iter().all(|p| matches!(p, Part::Same)) {
            return tensors.base.to_vec();
        }
        self.variant().merge(tensors)
    }

    /// Refuses parameters that make no sense, and numbers of experts that it cannot merge.
    ///
    /// # Errors
    /// What is wrong, by the parameter's name.
    pub fn check(&self, experts: usize) -> Result<()> {
        if experts == 0 {
            return Err(Error::Merge("at least one expert is needed".into()));
        }
        self.variant().check(experts)
    }
}

/// One tensor of the base and of the experts.
pub struct Tensors<'a> {
    /// `[out, in]` for a matrix.
    pub shape: &'a [usize],
    /// The base's values.
    pub base: &'a [f32],
    /// The experts'.
    pub parts: &'a [Part],
    /// Weight of each expert.
    pub weights: &'a [f64],
    /// Uniform numbers in [0, 1), one per value, for the expert of that number.
    pub chance: &'a dyn Fn(usize) -> Vec<f64>,
}

/// An expert's side of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The base's values.
    Same,
    /// What is added to them.
    Delta(Vec<f32>),
    /// Values of its own.
    Whole(Vec<f32>),
}

impl Tensors<'_> {
    /// An expert's difference from the base.
    fn delta(&self, expert: usize) -> Vec<f32> {
        match &self.parts[expert] {
            Part::Same => vec![0.0; self.base.len()],
            Part::Delta(delta) => delta.clone(),
            Part::Whole(values) => values.iter().zip(self.base).map(|(a, b)| a - b).collect(),
        }
    }

    /// An expert's values.
    fn values(&self, expert: usize) -> Cow<'_, [f32]> {
        match &self.parts[expert] {
            Part::Same => Cow::Borrowed(self.base),
            Part::Whole(values) => Cow::Borrowed(values),
            Part::Delta(delta) => {
                let sum = delta.iter().zip(self.base).map(|(d, b)| b + d);
                Cow::Owned(sum.collect())
            }
        }
    }

    /// `base + scale · Σ_i w_i delta_i`, the deltas changed first: number of the expert, its delta.
    fn base_plus(&self, scale: f64, mut change: impl FnMut(usize, &mut Vec<f32>)) -> Vec<f32> {
        let mut sum = vec![0.0; self.base.len()];
        for (i, weight) in self.weights.iter().enumerate() {
            if *weight == 0.0 {
                continue;
            }
            let mut delta = self.delta(i);
            change(i, &mut delta);
            let add = |(s, d): (&mut f64, &f32)| *s += weight * f64::from(*d);
            sum.iter_mut().zip(&delta).for_each(add);
        }
        let pairs = self.base.iter().zip(sum);
        pairs
            .map(|(b, s)| (f64::from(*b) + scale * s) as f32)
            .collect()
    }
}

/// Numbers of the values by magnitude, the largest first; of equals the earlier one.
fn by_magnitude(values: &[f32]) -> Vec<usize> {
    // Bits of floats without a sign are ordered as the floats are; the number behind them makes keys unique.
    let key = |(i, value): (usize, &f32)| u64::from(!value.abs().to_bits()) << 32 | i as u64;
    let mut keys: Vec<u64> = values.iter().enumerate().map(key).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| (key as u32) as usize).collect()
}

/// Refuses what is no share of a whole, or leaves nothing of it.
fn density(value: f64) -> Result<()> {
    if value == 0.0 {
        let expected = "above 0: nothing would be merged";
        return Err(Error::parameter("density", value, expected));
    }
    share("density", value)
}
