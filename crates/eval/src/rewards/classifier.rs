//! A classifier of the hub: log-odds of one of its labels,
//!
//! `s(x, y) = z_l − ln Σ_{k ≠ l} exp z_k`, and `z_l` where each label is a question of its own,
//!
//! of the response, or of prompt and response as a pair.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use lm::encoders::{Text, TextClassifier};
use serde::{Deserialize, Serialize};

use super::relevance::is_there;
use super::{Definition, Reward, Scorer};
use crate::{Error, Result};

/// A label of a classifier as transformers saves it: BERT, RoBERTa, DistilBERT, DeBERTa-v3, ModernBERT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// Its folder.
    pub model: PathBuf,
    /// The label by name, or by its number from 0. May be left out where there is one.
    #[serde(default)]
    pub label: Option<String>,
    /// It reads the prompt before the response. Default: the response alone.
    #[serde(default)]
    pub pair: bool,
    /// Where it runs. Default `Cpu`.
    #[serde(default)]
    pub device: DeviceSpec,
}

/// Number of a label by its name or number, or of the only one.
///
/// # Errors
/// [`Error::Label`] for one that is not there, and for none where there are several.
pub(super) fn label(folder: &Path, label: Option<&str>, labels: &[String]) -> Result<usize> {
    let number = match label {
        None => (labels.len() == 1).then_some(0),
        Some(label) => {
            let named = labels.iter().position(|name| name == label);
            named.or_else(|| label.parse().ok().filter(|n| *n < labels.len()))
        }
    };
    number.ok_or_else(|| Error::Label {
        folder: folder.into(),
        label: label.map(String::from),
        labels: labels.to_vec(),
    })
}

impl Definition for &Classifier {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        let classifier = TextClassifier::open(&self.model, &self.device)?;
        let label = label(&self.model, self.label.as_deref(), classifier.labels())?;
        Ok(Box::new(Odds {
            classifier,
            label,
            pair: self.pair,
        }))
    }

    fn validate(&self) -> Result<()> {
        is_there(&self.model)
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Classifier(Classifier {
            model: change(&self.model),
            ..(*self).clone()
        })
    }
}

struct Odds {
    classifier: TextClassifier,
    label: usize,
    pair: bool,
}

impl Reward for Odds {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let text = |(prompt, response): &(&'_ Prompt, &'_ str)| -> (String, Option<String>) {
            match self.pair {
                true => (prompt.question().into(), Some((*response).into())),
                false => ((*response).into(), None),
            }
        };
        let texts: Vec<(String, Option<String>)> = items.iter().map(text).collect();
        let texts: Vec<Text<'_>> = texts
            .iter()
            .map(|(text, pair)| (text.as_str(), pair.as_deref()))
            .collect();
        Ok(self.classifier.log_odds(&texts, self.label)?)
    }
}
