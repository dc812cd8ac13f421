//! Parameter merging: several experts' weights become one expert's before decoding.
//!
//! One method is one file here and one variant of [`Method`]. A method is a pure function of one tensor of
//! the base and of every expert, so a model is merged tensor by tensor as it is read or written. Adapters
//! over the base take part with their changes of it.

mod breadcrumbs;
mod dare;
mod della;
mod model_stock;
mod ram;
mod slerp;
mod soup;
mod task_arithmetic;
mod ties;

use std::borrow::Cow;
use std::sync::Arc;

use lm::Adapter;
use lm::load::Checkpoint;
use lm::sampling::Draws;
use serde::{Deserialize, Serialize};

pub use breadcrumbs::Breadcrumbs;
pub use dare::Dare;
pub use della::Della;
pub use model_stock::ModelStock;
pub use ram::Ram;
pub use slerp::Slerp;
pub use soup::{Average, Soup};
pub use task_arithmetic::TaskArithmetic;
pub use ties::Ties;

use crate::{Result, refuse};

/// How weights are merged, as configs name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Method {
    /// Weighted average: rewarded and personalized soups.
    Soup(Soup),
    /// The base plus scaled differences.
    TaskArithmetic(TaskArithmetic),
    /// Along the arc between two experts.
    Slerp(Slerp),
    /// Trim, elect signs, merge what agrees.
    Ties(Ties),
    /// Drop differences at random and rescale the rest.
    Dare(Dare),
    /// The same, dropping small differences more often.
    Della(Della),
    /// Leave out the smallest and the largest differences.
    Breadcrumbs(Breadcrumbs),
    /// As far from the base as the experts agree.
    ModelStock(ModelStock),
    /// Average what is shared, keep what is one expert's own.
    Ram(Ram),
}

/// What every method has.
pub(crate) trait Rule {
    /// The merged tensor.
    fn merge(&self, tensors: &Tensors<'_>) -> Vec<f32>;

    /// Refuses parameters that make no sense, and numbers of experts that it cannot merge.
    fn check(&self, experts: usize) -> Result<()>;

    /// All weight on one expert gives exactly that expert.
    fn one_hot(&self) -> bool;

    /// The experts' weights play a role.
    fn weighted(&self) -> bool {
        true
    }

    /// Merges adapters into an adapter where that is exact, or where the method is about adapters.
    fn adapters(&self, _: &[(&Adapter, f64)]) -> Option<Result<Adapter>> {
        None
    }
}

impl Method {
    fn rule(&self) -> &dyn Rule {
        match self {
            Self::Soup(m) => m,
            Self::TaskArithmetic(m) => m,
            Self::Slerp(m) => m,
            Self::Ties(m) => m,
            Self::Dare(m) => m,
            Self::Della(m) => m,
            Self::Breadcrumbs(m) => m,
            Self::ModelStock(m) => m,
            Self::Ram(m) => m,
        }
    }

    /// All weight on one expert gives exactly that expert.
    pub fn one_hot(&self) -> bool {
        self.rule().one_hot()
    }

    /// The experts' weights play a role.
    pub fn weighted(&self) -> bool {
        self.rule().weighted()
    }

    /// Merges one tensor.
    pub fn merge(&self, tensors: &Tensors<'_>) -> Vec<f32> {
        // Where no expert differs from the base there is nothing to merge.
        if tensors.parts.iter().all(|p| matches!(p, Part::Same)) {
            return tensors.base.to_vec();
        }
        self.rule().merge(tensors)
    }

    /// Refuses parameters that make no sense, and numbers of experts that it cannot merge.
    ///
    /// # Errors
    /// What is wrong, by the parameter's name.
    pub fn check(&self, experts: usize) -> Result<()> {
        if experts == 0 {
            return refuse("at least one expert is needed");
        }
        self.rule().check(experts)
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
            Part::Whole(own) => own.iter().zip(self.base).map(|(a, b)| a - b).collect(),
        }
    }

    /// An expert's values.
    fn whole(&self, expert: usize) -> Cow<'_, [f32]> {
        match &self.parts[expert] {
            Part::Same => Cow::Borrowed(self.base),
            Part::Whole(own) => Cow::Borrowed(own),
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

/// Refuses what is no share of a whole.
fn share(name: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    refuse(format!("{name} is {value}, not between 0 and 1"))
}

/// Refuses what is no share of a whole, or leaves nothing of it.
fn density(value: f64) -> Result<()> {
    if value == 0.0 {
        return refuse("density is 0: nothing would be merged");
    }
    share("density", value)
}

/// Where an expert's parameters come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The base itself.
    Base,
    /// A change of the base.
    Adapter(Arc<Adapter>),
    /// A model of the base's shape.
    Full(Arc<Checkpoint>),
}

/// A method with experts and weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// How.
    pub method: Method,
    /// Whom.
    pub experts: Vec<String>,
    /// How much of each, in their order.
    pub weights: Vec<f64>,
    /// Of methods that drop at random.
    pub seed: u64,
}

/// What merging makes.
#[derive(Debug)]
pub enum Merged {
    /// An adapter over the base.
    Adapter(Adapter),
    /// A model, merged as it is read.
    Model(Box<Checkpoint>),
}

impl Recipe {
    /// Merges the experts' `sources`, which come in their order, over `base`.
    ///
    /// # Errors
    /// A model of another shape than the base, adapters that the method cannot merge, a tensor that is
    /// missing.
    pub fn merge(&self, base: Checkpoint, sources: Vec<Source>) -> Result<Merged> {
        self.method.check(sources.len())?;
        if sources.len() != self.experts.len() || sources.len() != self.weights.len() {
            return refuse("experts, weights and sources differ in number");
        }
        for (name, source) in self.experts.iter().zip(&sources) {
            let Source::Full(model) = source else {
                continue;
            };
            let mut config = model.config().clone();
            config.context_length = base.config().context_length;
            if config != *base.config() {
                return refuse(format!(
                    "expert '{name}' ({}) has another shape than the base ({}); only models of one \
                     architecture can be merged",
                    model.path().display(),
                    base.path().display()
                ));
            }
            model.check()?;
        }
        let adapters: Option<Vec<(&Adapter, f64)>> = sources
            .iter()
            .zip(&self.weights)
            .filter(|(source, _)| !matches!(source, Source::Base))
            .map(|(source, weight)| match source {
                Source::Adapter(adapter) => Some((&**adapter, *weight)),
                _ => None,
            })
            .collect();
        if let Some(adapters) = adapters.filter(|a| !a.is_empty()) {
            let has_base = adapters.len() < sources.len();
            if let Some(merged) = self.method.rule().adapters(&adapters) {
                if has_base && self.method.needs_all_adapters() {
                    return refuse("the base has no factors to average; take Soup(average: Delta)");
                }
                return Ok(Merged::Adapter(merged?));
            }
        } else if self.method.needs_all_adapters() {
            return refuse("factors are averaged of adapters; for whole models take Soup()");
        }
        base.check()?;
        let recipe = self.clone();
        let edit = move |name: &str, shape: &[usize], values: Vec<f32>| {
            recipe.tensor(name, shape, &values, &sources)
        };
        Ok(Merged::Model(Box::new(base.edited(Box::new(edit)))))
    }

    fn tensor(
        &self,
        name: &str,
        shape: &[usize],
        base: &[f32],
        sources: &[Source],
    ) -> lm::Result<Vec<f32>> {
        let part = |source: &Source| -> lm::Result<Part> {
            Ok(match source {
                Source::Base => Part::Same,
                Source::Full(model) => Part::Whole(model.reader().get(name, shape)?),
                Source::Adapter(adapter) => match adapter.delta(name) {
                    Some(delta) if delta.len() == base.len() => Part::Delta(delta),
                    Some(delta) => {
                        return Err(lm::Error::AdapterShape {
                            weight: name.into(),
                            expected: base.len(),
                            got: delta.len(),
                        });
                    }
                    None => Part::Same,
                },
            })
        };
        let parts: Vec<Part> = sources.iter().map(part).collect::<lm::Result<_>>()?;
        let chance = |expert: usize| {
            let key = [
                &self.seed.to_le_bytes(),
                self.experts[expert].as_bytes(),
                name.as_bytes(),
            ];
            Draws::new(&key).uniforms(base.len())
        };
        Ok(self.method.merge(&Tensors {
            shape,
            base,
            parts: &parts,
            weights: &self.weights,
            chance: &chance,
        }))
    }
}

impl Method {
    fn needs_all_adapters(&self) -> bool {
        matches!(
            self,
            Self::Soup(Soup {
                average: Average::Factor
            })
        )
    }
}
