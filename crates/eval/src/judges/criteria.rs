//! What a judge is asked of a pair: questions that read the preference, and one for each direction that it states.
//!
//! A *criterion* is asked of every pair, with `{preference}` replaced by the preference in words. A question of a
//! *direction* is asked only where the preference states it; where only its opposite has a question, that one is asked
//! and counts the other way round. [`together`] makes one win of a pair's directions, as the protocol of arXiv 2310.11564 and
//! 2407.04181 does.
//!
//! ```
//! use mope_eval::judges::{Criteria, StatedPreference};
//! let criteria = Criteria {
//!     always: vec![],
//!     directions: vec![("friendly".into(), "Which of two responses is friendlier?".into())],
//! };
//! let cold = StatedPreference {
//!     text: "be cold",
//!     stated: vec![("unfriendly", "friendly")],
//! };
//! let asked = criteria.of(&cold);
//! // The friendlier response is the worse one.
//! assert_eq!((asked[0].criterion.as_str(), asked[0].sign), ("unfriendly", -1.0));
//! ```

/// Stands in questions for the preference in words.
const PREFERENCE: &str = "{preference}";

/// Name of the criterion that all stated directions together are.
pub const TOGETHER: &str = "together";

/// Questions by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Criteria {
    /// Asked of every pair.
    pub always: Vec<(String, String)>,
    /// Asked where the preference states the direction or its opposite.
    pub directions: Vec<(String, String)>,
}

/// What a person wants, as judges need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedPreference<'a> {
    /// In words.
    pub text: &'a str,
    /// Stated directions, each with the other end of its dimension.
    pub stated: Vec<(&'a str, &'a str)>,
}

/// A question about a pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Its name: the criterion, or the stated direction.
    pub criterion: String,
    /// The question, with the preference in it.
    pub text: String,
    /// 1 where the response that is named serves the preference better, −1 where the other does.
    pub sign: f64,
    /// What of the run says the same.
    pub beside: Beside,
}

/// What of a run a question can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// The utility: it asks for the preference.
    Utility,
    /// The reward of the stated direction.
    Reward,
    /// Nothing: it asks the same whatever is wanted.
    Nothing,
}

impl Criteria {
    /// One question for each of the six directions of the paper, which read the preference (ours in words).
    pub fn paper() -> Self {
        let question = |direction: &str, which: &str| {
            let text = format!(
                "A person wishes: {PREFERENCE}\nWhich of two responses to the question {which}?"
            );
            (direction.to_string(), text)
        };
        Self {
            always: Vec::new(),
            directions: vec![
                question(
                    "elementary",
                    "is easier to understand for an elementary school pupil",
                ),
                question("specialist", "fits a specialist of the field better"),
                question("concise", "is more concise, without losing the point"),
                question("informative", "is more informative"),
                question("friendly", "is friendlier"),
                question("unfriendly", "is less friendly"),
            ],
        }
    }

    /// What is asked of a pair that answers a preference.
    pub fn of(&self, preference: &StatedPreference<'_>) -> Vec<Asked> {
        let fill = |text: &str| text.replace(PREFERENCE, preference.text);
        let always = self.always.iter().map(|(name, text)| Asked {
            criterion: name.clone(),
            text: fill(text),
            sign: 1.0,
            beside: match text.contains(PREFERENCE) {
                true => Beside::Utility,
                false => Beside::Nothing,
            },
        });
        let question = |direction: &str| {
            let mut all = self.directions.iter();
            all.find(|(name, _)| name == direction)
                .map(|(_, text)| text)
        };
        let stated = preference
            .stated
            .iter()
            .filter_map(|(direction, opposite)| {
                let (text, sign) = match question(direction) {
                    Some(text) => (text, 1.0),
                    None => (question(opposite)?, -1.0),
                };
                Some(Asked {
                    criterion: direction.to_string(),
                    text: fill(text),
                    sign,
                    beside: Beside::Reward,
                })
            });
        always.chain(stated).collect()
    }
}

/// One win of those in several directions: 1 where more are won than lost, 0 where more are lost, else ½. Verdicts that
/// could not be read are left out; `None` where none could.
///
/// ```
/// use mope_eval::judges::together;
/// assert_eq!(together(&[Some(1.0), Some(1.0), Some(0.0)]), Some(1.0));
/// assert_eq!(together(&[Some(0.5), None]), Some(0.5));
/// assert_eq!(together(&[None]), None);
/// ```
pub fn together(wins: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = wins.iter().flatten().copied().collect();
    let lead: f64 = known.iter().map(|win| win - 0.5).sum();
    let verdict = match lead {
        lead if lead > 0.0 => 1.0,
        lead if lead < 0.0 => 0.0,
        _ => 0.5,
    };
    (!known.is_empty()).then_some(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_read_the_preference_and_are_asked_where_it_states_them() {
        let criteria = Criteria {
            always: vec![
                (
                    "preference".into(),
                    "Which serves \"{preference}\" better?".into(),
                ),
                ("sense".into(), "Which makes more sense?".into()),
            ],
            directions: Criteria::paper().directions,
        };
        let preference = StatedPreference {
            text: "be brief",
            stated: vec![("concise", "informative")],
        };
        let asked = criteria.of(&preference);
        let names: Vec<&str> = asked.iter().map(|a| a.criterion.as_str()).collect();
        assert_eq!(names, ["preference", "sense", "concise"]);
        assert_eq!(asked[0].text, "Which serves \"be brief\" better?");
        let beside: Vec<Beside> = asked.iter().map(|a| a.beside).collect();
        assert_eq!(beside, [Beside::Utility, Beside::Nothing, Beside::Reward]);
        assert!(asked[2].text.contains("be brief") && asked[2].sign == 1.0);
        let other = StatedPreference {
            text: "",
            stated: vec![("funny", "dry")],
        };
        assert_eq!(criteria.of(&other).len(), 2);
    }

    /// Friendly to the four that ask for it and cold to the four that ask for that: "friendlier?" asked of all gave a half.
    #[test]
    fn opposite_wishes_do_not_cancel() {
        let friendlier = ("friendly".to_string(), "Which is friendlier?".to_string());
        let criteria = Criteria {
            always: vec![],
            directions: vec![friendlier],
        };
        let mut wins = Vec::new();
        for (direction, opposite) in [("friendly", "unfriendly"), ("unfriendly", "friendly")] {
            let preference = StatedPreference {
                text: "",
                stated: vec![(direction, opposite)],
            };
            let asked = criteria.of(&preference);
            // The judge names the friendlier response: ours for the friends, the other's for the rest.
            let named = if direction == "friendly" { 1.0 } else { 0.0 };
            wins.push(0.5 + asked[0].sign * (named - 0.5));
        }
        assert_eq!(wins, [1.0, 1.0]);
    }
}
