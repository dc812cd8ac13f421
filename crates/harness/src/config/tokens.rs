//! The words of a RON text with their places: what messages about a file point at.

/// A word, a number, a string or a sign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token<'a> {
    /// As it is written, quotes included.
    pub text: &'a str,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Token<'_> {
    /// A name of a field, a variant or a type.
    pub fn is_word(&self) -> bool {
        let first = self.text.chars().next();
        first.is_some_and(|c| c.is_alphabetic() || c == '_') && !self.is_string()
    }

    /// A string, raw or not.
    pub fn is_string(&self) -> bool {
        self.text.ends_with(['"', '#']) && self.text.contains('"')
    }

    /// A number that is NaN or infinite, or that is beyond what 64 bits hold.
    pub fn is_not_finite(&self) -> bool {
        let digits = self.text.trim_start_matches(['+', '-']);
        let typed = digits.strip_suffix("f32").or(digits.strip_suffix("f64"));
        let digits = typed.unwrap_or(digits);
        if ["NaN", "inf"].contains(&digits) {
            return true;
        }
        let number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let value = number.then(|| digits.replace('_', "").parse::<f64>().ok());
        value.flatten().is_some_and(f64::is_infinite)
    }

    /// The place comes before another.
    pub fn before(&self, line: usize, column: usize) -> bool {
        (self.line, self.column) < (line, column)
    }
}

/// The tokens of a text. White space and comments are left out. A text that is no RON has some, too.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut rest, mut line, mut column) = (text, 1, 1);
    while !rest.is_empty() {
        let (length, kept) = token(rest);
        let (taken, after) = rest.split_at(length);
        if kept {
            let text = taken;
            tokens.push(Token { text, line, column });
        }
        for c in taken.chars() {
            (line, column) = if c == '\n' {
                (line + 1, 1)
            } else {
                (line, column + 1)
            };
        }
        rest = after;
    }
    tokens
}

/// Bytes of the piece that a text begins with, and whether it is a token.
fn token(text: &str) -> (usize, bool) {
    let run = |inside: fn(char) -> bool| text.find(|c| !inside(c)).unwrap_or(text.len());
    let first = text.chars().next().unwrap_or_default();
    if first.is_whitespace() {
        return (run(char::is_whitespace), false);
    }
    if text.starts_with("//") {
        return (text.find('\n').unwrap_or(text.len()), false);
    }
    if text.starts_with("/*") {
        return (block_comment(text), false);
    }
    if let Some(length) = string(text) {
        return (length, true);
    }
    if first.is_alphabetic() || first == '_' {
        return (run(|c| c.is_alphanumeric() || c == '_'), true);
    }
    if first.is_ascii_digit() || "+-.".contains(first) {
        return (run(|c| c.is_alphanumeric() || "+-._".contains(c)), true);
    }
    (first.len_utf8(), true)
}

/// Bytes of the comment that a text begins with; comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Bytes of the string that a text begins with, `"…"`, `r"…"` or `r#"…"#`.
fn string(text: &str) -> Option<usize> {
    if let Some(raw) = text.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let content = raw[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = content.find(&end).map(|at| at + end.len());
        return Some(1 + hashes + 1 + length.unwrap_or(content.len()));
    }
    let content = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in content.char_indices() {
        match c {
            '"' if !escaped => return Some(at + 2),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    Some(text.len())
}

/// The names of the fields and entries that enclose a place, outermost first: `experts`, `warm`.
pub fn path<'a>(tokens: &[Token<'a>], line: usize, column: usize) -> Vec<&'a str> {
    let mut names: Vec<Option<&str>> = vec![None];
    let before = tokens.iter().take_while(|t| t.before(line, column));
    for (token, next) in before.zip(tokens.iter().skip(1)) {
        match token.text {
            "(" | "[" | "{" => names.push(None),
            ")" | "]" | "}" if names.len() > 1 => {
                names.pop();
            }
            "," => {
                if let Some(last) = names.last_mut() {
                    *last = None;
                }
            }
            text if next.text == ":" && (token.is_word() || token.is_string()) => {
                if let Some(last) = names.last_mut() {
                    *last = Some(text.trim_matches('"'));
                }
            }
            _ => {}
        }
    }
    names.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "( // weights: Q8\n  a: \"/* x \\\" ( */\", /* b /* c */ d: */ \n  \"é\": r#\"\"Over(\"\"#, e: [F(-1.5)])";

    #[test]
    fn strings_and_comments_are_no_words() {
        let tokens = tokens(TEXT);
        let texts: Vec<&str> = tokens.iter().map(|t| t.text).collect();
        let expected = [
            "(",
            "a",
            ":",
            "\"/* x \\\" ( */\"",
            ",",
            "\"é\"",
            ":",
            "r#\"\"Over(\"\"#",
            ",",
            "e",
            ":",
            "[",
            "F",
            "(",
            "-1.5",
            ")",
            "]",
            ")",
        ];
        assert_eq!(texts, expected);
        assert_eq!((tokens[1].line, tokens[1].column), (2, 3));
        assert_eq!((tokens[7].line, tokens[7].column), (3, 8));
        assert_eq!(tokens.iter().filter(|t| t.is_word()).count(), 3);
    }

    #[test]
    fn a_place_has_the_names_that_enclose_it() {
        let text = "(name: \"x\", experts: {\"warm\": Adapter(\"a\"), \"cold\": \"b\"}, seed: 1)";
        let tokens = tokens(text);
        let at = |what: &str| {
            let column = text.find(what).map_or(0, |at| at + 1);
            path(&tokens, 1, column)
        };
        assert_eq!(at("\"a\""), ["experts", "warm"]);
        assert_eq!(at("\"b\""), ["experts", "cold"]);
        assert_eq!(at("1)"), ["seed"]);
        assert!(at("(name").is_empty());
    }

    #[test]
    fn what_never_ends_ends_with_the_text() {
        for text in ["\"a", "/* a", "r#\"a\"", "// a", "r##", "'"] {
            assert!(tokens(text).len() <= 3, "{text}");
        }
    }
}
