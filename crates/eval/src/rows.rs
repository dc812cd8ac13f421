//! Result rows: responses and their scores. Nothing here depends on time or machine: the same seed gives
//! the same bytes. With the feature `tables` they become data frames and come back.
//!
//! ```
//! use mope_eval::rows::{DimensionScore, Identity, ScoreRow};
//! let warmth = DimensionScore { raw: 0.6, reward: 1.8, reference: 0.3, stated: 1.0 };
//! let row = ScoreRow {
//!     identity: Identity {
//!         strategy: "pcm".into(),
//!         preference: "friendly".into(),
//!         prompt: "sky".into(),
//!         sample: 0,
//!     },
//!     utility: 0.82,
//!     tokens: 41,
//!     ended: true,
//!     repetition: 0.0,
//!     kl: None,
//!     base_nll: None,
//!     dimensions: [("warmth".to_string(), warmth)].into(),
//! };
//! assert!(row.dimensions["warmth"].reward > row.dimensions["warmth"].reference);
//! ```

#[cfg(feature = "tables")]
mod frames;

use std::collections::{BTreeMap, HashSet};

#[cfg(feature = "tables")]
pub use frames::{generations, generations_frame, scores, scores_frame};

/// What names a response: strategy, preference, prompt and sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Strategy by its name in the config.
    pub strategy: String,
    /// Preference by its name in the config.
    pub preference: String,
    /// Prompt by its id.
    pub prompt: String,
    /// Number of the sample, from 0.
    pub sample: u32,
}

/// What is told of a response in every dimension, in the order of the columns.
pub(crate) const SCORES: [&str; 4] = ["raw", "reward", "reference", "stated"];

/// One response.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRow {
    /// What names it.
    pub identity: Identity,
    /// The question as people read it.
    pub question: String,
    /// The response's text, without special tokens.
    pub response: String,
    /// Token ids, the end token included.
    pub tokens: Vec<u32>,
    /// The text that each token added.
    pub pieces: Vec<String>,
    /// Log-probability of each token under the mixture, in nats; empty where the response was made elsewhere.
    pub log_probs: Vec<f32>,
    /// Kullback-Leibler divergence of the mixture from the base at each token, in nats; empty where it
    /// was not measured.
    pub kl: Vec<f32>,
    /// Log-probability of each token under the base, in nats; empty where it was not measured.
    pub base_log_probs: Vec<f32>,
    /// Names of the experts, in the order of the weights.
    pub experts: Vec<String>,
    /// Weights, `[tokens, experts]`, row-major.
    pub weights: Vec<f32>,
    /// It ended by itself.
    pub ended: bool,
}

/// A response's scores in one dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DimensionScore {
    /// In the scorer's own unit.
    pub raw: f64,
    /// Normalised, growing towards the high end.
    pub reward: f64,
    /// The reference response's normalised reward.
    pub reference: f64,
    /// Share of this dimension in the preference: positive for its high end, negative for its low
    /// one, 0 when it is not stated.
    pub stated: f64,
}

/// The scores of one response.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRow {
    /// What names it.
    pub identity: Identity,
    /// Utility, as the config defines it.
    pub utility: f64,
    /// Length in tokens.
    pub tokens: u32,
    /// It ended by itself.
    pub ended: bool,
    /// Share of its token trigrams that came before in it ([`crate::metrics::repetition`]).
    pub repetition: f64,
    /// Kullback-Leibler divergence from the base summed over its tokens, in nats; `None` where it was not
    /// measured.
    pub kl: Option<f64>,
    /// Its negative log-probability under the base, summed over its tokens, in nats; `None` where it was
    /// not measured.
    pub base_nll: Option<f64>,
    /// Scores by dimension.
    pub dimensions: BTreeMap<String, DimensionScore>,
}

impl GenerationRow {
    /// Checks that every list has a value for each token.
    ///
    /// # Errors
    /// In words: the list that has another length.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let tokens = self.tokens.len();
        let measured = |values: &Vec<f32>| match values.is_empty() {
            // Not measured.
            true => tokens,
            false => values.len(),
        };
        // No expert: it was made elsewhere.
        let log_probs = match self.experts.is_empty() {
            true => measured(&self.log_probs),
            false => self.log_probs.len(),
        };
        let lengths = [
            ("pieces", self.pieces.len(), tokens),
            ("log_probs", log_probs, tokens),
            ("kl", measured(&self.kl), tokens),
            ("base_log_probs", measured(&self.base_log_probs), tokens),
            ("weights", self.weights.len(), tokens * self.experts.len()),
        ];
        match lengths
            .into_iter()
            .find(|(_, length, expected)| length != expected)
        {
            None => Ok(()),
            Some((name, length, expected)) => Err(format!(
                "{name} has {length} values, not {expected}: {tokens} tokens, {} experts",
                self.experts.len()
            )),
        }
    }
}

/// The first identity that comes twice.
///
/// ```
/// use mope_eval::rows::{Identity, twice};
/// let of = |prompt: &str| Identity {
///     strategy: "pcm".into(),
///     preference: "kind".into(),
///     prompt: prompt.into(),
///     sample: 0,
/// };
/// let (sky, bees) = (of("sky"), of("bees"));
/// assert_eq!(twice([&sky, &bees]), None);
/// assert_eq!(twice([&sky, &bees, &sky]), Some(&sky));
/// ```
pub fn twice<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> Option<&'a Identity> {
    let mut seen = HashSet::new();
    identities
        .into_iter()
        .find(|identity| !seen.insert(*identity))
}

/// What of the rows is NaN or infinite and counts as missing, a sentence for each strategy and column.
pub fn missing(generations: &[GenerationRow], scores: &[ScoreRow]) -> Vec<String> {
    let mut lost: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut all: BTreeMap<&str, usize> = BTreeMap::new();
    let mut look = |identity: &Identity, column: String, finite: bool| {
        if !finite {
            *lost.entry((identity.strategy.clone(), column)).or_default() += 1;
        }
    };
    for row in generations {
        let lists = [
            ("log_probs", &row.log_probs),
            ("kl by token", &row.kl),
            ("base_log_probs", &row.base_log_probs),
            ("weights", &row.weights),
        ];
        for (name, values) in lists {
            let finite = values.iter().all(|v| v.is_finite());
            look(&row.identity, name.into(), finite);
        }
    }
    for row in scores {
        *all.entry(&row.identity.strategy).or_default() += 1;
        let numbers = [
            ("utility", Some(row.utility)),
            ("repetition", Some(row.repetition)),
            ("kl", row.kl),
            ("base_nll", row.base_nll),
        ];
        for (name, value) in numbers {
            let finite = value.is_none_or(f64::is_finite);
            look(&row.identity, name.into(), finite);
        }
        for (dimension, score) in &row.dimensions {
            let values = [score.raw, score.reward, score.reference, score.stated];
            for (kind, value) in SCORES.iter().zip(values) {
                look(
                    &row.identity,
                    format!("{kind}_{dimension}"),
                    value.is_finite(),
                );
            }
        }
    }
    let sentence = |((strategy, column), n): (&(String, String), &usize)| {
        let of = all.get(strategy.as_str()).copied().unwrap_or(0);
        format!(
            "strategy '{strategy}': {column} is NaN or infinite in {n} of {of} responses; these count as missing."
        )
    };
    lost.iter().map(sentence).collect()
}
