//! Words of files that have other names by now. They are accepted for one version, each with a line that names the new
//! word; one that would be ambiguous is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::tokens::{Token, tokens};
use crate::progress;

/// Where a word is one of those below.
enum Usage {
    /// A field with one of these values.
    Field(&'static [&'static str]),
    /// A variant in front of its brackets.
    Variant,
}

/// Number formats of models.
const FORMATS: &[&str] = &["F32", "Bf16", "Q8", "Q4"];

/// Old words and new ones.
const RENAMED: [(&str, &str, Usage); 7] = [
    ("weights", "format", Usage::Field(FORMATS)),
    ("sampling_weights", "sampling_format", Usage::Field(FORMATS)),
    ("Over", "WithMerged", Usage::Variant),
    ("Pack", "PackLlm", Usage::Variant),
    ("Best", "BestOnValidation", Usage::Variant),
    ("Whole", "CompleteSentences", Usage::Variant),
    ("device", "", Usage::Field(&["Flex"])),
];

/// The words of a list that are today's: an old one whose new word is there, too, is left out.
pub(super) fn current(words: &[&'static str]) -> Vec<&'static str> {
    let old = |word: &str| {
        RENAMED
            .iter()
            .any(|(old, new, _)| *old == word && words.contains(new))
    };
    words.iter().copied().filter(|word| !old(word)).collect()
}

/// What is said of a word that is refused.
const FLEX: &str = "`Flex` names two devices: write `Cpu` for the engine of this project, which `Flex` ran so far, \
                    or `BurnFlex` for burn's";

/// An old word in a text.
#[derive(Debug, PartialEq)]
struct Found<'a> {
    token: Token<'a>,
    /// The new word; none for one that is refused.
    new: Option<&'static str>,
}

/// Old words of a text, in their order.
fn find(text: &str) -> Vec<Found<'_>> {
    let tokens = tokens(text);
    let mut words = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let following = |n: usize| tokens.get(i + n).map_or("", |t| t.text);
        let used = |usage: &Usage| match usage {
            Usage::Field(values) => following(1) == ":" && values.contains(&following(2)),
            Usage::Variant => following(1) == "(",
        };
        let renamed = RENAMED
            .iter()
            .find(|(old, _, usage)| *old == token.text && used(usage));
        if let Some((_, new, _)) = renamed {
            words.push(Found {
                token: *token,
                new: (!new.is_empty()).then_some(new),
            });
        }
    }
    words
}

/// Names the new words for the old ones of a file, each once, and once a file.
///
/// # Errors
/// In words, with file, line and column: a word that is refused.
pub fn check(path: &Path, text: &str) -> Result<(), String> {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let old_words = find(text);
    for Found { token, new } in &old_words {
        if new.is_none() {
            let position = position(path, token);
            return Err(format!("{position}: device: {FLEX}"));
        }
    }
    let mut said = SAID.lock().unwrap_or_else(|e| e.into_inner());
    if said.insert(path.into()) {
        let mut words = BTreeSet::new();
        for Found { token, new } in &old_words {
            if words.insert(token.text) {
                renamed(
                    &format!("{}: ", position(path, token)),
                    token.text,
                    new.unwrap_or_default(),
                );
            }
        }
    }
    Ok(())
}

fn position(path: &Path, token: &Token<'_>) -> String {
    format!("{}:{}:{}", path.display(), token.line, token.column)
}

/// Says on stderr that a word has another name now; `place` comes before it.
pub fn renamed(position: &str, old: &str, new: &str) {
    progress::say(&format!(
        "{position}`{old}` is called `{new}` now; the old word is accepted for one version"
    ));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn old_words_are_found_where_they_mean_what_was_renamed() {
        let text = r#"(
    name: "Over(weights: Q8)", // Best()
    weights: Q8,
    sampling_weights : Bf16,
    preferences: {"both": (text: "Pack(", weights: {"a": 1.0})},
    strategies: {
        "o": Over(merge: Soup(), then: Pack(space: Log)),
        "b": Best(of: {"p": PackLlm(), "f": Fixed(weights: {"a": 1.0})}),
        "s": BestSingle(),
    },
    dimensions: {"d": (scorer: Whole (Style), low: "Whole", high: "Over")},
)"#;
        let words: Vec<(&str, &str, usize, usize)> = find(text)
            .iter()
            .map(|f| {
                let t = f.token;
                (t.text, f.new.unwrap(), t.line, t.column)
            })
            .collect();
        let expected = [
            ("weights", "format", 3, 5),
            ("sampling_weights", "sampling_format", 4, 5),
            ("Over", "WithMerged", 7, 14),
            ("Pack", "PackLlm", 7, 40),
            ("Best", "BestOnValidation", 8, 14),
            ("Whole", "CompleteSentences", 11, 32),
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_device_that_could_be_two_is_refused_with_its_place() {
        let file = Path::new("a.ron");
        let error = check(file, "(\n  device: Flex,\n)").unwrap_err();
        assert!(error.starts_with("a.ron:2:3: device: `Flex`"), "{error}");
        assert!(error.contains("`Cpu`") && error.contains("`BurnFlex`"));
        for fine in ["device: BurnFlex", "name: \"device: Flex\"", "device: Cpu"] {
            assert_eq!(check(file, fine), Ok(()));
        }
    }
}
