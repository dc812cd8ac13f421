//! Rewards that another program computes: what it is told, what it must answer, and the scores that are kept.
//!
//! Each response is an object `{"prompt": "…", "messages": [{"role": "…", "content": "…"}], "response": "…"}`; `messages`
//! is left out where the prompt is raw text. Scores are finite numbers, one for each response, in their order. They are
//! kept by content, so that nothing is asked twice, in another process neither: in `scores/` of the cache folder.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lm::chat::Prompt;
use lm::source::{hex, sha256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Reward;
use crate::{Error, Result};

/// Responses that are asked about together (ours).
const TOGETHER: usize = 64;

/// A program that scores.
pub(super) trait Ask: Send {
    /// The answer to several responses.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn ask(&mut self, items: &[Value]) -> Result<Vec<f64>, String>;
}

/// A reward behind another program, with the scores that it gave.
pub(super) struct Outside<A> {
    /// What it is called in messages.
    name: String,
    program: Mutex<A>,
    kept: Mutex<Kept>,
}

/// A score in the file of those that are kept.
#[derive(Serialize, Deserialize)]
struct Line {
    of: String,
    score: f64,
}

/// Scores by content.
struct Kept {
    path: PathBuf,
    file: File,
    scores: HashMap<String, f64>,
}

impl Kept {
    /// The scores of what `definition` describes, in `folder`.
    fn open(folder: &Path, definition: &Value) -> Result<Self> {
        let path = folder.join(format!("{}.jsonl", key(definition)));
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true);
        let file = options.open(&path).map_err(Error::io(&path))?;
        let text = fs::read(&path).map_err(Error::io(&path))?;
        // A line that a killed process left unfinished is no score.
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        let scores = lines.map(|line| (line.of, line.score)).collect();
        Ok(Self { path, file, scores })
    }

    fn put(&mut self, scores: Vec<(String, f64)>) -> Result<()> {
        let mut lines = String::from("\n");
        for (of, score) in scores {
            let line = Line { of, score };
            lines += &serde_json::to_string(&line).unwrap_or_default();
            lines.push('\n');
            self.scores.insert(line.of, line.score);
        }
        // In one piece, so that processes which share the file do not write into each other's lines.
        let written = self.file.write_all(lines.as_bytes());
        written.map_err(Error::io(&self.path))
    }
}

/// A hash of what something follows from.
fn key(content: &Value) -> String {
    hex(&Sha256::digest(content.to_string().as_bytes())[..16])
}

/// Hashes of a file, or of the files in a folder.
///
/// # Errors
/// What cannot be read.
pub(super) fn hashes(path: &Path) -> Result<Vec<String>> {
    if !path.is_dir() {
        return Ok(vec![sha256(path)?]);
    }
    let entries = fs::read_dir(path).map_err(Error::io(path))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files
        .iter()
        .map(|file| sha256(file))
        .collect::<lm::Result<_>>()?)
}

/// A response as it is told.
fn item(prompt: &Prompt, response: &str) -> Value {
    match prompt {
        Prompt::Raw(text) => json!({"prompt": text, "response": response}),
        Prompt::Chat(messages) => {
            json!({"prompt": prompt.question(), "messages": messages, "response": response})
        }
    }
}

impl<A: Ask> Outside<A> {
    /// A program called `name` in messages, whose scores follow from `definition` and are kept in `folder`.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub(super) fn new(name: String, program: A, definition: &Value, folder: &Path) -> Result<Self> {
        Ok(Self {
            name,
            program: Mutex::new(program),
            kept: Mutex::new(Kept::open(folder, definition)?),
        })
    }

    fn fail(&self, message: String) -> Error {
        Error::Outside {
            name: self.name.clone(),
            message,
        }
    }

    fn ask(&self, items: &[&Value]) -> Result<Vec<f64>> {
        let items: Vec<Value> = items.iter().map(|item| (*item).clone()).collect();
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let scores = program.ask(&items).map_err(|message| self.fail(message))?;
        if scores.len() != items.len() {
            let (got, expected) = (scores.len(), items.len());
            return Err(self.fail(format!("gave {got} scores to {expected} responses")));
        }
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            let (score, text) = (scores[at], items[at]["response"].as_str());
            let text: String = text.unwrap_or_default().chars().take(60).collect();
            return Err(self.fail(format!("scores {text:?} with {score}, which is no number")));
        }
        Ok(scores)
    }
}

impl<A: Ask> Reward for Outside<A> {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let items: Vec<Value> = items
            .iter()
            .map(|(prompt, text)| item(prompt, text))
            .collect();
        let keys: Vec<String> = items.iter().map(key).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<usize> = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            if !kept.scores.contains_key(key) && !missing.iter().any(|&m| keys[m] == *key) {
                missing.push(i);
            }
        }
        for together in missing.chunks(TOGETHER) {
            let asked: Vec<&Value> = together.iter().map(|&i| &items[i]).collect();
            let scores = self.ask(&asked)?;
            let keys = together.iter().map(|&i| keys[i].clone());
            kept.put(keys.zip(scores).collect())?;
        }
        Ok(keys.iter().map(|key| kept.scores[key]).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Scores by length, and counts what it was asked; breaks down after so many responses.
    struct Lengths(Arc<AtomicUsize>, usize);

    impl Ask for Lengths {
        fn ask(&mut self, items: &[Value]) -> Result<Vec<f64>, String> {
            if self.0.fetch_add(items.len(), Ordering::Relaxed) + items.len() > self.1 {
                return Err("is tired".into());
            }
            let length = |item: &Value| match item["response"].as_str().unwrap() {
                "nothing" => f64::NAN,
                text => text.len() as f64,
            };
            let scores = items.iter().map(length);
            // One more than asked for.
            let more = items.iter().any(|item| item["response"] == "twice");
            Ok(scores.chain(more.then_some(0.0)).collect())
        }
    }

    fn reward(
        folder: &Path,
        definition: &str,
        most: usize,
    ) -> (Outside<Lengths>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let program = Lengths(count.clone(), most);
        let outside = Outside::new("lengths".into(), program, &json!(definition), folder);
        (outside.unwrap(), count)
    }

    #[test]
    fn nothing_is_asked_twice_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let prompt = Prompt::Raw("?".into());
        let texts: Vec<String> = (0..100).map(|n| "x".repeat(n)).collect();
        let items: Vec<(&Prompt, &str)> = texts.iter().map(|t| (&prompt, t.as_str())).collect();
        let (first, _) = reward(folder.path(), "a", 70);
        // 64 and 36: the second batch fails.
        let error = first.score_all(&items).unwrap_err().to_string();
        assert_eq!(error, "lengths: is tired");
        // As a killed process leaves it.
        let file = fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut text = fs::read_to_string(&file).unwrap();
        text += "{\"of\": \"12";
        fs::write(&file, text).unwrap();
        let (second, asked) = reward(folder.path(), "a", 1000);
        let scores = second.score_all(&items).unwrap();
        assert_eq!(scores, (0..100).map(f64::from).collect::<Vec<_>>());
        assert_eq!(asked.load(Ordering::Relaxed), 36);
        assert_eq!(second.score_all(&items).unwrap(), scores);
        assert_eq!(second.score_all(&[items[3], items[3]]).unwrap(), [3.0, 3.0]);
        let (third, asked) = reward(folder.path(), "a", 1000);
        assert_eq!(third.score_all(&items).unwrap(), scores);
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        // Another definition knows nothing of it; nor does another prompt.
        let (other, asked) = reward(folder.path(), "b", 1000);
        other.score_all(&items[..2]).unwrap();
        let chat = Prompt::Chat(vec![lm::chat::Message::user("?")]);
        assert_eq!(
            other.score_all(&[(&chat, ""), (&prompt, "")]).unwrap(),
            [0.0, 0.0]
        );
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_is_no_score_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let prompt = Prompt::Raw("?".into());
        let (reward, _) = reward(folder.path(), "a", 1000);
        let error = |text: &str| reward.score(&prompt, text).unwrap_err().to_string();
        assert_eq!(
            error("nothing"),
            "lengths: scores \"nothing\" with NaN, which is no number"
        );
        assert_eq!(error("twice"), "lengths: gave 2 scores to 1 responses");
    }
}
