//! A reward to train on: scorers that stop paying beyond a cap, less what shows that a scorer is being
//! gamed.
//!
//! ```text
//! r(x, y) = Σ_k w_k clip((s_k(y) − mean_k) / sd_k, ±cap) − Σ penalties
//! ```
//!
//! A policy trained on a text scorer alone finds its holes: bursts of exclamation marks, one-word answers,
//! chains of long words. A cap takes the gain away where text stops being natural; each penalty names one hole.

use std::collections::HashSet;
use std::path::Path;

use lm::DeviceSpec;
use lm::chat::Prompt;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use super::informativeness::content_words;
use super::sum::{Sum, Term, check};
use super::{Reward, Scorer};
use crate::error::from_zero_on;
use crate::{Error, Result};

/// What a training rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapedReward {
    /// Scorers and how much each counts.
    pub terms: Vec<Term>,
    /// What is taken off.
    #[serde(default)]
    pub penalties: Penalties,
}

/// What is taken off a reward, in its unit. All are 0 by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Penalties {
    /// Per share of word trigrams that were there before.
    pub repetition: f64,
    /// Per exclamation mark and sentence beyond one in two sentences.
    pub exclamation: f64,
    /// For a response that names none of the prompt's content words; half of them found is enough.
    pub irrelevance: f64,
    /// Per doubling or halving of the number of words beyond `words`.
    pub length: f64,
    /// Fewest and most words that cost nothing. Default (20, 120) (ours).
    pub words: Words,
}

/// A range of response lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words(pub u32, pub u32);

impl Default for Words {
    fn default() -> Self {
        Self(20, 120)
    }
}

/// Share of a text's word trigrams that it had before, in 0..1.
///
/// ```
/// assert_eq!(mope_eval::rewards::repeated_trigrams("a b c a b c"), 0.25);
/// ```
pub fn repeated_trigrams(text: &str) -> f64 {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.unicode_words().collect();
    let all = words.windows(3);
    let distinct: HashSet<&[&str]> = all.clone().collect();
    match all.len() {
        0 => 0.0,
        n => 1.0 - distinct.len() as f64 / n as f64,
    }
}

/// A [`ShapedReward`] ready to score.
pub struct Shaped {
    terms: Sum,
    penalties: Penalties,
}

impl ShapedReward {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::NoTerms`] and [`Error::Term`], [`Error::Parameter`] for a penalty below 0, [`Error::EmptyRange`].
    pub fn validate(&self) -> Result<()> {
        check(&self.terms)?;
        let p = &self.penalties;
        from_zero_on("penalties: repetition", p.repetition)?;
        from_zero_on("penalties: exclamation", p.exclamation)?;
        from_zero_on("penalties: irrelevance", p.irrelevance)?;
        from_zero_on("penalties: length", p.length)?;
        let Words(low, high) = p.words;
        if low > high {
            let name = "words";
            return Err(Error::EmptyRange { name, low, high });
        }
        Ok(())
    }

    /// The scorers of its terms.
    pub fn scorers(&self) -> impl Iterator<Item = &Scorer> {
        self.terms.iter().map(|term| &term.scorer)
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        for term in &mut self.terms {
            term.scorer.resolve(folder);
        }
    }

    /// Opens the scorers; models run on `device`.
    ///
    /// # Errors
    /// Those of [`Self::validate`], and a scorer that cannot be opened.
    pub fn open(&self, device: &DeviceSpec) -> Result<Shaped> {
        self.validate()?;
        Ok(Shaped {
            terms: Sum::open(&self.terms, device)?,
            penalties: self.penalties,
        })
    }
}

impl Shaped {
    /// The terms alone, without penalties: how far the response went the wanted way.
    ///
    /// # Errors
    /// Those of [`Reward::score`].
    pub fn gain(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        self.terms.score(prompt, response)
    }

    /// What is taken off.
    pub fn penalty(&self, prompt: &Prompt, response: &str) -> f64 {
        let p = &self.penalties;
        let sentences = response.unicode_sentences().count().max(1) as f64;
        let marks = response.matches('!').count() as f64 / sentences;
        let words = (response.unicode_words().count() as f64).max(1.0);
        let Words(fewest, most) = p.words;
        let beyond = (f64::from(fewest) / words).max(words / f64::from(most.max(1)));
        let asked = content_words(prompt.question());
        let said = content_words(response);
        let named = asked.iter().filter(|w| said.contains(*w)).count() as f64;
        let relevant = match asked.len() {
            0 => 1.0,
            n => (2.0 * named / n as f64).min(1.0),
        };
        p.repetition * repeated_trigrams(response)
            + p.exclamation * (marks - 0.5).max(0.0)
            + p.irrelevance * (1.0 - relevant)
            + p.length * beyond.log2().max(0.0)
    }

    /// Gain less penalty.
    ///
    /// # Errors
    /// Those of [`Reward::score`].
    pub fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.gain(prompt, response)? - self.penalty(prompt, response))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn shaped(penalties: Penalties) -> Shaped {
        let term = Term {
            scorer: Scorer::Style,
            weight: 1.0,
            cap: 1.5,
            normaliser: None,
        };
        let terms = vec![term];
        let reward = ShapedReward { terms, penalties };
        reward.open(&DeviceSpec::default()).unwrap()
    }

    #[test]
    fn caps_and_penalties_work_as_described() {
        let prompt = Prompt::Raw("Why do bees make honey?".into());
        let free = shaped(Penalties::default());
        let burst = "Wonderful! Great! Thank you! Amazing! Lovely! Perfect!";
        assert_eq!(free.score(&prompt, burst).unwrap(), 1.5);
        let strict = shaped(Penalties {
            repetition: 5.0,
            exclamation: 1.0,
            irrelevance: 1.0,
            length: 1.0,
            words: Words(14, 100),
        });
        // One mark a sentence is half too many; no bee, no honey; 7 words are one halving below 14.
        assert_eq!(strict.penalty(&prompt, burst), 0.5 + 1.0 + 1.0);
        let answer = "Bees make honey so that the whole hive has food in the cold winter months.";
        assert_eq!(strict.penalty(&prompt, answer), 0.0);
    }

    #[test]
    fn nonsense_is_refused() {
        let none = ShapedReward {
            terms: vec![],
            penalties: Penalties::default(),
        };
        assert!(none.open(&DeviceSpec::default()).is_err());
    }
}
