//! RON files as this project writes them: read with a place and a remedy where they are wrong.
//!
//! ```
//! use std::path::Path;
//!
//! use mixing::Strategy;
//! use mope_harness::config::parse;
//!
//! let file = Path::new("strategies.ron");
//! let strategy: Strategy = parse(file, "Fixed(space: Log)")?;
//! assert_eq!(strategy.name(), "Fixed");
//! // A typo is named with its place and the nearest word.
//! let error = parse::<Strategy>(file, "Fixed(spaces: Log)").unwrap_err().to_string();
//! assert!(error.starts_with("strategies.ron:1:") && error.contains("did you mean 'space'?"), "{error}");
//! # anyhow::Ok(())
//! ```

mod mistakes;
mod renamed;
mod tokens;

use std::path::Path;

use anyhow::{Context, Result, bail};
use ron::extensions::Extensions;
use serde::de::DeserializeOwned;

pub use renamed::renamed;

use crate::failure::usage;

/// RON with `Fixed(space: Log)`, and options without `Some`.
pub fn options() -> ron::Options {
    ron::Options::default()
        .with_default_extension(Extensions::IMPLICIT_SOME)
        .with_default_extension(Extensions::UNWRAP_VARIANT_NEWTYPES)
}

/// Reads a file. Words that have other names by now are named on stderr, once a file.
///
/// # Errors
/// A mistake of usage with file, line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = lm::load::read_text(path).map_err(|e| usage(e.to_string()))?;
    renamed::check(path, &text).map_err(usage)?;
    parse(path, &text)
}

/// Reads a text that `path` held.
///
/// # Errors
/// A mistake of usage with file, line and column.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    let tokens = tokens::tokens(text);
    if let Some(token) = tokens.iter().find(|token| token.is_not_finite()) {
        let tokens::Token { text, line, column } = token;
        let path = path.display();
        return Err(usage(format!(
            "{path}:{line}:{column}: `{text}` is no number that a setting can have"
        )));
    }
    options().from_str(text).map_err(|e| {
        usage(format!(
            "{}:{}",
            path.display(),
            mistakes::explain(text, &e)
        ))
    })
}

/// A model as a file names it: a path relative to the file if there is one, an id of the hub, else a name
/// ([`lm::source::hub::located`]).
pub fn model_path(folder: &Path, model: &str) -> String {
    lm::source::hub::located(folder, model)
}

/// Bytes of a name: two of them and what stands beside them are a file's name, which has 255 at most.
const NAME: usize = 100;

/// Checks a name that becomes part of file names; `what` it names is for the message.
///
/// # Errors
/// A name of other signs than letters, digits, '-' and '_', or of more than 100 bytes.
pub fn validate_name(what: &str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    if name.len() > NAME {
        let length = name.len();
        bail!(
            "{what} '{name}': {length} bytes, where names of files leave room for {NAME}; choose a shorter name"
        );
    }
    let fine = !name.is_empty() && name.chars().all(allowed);
    fine.then_some(())
        .with_context(|| format!("{what} '{name}': names are made of letters, digits, '-' and '_'"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use super::*;

    type Numbers = BTreeMap<String, f64>;

    #[test]
    fn no_setting_is_nan_or_infinite() {
        let read = |text: &str| parse::<Numbers>(Path::new("x.ron"), text);
        let fine = "{\"NaN\": 1e308, \"inf\": -1_0.5, /* NaN */ \"1e999\": 1e-999} // inf";
        assert_eq!(read(fine).unwrap()["inf"], -10.5);
        for number in [
            "NaN", "inf", "-inf", "+inf", "1e999", "-1e309", "NaNf64", "inff32", "1_0e400",
        ] {
            let error = read(&format!("{{\n  \"a\": {number}}}"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("x.ron:2:8: `") && error.contains("is no number"),
                "{error}"
            );
        }
    }

    #[test]
    fn names_leave_room_in_the_names_of_files() {
        let long = "é".repeat(50);
        validate_name("strategy", &long).unwrap();
        let file = format!("{long}.{long}.0000.0123456789ab.parquet");
        assert!(file.len() <= 255, "{}", file.len());
        let error = validate_name("strategy", &format!("{long}e")).unwrap_err();
        assert!(error.to_string().contains("101 bytes"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ron");
        std::fs::write(&path, "\u{feff}{\"a\": 1.0}").unwrap();
        assert_eq!(load::<Numbers>(&path).unwrap()["a"], 1.0);
    }
}
