//! A merge of experts over a base: what they are, where their parameters come from, and what comes out.

use std::sync::Arc;

use experts::vocabulary_difference;
use lm::load::Checkpoint;
use lm::sampling::Draws;
use lm::{Adapter, Tokenizer};
use serde::Serialize;

use super::{Method, Part, Tensors};
use crate::{Error, Result};

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
    /// How they are merged.
    pub method: Method,
    /// Names of the experts.
    pub experts: Vec<String>,
    /// Weight of each, in their order.
    pub weights: Vec<f64>,
    /// Seed of methods that drop at random.
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
    /// A model of another shape or vocabulary than the base, adapters that the method cannot merge, a tensor that is
    /// missing.
    pub fn merge(&self, base: Checkpoint, sources: Vec<Source>) -> Result<Merged> {
        self.method.check(sources.len())?;
        if sources.len() != self.experts.len() || sources.len() != self.weights.len() {
            let message = "experts, weights and sources differ in number";
            return Err(Error::Merge(message.into()));
        }
        self.same_shapes(&base, &sources)?;
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
            if let Some(merged) = self.method.variant().adapters(&adapters) {
                if has_base && self.method.variant().needs_adapters() {
                    let message = "the base has no factors to average; take Soup(average: Delta)";
                    return Err(Error::Merge(message.into()));
                }
                return Ok(Merged::Adapter(merged?));
            }
        } else if self.method.variant().needs_adapters() {
            let message = "factors are averaged of adapters; for whole models take Soup()";
            return Err(Error::Merge(message.into()));
        }
        base.check()?;
        let recipe = self.clone();
        let edit = move |name: &str, shape: &[usize], values: Vec<f32>| {
            recipe.tensor(name, shape, &values, &sources)
        };
        Ok(Merged::Model(Box::new(base.edited(Box::new(edit)))))
    }

    /// Refuses models of another shape or of other tokens than the base: row `i` of their embeddings would be
    /// averaged with another token's.
    fn same_shapes(&self, base: &Checkpoint, sources: &[Source]) -> Result<()> {
        let mut base_tokens = None;
        for (name, source) in self.experts.iter().zip(sources) {
            let Source::Full(model) = source else {
                continue;
            };
            let mut config = model.config().clone();
            config.context_length = base.config().context_length;
            if config != *base.config() {
                return Err(Error::Merge(format!(
                    "expert '{name}' ({}) has another shape than the base ({}); only models of one \
                     architecture can be merged",
                    model.path().display(),
                    base.path().display()
                )));
            }
            model.check()?;
            let tokens = match &base_tokens {
                Some(tokens) => tokens,
                None => base_tokens.insert(Tokenizer::load(base)?),
            };
            let other = Tokenizer::load(model)?;
            let size = base.config().vocab_size;
            if let Some(difference) = vocabulary_difference([tokens, &other], [size; 2]) {
                return Err(Error::Merge(format!(
                    "expert '{name}' ({}) has other tokens than the base ({}): {difference}; only models with one \
                     vocabulary can be merged",
                    model.path().display(),
                    base.path().display()
                )));
            }
        }
        Ok(())
    }

    /// One tensor of the merged model, as the base's is read.
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
