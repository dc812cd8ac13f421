//! Bounds of what counts as an answer: a response that is less to the point, more repetitive or less likely than nearly
//! all of the base's loses outright, whatever its rewards.
//!
//! Rewards measure single traits, and a text that ignores the question can have all of them. Three traits that a model's
//! own responses have by themselves are bounded by those of the base's responses to the same prompts, pooled by length,
//! because short texts repeat less and long ones are surer:
//!
//! - relevance, any scorer of a response to its prompt: not below the base's 5 % quantile
//! - repetition ([`crate::metrics::repetition`]): not above its 99 % quantile
//! - surprise under the base, `−ln p` a token: not above its 99 % quantile
//!
//! ```
//! use mope_eval::bounds::{Bound, Bounds, Traits};
//! let base = (0..200).map(|i| Traits {
//!     tokens: 20 + i % 40,
//!     relevance: Some(0.5 + 0.001 * i as f64),
//!     repetition: 0.0,
//!     surprise: Some(1.0 + 0.005 * i as f64),
//! });
//! let bounds = Bounds::of(base.collect());
//! let canned = Traits { tokens: 6, relevance: Some(0.02), repetition: 0.0, surprise: Some(1.5) };
//! assert_eq!(bounds.crossed(&canned), Some(Bound::Relevance));
//! let answer = Traits { relevance: Some(0.6), ..canned };
//! assert_eq!(bounds.crossed(&answer), None);
//! ```

use serde::{Deserialize, Serialize};

use crate::statistics::percentile;

/// Share of the base's responses that are less relevant than the bound (ours).
const IRRELEVANT: f64 = 0.05;

/// Share of the base's responses that are within the bounds of repetition and of surprise (ours).
const FLUENT: f64 = 0.99;

/// Responses of about the same length that a bound is read off (ours): enough for a 99 % quantile.
const NEIGHBOURS: usize = 100;

/// What of a response is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Traits {
    /// Its length in tokens.
    pub tokens: usize,
    /// How far it answers its prompt; `None` where no scorer says so.
    pub relevance: Option<f64>,
    /// Share of its token trigrams that came before in it.
    pub repetition: f64,
    /// `−ln p` under the base, in nats a token; `None` where it was not measured, or without tokens.
    pub surprise: Option<f64>,
}

/// What a response is bounded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// It is not about the question.
    Relevance,
    /// It says the same again and again.
    Repetition,
    /// It is no text that the base would write.
    Surprise,
}

/// Bounds by the base's responses.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    base: Vec<Traits>,
}

impl Bounds {
    /// Of the base's responses to the prompts that are compared; without any nothing is bounded.
    pub fn of(base: Vec<Traits>) -> Self {
        Self { base }
    }

    /// Those of about the same length: the nearest, and all that are as near as the last of them.
    fn like(&self, tokens: usize) -> Vec<&Traits> {
        let log = |n: usize| ((1 + n) as f64).ln();
        let distance = |t: &Traits| (log(t.tokens) - log(tokens)).abs();
        let mut distances: Vec<f64> = self.base.iter().map(distance).collect();
        distances.sort_by(f64::total_cmp);
        let last = distances.get(NEIGHBOURS.min(distances.len()).saturating_sub(1));
        let radius = last.copied().unwrap_or(0.0);
        self.base.iter().filter(|t| distance(t) <= radius).collect()
    }

    /// The first bound that a response crosses.
    pub fn crossed(&self, response: &Traits) -> Option<Bound> {
        let like = self.like(response.tokens);
        let quantile = |get: fn(&Traits) -> Option<f64>, p: f64| {
            let mut values: Vec<f64> = like.iter().filter_map(|t| get(t)).collect();
            values.sort_by(f64::total_cmp);
            (!values.is_empty()).then(|| percentile(&values, p))
        };
        let below = |value: Option<f64>, bound: Option<f64>| {
            value.zip(bound).is_some_and(|(value, bound)| value < bound)
        };
        let relevance = quantile(|t| t.relevance, IRRELEVANT);
        if below(response.relevance, relevance) {
            return Some(Bound::Relevance);
        }
        let repetition = quantile(|t| Some(t.repetition), FLUENT);
        if below(repetition, Some(response.repetition)) {
            return Some(Bound::Repetition);
        }
        let surprise = quantile(|t| t.surprise, FLUENT);
        below(surprise, response.surprise).then_some(Bound::Surprise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(tokens: usize, repetition: f64, surprise: f64) -> Traits {
        Traits {
            tokens,
            relevance: None,
            repetition,
            surprise: Some(surprise),
        }
    }

    #[test]
    fn bounds_are_those_of_the_same_length() {
        // Short answers of the base don't repeat and are less likely; long ones do and are likelier.
        let short = (0..150).map(|i| traits(5, 0.0, 2.0 + 0.01 * f64::from(i)));
        let long = (0..150).map(|i| traits(60, 0.002 * f64::from(i), 0.5 + 0.005 * f64::from(i)));
        let bounds = Bounds::of(short.chain(long).collect());
        assert_eq!(
            bounds.crossed(&traits(5, 0.1, 2.5)),
            Some(Bound::Repetition)
        );
        assert_eq!(bounds.crossed(&traits(60, 0.1, 0.9)), None);
        assert_eq!(bounds.crossed(&traits(60, 0.1, 2.5)), Some(Bound::Surprise));
        assert_eq!(bounds.crossed(&traits(5, 0.0, 2.5)), None);
        assert_eq!(bounds.crossed(&traits(5, 0.0, 9.0)), Some(Bound::Surprise));
        // Of a hundred neighbours the base itself crosses in at most 2 of 100.
        let lost = bounds
            .base
            .iter()
            .filter(|t| bounds.crossed(t).is_some())
            .count();
        assert!((1..=12).contains(&lost), "{lost} of {}", bounds.base.len());
    }

    #[test]
    fn what_is_not_measured_bounds_nothing() {
        let bounds = Bounds::of(Vec::new());
        assert_eq!(bounds.crossed(&traits(5, 1.0, 99.0)), None);
        let unmeasured = |tokens| Traits {
            surprise: None,
            ..traits(tokens, 0.0, 0.0)
        };
        let bounds = Bounds::of((0..9).map(unmeasured).collect());
        assert_eq!(bounds.crossed(&traits(5, 0.0, 99.0)), None);
        assert_eq!(
            bounds.crossed(&traits(5, 0.5, 0.0)),
            Some(Bound::Repetition)
        );
    }
}
