//! RON files as this project writes them: read with a place and a remedy where they are wrong.

mod mistakes;
mod renamed;
mod tokens;

use std::path::Path;

use anyhow::{Context, Result};
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
    options().from_str(text).map_err(|e| {
        usage(format!(
            "{}:{}",
            path.display(),
            mistakes::explain(text, &e)
        ))
    })
}

/// A model as a file names it: a path relative to the file if there is one, else a name.
pub fn model_path(folder: &Path, model: &str) -> String {
    let path = folder.join(model);
    if path.exists() {
        path.to_string_lossy().into_owned()
    } else {
        model.to_string()
    }
}

/// Checks a name that becomes part of file names; `what` it names is for the message.
///
/// # Errors
/// A name of other signs than letters, digits, '-' and '_'.
pub fn validate_name(what: &str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let fine = !name.is_empty() && name.chars().all(allowed);
    fine.then_some(())
        .with_context(|| format!("{what} '{name}': names are made of letters, digits, '-' and '_'"))
}
