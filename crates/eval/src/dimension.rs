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
    /// The reward; it grows towards `high`.
    pub scorer: Scorer,
    /// Direction that wants more of it, such as "informative".
    pub high: String,
    /// Direction that wants less of it, such as "concise".
    pub low: String,
    /// Brings scores to unit variance. Default: the constants stored with the scorer.
    #[serde(default)]
    pub normaliser: Option<Normaliser>,
}

impl Dimension {
    /// Checks its numbers, and that the reward models that it names are there.
    ///
    /// # Errors
    /// Those of [`Scorer::validate`](crate::rewards::Scorer::validate); [`Error::Parameter`] for the normaliser.
    pub fn validate(&self) -> Result<()> {
        self.normaliser.map_or(Ok(()), Normaliser::validate)?;
        self.scorer.validate()
    }
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
