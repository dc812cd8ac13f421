//! Relevance: the cosine of the angle between the vectors of a prompt and of a response,
//!
//! `s(x, y) = e(x) · e(y) / (|e(x)| |e(y)|)`,
//!
//! by a sentence encoder that no training here has seen. By default all-MiniLM-L6-v2 (Sentence-BERT, arXiv 1908.10084).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use lm::encoders::{SentenceEncoder, cosine};
use lm::source::Registry;
use serde::{Deserialize, Serialize};

use super::{Definition, Reward, Scorer};
use crate::{Error, Result};

/// The encoder by its registered name where none is given.
const ENCODER: &str = "all-minilm-l6-v2";

/// How near a response is to its prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relevance {
    /// Folder of a sentence encoder. Default: all-MiniLM-L6-v2, fetched once.
    pub model: Option<PathBuf>,
    /// Where it runs. Default `Cpu`.
    pub device: DeviceSpec,
}

/// Checks that a folder holds a model as transformers saves it.
pub(super) fn is_there(folder: &Path) -> Result<()> {
    let config = folder.join("config.json");
    match config.is_file() {
        true => Ok(()),
        false => Err(Error::NoHubModel { config }),
    }
}

impl Definition for &Relevance {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        let folder = match &self.model {
            Some(folder) => folder.clone(),
            None => Registry::load()?.resolve(ENCODER, &mut |_, _, _| ())?,
        };
        Ok(Box::new(Encoded(SentenceEncoder::open(
            &folder,
            &self.device,
        )?)))
    }

    fn validate(&self) -> Result<()> {
        self.model.as_deref().map_or(Ok(()), is_there)
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Relevance(Relevance {
            model: self.model.as_deref().map(change),
            ..(*self).clone()
        })
    }
}

struct Encoded(SentenceEncoder);

impl Reward for Encoded {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    /// Texts that come several times, as prompts do, are read once.
    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let mut texts: Vec<&str> = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let both = items
            .iter()
            .flat_map(|(prompt, text)| [prompt.question(), *text]);
        for text in both {
            numbers.entry(text).or_insert_with(|| {
                texts.push(text);
                texts.len() - 1
            });
        }
        let vectors = self.0.embed(&texts)?;
        let of = |text: &str| &vectors[numbers[text]];
        let scores = items
            .iter()
            .map(|(prompt, text)| cosine(of(prompt.question()), of(text)));
        Ok(scores.collect())
    }
}
