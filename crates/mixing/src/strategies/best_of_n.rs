//! Best of n: `y = arg max_{y_1 … y_n ~ p} utility(y)`, the responses sampled from another strategy. Of equals
//! the first is kept. The caller supplies the utility.
//!
//! 1. The log-probabilities that are recorded are those of the inner strategy, which made the response.

use serde::{Deserialize, Serialize};

use super::{Base, Fixed, Instance, InstanceContext, Method, Parts, Strategy};
use crate::error::at_least_one;
use crate::{Error, Plan, Preference, Result};

/// Several responses, of which the best is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BestOfN {
    /// Responses to choose from. Default 4 (ours).
    pub n: usize,
    /// What they are sampled from. Default: the base model.
    pub of: Box<Strategy>,
}

impl Default for BestOfN {
    fn default() -> Self {
        Self {
            n: 4,
            of: Box::new(Strategy::Base(Base {})),
        }
    }
}

impl Method for BestOfN {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        at_least_one("n", self.n)?;
        let inner = self.of.plan(preference, experts)?;
        if !inner.candidates.is_empty() {
            return Err(Error::StillToBeChosen { strategy: None });
        }
        Ok(Plan {
            samples: inner.samples * self.n,
            ..inner
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::strategies([&mut *self.of])
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn at_strength(&self, n: f64) -> Option<Strategy> {
        let whole = n >= 1.0 && n.fract() == 0.0 && n <= f64::from(u16::MAX);
        whole.then(|| {
            Strategy::BestOfN(Self {
                n: n as usize,
                ..self.clone()
            })
        })
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let best = Self {
            n: 2,
            of: Box::new(Strategy::Fixed(Fixed::default())),
        };
        vec![Instance::new(best)]
    }
}
