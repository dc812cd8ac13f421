//! Dimensions of preference and their two directions.
//!
//! ```
//! use mope_eval::dimension::{Dimension, Dimensions, locate};
//! use mope_eval::rewards::Scorer;
//! let style = Dimension {
//!     scorer: Scorer::Style,
//!     high: "friendly".into(),
//!     low: "reserved".into(),
//!     normaliser: None,
//! };
//! let dimensions: Dimensions = [("style".to_string(), style)].into();
//! assert_eq!(locate(&dimensions, "reserved")?, ("style", -1.0));
//! # Ok::<(), mope_eval::Error>(())
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rewards::{Normaliser, Scorer};
use crate::{Error, Result};

/// One dimension: what measures it and what its ends are called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dimension {
    /// The reward; it grows towards `high`. Default: none, only judges and people tell.
    #[serde(default)]
    pub scorer: Scorer,
    /// Direction that wants more of it, such as "informative".
    pub high: String,
    /// Direction that wants less of it, such as "concise".
    pub low: String,
    /// Brings scores to unit variance. Default: the constants stored with the scorer where they were measured on
    /// responses of this length, else `Measured`; in trainings the stored ones.
    #[serde(default)]
    pub normaliser: Option<Normalisation>,
}

impl Dimension {
    /// Checks its numbers, and that the reward models that it names are there.
    ///
    /// # Errors
    /// Those of [`Scorer::validate`](crate::rewards::Scorer::validate); [`Error::Parameter`] for the normaliser.
    pub fn validate(&self) -> Result<()> {
        if let Some(Normalisation::Given(normaliser)) = self.normaliser {
            normaliser.validate()?;
        }
        self.scorer.validate()
    }
}

/// Where a normaliser comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "Measured, Stored, or numbers such as (mean: 3.2, sd: 0.3)"
)]
pub enum Normalisation {
    /// These numbers.
    Given(Normaliser),
    /// By name.
    By(Source),
}

/// Where numbers come from that are not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Mean and standard deviation of the scores of the run's reference responses.
    Measured,
    /// What is stored with the scorer.
    Stored,
}

/// Dimensions by name.
pub type Dimensions = BTreeMap<String, Dimension>;

/// The dimension that `direction` belongs to, and 1 for its high end or −1 for its low one.
///
/// # Errors
/// [`Error::UnknownDirection`].
pub fn locate<'a>(dimensions: &'a Dimensions, direction: &str) -> Result<(&'a str, f64)> {
    for (name, dimension) in dimensions {
        if dimension.high == direction {
            return Ok((name, 1.0));
        }
        if dimension.low == direction {
            return Ok((name, -1.0));
        }
    }
    let ends = dimensions.values().flat_map(|d| [&d.low, &d.high]);
    Err(Error::UnknownDirection {
        direction: direction.into(),
        known: ends.cloned().collect(),
    })
}
