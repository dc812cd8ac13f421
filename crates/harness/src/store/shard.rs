//! Parts of a run that several processes make side by side.
//!
//! ```
//! use mope_harness::store::shard::Shard;
//!
//! let shard: Shard = "2/3".parse()?;
//! let indices: Vec<usize> = (0..7).filter(|&i| shard.has(i)).collect();
//! assert_eq!(indices, [1, 4]);
//! assert!("4/3".parse::<Shard>().is_err());
//! # anyhow::Ok(())
//! ```

use std::str::FromStr;

use anyhow::{Result, anyhow};

/// One of several equal parts of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub part: usize,
    /// How many there are.
    pub of: usize,
}

impl Shard {
    /// The `index`-th piece of work belongs to it.
    pub fn has(self, index: usize) -> bool {
        index % self.of == self.part - 1
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match numbers {
            Some((part, of)) if part >= 1 && part <= of => Ok(Self { part, of }),
            _ => Err(anyhow!("expected PART/OF with 1 ≤ PART ≤ OF, such as 2/4")),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}of{}", self.part, self.of)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shards_are_read_and_share_the_work() {
        let shard: Shard = "2/3".parse().unwrap();
        let indices: Vec<usize> = (0..7).filter(|&i| shard.has(i)).collect();
        assert_eq!(
            (indices, shard.to_string()),
            (vec![1, 4], "2of3".to_string())
        );
        for wrong in ["0/2", "3/2", "1", "a/b"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
