//! Style: friendliness as sentiment and politeness.
//!
//! The mean over sentences of VADER's compound sentiment (Hutto & Gilbert 2014; crate
//! `vader-sentimental`), in −1..1, plus the share of sentences with a polite word minus the share with
//! a rude one. Sentences are averaged, so more of the same does not raise the score.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use unicode_segmentation::UnicodeSegmentation;
use vader_sentimental::SentimentIntensityAnalyzer;

use super::{Definition, MEASURED_AT, Normaliser, Reward, Scorer};
use crate::Result;

/// Markers of politeness and warmth towards the reader (ours, after Danescu-Niculescu-Mizil et al.
/// 2013: gratitude, deference, greeting, apologising, please).
const POLITE: [&str; 18] = [
    "please",
    "thank you",
    "thanks",
    "welcome",
    "glad to",
    "happy to",
    "hope this helps",
    "feel free",
    "great question",
    "good question",
    "of course",
    "sorry",
    "i'd love",
    "hello",
    "hi there",
    "my friend",
    "enjoy",
    "good luck",
];

/// Markers of rudeness (ours).
const RUDE: [&str; 14] = [
    "stupid",
    "idiot",
    "shut up",
    "obviously",
    "whatever",
    "don't waste",
    "i don't care",
    "pathetic",
    "ridiculous",
    "dumb",
    "nonsense",
    "go away",
    "none of your business",
    "figure it out",
];

pub(super) struct Style;

impl Definition for Style {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(StyleReward::new()))
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn with_models(&self, _change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Style
    }
}

struct StyleReward {
    sentiment: SentimentIntensityAnalyzer<'static>,
}

impl StyleReward {
    fn new() -> Self {
        Self {
            sentiment: SentimentIntensityAnalyzer::new(),
        }
    }
}

/// Whether `text` holds `marker` as whole words.
fn says(text: &str, marker: &str) -> bool {
    let word = |c: char| c.is_alphanumeric();
    text.match_indices(marker).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + marker.len()..].chars().next();
        !before.is_some_and(word) && !after.is_some_and(word)
    })
}

impl Reward for StyleReward {
    fn score(&self, _prompt: &Prompt, response: &str) -> Result<f64> {
        let mut total = 0.0;
        let mut sentences = 0u32;
        for sentence in response.unicode_sentences() {
            let lower = sentence.to_lowercase().replace('’', "'");
            let any = |markers: &[&str]| markers.iter().any(|m| says(&lower, m));
            let manners = f64::from(u8::from(any(&POLITE))) - f64::from(u8::from(any(&RUDE)));
            total += self.sentiment.polarity_scores(sentence).compound + manners;
            sentences += 1;
        }
        Ok(total / f64::from(sentences.max(1)))
    }

    fn normaliser(&self) -> Option<Normaliser> {
        // `raw_mean` and `raw_sd` of experiments/rewards/rewards.ron, 256 responses.
        Some(Normaliser {
            mean: 0.196,
            sd: 0.228,
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
    fn warm_is_above_plain_is_above_rude() {
        let style = StyleReward::new();
        let score = |text: &str| style.score(&Prompt::Raw(String::new()), text).unwrap();
        let warm = score("Great question, thank you! I'm so happy to help. Enjoy your day!");
        let plain = score("Water boils at 100 degrees. The pressure matters.");
        let rude = score("That is a stupid question. Figure it out yourself, idiot.");
        assert!(
            warm > plain + 0.5 && plain > rude + 0.5,
            "{warm} {plain} {rude}"
        );
        assert_eq!(score(""), 0.0);
        assert!(!says("unplease", "please") && says("yes, please.", "please"));
    }
}
