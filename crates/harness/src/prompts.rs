//! Prompt sets: JSON lines, plain text, CSV or Parquet.
//!
//! ```
//! use mope_harness::prompts::load;
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("prompts.jsonl");
//! std::fs::write(&file, "{\"id\": \"sky\", \"prompt\": \"Why is the sky blue?\"}\n{\"prompt\": \"Why?\"}\n")?;
//! let prompts = load(&file)?;
//! assert_eq!(prompts[0].prompt.question(), "Why is the sky blue?");
//! // One without an id is called by its line.
//! assert_eq!((prompts[0].id.as_str(), prompts[1].id.as_str()), ("sky", "2"));
//! # anyhow::Ok(())
//! ```

use std::collections::HashSet;
use std::path::Path;

use anyhow::Result;
use lm::chat::{Message, Prompt, Role};
use serde::Deserialize;
use serde_json::Value;

use crate::failure::usage;
use crate::foreign::{is_table, rows};

/// A prompt and the id that results carry.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPrompt {
    /// The `id` field, or the number of the line.
    pub id: String,
    /// What is asked.
    pub prompt: Prompt,
}

/// A prompt of a JSON file; other fields are allowed and ignored.
#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    prompt: Option<Content>,
    messages: Option<Vec<Turn>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Messages(Vec<Turn>),
}

/// A message whose content is a text, or a list of parts as OpenAI has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    role: Role,
    content: Value,
}

impl Turn {
    fn message(self) -> Result<Message, String> {
        let part = |part: &Value| {
            let text = part.get("text").and_then(Value::as_str);
            match (part.get("type").and_then(Value::as_str), text) {
                (Some("text" | "input_text"), Some(text)) => Ok(text.to_string()),
                (Some(kind), _) => Err(format!(
                    "a content part of type '{kind}'; models here read text, so only {{\"type\": \"text\", \"text\": …}}"
                )),
                (None, _) => Err("a content part without a type".to_string()),
            }
        };
        let content = match &self.content {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().map(part).collect::<Result<_, _>>()?,
            other => {
                return Err(format!(
                    "a message's content is a text or a list of parts, not {other}"
                ));
            }
        };
        let role = self.role;
        Ok(Message { role, content })
    }
}

/// Reads a prompt set. A file ending in `.jsonl` or `.json` has one object a line with `prompt` (a
/// text or a list of messages) or `messages`, and perhaps `id`, or is one array of such objects; a `.csv` or
/// `.parquet` file has a column `prompt`, and perhaps `id`. Any other is text, one prompt a line. Empty lines and a
/// byte order mark are skipped.
///
/// # Errors
/// With file and line, or number of the row. Also for an empty set, and for an id that comes twice.
pub fn load(path: &Path) -> Result<Vec<NamedPrompt>> {
    let table = is_table(path);
    let json = table
        || path
            .extension()
            .is_some_and(|e| e == "jsonl" || e == "json");
    let lines = match table {
        true => table_rows(path)?,
        false => lines(path, json)?,
    };
    let mut prompts: Vec<NamedPrompt> = Vec::new();
    let mut ids: HashSet<String> = HashSet::new();
    for (number, line) in lines {
        let fail = |message: String| usage(format!("{}:{number}: {message}", path.display()));
        let (id, prompt) = if json {
            parse(&line).map_err(fail)?
        } else {
            (None, Prompt::Chat(vec![Message::user(line.trim())]))
        };
        let id = id.unwrap_or_else(|| number.to_string());
        if !ids.insert(id.clone()) {
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

/// The lines of a file that are not empty, or the elements of its array, with their numbers.
fn lines(path: &Path, json: bool) -> Result<Vec<(usize, String)>> {
    let text = lm::load::read_text(path).map_err(|e| usage(e.to_string()))?;
    if json && text.trim_start().starts_with('[') {
        return array(path, &text);
    }
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(i, line)| (i + 1, line.to_string())).collect())
}

/// The rows of a table as objects, with their numbers.
fn table_rows(path: &Path) -> Result<Vec<(usize, String)>> {
    let rows = rows(path, &["id", "prompt"])?.into_iter();
    let rows = rows.map(|row| (row.number, Value::Object(row.cells).to_string()));
    Ok(rows.collect())
}

/// The elements of a JSON array, numbered from 1.
fn array(path: &Path, text: &str) -> Result<Vec<(usize, String)>> {
    let elements: Vec<Value> = serde_json::from_str(text)
        .map_err(|e| usage(format!("{}:{}: {e}", path.display(), e.line())))?;
    let texts = elements.iter().map(Value::to_string);
    Ok(texts.enumerate().map(|(i, text)| (i + 1, text)).collect())
}

fn parse(line: &str) -> Result<(Option<String>, Prompt), String> {
    let line: Line = serde_json::from_str(line).map_err(|e| {
        format!(
            "column {}: {e}; expected an object with `prompt`",
            e.column()
        )
    })?;
    let id = match line.id {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id),
        Some(other) => Some(other.to_string()),
    };
    let messages = match (line.prompt, line.messages) {
        (Some(Content::Text(text)), None) => vec![Message::user(text)],
        (Some(Content::Messages(turns)), None) | (None, Some(turns)) => turns
            .into_iter()
            .map(Turn::message)
            .collect::<Result<_, _>>()?,
        (None, None) => return Err("neither `prompt` nor `messages`".into()),
        (Some(_), Some(_)) => return Err("both `prompt` and `messages`".into()),
    };
    check(&messages)?;
    Ok((id, Prompt::Chat(messages)))
}

/// A conversation that can be answered.
///
/// # Errors
/// No message, an empty one, or one that is not the user's at the end; in words.
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
        // A byte order mark is no part of the first prompt.
        for (name, content) in [
            ("p.txt", "\u{feff}one\ntwo"),
            (
                "p.jsonl",
                "\u{feff}{\"prompt\": \"one\"}\n{\"prompt\": \"two\"}",
            ),
        ] {
            let prompts = read(name, content).unwrap();
            assert_eq!(
                (prompts.len(), prompts[0].prompt.question()),
                (2, "one"),
                "{name}"
            );
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_prompt() {
        for (name, content) in [
            ("p.txt", "\u{feff}Why?\r\nHow?\r\n"),
            (
                "p.jsonl",
                "\u{feff}{\"prompt\": \"Why?\"}\n{\"prompt\": \"How?\"}",
            ),
            (
                "p.json",
                "\u{feff}[{\"prompt\": \"Why?\"}, {\"prompt\": \"How?\"}]",
            ),
        ] {
            let prompts = read(name, content).unwrap();
            let questions: Vec<&str> = prompts.iter().map(|p| p.prompt.question()).collect();
            assert_eq!(questions, ["Why?", "How?"], "{name}");
        }
    }

    #[test]
    fn arrays_and_content_parts() {
        let array = r#"[
            {"id": "a", "prompt": "Why?"},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Ho"}, {"type": "text", "text": "w?"}]}]}
        ]"#;
        let prompts = read("p.json", array).unwrap();
        let ids: Vec<&str> = prompts.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids, ["a", "2"]);
        assert_eq!(prompts[1].prompt.question(), "How?");
        for (content, message) in [
            (r#"[{"prompt": "a"}, {"text": "b"}]"#, ":2: neither"),
            ("[{]", "p.json:1: "),
            ("[]", "no prompt in it"),
            (
                r#"[{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}]"#,
                "type 'image_url'",
            ),
            (
                r#"[{"messages": [{"role": "user", "content": null}]}]"#,
                "a text or a list of parts, not null",
            ),
        ] {
            let error = read("p.json", content).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn tables() {
        let csv = "id,prompt,category\na,\"Why, and\nhow?\",x\n7,Who?,y\n,What?,z\n";
        let prompts = read("p.csv", csv).unwrap();
        let named: Vec<(&str, &str)> = prompts
            .iter()
            .map(|p| (p.id.as_str(), p.prompt.question()))
            .collect();
        assert_eq!(
            named,
            [("a", "Why, and\nhow?"), ("7", "Who?"), ("3", "What?")]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.parquet");
        let mut frame =
            polars::prelude::df!("prompt" => ["Why?", "How?"], "id" => [5i64, 6]).unwrap();
        std::fs::write(&path, eval::table::parquet(&path, &mut frame).unwrap()).unwrap();
        let prompts = load(&path).unwrap();
        assert_eq!(
            (prompts[1].id.as_str(), prompts[1].prompt.question()),
            ("6", "How?")
        );
        for (csv, message) in [
            ("question\nWhy?\n", "p.csv:1: neither `prompt` nor"),
            (
                "id,prompt\na,Why?\na,How?\n",
                "p.csv:2: the id 'a' comes twice",
            ),
            ("prompt\n", "no prompt in it"),
        ] {
            let error = read("p.csv", csv).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
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
