//! Readability: the Flesch-Kincaid grade level (Kincaid et al. 1975),
//! `0.39 words/sentences + 11.8 syllables/words − 15.59`, in US school years, by the crate
//! `textstat`.
//!
//! Kept between 0 and 24: a list without full stops is one endless sentence to the formula, and must
//! not outweigh all else.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;

use super::{Definition, MEASURED_AT, Normaliser, Reward, Scorer};
use crate::Result;

pub(super) struct Readability;

impl Definition for Readability {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Readability))
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn with_models(&self, _change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Readability
    }
}

impl Reward for Readability {
    fn score(&self, _prompt: &Prompt, response: &str) -> Result<f64> {
        // A line is at least a sentence: models write headings and lists without full stops.
        let mut text = String::with_capacity(response.len() + 8);
        for line in response.lines().map(str::trim).filter(|l| !l.is_empty()) {
            text.push_str(line);
            text.push_str(if line.ends_with(['.', '!', '?', ':', ';']) {
                " "
            } else {
                ". "
            });
        }
        Ok(textstat::flesch_kincaid_grade(&text).clamp(0.0, 24.0))
    }

    fn normaliser(&self) -> Option<Normaliser> {
        // `raw_mean` and `raw_sd` of experiments/rewards/rewards.ron, 256 responses.
        Some(Normaliser {
            mean: 10.092,
            sd: 3.579,
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
    fn harder_text_scores_higher() {
        let score = |text: &str| {
            Readability
                .score(&Prompt::Raw(String::new()), text)
                .unwrap()
        };
        let easy = "The cat sat on the mat. It was a big cat. The cat was happy.";
        let hard = "Epistemological considerations necessitate a comprehensive reinterpretation of \
                    phenomenological methodologies.";
        assert_eq!(score(""), 0.0);
        assert!(score(easy) < 3.0, "{}", score(easy));
        assert_eq!(score(hard), 24.0);
        // "one two three": 0.39 · 3 + 11.8 · 3/3 − 15.59 is below 0.
        assert_eq!(score("one two three"), 0.0);
    }
}
