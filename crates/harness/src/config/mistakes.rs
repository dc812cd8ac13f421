//! What is wrong with a RON text, in words: place, field, what was expected and what stands there.

use ron::error::SpannedError;

use super::renamed::current;
use super::tokens::{Token, path, tokens};
use crate::failure::nearest;

/// Fields that are looked for in the wrong struct: struct, field, and where it belongs.
const MISPLACED: [(&str, &str, &str); 4] = [
    ("Generation", "temperature", "sampling: (temperature: …)"),
    ("Generation", "top_k", "sampling: (top_k: …)"),
    ("Generation", "top_p", "sampling: (top_p: …)"),
    ("Generation", "min_p", "sampling: (min_p: …)"),
];

/// `line:column: what is wrong`.
pub fn explain(text: &str, error: &SpannedError) -> String {
    let start = error.span.start;
    let at = |line: usize, column: usize, message: String| format!("{line}:{column}: {message}");
    let said = |message: String| at(start.line, start.col, message);
    let of = |outer: &Option<String>| {
        let outer = outer.as_ref();
        outer.map_or(String::new(), |outer| format!(" of `{outer}`"))
    };
    match &error.code {
        ron::Error::NoSuchStructField {
            expected,
            found,
            outer,
        } => {
            let misplaced = MISPLACED.iter().find(|(name, field, _)| {
                outer.as_deref() == Some(*name) && found.as_str() == *field
            });
            let hint = match misplaced {
                Some((.., right)) => format!(" (did you mean '{right}'?)"),
                None => nearest(found, current(expected)),
            };
            let (of, known) = (of(outer), listed(&current(expected)));
            said(format!(
                "unknown field `{found}`{of}{hint}; there are: {known}"
            ))
        }
        ron::Error::NoSuchEnumVariant {
            expected,
            found,
            outer,
        } => {
            let hint = nearest(found, current(expected));
            let (of, known) = (of(outer), listed(&current(expected)));
            said(format!(
                "unknown word `{found}`{of}{hint}; there are: {known}"
            ))
        }
        ron::Error::MissingStructField { field, outer } => {
            said(format!("missing field `{field}`{}", of(outer)))
        }
        ron::Error::DuplicateStructField { field, outer } => {
            said(format!("the field `{field}`{} is there twice", of(outer)))
        }
        code => match expectation(code) {
            None => said(code.to_string()),
            Some(expected) => {
                let tokens = tokens(text);
                let next = tokens.iter().find(|t| !t.before(start.line, start.col));
                let (line, column) = next.map_or((start.line, start.col), |t| (t.line, t.column));
                let previous = tokens
                    .iter()
                    .rev()
                    .find(|t| t.before(start.line, start.col));
                let names = path(&tokens, line, column);
                let message = mismatch(code, expected, &names, previous, next);
                at(line, column, message)
            }
        },
    }
}

/// What an error says was expected, for those that mean a value of another kind.
fn expectation(code: &ron::Error) -> Option<&'static str> {
    Some(match code {
        ron::Error::ExpectedArray => "a list in `[` and `]`",
        ron::Error::ExpectedBoolean => "`true` or `false`",
        ron::Error::ExpectedFloat => "a number",
        ron::Error::ExpectedInteger => "an integer",
        ron::Error::ExpectedMap => "entries in `{` and `}`",
        ron::Error::ExpectedStructLike | ron::Error::ExpectedNamedStructLike(_) => {
            "fields in `(` and `)`"
        }
        ron::Error::ExpectedString => "a text in quotes",
        ron::Error::ExpectedIdentifier => "a word without quotes",
        _ => return None,
    })
}

/// The sentence about a value of another kind, with the names of the fields that enclose it.
fn mismatch(
    code: &ron::Error,
    expected: &str,
    names: &[&str],
    previous: Option<&Token<'_>>,
    next: Option<&Token<'_>>,
) -> String {
    let field = match names {
        [] => String::new(),
        names => format!("{}: ", names.join(": ")),
    };
    let bare = matches!(
        code,
        ron::Error::ExpectedStructLike | ron::Error::ExpectedNamedStructLike(_)
    );
    if let Some(word) = previous.filter(|word| bare && word.is_word()) {
        let word = word.text;
        return format!(
            "{field}`{word}` needs brackets, with its fields in them if any: write `{word}()`"
        );
    }
    let next = next.map_or("the end of the file", |t| t.text);
    let remedy = match (code, names.first()) {
        (ron::Error::ExpectedIdentifier, Some(&"experts")) => {
            format!(", such as `Prompted({next})` or `Adapter({next})`")
        }
        _ => String::new(),
    };
    format!("{field}expected {expected}{remedy}; here is `{next}`")
}

/// Names in backticks with commas between them.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;

    use crate::experiment::Experiment;

    /// What is said of an experiment in which `from` is replaced by `to`.
    fn said(from: &str, to: &str) -> String {
        let text = r#"(
    name: "a",
    seed: 3,
    model: "m",
    dimensions: {"d": (scorer: Style, low: "cold", high: "warm")},
    experts: {"warm": Prompted("Be warm")},
    preferences: {"p": (text: "t", weights: {"warm": 1.0})},
    strategies: {"base": Base()},
    prompts: "p.jsonl",
    generation: (max_new_tokens: 4),
    kl: true,
)"#;
        assert!(text.contains(from), "{from}");
        let text = text.replacen(from, to, 1);
        let read = crate::config::parse::<Experiment>(Path::new("a.ron"), &text);
        read.unwrap_err().to_string()
    }

    #[test]
    fn mistakes_name_place_field_and_remedy() {
        for (from, to, expected) in [
            (
                "seed: 3",
                "seed: \"7\"",
                "a.ron:3:11: seed: expected an integer; here is `\"7\"`",
            ),
            (
                "seed: 3",
                "sead: 3",
                "unknown field `sead` of `Experiment` (did you mean 'seed'?); there are: `name`",
            ),
            (
                "    prompts: \"p.jsonl\",\n",
                "",
                "missing field `prompts` of `Experiment`",
            ),
            (
                "seed: 3",
                "seed: 3, seed: 4",
                "the field `seed` of `Experiment` is there twice",
            ),
            (
                "Prompted(\"Be warm\")",
                "\"Be warm\"",
                "a.ron:6:23: experts: warm: expected a word without quotes, such as `Prompted(\"Be warm\")` or",
            ),
            ("Base()", "Base", "strategies: base: `Base` needs brackets"),
            (
                "Base()",
                "Bsae()",
                "unknown word `Bsae` of `Strategy` (did you mean 'Base'?); there are: `Base`, `Canned`, `Empty`, `Single`, `BestSingle`, \
                 `BestWeights`, `BestOnValidation`",
            ),
            (
                "{\"warm\": 1.0}",
                "{warm: 1.0}",
                "expected a text in quotes; here is `warm`",
            ),
            (
                "max_new_tokens: 4",
                "temperature: 0.7",
                "(did you mean 'sampling: (temperature: …)'?)",
            ),
            (
                "kl: true",
                "kl: yes",
                "kl: expected `true` or `false`; here is `yes`",
            ),
        ] {
            let error = said(from, to);
            assert!(
                error.starts_with("a.ron:") && error.contains(expected),
                "{error}"
            );
        }
    }
}
