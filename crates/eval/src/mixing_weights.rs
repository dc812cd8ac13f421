//! Where the weights of the experts go: by preference, by position, and how much they tell.
//!
//! Shares `p_t = w_t / Σ w_t` of the weights at token t are a distribution over the experts. The mutual information between
//! position and expert within a response of T tokens is `H(mean_t p_t) − mean_t H(p_t)`, and that between preference and
//! expert the same over the preferences' mean shares. Shares do not see gates that rise together; that is what the variance
//! of each weight and of `ln Σ w_t` within a response are for.
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
    /// Mean shares by preference, `[experts]`, over all tokens.
    pub by_preference: BTreeMap<String, Vec<f64>>,
    /// Mean shares by position in the response, `[experts]`.
    pub by_position: Vec<Vec<f64>>,
    /// Mutual information between preference and expert, in nats, preferences being equally frequent: 0
    /// where the weights ignore the preference.
    pub preference_information: f64,
    /// The same less what equal weights for the experts that run would tell: which experts run depends on the preference,
    /// whatever their weights.
    pub preference_excess: f64,
    /// Mutual information between position and expert within a response, averaged over responses, in
    /// nats: 0 where the shares stay the same.
    pub token_information: f64,
    /// Variance of `ln Σ w` within a response, averaged over responses: 0 where the weights have the same sum at every
    /// token. Tokens without a weight above 0 are left out.
    pub level_variance: f64,
    /// Variance of each expert's weight within a response, averaged over the responses that it takes part in, `[experts]`.
    pub variance: Vec<f64>,
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

/// Entropy of the mean of some distributions less their mean entropy: the mutual information between which one it is, all
/// being equally frequent, and what is drawn from it.
fn information<'a>(distributions: impl Iterator<Item = &'a Vec<f64>>, width: usize) -> f64 {
    let (mut mean, mut given, mut count) = (vec![0.0; width], 0.0, 0.0);
    for distribution in distributions {
        mean.iter_mut().zip(distribution).for_each(|(m, p)| *m += p);
        given += entropy(distribution);
        count += 1.0;
    }
    mean.iter_mut().for_each(|m| *m /= f64::max(count, 1.0));
    // Never below 0 but by rounding (Jensen).
    (entropy(&mean) - given / f64::max(count, 1.0)).max(0.0)
}

/// Mean squared distance from the mean; 0 without values.
fn variance(values: &[f64]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// What is gathered over the responses of a strategy, `[experts]` each.
struct Gathered {
    by_preference: BTreeMap<String, Vec<f64>>,
    /// Equal weights for the experts that run, by preference.
    equal: BTreeMap<String, Vec<f64>>,
    by_position: Vec<Vec<f64>>,
    /// By response.
    within: Vec<f64>,
    level: Vec<f64>,
    /// `[experts][responses that it takes part in]`.
    spread: Vec<Vec<f64>>,
}

impl Gathered {
    fn new(experts: usize) -> Self {
        Self {
            by_preference: BTreeMap::new(),
            equal: BTreeMap::new(),
            by_position: Vec::new(),
            within: Vec::new(),
            level: Vec::new(),
            spread: vec![Vec::new(); experts],
        }
    }

    fn add(&mut self, row: &GenerationRow, experts: &[String]) {
        // From the row's experts to all of them.
        let column = |e: &String| experts.iter().position(|n| n == e);
        let columns: Vec<Option<usize>> = row.experts.iter().map(column).collect();
        let empty = || vec![0.0; experts.len()];
        // [tokens][experts]
        let mut tokens = Vec::new();
        for weights in row.weights.chunks(columns.len().max(1)) {
            let mut token = empty();
            for (expert, &weight) in columns.iter().zip(weights) {
                if let Some(expert) = *expert {
                    token[expert] += f64::from(weight);
                }
            }
            tokens.push(token);
        }
        for expert in columns.iter().flatten() {
            let weights: Vec<f64> = tokens.iter().map(|token| token[*expert]).collect();
            self.spread[*expert].push(variance(&weights));
        }
        let levels = tokens.iter().map(|token| token.iter().sum::<f64>());
        let levels = levels.filter(|sum| *sum > 0.0).map(f64::ln);
        self.level.push(variance(&levels.collect::<Vec<_>>()));
        let preference = &row.identity.preference;
        let sums = self.by_preference.entry(preference.clone());
        let sums = sums.or_insert_with(empty);
        let mut shares = Vec::new();
        for (t, token) in tokens.iter().enumerate() {
            if self.by_position.len() <= t {
                self.by_position.push(empty());
            }
            // Where all gates are shut no expert is chosen.
            if token.iter().sum::<f64>() <= 0.0 {
                continue;
            }
            let share = normalised(token);
            let both = self.by_position[t].iter_mut().zip(sums.iter_mut());
            both.zip(&share).for_each(|((position, sum), share)| {
                *position += share;
                *sum += share;
            });
            shares.push(share);
        }
        self.within.push(information(shares.iter(), experts.len()));
        let equal = self.equal.entry(preference.clone()).or_insert_with(empty);
        columns
            .iter()
            .flatten()
            .for_each(|&expert| equal[expert] = 1.0);
    }
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
        let mut all = Gathered::new(experts.len());
        rows.iter().for_each(|row| all.add(row, &experts));
        let maps = [&mut all.by_preference, &mut all.equal];
        for sums in maps.into_iter().flat_map(BTreeMap::values_mut) {
            *sums = normalised(sums);
        }
        let told = information(all.by_preference.values(), experts.len());
        Some(Self {
            preference_information: told,
            preference_excess: told - information(all.equal.values(), experts.len()),
            token_information: mean(&all.within),
            level_variance: mean(&all.level),
            variance: all.spread.iter().map(|v| mean(v)).collect(),
            by_preference: all.by_preference,
            by_position: all
                .by_position
                .iter()
                .map(|sums| normalised(sums))
                .collect(),
            experts,
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
        number("preference_excess", |w| w.preference_excess),
        number("token_information", |w| w.token_information),
        number("level_variance", |w| w.level_variance),
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
        let variance = |weights: &MixingWeights| {
            let column = weights.experts.iter().position(|e| e == expert)?;
            Some(weights.variance[column])
        };
        let values: Vec<Option<f64>> = all.iter().map(|(_, w)| variance(w)).collect();
        columns.push(Column::new(format!("{expert}_variance").into(), values));
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
        assert_eq!(table(&[("s".into(), w)]).unwrap().shape(), (1, 9));
        assert_eq!(MixingWeights::of("t", &by_token), None);
    }

    /// Gates are no shares: 32 tokens of (2, 0) and 32 of (0.1, 0.1) were told to be no information.
    #[test]
    fn gates_tell_by_their_shares_and_their_level_is_told_apart() {
        let gates = |first: [f32; 2], second: [f32; 2]| {
            let tokens = std::iter::repeat_n(first, 32).chain(std::iter::repeat_n(second, 32));
            MixingWeights::of("s", &[row("p", tokens.flatten().collect())]).unwrap()
        };
        let w = gates([2.0, 0.0], [0.1, 0.1]);
        // H(3/4, 1/4) − ½ ln 2.
        let expected = -0.75 * 0.75f64.ln() - 0.25 * 0.25f64.ln() - 0.5 * 2f64.ln();
        assert!((w.token_information - expected).abs() < 1e-7, "{w:?}");
        assert!((expected - 0.216).abs() < 0.001);
        // ln 2 and ln 0.2; 2 and 0.1.
        assert!((w.level_variance - (0.5 * 10f64.ln()).powi(2)).abs() < 1e-6);
        assert!((w.variance[0] - 0.95f64.powi(2)).abs() < 1e-6);
        // All gates ten times larger at every other token: no information, and all of it is level.
        let w = gates([2.0, 1.0], [0.2, 0.1]);
        assert!(w.token_information < 1e-12, "{w:?}");
        assert!((w.level_variance - (0.5 * 10f64.ln()).powi(2)).abs() < 1e-6);
    }

    /// Uniform weights look as if they read the preference, because other experts run for others.
    #[test]
    fn which_experts_run_is_taken_off() {
        let of = |preference: &str, experts: [&str; 2], weights: [f32; 2]| GenerationRow {
            experts: experts.map(String::from).into(),
            ..row(preference, weights.into())
        };
        let rows = [
            of("p", ["a", "b"], [0.5, 0.5]),
            of("q", ["c", "d"], [0.5, 0.5]),
        ];
        let w = MixingWeights::of("s", &rows).unwrap();
        assert!((w.preference_information - 2f64.ln()).abs() < 1e-12);
        assert!(w.preference_excess.abs() < 1e-12);
        let rows = [
            of("p", ["a", "b"], [1.0, 0.0]),
            of("q", ["a", "b"], [0.0, 1.0]),
        ];
        let w = MixingWeights::of("s", &rows).unwrap();
        assert!((w.preference_excess - 2f64.ln()).abs() < 1e-12);
    }
}
