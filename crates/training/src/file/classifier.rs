//! The recipe of a classifier that guides the base.

use std::path::PathBuf;

use eval::dimension::Dimension;
use experts::ExpertSpec;
use experts::training::classifier::ClassifierConfig;
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
    pub(super) fn validate(&self) -> Result<(), String> {
        if self.dimensions.is_empty() {
            return Err("dimensions: at least one is needed".into());
        }
        let mut seen = Vec::new();
        for (name, dimension) in self.dimensions.iter() {
            let checked = dimension.validate();
            checked.map_err(|e| format!("dimension '{name}': {e}"))?;
            for end in [&dimension.low, &dimension.high] {
                if seen.contains(&end) {
                    return Err(format!(
                        "dimension '{name}': the direction '{end}' is named twice"
                    ));
                }
                seen.push(end);
            }
        }
        if self.experts.get(BASE).is_some() {
            return Err(format!(
                "expert '{BASE}' is the base model itself, which answers anyway; leave it out"
            ));
        }
        self.experts
            .names()
            .iter()
            .try_for_each(|name| validate_name("expert", name).map_err(|e| e.to_string()))?;
        let all = self.samples * (1 + self.experts.names().len() as u64);
        let positive = self.temperature > 0.0 && self.temperature.is_finite();
        if all < 2 || self.max_new_tokens == 0 || !positive {
            return Err(
                "samples and experts: at least 2 responses to a prompt; max_new_tokens: at least 1; \
                 temperature: above 0"
                    .into(),
            );
        }
        if !(self.share > 0.0 && self.share <= 0.5) {
            return Err(format!(
                "share is {}, not above 0 and at most 0.5",
                self.share
            ));
        }
        self.settings
            .validate()
            .map_err(|e| format!("settings: {e}"))
    }
}
