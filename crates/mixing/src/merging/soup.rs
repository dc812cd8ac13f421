//! Soups: weighted averages of parameters.
//!
//! ```text
//! delta    θ = Σ_i w_i θ_i = θ_base + Σ_i w_i B_i A_i
//! factor   A = Σ_i w_i A_i,  B = Σ_i w_i B_i,  θ = θ_base + B A
//! ```
//!
//! Rewarded soups (arXiv 2306.04488) and personalized soups (arXiv 2310.11564) for any number of experts.
//! Averaging whole models, or the changes `B A`, is the papers' formula. The released scripts of
//! personalized soups average the stored factors, whose product has cross terms `w_i w_j B_i A_j`.
//!
//! 1. Both are offered, under their names.
//! 2. The delta of adapters is exact as an adapter: factors stand side by side, ranks add up.
//! 3. The scale α / r belongs to B here; the scripts average B without it, which is the same where all
//!    adapters have one scale.

use std::collections::BTreeSet;

use lm::Adapter;
use lm::adapter::LowRank;
use serde::{Deserialize, Serialize};

use super::{Instance, Rule, Tensors, UNEQUAL};
use crate::{Error, Result};

/// What is averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Average {
    /// What the experts add to the base (default: the formula of both papers).
    #[default]
    Delta,
    /// An adapter's A and B, each by itself (the released scripts of personalized soups).
    Factor,
}

/// A weighted average.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Soup {
    /// What is averaged.
    pub average: Average,
}

impl Rule for Soup {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        if let Some(only) = t.weights.iter().position(|w| *w == 1.0) {
            return t.values(only).into_owned();
        }
        let mut sum = vec![0.0; t.base.len()];
        for (i, weight) in t.weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
            let values = t.values(i);
            let add = |(s, v): (&mut f64, &f32)| *s += weight * f64::from(*v);
            sum.iter_mut().zip(values.iter()).for_each(add);
        }
        sum.into_iter().map(|s| s as f32).collect()
    }

    fn check(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn instances() -> Vec<Instance<Self>> {
        vec![Instance::new(Self::default()).reference("soup", UNEQUAL)]
    }

    fn needs_adapters(&self) -> bool {
        self.average == Average::Factor
    }

    fn adapters(&self, adapters: &[(&Adapter, f64)]) -> Option<Result<Adapter>> {
        Some(match self.average {
            Average::Delta => Ok(beside(adapters)),
            Average::Factor => factors(adapters),
        })
    }
}

/// `Σ_i w_i B_i A_i` as one adapter; an expert of weight 0 adds no rank.
pub(super) fn beside(adapters: &[(&Adapter, f64)]) -> Adapter {
    let used: Vec<_> = adapters.iter().filter(|(_, w)| *w != 0.0).collect();
    let modules: BTreeSet<_> = used.iter().flat_map(|(a, _)| a.pairs.keys()).collect();
    let mut merged = Adapter::default();
    for module in modules {
        let pairs = || {
            used.iter()
                .filter_map(|(a, w)| Some((a.pairs.get(module)?, *w)))
        };
        let rank: usize = pairs().map(|(p, _)| p.rank).sum();
        let inputs = pairs().map(|(p, _)| p.a.len() / p.rank).max().unwrap_or(0);
        let mut a = Vec::with_capacity(inputs * rank);
        for row in 0..inputs {
            for (pair, _) in pairs() {
                a.extend_from_slice(&pair.a[row * pair.rank..(row + 1) * pair.rank]);
            }
        }
        let scaled = pairs().flat_map(|(p, w)| p.b.iter().map(move |v| (w * f64::from(*v)) as f32));
        let b = scaled.collect();
        merged.pairs.insert(*module, LowRank { rank, a, b });
    }
    merged
}

/// `A = Σ_i w_i A_i`, `B = Σ_i w_i B_i`.
fn factors(adapters: &[(&Adapter, f64)]) -> Result<Adapter> {
    let mut merged = Adapter::default();
    let Some((first, _)) = adapters.first() else {
        return Ok(merged);
    };
    for (module, pair) in &first.pairs {
        let mut a = vec![0.0; pair.a.len()];
        let mut b = vec![0.0; pair.b.len()];
        for (adapter, weight) in adapters {
            let other = adapter.pairs.get(module).filter(|p| p.rank == pair.rank);
            let Some(other) = other.filter(|_| adapter.pairs.len() == first.pairs.len()) else {
                let module = format!("layers.{}.{}", module.0, module.1.module());
                return Err(Error::Merge(format!(
                    "factors are averaged between adapters on the same modules with the same ranks, but \
                     '{module}' differs; take Soup(average: Delta)"
                )));
            };
            for (sum, values) in [(&mut a, &other.a), (&mut b, &other.b)] {
                let add = |(s, v): (&mut f64, &f32)| *s += weight * f64::from(*v);
                sum.iter_mut().zip(values).for_each(add);
            }
        }
        let single = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
        let (rank, a, b) = (pair.rank, single(a), single(b));
        merged.pairs.insert(*module, LowRank { rank, a, b });
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use lm::adapter::Target;

    use super::*;

    fn adapter(a: [f32; 2], b: [f32; 2]) -> Adapter {
        let pair = LowRank {
            rank: 1,
            a: a.into(),
            b: b.into(),
        };
        Adapter {
            pairs: [((0, Target::Query), pair)].into(),
        }
    }

    #[test]
    fn factor_has_cross_terms_and_delta_has_none() {
        let (one, two) = (
            adapter([1.0, 0.0], [2.0, 0.0]),
            adapter([0.0, 1.0], [0.0, 4.0]),
        );
        let both = [(&one, 0.5), (&two, 0.5)];
        let product = |average| {
            let merged = Soup { average }.adapters(&both).unwrap().unwrap();
            merged.pairs[&(0, Target::Query)].product()
        };
        // [out, in]: half of diag(2, 4); and (1, 2)ᵀ (1/2, 1/2).
        assert_eq!(product(Average::Delta), [1.0, 0.0, 0.0, 2.0]);
        assert_eq!(product(Average::Factor), [0.5, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn all_weight_on_one_adapter_is_that_adapter() {
        let (one, two) = (
            adapter([0.3, 0.1], [0.7, -0.2]),
            adapter([0.0, 1.0], [0.0, 4.0]),
        );
        for average in [Average::Delta, Average::Factor] {
            let merged = Soup { average }.adapters(&[(&one, 1.0), (&two, 0.0)]);
            assert_eq!(merged.unwrap().unwrap(), one);
        }
    }

    #[test]
    fn factors_of_different_modules_are_refused() {
        let (one, mut two) = (adapter([0.3, 0.1], [0.7, -0.2]), Adapter::default());
        two.pairs
            .insert((1, Target::Up), one.pairs[&(0, Target::Query)].clone());
        let factor = Soup {
            average: Average::Factor,
        };
        for pair in [[(&one, 0.5), (&two, 0.5)], [(&two, 0.5), (&one, 0.5)]] {
            let error = factor.adapters(&pair).unwrap().unwrap_err().to_string();
            assert!(error.contains("take Soup(average: Delta)"), "{error}");
        }
    }
}
