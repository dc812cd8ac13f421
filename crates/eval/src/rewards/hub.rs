//! A reward model of the hub: a score of a decoder with a head of scores, `…ForSequenceClassification`, asked in its
//! chat template (Skywork-Reward and its like).

use std::path::{Path, PathBuf};

use lm::chat::Prompt;
use lm::scored::ScoredModel;
use lm::{DeviceSpec, Format};
use serde::{Deserialize, Serialize};

use super::classifier::label;
use super::relevance::is_there;
use super::{Definition, Reward, Scorer};
use crate::Result;

/// A reward model as transformers saves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubReward {
    /// Its folder.
    pub model: PathBuf,
    /// The score by its label's name, or by its number from 0. May be left out where there is one.
    #[serde(default)]
    pub label: Option<String>,
    /// Where it runs. Default `Cpu`.
    #[serde(default)]
    pub device: DeviceSpec,
    /// Number format of its matrices. Default `Bf16`, as such models are published.
    #[serde(default = "bf16")]
    pub format: Format,
}

fn bf16() -> Format {
    Format::Bf16
}

impl Definition for &HubReward {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        let model = ScoredModel::open(&self.model, &self.device, self.format)?;
        let label = label(&self.model, self.label.as_deref(), model.labels())?;
        Ok(Box::new(Score { model, label }))
    }

    fn validate(&self) -> Result<()> {
        is_there(&self.model)
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::RewardModel(HubReward {
            model: change(&self.model),
            ..(*self).clone()
        })
    }
}

struct Score {
    model: ScoredModel,
    label: usize,
}

impl Reward for Score {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let scores = self.model.scores(items)?;
        Ok(scores
            .iter()
            .map(|row| f64::from(row[self.label]))
            .collect())
    }
}
