//! Fixed weights, the same at every token.
//!
//! - in probability space `p(y) = Σ_i w_i p_i(y)` (arXiv 2407.04181)
//! - in log space `p(y) ∝ Π_i p_i(y)^{w_i}` (the reverse-KL form of arXiv 2406.18853)
//!
//! with `w` on the simplex. A token that an expert of positive weight rules out stays possible in
//! probability space and is ruled out in log space.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::mixer::same_experts;
use crate::preference::constant_weights;
use crate::{Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs};

/// Where distributions are averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// `Σ w_i p_i`.
    #[default]
    Probability,
    /// `∝ Π p_i^{w_i}`.
    Log,
}

/// Constant weights over experts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fixed {
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// Where the average is taken. Default: probabilities (paper).
    pub space: Space,
}

impl Space {
    /// What averaging there needs of each expert.
    pub(super) fn requirements(self) -> Requirements {
        match self {
            Self::Probability => Requirements::LIKELIEST,
            Self::Log => Requirements::FULL,
        }
    }
}

impl Method for Fixed {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let pairs = constant_weights(self.weights.as_ref(), preference, experts)?;
        let (experts, weights): (Vec<_>, Vec<_>) =
            pairs.into_iter().map(|(name, w)| (name, w as f32)).unzip();
        let space = self.space;
        Ok(Plan::new(
            experts,
            space.requirements(),
            Constant { weights, space },
        ))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::Fixed(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let log = Self {
            weights: None,
            space: Space::Log,
        };
        vec![
            Instance::new(Self::default()).reference("fixed"),
            Instance::new(log).reference("fixed_log").multiplies(),
        ]
    }
}

/// Mixes with the same weights at every token.
#[derive(Clone)]
pub(super) struct Constant {
    /// `[experts]`; on the simplex, but of any sign in log space.
    pub weights: Vec<f32>,
    pub space: Space,
}

impl Mixer for Constant {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        let (next, constant) = (step.next, &self.weights);
        same_experts(step, constant.len())?;
        match self.space {
            Space::Probability => mixed.probabilities(step, |_, weights| {
                weights.copy_from_slice(constant);
            }),
            Space::Log => mixed.each(step, |sequence, out, weights| {
                weights.copy_from_slice(constant);
                let rows = (0..constant.len()).map(|e| next.row(e, sequence));
                mix_logs(&rows.collect::<Vec<_>>(), constant, out);
            }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use experts::NextTokens;
    use proptest::prelude::*;

    use super::*;

    fn mix(experts: &[Vec<f32>], weights: &[f32], space: Space) -> Mixed {
        let vocab = experts[0].len();
        let log_probs = experts.concat();
        let next = NextTokens {
            reference: None,
            experts: experts.len(),
            sequences: 1,
            vocab,
            log_probs,
            temperature: None,
        };
        let mut mixed = Mixed::default();
        let mut mixer = Constant {
            weights: weights.to_vec(),
            space,
        };
        let history = &[crate::History::default()];
        let step = Step {
            next: &next,
            history,
        };
        mixer.mix(&step, &mut mixed).unwrap();
        mixed
    }

    fn logs(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    fn close(got: &[f32], probabilities: &[f32]) {
        for (got, expected) in got.iter().zip(probabilities) {
            assert!((got.exp() - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn values_by_hand() {
        let experts = [logs(&[0.5, 0.5, 0.0]), logs(&[0.2, 0.3, 0.5])];
        close(
            &mix(&experts, &[0.25, 0.75], Space::Probability).log_probs,
            &[0.275, 0.35, 0.375],
        );
        // sqrt(0.1), sqrt(0.15), 0 over their sum.
        close(
            &mix(&experts, &[0.5, 0.5], Space::Log).log_probs,
            &[0.449_49, 0.550_51, 0.0],
        );
    }

    proptest! {
        #[test]
        fn mixtures_are_distributions_between_their_experts(
            raw in proptest::collection::vec(proptest::collection::vec(-20f32..5.0, 7), 3),
            w in proptest::collection::vec(0.01f32..1.0, 3),
        ) {
            let mut experts = raw;
            experts.iter_mut().for_each(|row| {
                lm::sampling::log_softmax(row);
            });
            let total: f32 = w.iter().sum();
            let w: Vec<f32> = w.iter().map(|x| x / total).collect();
            for space in [Space::Probability, Space::Log] {
                let mixed = mix(&experts, &w, space);
                let sum: f32 = mixed.log_probs.iter().map(|l| l.exp()).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5);
                prop_assert_eq!(&mixed.weights, &w);
                let turned = mix(
                    &[experts[2].clone(), experts[0].clone(), experts[1].clone()],
                    &[w[2], w[0], w[1]],
                    space,
                );
                for (a, b) in mixed.log_probs.iter().zip(&turned.log_probs) {
                    prop_assert!((a - b).abs() < 1e-4);
                }
                for one in 0..3 {
                    let mut hot = [0.0; 3];
                    hot[one] = 1.0;
                    prop_assert_eq!(&mix(&experts, &hot, space).log_probs, &experts[one]);
                }
            }
            let mixed = mix(&experts, &w, Space::Probability).log_probs;
            for token in 0..7 {
                let best = experts.iter().map(|e| e[token]).fold(f32::NEG_INFINITY, f32::max);
                prop_assert!(mixed[token] <= best + 1e-5);
            }
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let preference = Preference {
            text: "short".into(),
            importances: [("concise".to_string(), 1.0), ("friendly".to_string(), 3.0)].into(),
        };
        let experts = ["base", "concise", "friendly"];
        let plan = |pairs: &[(&str, f64)]| {
            let weights = pairs.iter().map(|(n, w)| (n.to_string(), *w)).collect();
            let fixed = Fixed {
                weights: Some(weights),
                space: Space::Log,
            };
            fixed
                .plan(&preference, &experts)
                .map(|p| p.experts)
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            plan(&[("friendly", 0.5), ("base", 0.5)]).unwrap(),
            ["base", "friendly"]
        );
        assert!(
            plan(&[("friendly", 0.5)])
                .unwrap_err()
                .contains("sum to 0.5")
        );
        assert!(
            plan(&[("frendly", 1.0)])
                .unwrap_err()
                .contains("'frendly', the experts are: base")
        );
        assert!(
            plan(&[("base", 1.5), ("concise", -0.5)])
                .unwrap_err()
                .contains("'base' is 1.5")
        );
        let by_importance = Fixed::default().plan(&preference, &experts).unwrap();
        assert_eq!(by_importance.experts, ["concise", "friendly"]);
        assert!(
            Fixed::default()
                .plan(&preference, &["base", "concise"])
                .is_err()
        );
    }
}
