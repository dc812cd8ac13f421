//! The strategies, one file each. The enum is the registry: a new strategy is a new file, a `mod`
//! line and a variant.

mod base;
mod fixed;
mod prompting;
mod single;
mod uniform;

use serde::{Deserialize, Serialize};

pub use base::Base;
pub use fixed::{Fixed, Space};
pub use prompting::Prompting;
pub use single::Single;
pub use uniform::Uniform;

use crate::{Plan, Preference, Result};

/// A way to serve a preference, as configs name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Strategy {
    /// The base model, preference ignored.
    Base(Base),
    /// One expert, always the same.
    Single(Single),
    /// The base model with the preference in its prompt.
    Prompting(Prompting),
    /// The preference's experts with equal weights.
    Uniform(Uniform),
    /// The preference's experts with constant weights.
    Fixed(Fixed),
}

impl Strategy {
    /// How this strategy serves `preference` with the experts that are there.
    ///
    /// # Errors
    /// Parameters that make no sense, or that don't fit the preference or the experts.
    pub fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        match self {
            Self::Base(s) => s.plan(),
            Self::Single(s) => s.plan(experts),
            Self::Prompting(s) => s.plan(preference),
            Self::Uniform(s) => s.plan(preference, experts),
            Self::Fixed(s) => s.plan(preference, experts),
        }
    }
}
