use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BASE, Result, refuse};

/// What a person wants: in words, and as importance of the directions that experts stand for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// The wish in words, as prompting strategies and the PCM read it.
    pub text: String,
    /// Importance by direction, each above 0. Only ratios count: `(a: 2, b: 1)` asks for a twice as
    /// much as for b.
    #[serde(deserialize_with = "crate::named::unique")]
    pub weights: BTreeMap<String, f64>,
}

impl Preference {
    /// Importances divided by their sum, sorted by name.
    ///
    /// # Errors
    /// No direction, or an importance that is not a positive number.
    ///
    /// ```
    /// use mixing::Preference;
    /// let weights = [("concise".to_string(), 3.0), ("friendly".to_string(), 1.0)].into();
    /// let preference = Preference { text: String::new(), weights };
    /// let shares = preference.shares()?;
    /// assert_eq!(shares, [("concise".to_string(), 0.75), ("friendly".to_string(), 0.25)]);
    /// # Ok::<(), mixing::Error>(())
    /// ```
    pub fn shares(&self) -> Result<Vec<(String, f64)>> {
        if self.weights.is_empty() {
            return refuse("the preference states no direction");
        }
        if let Some((name, w)) = self
            .weights
            .iter()
            .find(|(_, w)| !(**w > 0.0 && w.is_finite()))
        {
            return refuse(format!(
                "the preference's weight of '{name}' is {w}, not above 0"
            ));
        }
        let total: f64 = self.weights.values().sum();
        Ok(self
            .weights
            .iter()
            .map(|(name, w)| (name.clone(), w / total))
            .collect())
    }

    /// The stated directions, sorted; each must be among `experts`.
    pub(crate) fn directions(&self, experts: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = self.shares()?.into_iter().map(|(name, _)| name).collect();
        match names.iter().find(|name| !experts.contains(&name.as_str())) {
            None => Ok(names),
            Some(name) => {
                let known: Vec<&str> = experts.iter().copied().filter(|e| *e != BASE).collect();
                let known = known.join(", ");
                refuse(format!(
                    "the preference asks for '{name}', the experts are: {known}"
                ))
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
    if let Some(name) = weights.keys().find(|n| !experts.contains(&n.as_str())) {
        let known = experts.join(", ");
        return refuse(format!("a weight for '{name}', the experts are: {known}"));
    }
    if let Some((name, w)) = weights.iter().find(|(_, w)| !(0.0..=1.0).contains(*w)) {
        return refuse(format!(
            "the weight of '{name}' is {w}, not between 0 and 1"
        ));
    }
    let total: f64 = weights.values().sum();
    if (total - 1.0).abs() > 1e-6 {
        return refuse(format!("the weights sum to {total}, not to 1"));
    }
    Ok(weights.iter().map(|(name, w)| (name.clone(), *w)).collect())
}
