//! Judges: who says which of two responses is better. One kind a file, and a variant of [`JudgeSpec`].
//!
//! Every pair is asked in both orders, because models prefer a place (arXiv 2306.05685). If the two verdicts
//! disagree, the pair counts as a tie.
//!
//! ```
//! use mope_eval::judges::Verdict;
//! let (shown, swapped) = (Verdict::read("A"), Verdict::read("B."));
//! assert_eq!(Verdict::of_both(shown, swapped), Some(1.0));
//! assert_eq!(Verdict::of_both(shown, shown), Some(0.5));
//! ```

mod agreement;
mod criteria;
mod endpoint;
mod local;
mod reward;
mod store;

use std::path::{Path, PathBuf};

use lm::chat::{Message, Prompt, Role};
use serde::{Deserialize, Serialize};

use crate::Result;

pub use agreement::{agreement, kappa, length_controlled};
pub use criteria::{Asked, Beside, Criteria, StatedPreference, TOGETHER, together};
#[cfg(feature = "http")]
pub use endpoint::Endpoint;
pub use endpoint::EndpointSpec;
#[cfg(feature = "http")]
pub(crate) use endpoint::key;
pub use local::Local;
pub use reward::Rewarded;
pub use store::{Record, Store};

/// What a judge is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What they are compared by, as a question: "Which response is friendlier?".
    pub criterion: &'a str,
    /// What both respond to.
    pub prompt: &'a Prompt,
    /// The responses, in the order in which they are shown.
    pub responses: [&'a str; 2],
}

/// What a judge says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The response shown first.
    First,
    /// The one shown second.
    Second,
    /// Neither is better.
    Tie,
    /// The reply names none; the pair is excluded and reported as unreadable.
    Unreadable,
}

/// A verdict and what it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What the reply says.
    pub verdict: Verdict,
    /// What the judge wrote or computed.
    pub raw: String,
}

/// What compares responses: a model, a server or a reward.
pub trait Judge {
    /// Compares the two responses in the order in which they are shown.
    ///
    /// # Errors
    /// A model or server that fails for good; nothing is known then.
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply>;
}

/// The judges that configs can name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum JudgeSpec {
    /// A model behind an OpenAI-compatible server.
    Endpoint(EndpointSpec),
    /// A registered model or a path, by the log-probabilities of the verdicts' tokens.
    Local(String),
    /// A trained reward model, by its folder; it knows one criterion only, its own.
    RewardModel(PathBuf),
}

impl JudgeSpec {
    /// Checks what can be checked before anybody is asked.
    ///
    /// # Errors
    /// Those of [`EndpointSpec::validate`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Endpoint(spec) => spec.validate(),
            Self::Local(_) | Self::RewardModel(_) => Ok(()),
        }
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        match self {
            Self::Endpoint(_) => {}
            // Anything else is a registered name.
            Self::Local(model) => {
                let path = folder.join(&*model);
                if path.exists() {
                    *model = path.to_string_lossy().into_owned();
                }
            }
            Self::RewardModel(path) => *path = folder.join(&*path),
        }
    }
}

impl Question<'_> {
    /// The question as a model reads it; a conversation with all of its turns.
    pub fn text(&self) -> String {
        let [first, second] = self.responses;
        let turn = |m: &Message| match m.role {
            Role::System => format!("System: {}", m.content),
            Role::User => format!("User: {}", m.content),
            Role::Assistant => format!("Assistant: {}", m.content),
        };
        let asked = match self.prompt {
            Prompt::Chat(messages) if messages.len() > 1 => {
                messages.iter().map(turn).collect::<Vec<_>>().join("\n\n")
            }
            prompt => prompt.question().to_string(),
        };
        format!(
            "{}\n\n[Question]\n{asked}\n\n[Response A]\n{first}\n\n[Response B]\n{second}\n\n\
             Answer with one letter and nothing else: A, B, or C if neither is.",
            self.criterion,
        )
    }
}

/// Marks around what reasoning models think before they answer.
const THOUGHTS: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<analysis>", "</analysis>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis", "<|channel|>final"),
];

/// What is said behind the thoughts; `None` where the reply ends before they do. A template may have written
/// the opening mark, so that the closing one stands alone.
fn said(reply: &str) -> Option<&str> {
    let mut rest = reply;
    for (open, close) in THOUGHTS {
        if let Some((_, behind)) = rest.rsplit_once(close) {
            rest = behind;
        }
        if rest.contains(open) {
            return None;
        }
    }
    Some(rest)
}

impl Verdict {
    /// Reads a reply: the one of the letters A, B and C that stands alone in it, after what the judge thought
    /// aloud. A reply that names two is unreadable, as is an "A" that reads like an article ("A tie"), and one
    /// that was cut while the judge was thinking.
    ///
    /// ```
    /// use mope_eval::judges::Verdict;
    /// assert_eq!(Verdict::read("B."), Verdict::Second);
    /// assert_eq!(Verdict::read("A is better"), Verdict::First);
    /// assert_eq!(Verdict::read("A better one is B"), Verdict::Second);
    /// assert_eq!(Verdict::read("I cannot say"), Verdict::Unreadable);
    /// assert_eq!(Verdict::read("<think>B is warmer, but C …</think>\n\nA"), Verdict::First);
    /// assert_eq!(Verdict::read("<think>\nOkay, Response B is"), Verdict::Unreadable);
    /// ```
    pub fn read(reply: &str) -> Self {
        let Some(reply) = said(reply) else {
            return Self::Unreadable;
        };
        let words = reply.split(|c: char| !c.is_alphanumeric());
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        let mut verdict = Self::Unreadable;
        for (i, word) in words.iter().enumerate() {
            let next = words.get(i + 1).copied().unwrap_or_default();
            let article =
                next.starts_with(char::is_lowercase) && !["is", "or", "and", "but"].contains(&next);
            let named = match *word {
                "A" if !article => Self::First,
                "B" => Self::Second,
                "C" => Self::Tie,
                _ => continue,
            };
            if verdict != Self::Unreadable && verdict != named {
                return Self::Unreadable;
            }
            verdict = named;
        }
        verdict
    }

    /// The share of a win that both orders together give to the response that was first in the first order;
    /// `None` where either is unreadable.
    pub fn of_both(first: Self, swapped: Self) -> Option<f64> {
        match (first, swapped) {
            (Self::Unreadable, _) | (_, Self::Unreadable) => None,
            (Self::First, Self::Second) => Some(1.0),
            (Self::Second, Self::First) => Some(0.0),
            _ => Some(0.5),
        }
    }

    /// Whether both orders name the same place.
    pub fn flips(first: Self, swapped: Self) -> bool {
        first == swapped && matches!(first, Self::First | Self::Second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_and_combined() {
        assert_eq!(Verdict::read("The answer is: A"), Verdict::First);
        assert_eq!(Verdict::read("**C**"), Verdict::Tie);
        for reply in ["About", "", "A tie", "A or B", "Not A but B", "a"] {
            assert_eq!(Verdict::read(reply), Verdict::Unreadable, "{reply}");
        }
        for (reply, verdict) in [
            ("B is clear.</think>A", Verdict::First),
            ("<think>A</think><think>B", Verdict::Unreadable),
            ("[THINK]A or B[/THINK]B", Verdict::Second),
            ("<thinking>A</thinking> C", Verdict::Tie),
            ("<think></think>\n\nB", Verdict::Second),
            (
                "<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final<|message|>A",
                Verdict::First,
            ),
            ("<|channel|>analysis<|message|>B", Verdict::Unreadable),
            ("<think>A</think>", Verdict::Unreadable),
        ] {
            assert_eq!(Verdict::read(reply), verdict, "{reply}");
        }
        let (a, b) = (Verdict::First, Verdict::Second);
        assert_eq!(Verdict::of_both(a, b), Some(1.0));
        assert_eq!(Verdict::of_both(b, a), Some(0.0));
        assert_eq!(
            (Verdict::of_both(a, a), Verdict::flips(a, a)),
            (Some(0.5), true)
        );
        assert_eq!(Verdict::of_both(a, Verdict::Unreadable), None);
        assert!(!Verdict::flips(Verdict::Tie, Verdict::Tie));
    }

    #[test]
    fn judges_read_whole_conversations() {
        let text = |prompt: &Prompt| {
            let responses = ["x", "y"];
            let criterion = "Which?";
            Question {
                criterion,
                prompt,
                responses,
            }
            .text()
        };
        let one = Prompt::Chat(vec![Message::user("Hum")]);
        assert!(text(&one).starts_with("Which?\n\n[Question]\nHum\n\n[Response A]\nx\n"));
        let two = Prompt::Chat(vec![Message::system("Sing."), Message::user("Hum")]);
        assert!(text(&two).contains("[Question]\nSystem: Sing.\n\nUser: Hum\n\n[Response A]"));
    }
}
