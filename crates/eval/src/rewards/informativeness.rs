//! Informativeness: `ln(1 + distinct content words)`.
//!
//! Distinct content words are the number of words (length) times the share of them that are neither
//! stop words (crate `stop-words`, NLTK's English list) nor repetitions (information density).
//! Saying the same twice adds nothing; the logarithm makes the tenth word worth more than the
//! hundredth.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lm::DeviceSpec;
use lm::chat::Prompt;
use unicode_segmentation::UnicodeSegmentation;

use super::{Definition, MEASURED_AT, Normaliser, Reward, Scorer};
use crate::Result;

static STOP_WORDS: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| stop_words::get("en").iter().copied().collect());

pub(super) struct Informativeness;

impl Definition for Informativeness {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Informativeness))
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn with_models(&self, _change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Informativeness
    }
}

/// The distinct words of a text that are no stop words, in lower case.
pub(super) fn content_words(text: &str) -> HashSet<String> {
    let lower = text.to_lowercase();
    let words = lower.unicode_words().filter(|w| !STOP_WORDS.contains(w));
    words.map(str::to_string).collect()
}

impl Reward for Informativeness {
    fn score(&self, _prompt: &Prompt, response: &str) -> Result<f64> {
        Ok((content_words(response).len() as f64).ln_1p())
    }

    fn normaliser(&self) -> Option<Normaliser> {
        // `raw_mean` and `raw_sd` of experiments/rewards/rewards.ron, 256 responses.
        Some(Normaliser {
            mean: 3.676,
            sd: 0.325,
        })
    }

    fn measured_at(&self) -> Option<usize> {
        Some(MEASURED_AT)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn counts_distinct_content_words() {
        let score = |text: &str| {
            Informativeness
                .score(&Prompt::Raw(String::new()), text)
                .unwrap()
        };
        assert_eq!(score("the of and to"), 0.0);
        assert_eq!(score("Light, light and more light: photons"), 2f64.ln_1p());
    }
}
