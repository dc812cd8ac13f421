//! The training file: what a user writes, read from RON and checked before anything is loaded.

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::rewards::ShapedReward;
use experts::training::offline::OfflineConfig;
use experts::training::rebel::RebelConfig;
use lm::Weights;
use lm::save::Precision;
use lm::tuning::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::config::{self, model_path, plain};
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
    pub weights: Weights,
    /// Number format of the model that samples. Default `Bf16` (near the policy that is trained).
    #[serde(default = "bf16")]
    pub sampling_weights: Weights,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Adapter to start from, a PEFT folder of the same shape; else a fresh one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// Number format of the adapter that is written. Default `F16` (ours: half the size, three digits).
    #[serde(default = "f16")]
    pub precision: Precision,
    /// What is done.
    pub recipe: Recipe,
}

fn bf16() -> Weights {
    Weights::Bf16
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
    /// REBEL on the model's own responses.
    Rebel(RebelTraining),
}

/// A training on given responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
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
            Recipe::Rebel(t) => t.prompts = folder.join(&t.prompts),
        }
        let wrong = |e: String| usage(format!("{}: {e}", path.display()));
        training.validate().map_err(wrong)?;
        Ok(training)
    }

    fn validate(&self) -> Result<(), String> {
        plain("name", &self.name).map_err(|e| e.to_string())?;
        if !matches!(self.weights, Weights::F32 | Weights::Bf16) {
            return Err(format!(
                "weights: {:?}: F32 or Bf16 in training",
                self.weights
            ));
        }
        self.lora.validate().map_err(|e| format!("lora: {e}"))?;
        let settings = match &self.recipe {
            Recipe::Sft(t) | Recipe::Dpo(t) => t.settings.validate(),
            Recipe::Rebel(t) => {
                t.reward.open().map_err(|e| format!("reward: {e}"))?;
                t.settings.validate()
            }
        };
        settings.map_err(|e| format!("settings: {e}"))
    }
}
