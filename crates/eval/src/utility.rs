//! Utility: how well a response serves a preference.
//!
//! For stated directions `d` with shares `s_d` (summing to 1), signed normalised rewards `r_d` of the
//! response and of a stored reference response to the same prompt:
//!
//! - Bradley-Terry (arXiv 2407.04181): `Σ_d s_d σ(r_d(y) − r_d(y_ref))`, the mean probability of
//!   beating the reference, in 0..1
//! - mean (its ablation): `Σ_d s_d r_d(y)`, in standard deviations of the base

use serde::{Deserialize, Serialize};

/// How rewards become one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Utility {
    /// Mean probability of beating the reference (paper).
    #[default]
    BradleyTerry,
    /// Mean reward (the paper's ablation).
    Mean,
}

/// One stated direction of a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stated {
    /// Importance, the shares of a preference summing to 1.
    pub share: f64,
    /// Reward of the response, normalised and signed so that more is better.
    pub reward: f64,
    /// The reference response's.
    pub reference: f64,
}

impl Utility {
    /// Combines the stated directions.
    ///
    /// ```
    /// use mope_eval::utility::{Stated, Utility};
    /// let stated = [Stated { share: 1.0, reward: 2.0, reference: 2.0 }];
    /// assert_eq!(Utility::BradleyTerry.of(&stated), 0.5);
    /// assert_eq!(Utility::Mean.of(&stated), 2.0);
    /// ```
    pub fn of(self, stated: &[Stated]) -> f64 {
        let part = |s: &Stated| {
            s.share
                * match self {
                    Self::BradleyTerry => 1.0 / (1.0 + (s.reference - s.reward).exp()),
                    Self::Mean => s.reward,
                }
        };
        stated.iter().map(part).sum()
    }
}
