//! What an experiment asks: its field `question`, or the comment at the head of its file.

/// The first paragraph of the head comment that is no command: paragraphs end at an empty comment line or at the end of
/// the comment, and commands start with a program's name or a path.
pub(super) fn question(source: &str) -> Option<String> {
    let lines = source.trim_start_matches('\u{feff}').lines().map(str::trim);
    let comment: Vec<&str> = lines
        .skip_while(|line| line.is_empty())
        .map_while(|line| line.strip_prefix("//"))
        .map(|line| line.trim_start_matches('/').trim())
        .collect();
    let mut paragraphs = comment.split(|line| line.is_empty());
    let text = paragraphs.find(|lines| lines.first().is_some_and(|line| !is_command(line)))?;
    Some(text.join(" "))
}

fn is_command(line: &str) -> bool {
    const PROGRAMS: [&str; 7] = ["cargo", "mope", "python", "python3", "bash", "head", "$"];
    let word = line.split_whitespace().next().unwrap_or("");
    PROGRAMS.contains(&word) || word.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_skipped_and_lines_joined() {
        let source = "// cargo run -- run a.ron\n// scripts/x.py\n//\n// Does it\n// help?\n//\n// More.\n(\n// inside\n";
        assert_eq!(question(source).as_deref(), Some("Does it help?"));
        assert_eq!(
            question("\n// Alone.\n(name: \"x\")").as_deref(),
            Some("Alone.")
        );
        assert_eq!(question("// mope run a.ron\n(name: \"x\")"), None);
        assert_eq!(question("(name: \"x\") // no\n"), None);
    }
}
