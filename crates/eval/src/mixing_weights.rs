//! Where the weights of the experts go: by preference, by position, and how much they tell.
//!
//! ```
//! use mope_eval::mixing_weights::MixingWeights;
//! use mope_eval::rows::{GenerationRow, Identity};
//! let response = |preference: &str, weights: [f32; 2]| GenerationRow {
//!     identity: Identity {
//!         strategy: "uniform".into(),
//!         preference: preference.into(),
//!         prompt: "sky".into(),
//!         sample: 0,
//!     },
//!     question: "Why is the sky blue?".into(),
//!     response: "Light".into(),
//!     tokens: vec![7],
//!     pieces: vec!["Light".into()],
//!     log_probs: vec![-1.5],
//!     kl: vec![],
//!     base_log_probs: vec![],
//!     experts: vec!["friendly".into(), "learned".into()],
//!     weights: weights.into(),
//!     ended: false,
//! };
//! let rows = [response("p", [1.0, 0.0]), response("q", [0.0, 1.0])];
//! let weights = MixingWeights::of("uniform", &rows).unwrap();
//! // Each preference has an expert of its own: ln 2.
//! assert!((weights.preference_information - 2f64.ln()).abs() < 1e-12);
//! ```

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "tables")]
use std::path::Path;

#[cfg(feature = "tables")]
use polars::prelude::*;

use crate::rows::GenerationRow;
#[cfg(feature = "tables")]
use crate::{Error, Result};

/// The weights of the experts in a strategy's responses.
#[derive(Debug, Clone, PartialEq)]
pub struct MixingWeights {
    /// Every expert that runs for some preference.
    pub experts: Vec<String>,
    /// Mean weights by preference, `[experts]`, over all tokens.
    pub by_preference: BTreeMap<String, Vec<f64>>,
    /// Mean weights by position in the response, `[experts]`.
    pub by_position: Vec<Vec<f64>>,
    /// Mutual information between preference and expert, in nats, preferences being equally frequent: 0
    /// where the weights ignore the preference.
    pub preference_information: f64,
    /// Mutual information between position and expert within a response, averaged over responses, in
    /// nats: 0 where the weights stay the same.
    pub token_information: f64,
}

/// Name of the expert that is the base model.
const BASE: &str = "base";

/// Entropy of a distribution in nats.
fn entropy(weights: &[f64]) -> f64 {
    let positive = weights.iter().filter(|w| **w > 0.0);
    -positive.map(|w| w * w.ln()).sum::<f64>()
}

/// Values divided by their sum.
fn normalised(sums: &[f64]) -> Vec<f64> {
    let total: f64 = sums.iter().sum();
    sums.iter().map(|v| v / total.max(1e-300)).collect()
}

impl MixingWeights {
    /// Of one strategy; `None` where at most one expert runs, or experts have negative weights. The base's, which is
    /// what is left where gates go past the experts, does not count then. Responses with a weight that is NaN or infinite
    /// don't count, either.
    pub fn of(strategy: &str, generations: &[GenerationRow]) -> Option<Self> {
        let rows: Vec<&GenerationRow> = generations
            .iter()
            .filter(|g| g.identity.strategy == strategy && g.weights.iter().all(|w| w.is_finite()))
            .collect();
        let experts: BTreeSet<&String> = rows.iter().flat_map(|g| &g.experts).collect();
        let mut experts: Vec<String> = experts.into_iter().cloned().collect();
        let negative = |expert: &String| {
            rows.iter().any(|g| {
                let column = g.experts.iter().position(|e| e == expert);
                let weights = column.map(|c| g.weights.iter().skip(c).step_by(g.experts.len()));
                weights.into_iter().flatten().any(|w| *w < 0.0)
            })
        };
        experts.retain(|e| e != BASE || !negative(e));
        if experts.len() < 2 || experts.iter().any(negative) {
            return None;
        }
        let mut by_preference: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let mut by_position: Vec<Vec<f64>> = Vec::new();
        let mut within = Vec::new();
        for row in &rows {
            // From the row's experts to all of them.
            let columns: Vec<Option<usize>> = row
                .experts
                .iter()
                .map(|e| experts.iter().position(|n| n == e))
                .collect();
            let empty = || vec![0.0; experts.len()];
            let (mut sum, mut entropies) = (empty(), 0.0);
            for (t, weights) in row.weights.chunks(columns.len().max(1)).enumerate() {
                if by_position.len() <= t {
                    by_position.push(empty());
                }
                let mut token = empty();
                let pairs = columns.iter().zip(weights);
                for (expert, &weight) in pairs.filter_map(|(c, w)| Some(((*c)?, w))) {
                    token[expert] += f64::from(weight);
                    by_position[t][expert] += f64::from(weight);
                    sum[expert] += f64::from(weight);
                }
                entropies += entropy(&normalised(&token));
            }
            let tokens = row.tokens.len().max(1) as f64;
            within.push(entropy(&normalised(&sum)) - entropies / tokens);
            let preference = by_preference.entry(row.identity.preference.clone());
            let all = preference.or_insert_with(empty);
            all.iter_mut().zip(sum).for_each(|(a, s)| *a += s);
        }
        for sums in by_preference.values_mut() {
            *sums = normalised(sums);
        }
        let by_position = by_position.iter().map(|sums| normalised(sums)).collect();
        let n = by_preference.len() as f64;
        let mut mean = vec![0.0; experts.len()];
        for weights in by_preference.values() {
            mean.iter_mut().zip(weights).for_each(|(m, w)| *m += w / n);
        }
        let given: f64 = by_preference.values().map(|w| entropy(w)).sum();
        Some(Self {
            preference_information: (entropy(&mean) - given / n).max(0.0),
            token_information: (within.iter().sum::<f64>() / within.len() as f64).max(0.0),
            experts,
            by_preference,
            by_position,
        })
    }
}

/// `weights`: for each strategy with several experts, how much its weights tell and where they go on
/// average.
///
/// # Errors
/// [`Error::Table`].
#[cfg(feature = "tables")]
pub fn table(all: &[(String, MixingWeights)]) -> Result<DataFrame> {
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let number = |name: &str, get: fn(&MixingWeights) -> f64| {
        Column::new(
            name.into(),
            all.iter().map(|(_, w)| get(w)).collect::<Vec<_>>(),
        )
    };
    let mut columns = vec![
        Column::new("strategy".into(), names),
        number("preference_information", |w| w.preference_information),
        number("token_information", |w| w.token_information),
    ];
    let experts: BTreeSet<&String> = all.iter().flat_map(|(_, w)| &w.experts).collect();
    for expert in experts {
        let mean = |weights: &MixingWeights| {
            let column = weights.experts.iter().position(|e| e == expert)?;
            let n = weights.by_preference.len() as f64;
            let of_expert = weights.by_preference.values().map(|w| w[column]);
            Some(of_expert.sum::<f64>() / n)
        };
        let values: Vec<Option<f64>> = all.iter().map(|(_, w)| mean(w)).collect();
        columns.push(Column::new(expert.as_str().into(), values));
    }
    DataFrame::new_infer_height(columns).map_err(|e| Error::table(Path::new("weights"), e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::Identity;

    fn row(preference: &str, weights: Vec<f32>) -> GenerationRow {
        let tokens = weights.len() / 2;
        GenerationRow {
            identity: Identity {
                strategy: "s".into(),
                preference: preference.into(),
                prompt: "1".into(),
                sample: 0,
            },
            question: String::new(),
            response: String::new(),
            tokens: vec![0; tokens],
            pieces: vec![String::new(); tokens],
            log_probs: vec![0.0; tokens],
            kl: vec![],
            base_log_probs: vec![],
            experts: vec!["a".into(), "b".into()],
            weights,
            ended: true,
        }
    }

    #[test]
    fn what_is_left_for_the_base_does_not_count() {
        let gates = |base: f32| GenerationRow {
            experts: vec!["a".into(), "b".into(), BASE.into()],
            tokens: vec![0],
            ..row("p", vec![1.0, 0.5, base])
        };
        let weights = MixingWeights::of("s", &[gates(-0.5)]).unwrap();
        assert_eq!(weights.experts, ["a", "b"]);
        assert_eq!(weights.by_preference["p"], [1.0 / 1.5, 0.5 / 1.5]);
        assert_eq!(
            MixingWeights::of("s", &[gates(0.5)]).unwrap().experts,
            ["a", "b", BASE]
        );
        let mut other = gates(-0.5);
        other.experts[2] = "c".into();
        assert_eq!(MixingWeights::of("s", &[other]), None);
    }

    #[test]
    fn information_is_where_the_weights_differ() {
        let two = std::f64::consts::LN_2;
        // One expert for each preference, all the time.
        let by_preference = [row("p", vec![1.0, 0.0, 1.0, 0.0]), row("q", vec![0.0, 1.0])];
        let w = MixingWeights::of("s", &by_preference).unwrap();
        assert!((w.preference_information - two).abs() < 1e-12);
        assert!(w.token_information.abs() < 1e-12);
        assert_eq!(w.by_preference["p"], [1.0, 0.0]);
        assert_eq!(w.by_position[0], [0.5, 0.5]);
        // The same for both preferences, another expert at every token.
        let by_token = [
            row("p", vec![1.0, 0.0, 0.0, 1.0]),
            row("q", vec![0.0, 1.0, 1.0, 0.0]),
        ];
        let w = MixingWeights::of("s", &by_token).unwrap();
        assert!(w.preference_information.abs() < 1e-12);
        assert!((w.token_information - two).abs() < 1e-12);
        #[cfg(feature = "tables")]
        assert_eq!(table(&[("s".into(), w)]).unwrap().shape(), (1, 5));
        assert_eq!(MixingWeights::of("t", &by_token), None);
    }
}
