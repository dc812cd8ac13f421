//! Strategies that steer, at several strengths.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use eval::frontier::Curve;
use mixing::{Named, Strategy};
use serde::{Deserialize, Serialize};

use super::Experiment;

/// A strategy at several strengths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steered {
    /// The strategy: one with a strength, as `DeRa`, `DExperts`, `Pcm`, `Cliper`, or `BestOfN`, whose strength is n.
    pub of: Strategy,
    /// Its strengths, at least two.
    pub strengths: Vec<f64>,
}

/// The name of a curve's strategy at a strength, as rows and files have it.
fn arm(curve: &str, strength: f64) -> String {
    format!("{curve}-{}", strength.to_string().replace('.', "_"))
}

impl Experiment {
    /// Adds the strategies of all curves to those of the file, where they are not there yet.
    pub(super) fn add_arms(&mut self) -> Result<()> {
        let mut all: Vec<(String, Strategy)> = Vec::new();
        for (name, strategy) in self.strategies.iter() {
            all.push((name.into(), strategy.clone()));
        }
        for (curve, steered) in self.frontier.iter() {
            for &strength in &steered.strengths {
                let name = arm(curve, strength);
                let strategy = steered.of.at_strength(strength).with_context(|| {
                    format!(
                        "frontier: '{curve}' has no strength {strength}: {} does not steer, or not so",
                        steered.of.name()
                    )
                })?;
                anyhow::ensure!(
                    !all.iter().any(|(other, _)| *other == name),
                    "frontier: '{name}' is there twice; name each strength once, and no strategy so"
                );
                all.push((name, strategy));
            }
        }
        self.strategies = all.into_iter().collect::<Named<Strategy>>();
        Ok(())
    }

    /// Curves have several strengths, a divergence, and a base to start from.
    pub(super) fn check_frontier(&self) -> Result<()> {
        for (name, steered) in self.frontier.iter() {
            anyhow::ensure!(
                steered.strengths.len() > 1,
                "frontier: '{name}' needs at least two strengths"
            );
        }
        anyhow::ensure!(
            self.frontier.is_empty() || self.base().is_some(),
            "frontier: curves start at the base; name a strategy Base()"
        );
        anyhow::ensure!(
            self.frontier.is_empty() || self.kl,
            "frontier: it needs the divergence; leave kl out, or true"
        );
        Ok(())
    }

    /// The strategy that is the base.
    pub fn base(&self) -> Option<&str> {
        let mut strategies = self.strategies.iter();
        strategies
            .find(|(_, strategy)| matches!(strategy, Strategy::Base(_)))
            .map(|(name, _)| name)
    }

    /// The curves, with their strategies' names.
    pub fn curves(&self) -> Vec<Curve> {
        let curves = self.frontier.iter().map(|(name, steered)| Curve {
            name: name.into(),
            arms: steered
                .strengths
                .iter()
                .map(|&s| (s, arm(name, s)))
                .collect(),
        });
        curves.collect()
    }

    /// The strategies that tables compare one by one: those that are not a curve's.
    pub fn compared(&self) -> Vec<&str> {
        let arms: BTreeSet<String> = self
            .curves()
            .into_iter()
            .flat_map(|curve| curve.arms.into_iter().map(|(_, name)| name))
            .collect();
        let mut names = self.strategies.names();
        names.retain(|name| !arms.contains(*name));
        names
    }
}
