//! The recipe of a classifier that guides the base.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use eval::dimension::Dimension;
use experts::ExpertSpec;
use experts::training::classifier::ClassifierConfig;
use lm::parameter::{above_zero, at_least_one};
use mixing::{BASE, Named};
use serde::{Deserialize, Serialize};

use super::default_temperature;
use harness::config::validate_name;

/// A classifier fitted to responses of the base and of experts, which scorers put in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is told apart; the responses to a prompt that score highest and lowest are the two ends.
    pub dimensions: Named<Dimension>,
    /// Experts that answer beside the base, so that both ends occur. They have the base's tokens.
    #[serde(default)]
    pub experts: Named<ExpertSpec>,
    /// Responses of each of them to each prompt. Default 1 (ours).
    #[serde(default = "default_samples")]
    pub samples: u64,
    /// Longest response in tokens. Default 64 (ours).
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Temperature of the responses. Default 0.7.
    #[serde(default = "default_temperature")]
    pub temperature: f32,
    /// Share of the responses to a prompt that is taken for each end; the rest is left out. Default 0.35 (ours).
    #[serde(default = "default_share")]
    pub share: f64,
    /// Window, steps and optimiser of the fit.
    #[serde(default)]
    pub settings: ClassifierConfig,
}

fn default_samples() -> u64 {
    1
}

fn default_max_new_tokens() -> usize {
    64
}

fn default_share() -> f64 {
    0.35
}

impl ClassifierTraining {
    pub(super) fn validate(&self) -> Result<()> {
        ensure!(
            !self.dimensions.is_empty(),
            "dimensions: at least one is needed"
        );
        let mut seen = Vec::new();
        for (name, dimension) in self.dimensions.iter() {
            let checked = dimension.validate();
            checked.with_context(|| format!("dimension '{name}'"))?;
            for end in [&dimension.low, &dimension.high] {
                ensure!(
                    !seen.contains(&end),
                    "dimension '{name}': the direction '{end}' is named twice"
                );
                seen.push(end);
            }
        }
        ensure!(
            self.experts.get(BASE).is_none(),
            "expert '{BASE}' is the base model itself, which answers anyway; leave it out"
        );
        let names = self.experts.names();
        names
            .iter()
            .try_for_each(|name| validate_name("expert", name))?;
        ensure!(
            self.samples * (1 + names.len() as u64) >= 2,
            "samples and experts: at least 2 responses to a prompt"
        );
        at_least_one([("max_new_tokens", self.max_new_tokens as u64)])?;
        above_zero("temperature", self.temperature)?;
        if !(self.share > 0.0 && self.share <= 0.5) {
            let expected = "above 0 and at most 0.5";
            return Err(lm::Error::parameter("share", self.share, expected).into());
        }
        self.settings.validate().context("settings")
    }
}
