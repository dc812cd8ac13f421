//! The training file: what a user writes, read from RON and checked before anything is loaded.
//!
//! ```
//! use std::path::Path;
//!
//! use harness::config::parse;
//! use mope_training::file::{Recipe, Training};
//!
//! let text = r#"(
//!     name: "friendly",
//!     model: "smollm2-135m-instruct",
//!     recipe: Sft(data: "responses.jsonl", settings: (epochs: 5)),
//! )"#;
//! let training: Training = parse(Path::new("friendly.ron"), text)?;
//! assert!(matches!(&training.recipe, Recipe::Sft(sft) if sft.settings.epochs == 5));
//! // It learns from given responses, so nothing scores.
//! assert!(training.recipe.scorers().is_empty());
//! # anyhow::Ok(())
//! ```

mod classifier;
mod morl;
mod pcm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use eval::rewards::{RewardModelConfig, Scorer, ShapedReward};
use experts::ExpertSpec;
use experts::training::offline::OfflineConfig;
use experts::training::rebel::RebelConfig;
use lm::parameter::{above_zero, at_least_one, from_zero_on};
use lm::save::Precision;
use lm::source::hub::located_folder;
use lm::tuning::LoraConfig;
use lm::{DeviceSpec, Format};
use serde::{Deserialize, Serialize};

pub use self::classifier::ClassifierTraining;
pub use self::morl::MorlTraining;
pub use self::pcm::{PcmInput, PcmSettings, PcmTraining, Preferences, Shape};

use harness::config::{self, model_path, validate_name};
use harness::experiment::{NEW_TOKENS, SAMPLES};
use harness::failure::usage;

/// A training file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Names its folder, `runs/train/<name>`.
    pub name: String,
    /// All randomness follows from it. Default 0 (ours).
    #[serde(default)]
    pub seed: u64,
    /// Base model, by registered name, path (relative to this file) or id of the hub (`owner/name`).
    pub model: String,
    /// Where it samples, scores and fits. Default: this program's own engine on the processor. A training that began on
    /// one device may go on, on another.
    #[serde(default)]
    pub device: DeviceSpec,
    /// Number format of gradients' products, `F32` or `Bf16`. Default `F32`. (`weights` before.)
    #[serde(default, alias = "weights")]
    pub format: Format,
    /// Number format of the model that samples. Default `Bf16` (near the policy that is trained). (`sampling_weights`
    /// before.)
    #[serde(default = "default_sampling_format", alias = "sampling_weights")]
    pub sampling_format: Format,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Adapter to start from, a PEFT folder of the same shape, perhaps on the hub; else a fresh one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// What the written adapter's update is multiplied with. Default 1. Where a training moved the right way but
    /// not far enough, a larger one, chosen on validation prompts, goes further at no cost.
    #[serde(default = "default_strength")]
    pub strength: f32,
    /// Number format of the adapter that is written. Default `F16` (ours: half the size, three digits).
    #[serde(default = "default_precision")]
    pub precision: Precision,
    /// What is trained, on what and how.
    pub recipe: Recipe,
}

fn default_sampling_format() -> Format {
    Format::Bf16
}

fn default_strength() -> f32 {
    1.0
}

fn default_precision() -> Precision {
    Precision::F16
}

/// What a training makes, and by which method.
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
    /// As `BestWorst`, for one policy that serves all preferences and reads each in its prompt (MORL in arXiv 2310.11564).
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
    /// Swaps chosen and rejected, so that one file of pairs serves both directions. For pairs only. Default `false`.
    #[serde(default)]
    pub swap: bool,
    /// Epochs, minibatch and optimiser.
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
    /// Iterations, responses and optimiser.
    #[serde(default)]
    pub settings: RebelConfig,
}

/// A training on the best and the worst of the base's responses. They are kept in the cache; trainings that differ
/// only in the reward share them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestWorstTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is rewarded; differences are divided by their standard deviation over the responses to a prompt.
    pub reward: ShapedReward,
    /// Who writes the responses: `Base`, `Prompted(…)` or `Adapter(…)`. The adapter is always trained on the prompt
    /// alone. A prompted base, or an adapter that overdoes it, helps where the base hardly ever answers in the wanted
    /// way. Default `[Base]`.
    #[serde(default = "default_candidates")]
    pub candidates: Vec<ExpertSpec>,
    /// Responses to each prompt by each of them. Default 8 (ours).
    #[serde(default = "default_samples")]
    pub samples: u64,
    /// Longest response in tokens. Default 96 (ours).
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7.
    #[serde(default = "default_temperature")]
    pub temperature: f32,
    /// Taken off the reward of a response that does not end within `max_new_tokens`. Default 0.
    #[serde(default)]
    pub missing_end: f64,
    /// Epochs, minibatch and optimiser.
    #[serde(default)]
    pub settings: OfflineConfig,
}

fn default_candidates() -> Vec<ExpertSpec> {
    vec![ExpertSpec::Base]
}

fn default_samples() -> u64 {
    8
}

fn default_max_new_tokens() -> usize {
    96
}

fn default_temperature() -> f32 {
    0.7
}

/// Checks how many responses are sampled, and how.
///
/// # Errors
/// [`lm::Error::Parameter`] for the first that makes no sense.
fn check_sampling(samples: u64, max_new_tokens: usize, temperature: f32) -> lm::Result<()> {
    if samples < 2 {
        return Err(lm::Error::parameter("samples", samples, "at least 2"));
    }
    if samples > SAMPLES as u64 || max_new_tokens > NEW_TOKENS {
        let largest = format!("{samples} and {max_new_tokens}");
        return Err(lm::Error::parameter(
            "samples and max_new_tokens",
            largest,
            "65,536 and 16,777,216 at most",
        ));
    }
    at_least_one([("max_new_tokens", max_new_tokens as u64)])?;
    above_zero("temperature", temperature)
}

/// A reward model fitted to pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
    /// Size of the head, steps and optimiser of the fit.
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
            *start = located_folder(folder, start);
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
                    candidate.resolve(folder);
                }
            }
            Recipe::Classifier(t) => {
                t.prompts = folder.join(&t.prompts);
                for (_, expert) in t.experts.iter_mut() {
                    expert.resolve(folder);
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
                    expert.resolve(folder);
                }
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
        }
        let wrong = |e| usage(format!("{}: {e:#}", path.display()));
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

    /// The same training on the default device: what it learns, wherever it is carried out.
    pub(crate) fn anywhere(&self) -> Self {
        Self {
            device: DeviceSpec::default(),
            ..self.clone()
        }
    }

    /// Checks that the device is there, and that it computes in the number formats that the recipe uses.
    ///
    /// # Errors
    /// [`harness::failure::Usage`] with the device or the format, and what would do.
    pub fn check_device(&self) -> Result<()> {
        let device = &self.device;
        device
            .offers(Format::F32)
            .map_err(|e| usage(format!("device: {e}")))?;
        let (samples, tunes) = match &self.recipe {
            Recipe::Sft(_) | Recipe::Dpo(_) => (false, true),
            Recipe::Reward(_) => (false, false),
            Recipe::Classifier(_) | Recipe::Pcm(_) => (true, false),
            Recipe::Rebel(_) | Recipe::BestWorst(_) | Recipe::Morl(_) => (true, true),
        };
        let used = [
            ("format", tunes, self.format),
            ("sampling_format", samples, self.sampling_format),
        ];
        for (name, _, format) in used.into_iter().filter(|(_, used, _)| *used) {
            let offered = device.offers(format);
            offered.map_err(|e| usage(format!("{name} on device {device}: {e}")))?;
        }
        Ok(())
    }

    /// Checks what the file says.
    ///
    /// # Errors
    /// The first thing that is wrong, after the field that says it.
    pub fn validate(&self) -> Result<()> {
        validate_name("name", &self.name)?;
        ensure!(
            matches!(self.format, Format::F32 | Format::Bf16),
            "format: {:?}: F32 or Bf16 in training",
            self.format
        );
        self.lora.validate().context("lora")?;
        above_zero("strength", self.strength)?;
        match &self.recipe {
            Recipe::Sft(t) => {
                ensure!(!t.swap, "settings: swap is for pairs");
                t.settings.validate().context("settings")
            }
            Recipe::Dpo(t) => t.settings.validate().context("settings"),
            Recipe::Rebel(t) => {
                t.reward.validate().context("reward")?;
                t.settings.validate().context("settings")
            }
            Recipe::BestWorst(t) => {
                t.reward.validate().context("reward")?;
                check_sampling(t.samples, t.max_new_tokens, t.temperature)?;
                from_zero_on("missing_end", t.missing_end)?;
                let over_base = |c: &ExpertSpec| {
                    use ExpertSpec::{Adapter, Base, Prompted};
                    matches!(c, Base | Prompted(_) | Adapter(_))
                };
                ensure!(
                    !t.candidates.is_empty() && t.candidates.iter().all(over_base),
                    "candidates: one or more of Base, Prompted(…) and Adapter(…)"
                );
                t.settings.validate().context("settings")
            }
            Recipe::Morl(t) => t.validate(),
            Recipe::Classifier(t) => t.validate(),
            Recipe::Reward(t) => t.settings.validate().context("settings"),
            Recipe::Pcm(t) => t.validate(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_training_of_the_experiments_is_read() {
        let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
        let mut read = 0;
        for folder in std::fs::read_dir(experiments).unwrap() {
            let folder = folder.unwrap().path();
            if !folder.is_dir() {
                continue;
            }
            for file in std::fs::read_dir(folder).unwrap() {
                let file = file.unwrap().path();
                if file.extension().is_none_or(|e| e != "ron") {
                    continue;
                }
                let text = std::fs::read_to_string(&file).unwrap();
                if text.contains("\n    recipe:") {
                    let training: Training = config::parse(&file, &text).unwrap();
                    assert!(!training.name.is_empty());
                    read += 1;
                }
            }
        }
        assert!(read >= 32, "{read}");
    }
}
