//! Best of n: `y = arg max_{y_1 … y_n ~ p} utility(y)`, the responses sampled from another strategy. Of equals
//! the first is kept. The utility comes from whoever runs it.
//!
//! 1. The log-probabilities that are recorded are those of the inner strategy, which made the response.

use serde::{Deserialize, Serialize};

use super::{Base, Method, Strategy};
use crate::{Needs, Plan, Preference, Result, refuse};

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
        if self.n == 0 {
            return refuse("n is 0: at least 1 response must be made");
        }
        let inner = self.of.plan(preference, experts)?;
        if !inner.candidates.is_empty() {
            return refuse("the inner strategy is still to be chosen; name what it is to be");
        }
        Ok(Plan {
            samples: inner.samples * self.n,
            ..inner
        })
    }

    fn needs(&self) -> Needs {
        self.of.needs()
    }

    fn one_hot(&self) -> bool {
        false
    }
}
