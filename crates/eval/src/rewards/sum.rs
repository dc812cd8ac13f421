//! Several scorers of one thing, each up to a cap:
//!
//! ```text
//! r(x, y) = Σ_k w_k clip((s_k(y) − mean_k) / sd_k, ±cap_k)
//! ```
//!
//! It is for trainings: a response that games one scorer gains nothing from the others.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use serde::{Deserialize, Serialize};

use super::{Definition, Normaliser, Reward, Scorer};
use crate::{Error, Result};

/// One scorer's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// What measures it.
    pub scorer: Scorer,
    /// Weight; negative where less is wanted.
    pub weight: f64,
    /// The score is capped at this many standard deviations. Default 2.5 (ours).
    #[serde(default = "default_cap")]
    pub cap: f64,
    /// Brings scores to unit variance. Default: the constants stored with the scorer.
    #[serde(default)]
    pub normaliser: Option<Normaliser>,
}

fn default_cap() -> f64 {
    2.5
}

/// Checks terms: their numbers, and their scorers.
///
/// # Errors
/// [`Error::NoTerms`], [`Error::Term`], or what is wrong with a scorer.
pub(super) fn check(terms: &[Term]) -> Result<()> {
    if terms.is_empty() {
        return Err(Error::NoTerms);
    }
    for term in terms {
        if !(term.weight.is_finite() && term.weight != 0.0 && term.cap > 0.0) {
            let (weight, cap) = (term.weight, term.cap);
            return Err(Error::Term { weight, cap });
        }
        term.normaliser.map_or(Ok(()), Normaliser::validate)?;
        term.scorer.validate()?;
    }
    Ok(())
}

/// The terms of a sum.
pub(super) struct Terms<'a>(pub(super) &'a [Term]);

impl Definition for Terms<'_> {
    fn open(&self, device: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Sum::open(self.0, device)?))
    }

    fn validate(&self) -> Result<()> {
        check(self.0)
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        let terms = self.0.iter().map(|term| Term {
            scorer: term.scorer.definition().with_models(change),
            ..term.clone()
        });
        Scorer::Sum(terms.collect())
    }
}

/// Terms ready to score.
pub(super) struct Sum(Vec<(Term, Box<dyn Reward>)>);

impl Sum {
    /// Opens the scorers; models run on `device`.
    ///
    /// # Errors
    /// Those of [`check`], and a scorer that cannot be opened.
    pub(super) fn open(terms: &[Term], device: &DeviceSpec) -> Result<Self> {
        check(terms)?;
        let open = |term: &Term| {
            let reward = term.scorer.open_on(device)?;
            match term.normaliser.or_else(|| reward.normaliser()) {
                Some(_) => Ok((term.clone(), reward)),
                None => Err(Error::NoNormaliser),
            }
        };
        Ok(Self(terms.iter().map(open).collect::<Result<_>>()?))
    }
}

impl Reward for Sum {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; items.len()];
        for (term, reward) in &self.0 {
            let normaliser = term.normaliser.or_else(|| reward.normaliser());
            let normaliser = normaliser.ok_or(Error::NoNormaliser)?;
            for (sum, score) in sums.iter_mut().zip(reward.score_all(items)?) {
                *sum += term.weight * normaliser.apply(score).clamp(-term.cap, term.cap);
            }
        }
        Ok(sums)
    }

    /// Leaves the sum as it is: its terms are in standard deviations already.
    fn normaliser(&self) -> Option<Normaliser> {
        Some(Normaliser { mean: 0.0, sd: 1.0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_that_of_its_capped_terms() {
        let term = |scorer: &Scorer, weight, cap| Term {
            scorer: scorer.clone(),
            weight,
            cap,
            normaliser: Some(Normaliser { mean: 1.0, sd: 0.5 }),
        };
        let prompt = Prompt::Raw("Why do bees make honey?".into());
        let texts = [
            "Thank you, that is a wonderful question!",
            "Bees store nectar.",
        ];
        let items: Vec<(&Prompt, &str)> = texts.iter().map(|t| (&prompt, *t)).collect();
        let parts = [Scorer::Informativeness, Scorer::Style];
        let sum = Scorer::Sum(vec![term(&parts[0], 0.5, 0.1), term(&parts[1], -2.0, 9.0)]);
        let sums = sum.open().unwrap().score_all(&items).unwrap();
        for (i, sum) in sums.iter().enumerate() {
            let raw = |s: &Scorer| s.open().unwrap().score(&prompt, texts[i]).unwrap();
            let (first, second) = (2.0 * (raw(&parts[0]) - 1.0), 2.0 * (raw(&parts[1]) - 1.0));
            assert!(first.abs() > 0.1 && second.abs() < 9.0);
            assert_eq!(*sum, 0.5 * first.clamp(-0.1, 0.1) - 2.0 * second);
        }
        assert!(Scorer::Sum(Vec::new()).open().is_err());
        assert!(Scorer::Sum(vec![term(&parts[0], 0.0, 1.0)]).open().is_err());
    }
}
