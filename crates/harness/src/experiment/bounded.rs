//! Bounds of what counts as an answer.

use anyhow::{Context, Result};
use eval::rewards::Scorer;
use eval::utility::Utility;
use serde::{Deserialize, Serialize};

use super::Experiment;

/// How responses are bounded ([`eval::bounds`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounded {
    /// Responses of the base to each prompt that bounds are read off, the reference among them. Default 8 (ours).
    pub samples: u32,
    /// What says how far a response answers its prompt. Default `None`: only repetition and surprise are bounded.
    pub relevance: Option<Scorer>,
}

impl Default for Bounded {
    fn default() -> Self {
        Self {
            samples: 8,
            relevance: None,
        }
    }
}

impl Experiment {
    /// Bounds need a utility with a worst value, and what the base thinks of responses.
    pub(super) fn check_bounds(&self) -> Result<()> {
        let Some(bounds) = &self.bounds else {
            return Ok(());
        };
        super::count("bounds: samples", bounds.samples as usize, super::SAMPLES)?;
        anyhow::ensure!(
            self.utility == Utility::BradleyTerry,
            "bounds: what crosses them has the utility 0, which is the worst of BradleyTerry alone"
        );
        anyhow::ensure!(
            self.kl,
            "bounds: they need what the base thinks of responses; leave kl out, or true"
        );
        let relevance = bounds.relevance.as_ref().map(Scorer::validate);
        relevance.transpose().context("bounds: relevance")?;
        Ok(())
    }

    /// Responses of the base to each prompt.
    pub(crate) fn reference_samples(&self) -> u32 {
        self.bounds.as_ref().map_or(1, |bounds| bounds.samples)
    }
}
