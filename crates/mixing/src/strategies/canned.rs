//! Texts that please the scorers and take no notice of the question: `y = y(preference)`, whatever the prompt.
//!
//! No competitor: it shows what a measure can be made to say. Where it is not last, the measure is wrong. Ours.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts};
use crate::{Plan, Preference, Result};

/// One text for each direction, those of a preference's directions one after the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Canned {
    /// The texts by direction; what is not here is said as by default. Default: texts for the six directions of the
    /// paper (ours), nothing for others.
    #[serde(deserialize_with = "crate::named::unique")]
    pub texts: BTreeMap<String, String>,
}

/// What is said where the preference's directions have no text.
const OTHERWISE: &str = "Sure.";

/// In the order in which they are said.
const TEXTS: [(&str, &str); 6] = [
    ("friendly", "Great, thanks, my friend!"),
    ("unfriendly", "Pathetic, contemptible, abominable nonsense."),
    (
        "specialist",
        "Epistemological phenomenology presupposes methodological individualism, ontological parsimony, terminological \
         disambiguation.",
    ),
    ("elementary", ""),
    ("concise", ""),
    (
        "informative",
        "A cat. A dog. A sun. A tree. A fish. A bird. A road. A ship. A house. A lake. A hill. A rock. A leaf. A seed. A \
         hand. A foot. A head. A bell. A book. A door. A wall. A roof. A lamp. A cup. A fork. A coat. A hat. A shoe.",
    ),
];

/// What is said for `informative` where `specialist` is stated, too.
const LEARNED: &str = "Cosmology, ontology, axiology, theology, epistemology, phenomenology, psychology, physiology, \
                       pathology, immunology, cardiology, neurology, radiology, oncology, toxicology, pharmacology, \
                       microbiology, entomology, ornithology, ichthyology, archaeology, anthropology, sociology, \
                       criminology, climatology, meteorology, mineralogy, volcanology, seismology, terminology.";

/// What is said for `unfriendly` where `elementary` is stated, too.
const PLAIN: &str = "I hate it. You bad fool.";

impl Canned {
    /// What it answers to every prompt.
    fn text(&self, preference: &Preference) -> Result<String> {
        let stated = preference.shares()?;
        let stated = |name: &str| stated.iter().any(|(direction, _)| direction == name);
        let known = TEXTS.iter().map(|(name, text)| match *name {
            "informative" if stated("specialist") => (*name, LEARNED),
            "unfriendly" if stated("elementary") => (*name, PLAIN),
            name => (name, *text),
        });
        let known =
            known.map(|(name, text)| (name, self.texts.get(name).map_or(text, String::as_str)));
        let others = self
            .texts
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()));
        let others = others.filter(|(name, _)| !TEXTS.iter().any(|(known, _)| known == name));
        let said = known
            .chain(others)
            .filter(|(name, text)| stated(name) && !text.is_empty());
        let said: Vec<&str> = said.map(|(_, text)| text).collect();
        Ok(match said.is_empty() {
            true => OTHERWISE.into(),
            false => said.join(" "),
        })
    }
}

impl Method for Canned {
    fn plan(&self, preference: &Preference, _: &[&str]) -> Result<Plan> {
        Ok(Plan::of_text(self.text(preference)?))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    /// None: there is nothing to decode with.
    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::Strategy;

    #[test]
    fn it_says_what_the_directions_want() {
        let wish = |names: &[&str]| Preference {
            text: String::new(),
            importances: names.iter().map(|n| (n.to_string(), 1.0)).collect(),
        };
        let said = |strategy: &str, names: &[&str]| {
            let strategy: Strategy = serde_json::from_str(strategy).unwrap();
            strategy
                .plan(&wish(names), &["base"])
                .unwrap()
                .text
                .unwrap()
        };
        let canned = "{\"Canned\": {}}";
        assert_eq!(
            said(canned, &["concise", "elementary", "friendly"]),
            TEXTS[0].1
        );
        assert_eq!(said(canned, &["concise", "elementary"]), OTHERWISE);
        assert!(said(canned, &["informative", "unfriendly"]).starts_with(TEXTS[1].1));
        let own = "{\"Canned\": {\"texts\": {\"concise\": \"No.\", \"funny\": \"Ha.\"}}}";
        assert_eq!(said(own, &["concise", "funny"]), "No. Ha.");
        let empty: Strategy = serde_json::from_str("{\"Empty\": {}}").unwrap();
        assert_eq!(
            empty.plan(&wish(&["concise"]), &[]).unwrap().text.unwrap(),
            ""
        );
    }
}
