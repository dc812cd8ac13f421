//! What a person wants.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{above_zero, share};
use crate::{BASE, Error, Result, owned};

/// What a person wants: in words, and as importance of the directions that experts stand for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// The wish in words, as prompting strategies and the PCM read it.
    pub text: String,
    /// Importance by direction, each above 0. Only ratios count: `(a: 2, b: 1)` asks for a twice as
    /// much as for b.
    #[serde(rename = "weights", deserialize_with = "crate::named::unique")]
    pub importances: BTreeMap<String, f64>,
}

impl Preference {
    /// Importances divided by their sum, sorted by name.
    ///
    /// # Errors
    /// No direction, an importance that is not a positive number, or a sum that is infinite.
    ///
    /// ```
    /// use mope_mixing::Preference;
    /// let importances = [("concise".to_string(), 3.0), ("friendly".to_string(), 1.0)].into();
    /// let preference = Preference { text: String::new(), importances };
    /// let shares = preference.shares()?;
    /// assert_eq!(shares, [("concise".to_string(), 0.75), ("friendly".to_string(), 0.25)]);
    /// # Ok::<(), mope_mixing::Error>(())
    /// ```
    pub fn shares(&self) -> Result<Vec<(String, f64)>> {
        if self.importances.is_empty() {
            return Err(Error::Preference("the preference states no direction"));
        }
        for (name, importance) in &self.importances {
            above_zero(format!("the preference's weight of '{name}'"), *importance)?;
        }
        let total: f64 = self.importances.values().sum();
        if total.is_infinite() {
            let message =
                "the preference's weights sum to infinity; only their ratios count, so divide them";
            return Err(Error::Preference(message));
        }
        let shares = self.importances.iter();
        Ok(shares
            .map(|(name, importance)| (name.clone(), importance / total))
            .collect())
    }

    /// The stated directions, sorted; each must be among `experts`.
    pub(crate) fn directions(&self, experts: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = self.shares()?.into_iter().map(|(name, _)| name).collect();
        match names.iter().find(|name| !experts.contains(&name.as_str())) {
            None => Ok(names),
            Some(name) => {
                let others = experts.iter().copied().filter(|expert| *expert != BASE);
                Err(Error::UnknownDirection {
                    name: name.clone(),
                    known: owned(&others.collect::<Vec<_>>()),
                })
            }
        }
    }
}

/// Weights on the simplex by expert, sorted: those given, or else the importances of the preference.
pub(crate) fn constant_weights(
    given: Option<&BTreeMap<String, f64>>,
    preference: &Preference,
    experts: &[&str],
) -> Result<Vec<(String, f64)>> {
    let Some(weights) = given else {
        preference.directions(experts)?;
        return preference.shares();
    };
    if let Some(name) = weights
        .keys()
        .find(|name| !experts.contains(&name.as_str()))
    {
        return Err(Error::UnknownWeight {
            name: name.clone(),
            known: owned(experts),
        });
    }
    for (name, weight) in weights {
        share(format!("the weight of '{name}'"), *weight)?;
    }
    let total: f64 = weights.values().sum();
    if (total - 1.0).abs() > 1e-6 {
        return Err(Error::WeightSum { total, remedy: "" });
    }
    let weights = weights.iter();
    Ok(weights
        .map(|(name, weight)| (name.clone(), *weight))
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shares_are_on_the_simplex_or_refused() {
        let shares = |weights: [f64; 2]| {
            let names = ["a", "b"].map(String::from);
            let preference = Preference {
                text: String::new(),
                importances: names.into_iter().zip(weights).collect(),
            };
            preference.shares()
        };
        for weights in [[1e-300, 3e-300], [8e307, 8e307], [1e-9, 1e300]] {
            let total: f64 = shares(weights).unwrap().iter().map(|s| s.1).sum();
            assert!((total - 1.0).abs() < 1e-12, "{weights:?}");
        }
        let error = shares([1e308, 1e308]).unwrap_err().to_string();
        assert!(error.contains("sum to infinity"), "{error}");
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(shares([1.0, weight]).is_err(), "{weight}");
        }
    }
}
