//! Hypotheses: what a run is to show, written down before it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Experiment;
use crate::failure::nearest;

/// One strategy is better than another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypothesis {
    /// The strategy, or with `nats` the curve, that has more utility.
    pub better: String,
    /// The one that has less.
    pub than: String,
    /// The smallest difference in utility that matters.
    pub smallest: f64,
    /// Divergence per response at which two curves of `frontier` are compared. Default `None`: two strategies as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<f64>,
}

impl Experiment {
    /// Hypotheses compare strategies or curves that are there.
    pub(super) fn check_hypotheses(&self) -> Result<()> {
        for (name, hypothesis) in self.hypotheses.iter() {
            let known = match hypothesis.nats {
                Some(_) => self.frontier.names(),
                None => self.compared(),
            };
            let what = if hypothesis.nats.is_some() {
                "curve"
            } else {
                "strategy"
            };
            for side in [&hypothesis.better, &hypothesis.than] {
                if !known.contains(&side.as_str()) {
                    let hint = nearest(side, known.iter().copied());
                    let known = known.join(", ");
                    anyhow::bail!(
                        "hypotheses: '{name}': no {what} '{side}'{hint}; there are: {known}"
                    );
                }
            }
            anyhow::ensure!(
                hypothesis.better != hypothesis.than,
                "hypotheses: '{name}' compares '{}' with itself",
                hypothesis.than
            );
            anyhow::ensure!(
                hypothesis.smallest >= 0.0 && hypothesis.nats.is_none_or(|nats| nats > 0.0),
                "hypotheses: '{name}': the smallest effect is 0 or more, and nats are above 0"
            );
        }
        Ok(())
    }
}
