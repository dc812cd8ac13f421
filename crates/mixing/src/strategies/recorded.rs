//! Responses that were made elsewhere, read from a file: another tool's baseline in the same tables, with the same
//! statistics.
//!
//! No expert runs for it, so nothing is known of its distributions: what follows from log-probabilities is missing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts};
use crate::{Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step};

/// What a file holds that was written by another program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recorded(
    /// A `.parquet`, `.csv` or `.jsonl` file of responses.
    pub PathBuf,
);

impl Method for Recorded {
    fn plan(&self, _: &Preference, _: &[&str]) -> Result<Plan> {
        let extension = self.0.extension().and_then(|e| e.to_str());
        if !matches!(extension, Some("parquet" | "csv" | "jsonl" | "json")) {
            let expected = "a .parquet, .csv or .jsonl file";
            return Err(Error::parameter("Recorded", self.0.display(), expected));
        }
        Ok(Plan {
            recorded: Some(self.0.clone()),
            ..Plan::new(Vec::new(), Requirements::LIKELIEST, Undecodable)
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::model(&mut self.0, is_there)
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    /// None: there is nothing to decode with.
    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        Vec::new()
    }
}

fn is_there(file: &Path) -> Result<()> {
    match std::fs::File::open(file) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Recorded {
            file: file.into(),
            error,
        }),
    }
}

/// Refuses to decode.
#[derive(Clone)]
struct Undecodable;

impl Mixer for Undecodable {
    fn mix(&mut self, _: &Step<'_>, _: &mut Mixed) -> Result<()> {
        Err(Error::NotDecoded)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Strategy;

    #[test]
    fn it_names_its_file_and_runs_no_expert() {
        let mut strategy: Strategy = serde_json::from_str("{\"Recorded\": \"a.csv\"}").unwrap();
        strategy.resolve(Path::new("/study"));
        assert_eq!(strategy.models(), [PathBuf::from("/study/a.csv")]);
        let preference = Preference {
            text: String::new(),
            importances: [("kind".to_string(), 1.0)].into(),
        };
        let plan = strategy.plan(&preference, &["base"]).unwrap();
        assert!(plan.experts.is_empty());
        assert_eq!(plan.recorded, Some(PathBuf::from("/study/a.csv")));
        let error = strategy.try_models().unwrap_err().to_string();
        assert!(error.starts_with("/study/a.csv: "), "{error}");
        let other: Strategy = serde_json::from_str("{\"Recorded\": \"a.xlsx\"}").unwrap();
        let error = other.plan(&preference, &["base"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "Recorded is a.xlsx, not a .parquet, .csv or .jsonl file"
        );
    }
}
