//! Text as content of Markdown, LaTeX and HTML.

/// Text as a cell of a Markdown table.
pub(crate) fn escape_markdown(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('\n', " ")
}

/// Text as LaTeX content.
pub(crate) fn escape_latex(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push(' '),
            // What default fonts of LaTeX lack.
            '−' => out.push_str("$-$"),
            c => out.push(c),
        }
    }
    out
}

/// Text as HTML content.
pub fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_for_markup() {
        assert_eq!(escape_markdown("a|b\\c\nd"), "a\\|b\\\\c d");
        assert_eq!(
            escape_latex("5% of {a_b}\\−1"),
            "5\\% of \\{a\\_b\\}\\textbackslash{}$-$1"
        );
        assert_eq!(
            escape_html("<a href=\"x\">&"),
            "&lt;a href=&quot;x&quot;&gt;&amp;"
        );
    }
}
