//! Checks of parameters that files and callers set. Each names the parameter, its value and what was expected.
//!
//! ```
//! use mope_lm::parameter::{above_zero, at_least_one};
//! assert!(above_zero("beta", 0.1).is_ok());
//! let error = above_zero("beta", 0.0).unwrap_err();
//! assert_eq!(error.to_string(), "beta is 0, not a number above 0");
//! let error = at_least_one([("epochs", 2), ("minibatch", 0)]).unwrap_err();
//! assert_eq!(error.to_string(), "minibatch is 0, not at least 1");
//! ```

use std::borrow::Cow;
use std::fmt::Display;

use crate::{Error, Result};

/// Checks that a parameter is a finite number above 0.
///
/// # Errors
/// [`Error::Parameter`].
pub fn above_zero(
    name: impl Into<Cow<'static, str>>,
    value: impl Into<f64> + Display + Copy,
) -> Result<()> {
    let number: f64 = value.into();
    match number > 0.0 && number.is_finite() {
        true => Ok(()),
        false => Err(Error::parameter(name, value, "a number above 0")),
    }
}

/// Checks that a parameter is a finite number and not negative.
///
/// # Errors
/// [`Error::Parameter`].
pub fn from_zero_on(
    name: impl Into<Cow<'static, str>>,
    value: impl Into<f64> + Display + Copy,
) -> Result<()> {
    let number: f64 = value.into();
    match number >= 0.0 && number.is_finite() {
        true => Ok(()),
        false => Err(Error::parameter(name, value, "a number from 0 on")),
    }
}

/// Checks that a parameter lies in [0, 1).
///
/// # Errors
/// [`Error::Parameter`].
pub fn below_one(
    name: impl Into<Cow<'static, str>>,
    value: impl Into<f64> + Display + Copy,
) -> Result<()> {
    match (0.0..1.0).contains(&value.into()) {
        true => Ok(()),
        false => Err(Error::parameter(name, value, "in [0, 1)")),
    }
}

/// Checks that none of these counts is 0.
///
/// # Errors
/// [`Error::Parameter`] for the first that is.
pub fn at_least_one<const N: usize>(counts: [(&'static str, u64); N]) -> Result<()> {
    match counts.iter().find(|(_, count)| *count == 0) {
        None => Ok(()),
        Some((name, _)) => Err(Error::parameter(*name, 0, "at least 1")),
    }
}
