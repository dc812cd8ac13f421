//! The recipe of one policy for many preferences.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use eval::dimension::{Dimension, Dimensions, Normalisation, Source, locate};
use eval::rewards::{Penalties, ShapedReward, Term};
use experts::training::offline::OfflineConfig;
use mixing::{Named, Preference};
use serde::{Deserialize, Serialize};

use super::{check_sampling, default_max_new_tokens, default_samples, default_temperature};

/// A training of one policy on the mean utility of many preferences, each asked for in the prompt as
/// [`mixing::strategies::Prompting`] does. Responses are kept in the cache, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MorlTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is measured, and what the two directions of each dimension are called.
    pub dimensions: Named<Dimension>,
    /// The preferences that the policy serves. The reward of a response is the mean of its normalised rewards, weighted by importance
    /// and signed by direction, less the penalties.
    pub preferences: Named<Preference>,
    /// Preferences that ask each prompt, in turn. Default 0: all of them.
    #[serde(default)]
    pub asks: usize,
    /// Rewards are capped at this many standard deviations. Default 2.5 (ours).
    #[serde(default = "default_cap")]
    pub cap: f64,
    /// What is taken off a response's reward. Default: nothing.
    #[serde(default)]
    pub penalties: Penalties,
    /// Responses to each prompt and preference. Default 8 (ours).
    #[serde(default = "default_samples")]
    pub samples: u64,
    /// Longest response in tokens. Default 96 (ours).
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7.
    #[serde(default = "default_temperature")]
    pub temperature: f32,
    /// Epochs, minibatch and optimiser.
    #[serde(default)]
    pub settings: OfflineConfig,
}

fn default_cap() -> f64 {
    2.5
}

impl MorlTraining {
    /// The reward of a response for one of the preferences.
    ///
    /// # Errors
    /// A preference that states no direction, or one that no dimension has.
    pub fn reward(&self, preference: &Preference) -> Result<ShapedReward> {
        let owned = self.dimensions.iter();
        let dimensions: Dimensions = owned.map(|(n, d)| (n.to_string(), d.clone())).collect();
        let mut terms = Vec::new();
        for (direction, share) in preference.shares()? {
            let (name, sign) = locate(&dimensions, &direction)?;
            let dimension = &dimensions[name];
            terms.push(Term {
                scorer: dimension.scorer.clone(),
                weight: sign * share,
                cap: self.cap,
                normaliser: match dimension.normaliser {
                    Some(Normalisation::Given(normaliser)) => Some(normaliser),
                    Some(Normalisation::By(Source::Measured)) => {
                        anyhow::bail!("dimension '{name}': {}", eval::Error::NotARun)
                    }
                    Some(Normalisation::By(Source::Stored)) | None => None,
                },
            });
        }
        let penalties = self.penalties;
        Ok(ShapedReward { terms, penalties })
    }

    pub(super) fn validate(&self) -> Result<()> {
        ensure!(
            !self.preferences.is_empty(),
            "preferences: at least one is needed"
        );
        for (name, preference) in self.preferences.iter() {
            ensure!(
                !preference.text.trim().is_empty(),
                "preference '{name}': it has no text, and the policy reads nothing else"
            );
            let context = || format!("preference '{name}'");
            let reward = self.reward(preference).with_context(context)?;
            reward.validate().with_context(context)?;
        }
        check_sampling(self.samples, self.max_new_tokens, self.temperature)?;
        self.settings.validate().context("settings")
    }
}
