//! The day that chat templates see as today.

use std::fmt;

use chrono::NaiveDate;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A day as files write it, `"2024-07-26"`. Default 26 July 2024, which the templates of LLaMA 3.x fall back to.
///
/// ```
/// use mope_lm::chat::Day;
/// let day: Day = ron::from_str("\"2025-02-01\"")?;
/// assert_eq!(day.to_string(), "2025-02-01");
/// assert!(ron::from_str::<Day>("\"2025-02-30\"").is_err());
/// assert_eq!(Day::default().to_string(), "2024-07-26");
/// # Ok::<(), ron::error::SpannedError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day(NaiveDate);

impl Day {
    /// 26 July 2024.
    pub const DEFAULT: Self = Self(NaiveDate::from_ymd_opt(2024, 7, 26).expect("a day"));

    /// Whether it is the default, which files and keys leave out.
    pub fn is_default(&self) -> bool {
        *self == Self::DEFAULT
    }
}

impl Default for Day {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<NaiveDate> for Day {
    fn from(date: NaiveDate) -> Self {
        Self(date)
    }
}

impl From<Day> for NaiveDate {
    fn from(day: Day) -> Self {
        day.0
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let date = NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok();
        // Four digits of a year, as Python's dates have.
        let date = date.filter(|_| text.len() == 10);
        date.map(Self).ok_or_else(|| {
            D::Error::custom(format!("'{text}' is no day of the form \"2024-07-26\""))
        })
    }
}
