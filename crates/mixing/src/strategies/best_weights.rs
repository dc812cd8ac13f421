//! The constant weights that are best for a preference on a validation set: all points of the simplex over
//! the stated directions whose weights are multiples of `1 / steps`,
//! `w* = arg max_w mean utility(y ~ p_w)`. Of equals the first.
//!
//! Over soups this is the sweep of rewarded soups (arXiv 2306.04488); over mixtures it is what learned weights
//! must beat (asked for by reviewers of arXiv 2407.04181). The caller makes the choice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::best_on_validation::among;
use super::{Fixed, Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::at_least_one;
use crate::{Candidate, Error, Plan, Preference, Result};

/// Constant weights, chosen for each preference by utility.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BestWeights {
    /// What the weights are given to: a strategy with `weights`. Default: `Fixed()`.
    pub of: Box<Strategy>,
    /// Steps from 0 to 1. Default 4 (ours: 15 points for three directions).
    pub steps: usize,
}

impl Default for BestWeights {
    fn default() -> Self {
        Self {
            of: Box::new(Strategy::Fixed(Fixed::default())),
            steps: 4,
        }
    }
}

impl Method for BestWeights {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        at_least_one("steps", self.steps)?;
        let directions = preference.directions(experts)?;
        let mut candidates = Vec::new();
        for point in grid(directions.len(), self.steps) {
            let shares = point.iter().map(|p| *p as f64 / self.steps as f64);
            let pairs: Vec<(&String, f64)> = directions.iter().zip(shares).collect();
            let weights: BTreeMap<String, f64> =
                pairs.iter().map(|(n, w)| (n.to_string(), *w)).collect();
            let named = pairs.iter().filter(|(_, w)| *w > 0.0);
            let named: Vec<String> = named.map(|(n, w)| format!("{w:.2} {n}")).collect();
            let Some(strategy) = self.of.weighted(weights) else {
                return Err(Error::Combination(
                    "of takes no weights; take Fixed, Mod, DeRa, DExperts, Mato or a Merge that does",
                ));
            };
            candidates.push(Candidate {
                name: named.join(" + "),
                strategy,
            });
        }
        among(candidates, preference, experts)
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::strategies([&mut *self.of])
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        let of = Box::new(self.of.at_strength(strength)?);
        Some(Strategy::BestWeights(Self { of, ..self.clone() }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let sweep = Self {
            steps: 2,
            ..Self::default()
        };
        vec![Instance::new(sweep)]
    }
}

/// All ways to share `steps` among `directions`.
pub(super) fn grid(directions: usize, steps: usize) -> Vec<Vec<usize>> {
    match directions {
        0 => Vec::new(),
        1 => vec![vec![steps]],
        _ => {
            let first = |n: usize| {
                let rest = grid(directions - 1, steps - n);
                rest.into_iter().map(move |r| [vec![n], r].concat())
            };
            (0..=steps).rev().flat_map(first).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_holds_every_point_once() {
        let all = grid(3, 4);
        assert_eq!(all.len(), 15);
        assert_eq!((&all[0], &all[14]), (&vec![4, 0, 0], &vec![0, 0, 4]));
        assert!(all.iter().all(|p| p.iter().sum::<usize>() == 4));
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 15);
        assert_eq!(grid(1, 4), [[4]]);
        // Any number of directions: (steps + directions - 1 choose directions - 1).
        assert_eq!((grid(5, 3).len(), grid(8, 2).len()), (35, 36));
    }
}
