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
    /// No direction, or an importance that is not a positive number.
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
