//! Prompt sets: JSON lines or plain text.

use std::path::Path;

use anyhow::Result;
use lm::chat::{Message, Prompt, Role};
use serde::Deserialize;

use crate::failure::usage;

/// A prompt and the id that results carry.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPrompt {
    /// The `id` field, or the number of the line.
    pub id: String,
    /// What is asked.
    pub prompt: Prompt,
}

/// A line of a `.jsonl` file; other fields are allowed and ignored.
#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    prompt: Option<Content>,
    messages: Option<Vec<Message>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Messages(Vec<Message>),
}

/// Reads a prompt set. A file ending in `.jsonl` or `.json` has one object a line with `prompt` (a
/// text or a list of messages) or `messages`, and perhaps `id`; any other is text, one prompt a line.
/// Empty lines are skipped.
///
/// # Errors
/// With file and line. Also for an empty set, and for an id that comes twice.
pub fn load(path: &Path) -> Result<Vec<NamedPrompt>> {
    let text = lm::load::read_text(path).map_err(|e| usage(e.to_string()))?;
    let json = path
        .extension()
        .is_some_and(|e| e == "jsonl" || e == "json");
    let mut prompts: Vec<NamedPrompt> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if line.trim().is_empty() {
            continue;
        }
        let fail = |message: String| usage(format!("{}:{number}: {message}", path.display()));
        let (id, prompt) = if json {
            parse(line).map_err(fail)?
        } else {
            (None, Prompt::Chat(vec![Message::user(line.trim())]))
        };
        let id = id.unwrap_or_else(|| number.to_string());
        if prompts.iter().any(|p| p.id == id) {
            return Err(fail(format!("the id '{id}' comes twice")));
        }
        prompts.push(NamedPrompt { id, prompt });
    }
    if prompts.is_empty() {
        let message = "there is no prompt in it; give one a line";
        return Err(usage(format!("{}: {message}", path.display())));
    }
    Ok(prompts)
}

fn parse(line: &str) -> Result<(Option<String>, Prompt), String> {
    let line: Line = serde_json::from_str(line).map_err(|e| {
        format!(
            "column {}: {e}; expected an object with `prompt`",
            e.column()
        )
    })?;
    let id = match line.id {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::String(id)) => Some(id),
        Some(other) => Some(other.to_string()),
    };
    let messages = match (line.prompt, line.messages) {
        (Some(Content::Text(text)), None) => vec![Message::user(text)],
        (Some(Content::Messages(messages)), None) | (None, Some(messages)) => messages,
        (None, None) => return Err("neither `prompt` nor `messages`".into()),
        (Some(_), Some(_)) => return Err("both `prompt` and `messages`".into()),
    };
    check(&messages)?;
    Ok((id, Prompt::Chat(messages)))
}

/// A conversation that can be answered.
///
/// # Errors
/// What is wrong with it.
pub fn check(messages: &[Message]) -> Result<(), String> {
    match messages.last() {
        None => Err("the list of messages is empty".into()),
        Some(last) if last.role != Role::User => Err("the last message must be the user's".into()),
        Some(last) if last.content.trim().is_empty() => Err("the prompt is empty".into()),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(name: &str, content: &str) -> Result<Vec<NamedPrompt>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        load(&path)
    }

    #[test]
    fn both_formats_and_conversations() {
        let lines = concat!(
            "{\"prompt\": \"Why?\", \"other\": 1}\n\n",
            "{\"id\": \"b\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n",
            "{\"id\": 7, \"prompt\": [{\"role\": \"user\", \"content\": \"Ho\"}]}\n",
        );
        let prompts = read("p.jsonl", lines).unwrap();
        let ids: Vec<&str> = prompts.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids, ["1", "b", "7"]);
        assert_eq!(prompts[2].prompt.question(), "Ho");
        let prompts = read("p.txt", "one\n\n two \n").unwrap();
        assert_eq!((prompts.len(), prompts[1].prompt.question()), (2, "two"));
    }

    #[test]
    fn mistakes_name_their_line() {
        for (content, message) in [
            ("", "no prompt in it"),
            ("{\"prompt\": \"a\"}\nnot json", ":2: column"),
            ("{\"text\": \"a\"}", ":1: neither"),
            ("{\"prompt\": \" \"}", ":1: the prompt is empty"),
            ("{\"prompt\": []}", "list of messages is empty"),
            (
                "{\"id\":1,\"prompt\":\"a\"}\n{\"id\":1,\"prompt\":\"b\"}",
                ":2: the id '1'",
            ),
            (
                "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}",
                "must be the user's",
            ),
        ] {
            let error = read("p.jsonl", content).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
