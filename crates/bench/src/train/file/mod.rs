//! The training file: what a user writes, read from RON and checked before anything is loaded.

mod classifier;
mod mixture;
mod morl;

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::rewards::{RewardModelConfig, Scorer, ShapedReward};
use experts::ExpertSpec;
use experts::training::offline::OfflineConfig;
use experts::training::rebel::RebelConfig;
use lm::Format;
use lm::save::Precision;
use lm::tuning::LoraConfig;
use serde::{Deserialize, Serialize};

pub use classifier::ClassifierTraining;
pub use mixture::{PcmTraining, Preferences};
pub use morl::MorlTraining;

use crate::config::{self, model_path, plain, resolve_expert};
use crate::failure::usage;

/// One training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Names its folder, `runs/train/<name>`.
    pub name: String,
    /// All randomness follows from it. Default 0 (ours).
    #[serde(default)]
    pub seed: u64,
    /// Base model, by registered name or path (relative to this file).
    pub model: String,
    /// Number format of gradients' products, `F32` or `Bf16`. Default `F32`.
    #[serde(default)]
    pub weights: Format,
    /// Number format of the model that samples. Default `Bf16` (near the policy that is trained).
    #[serde(default = "bf16")]
    pub sampling_weights: Format,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Adapter to start from, a PEFT folder of the same shape; else a fresh one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// What the written adapter's update is multiplied with. Default 1. Where a training moved the right way but
    /// not far enough, a larger one, chosen on validation prompts, goes further at no cost.
    #[serde(default = "whole")]
    pub strength: f32,
    /// Number format of the adapter that is written. Default `F16` (ours: half the size, three digits).
    #[serde(default = "f16")]
    pub precision: Precision,
    /// What is done.
    pub recipe: Recipe,
}

fn bf16() -> Format {
    Format::Bf16
}

fn whole() -> f32 {
    1.0
}

fn f16() -> Precision {
    Precision::F16
}

/// The recipes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Recipe {
    /// Supervised fine-tuning on JSON lines with `prompt` and `response`.
    Sft(OfflineTraining),
    /// Direct preference optimisation on JSON lines with `prompt`, `chosen` and `rejected`.
    Dpo(OfflineTraining),
    /// REBEL on the model's own responses, iteration after iteration.
    Rebel(RebelTraining),
    /// REBEL's regression on the best and the worst of many responses of the base to each prompt.
    BestWorst(BestWorstTraining),
    /// The same for one policy that serves all preferences and reads each in its prompt (MORL in arXiv 2310.11564).
    Morl(MorlTraining),
    /// A Bradley-Terry reward model on JSON lines with `prompt`, `chosen` and `rejected`.
    Reward(RewardTraining),
    /// A classifier of responses that guides a model ([`mixing::strategies::Cliper`]).
    Classifier(ClassifierTraining),
    /// A Preference Control Model over trained experts.
    Pcm(PcmTraining),
}

impl Recipe {
    /// The scorers that it rewards by.
    pub fn scorers(&self) -> Vec<&Scorer> {
        let dimensions = match self {
            Self::Sft(_) | Self::Dpo(_) | Self::Reward(_) => return Vec::new(),
            Self::Rebel(t) => return t.reward.scorers().collect(),
            Self::BestWorst(t) => return t.reward.scorers().collect(),
            Self::Classifier(t) => &t.dimensions,
            Self::Morl(t) => &t.dimensions,
            Self::Pcm(t) => &t.dimensions,
        };
        dimensions.iter().map(|(_, d)| &d.scorer).collect()
    }
}

/// A training on given responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
    /// Chosen and rejected change places, so that one file of pairs serves both directions. For pairs only. Default
    /// false.
    #[serde(default)]
    pub swap: bool,
    /// How.
    #[serde(default)]
    pub settings: OfflineConfig,
}

/// A training on the model's own responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebelTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is rewarded.
    pub reward: ShapedReward,
    /// How.
    #[serde(default)]
    pub settings: RebelConfig,
}

/// A training on the best and the worst of the base's responses. They are kept in the cache, so that trainings
/// that differ only in the reward share them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestWorstTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is rewarded; differences are divided by their standard deviation over the responses to a prompt.
    pub reward: ShapedReward,
    /// Who writes the responses: `Base`, `Prompted(…)` or `Adapter(…)`; the adapter is always trained on the prompt
    /// alone. Where the base hardly ever goes a direction, a base that is told to, or an adapter that does too much,
    /// shows it. Default `[Base]`.
    #[serde(default = "base")]
    pub candidates: Vec<ExpertSpec>,
    /// Responses to each prompt by each of them. Default 8 (ours).
    #[serde(default = "eight")]
    pub samples: u64,
    /// Longest response in tokens. Default 96 (ours).
    #[serde(default = "ninety_six")]
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7.
    #[serde(default = "temperature")]
    pub temperature: f32,
    /// Taken off the reward of a response that does not end within `max_new_tokens`. Default 0.
    #[serde(default)]
    pub missing_end: f64,
    /// How.
    #[serde(default)]
    pub settings: OfflineConfig,
}

fn base() -> Vec<ExpertSpec> {
    vec![ExpertSpec::Base]
}

fn eight() -> u64 {
    8
}

fn ninety_six() -> usize {
    96
}

fn temperature() -> f32 {
    0.7
}

/// Checks how many responses are sampled, and how.
fn sampled(samples: u64, max_new_tokens: usize, temperature: f32) -> Result<(), String> {
    if samples < 2 || max_new_tokens == 0 || !(temperature > 0.0 && temperature.is_finite()) {
        return Err("samples: at least 2; max_new_tokens: at least 1; temperature: above 0".into());
    }
    Ok(())
}

/// A reward model fitted to pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
    /// How.
    #[serde(default)]
    pub settings: RewardModelConfig,
}

impl Training {
    /// Reads and checks a training file.
    ///
    /// # Errors
    /// With file, line and column where the text is wrong, with the name where the content is.
    pub fn load(path: &Path) -> Result<Self> {
        let mut training: Self = config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        training.model = model_path(folder, &training.model);
        if let Some(start) = &mut training.start {
            *start = folder.join(&*start);
        }
        match &mut training.recipe {
            Recipe::Sft(t) | Recipe::Dpo(t) => t.data = folder.join(&t.data),
            Recipe::Reward(t) => t.data = folder.join(&t.data),
            Recipe::Rebel(t) => {
                t.prompts = folder.join(&t.prompts);
                t.reward.resolve(folder);
            }
            Recipe::BestWorst(t) => {
                t.prompts = folder.join(&t.prompts);
                t.reward.resolve(folder);
                for candidate in &mut t.candidates {
                    resolve_expert(folder, candidate);
                }
            }
            Recipe::Classifier(t) => {
                t.prompts = folder.join(&t.prompts);
                for (_, expert) in t.experts.iter_mut() {
                    resolve_expert(folder, expert);
                }
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
            Recipe::Morl(t) => {
                t.prompts = folder.join(&t.prompts);
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
            Recipe::Pcm(t) => {
                t.prompts = folder.join(&t.prompts);
                t.texts = folder.join(&t.texts);
                t.pretrained = t.pretrained.as_ref().map(|m| model_path(folder, m));
                t.records.iter_mut().for_each(|r| *r = folder.join(&*r));
                for (_, expert) in t.experts.iter_mut() {
                    resolve_expert(folder, expert);
                }
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
        }
        let wrong = |e: String| usage(format!("{}: {e}", path.display()));
        training.validate().map_err(wrong)?;
        Ok(training)
    }

    /// Takes another seed, and what is named after it.
    pub fn seeded(mut self, seed: Option<u64>) -> Self {
        self.seed = seed.unwrap_or(self.seed);
        if let Recipe::Pcm(t) = &mut self.recipe {
            for folder in &mut t.records {
                let name = folder.to_string_lossy();
                *folder = name.replace("{seed}", &self.seed.to_string()).into();
            }
        }
        self
    }

    /// Checks what the file says.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        plain("name", &self.name).map_err(|e| e.to_string())?;
        if !matches!(self.weights, Format::F32 | Format::Bf16) {
            return Err(format!(
                "weights: {:?}: F32 or Bf16 in training",
                self.weights
            ));
        }
        self.lora.validate().map_err(|e| format!("lora: {e}"))?;
        if !(self.strength > 0.0 && self.strength.is_finite()) {
            return Err(format!(
                "strength is {}, not a number above 0",
                self.strength
            ));
        }
        let settings = match &self.recipe {
            Recipe::Sft(t) if t.swap => Err("swap is for pairs".into()),
            Recipe::Sft(t) | Recipe::Dpo(t) => t.settings.validate(),
            Recipe::Rebel(t) => {
                t.reward.validate().map_err(|e| format!("reward: {e}"))?;
                t.settings.validate()
            }
            Recipe::BestWorst(t) => {
                t.reward.validate().map_err(|e| format!("reward: {e}"))?;
                sampled(t.samples, t.max_new_tokens, t.temperature)?;
                if !(t.missing_end >= 0.0 && t.missing_end.is_finite()) {
                    let given = t.missing_end;
                    return Err(format!("missing_end is {given}, not a number from 0 on"));
                }
                let own =
                    |c: &ExpertSpec| !matches!(c, ExpertSpec::Full(_) | ExpertSpec::Limited { .. });
                if t.candidates.is_empty() || !t.candidates.iter().all(own) {
                    return Err(
                        "candidates: one or more of Base, Prompted(…) and Adapter(…)".into(),
                    );
                }
                t.settings.validate()
            }
            Recipe::Morl(t) => return t.validate(),
            Recipe::Classifier(t) => return t.validate(),
            Recipe::Reward(t) => t.settings.validate(),
            Recipe::Pcm(t) => return t.validate(),
        };
        settings.map_err(|e| format!("settings: {e}"))
    }
}
