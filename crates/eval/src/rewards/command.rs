//! A program of one's own as a reward: it is started once, stays, and reads and writes a line for each batch. A line in
//! is a JSON list of responses (see `outside.rs`), the line out a JSON list of as many numbers.
//!
//! What it writes to stderr is shown where it fails.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lm::DeviceSpec;
use lm::source::cache_folder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::outside::{Ask, Outside, hashes};
use super::{Definition, Reward, Scorer};
use crate::error::above_zero;
use crate::{Error, Result};

/// Lines of stderr that are kept (ours).
const LAST_WORDS: usize = 12;

/// Longest line of an answer in bytes (ours): a number for each response needs some kilobytes.
const LONGEST: u64 = 1 << 20;

/// Endings of arguments that name files.
const FILES: [&str; 14] = [
    "py", "sh", "pl", "rb", "js", "mjs", "ts", "jl", "r", "R", "json", "jsonl", "yaml", "toml",
];

/// A program, its arguments, and how long it may take: `Command(["python3", "reward.py"])`, or
/// `Command((run: ["python3", "reward.py"], timeout: 60.0))`.
///
/// Arguments with a `/` in them, or that end as a script does, are files beside the experiment and count by their
/// content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Command {
    /// Program and arguments.
    pub run: Vec<String>,
    /// Seconds that a batch may take. Default 600 (ours).
    pub timeout: f64,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a list such as [\"python3\", \"reward.py\"], or (run: […], timeout: 60.0)"
)]
enum Written {
    Run(Vec<String>),
    Settings(Settings),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    run: Vec<String>,
    #[serde(default = "ten_minutes")]
    timeout: f64,
}

fn ten_minutes() -> f64 {
    600.0
}

impl From<Written> for Command {
    fn from(written: Written) -> Self {
        match written {
            Written::Run(run) => Self {
                run,
                timeout: ten_minutes(),
            },
            Written::Settings(Settings { run, timeout }) => Self { run, timeout },
        }
    }
}

/// Whether an argument names a file.
fn is_file(argument: &str) -> bool {
    let ending = Path::new(argument).extension().and_then(|e| e.to_str());
    !argument.starts_with('-')
        && !argument.contains("://")
        && (argument.contains('/') || ending.is_some_and(|e| FILES.contains(&e)))
}

impl Command {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let files = self.run.iter().filter(|argument| is_file(argument));
        files.map(Path::new)
    }

    /// What its scores follow from: files by content, wherever they lie.
    fn definition(&self) -> Result<Value> {
        let part = |argument: &String| match is_file(argument) {
            true => Ok(json!(hashes(Path::new(argument))?)),
            false => Ok(json!(argument)),
        };
        let parts: Vec<Value> = self.run.iter().map(part).collect::<Result<_>>()?;
        Ok(json!({"command": parts}))
    }
}

impl Definition for &Command {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        self.validate()?;
        let name = self.run.join(" ");
        let program = Lines {
            command: (*self).clone(),
            running: None,
        };
        let folder = cache_folder()?.join("scores");
        Ok(Box::new(Outside::new(
            name,
            program,
            &self.definition()?,
            &folder,
        )?))
    }

    fn validate(&self) -> Result<()> {
        if self.run.is_empty() {
            return Err(Error::NoCommand);
        }
        for file in self.files() {
            std::fs::metadata(file).map_err(Error::io(file))?;
        }
        above_zero("timeout", self.timeout)
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        let argument = |argument: &String| match is_file(argument) {
            true => change(Path::new(argument)).to_string_lossy().into_owned(),
            false => argument.clone(),
        };
        Scorer::Command(Command {
            run: self.run.iter().map(argument).collect(),
            timeout: self.timeout,
        })
    }
}

/// The process, started when it is first asked.
struct Lines {
    command: Command,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// To the thread that writes: a program that does not read must not hold this one.
    input: Sender<Vec<u8>>,
    output: Receiver<std::io::Result<Vec<u8>>>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    errors: Option<JoinHandle<()>>,
}

impl Running {
    fn start(run: &[String]) -> std::io::Result<Self> {
        let mut process = Process::new(&run[0]);
        let process = process.args(&run[1..]);
        let pipes = process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes.spawn()?;
        let missing = || std::io::Error::other("a pipe is missing");
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let (input, lines) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            while let Ok(line) = lines.recv() {
                // A program that is gone is noticed by its silence.
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            loop {
                let mut line = Vec::new();
                let read = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line);
                let ends = !matches!(read, Ok(1..));
                let sent = sender.send(read.map(|_| line));
                if ends || sent.is_err() {
                    break;
                }
            }
        });
        let last_words: Arc<Mutex<VecDeque<String>>> = Arc::default();
        let words = last_words.clone();
        let errors = std::thread::spawn(move || {
            let mut reader = BufReader::new(stderr);
            let mut line = Vec::new();
            while let Ok(1..) = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                let text = String::from_utf8_lossy(&line).trim_end().to_string();
                let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
                if words.len() == LAST_WORDS {
                    words.pop_front();
                }
                words.push_back(text);
                line.clear();
            }
        });
        Ok(Self {
            child,
            input,
            output,
            last_words,
            errors: Some(errors),
        })
    }

    /// Ends the process; a message with what it said last.
    fn end(mut self, message: String) -> String {
        let ended = self.child.try_wait().ok().flatten();
        drop(self.child.kill());
        drop(self.child.wait());
        // Children of its own may hold the pipe open: no waiting for them.
        if let Some(errors) = self.errors.take() {
            for _ in 0..20 {
                if errors.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let words = self
            .last_words
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let status = ended.map_or(String::new(), |status| format!(" ({status})"));
        match words.is_empty() {
            true => format!("{message}{status}; it said nothing on stderr"),
            false => format!("{message}{status}; its last words:\n{}", words.join("\n")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Lines {
    fn answer(&mut self, items: &[Value]) -> Result<Vec<f64>, String> {
        let timeout = Duration::from_secs_f64(self.command.timeout.min(1e9));
        if self.running.is_none() {
            let started = Running::start(&self.command.run);
            let started = started.map_err(|e| format!("cannot be started: {e}"))?;
            self.running = Some(started);
        }
        let Some(running) = &self.running else {
            return Err("is not running".into());
        };
        let mut line = Value::from(items).to_string().into_bytes();
        line.push(b'\n');
        // Where the writing thread is gone, the answer will not come either.
        drop(running.input.send(line));
        let line = match running.output.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => {
                let (n, seconds) = (items.len(), self.command.timeout);
                return Err(format!("no answer to {n} responses within {seconds} s"));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("ended".into()),
            Ok(Err(e)) => return Err(e.to_string()),
            Ok(Ok(line)) => line,
        };
        if line.is_empty() {
            return Err(format!(
                "ended without an answer to {} responses",
                items.len()
            ));
        }
        let text = String::from_utf8_lossy(&line);
        serde_json::from_slice(&line).map_err(|_| {
            let text: String = text.trim_end().chars().take(200).collect();
            format!("answered {text:?}, which is no JSON list of numbers")
        })
    }
}

impl Ask for Lines {
    fn ask(&mut self, items: &[Value]) -> Result<Vec<f64>, String> {
        let answer = self.answer(items);
        let wrong = match &answer {
            Err(message) => Some(message.clone()),
            Ok(scores) if scores.len() != items.len() => {
                let (got, expected) = (scores.len(), items.len());
                Some(format!("gave {got} scores to {expected} responses"))
            }
            Ok(_) => None,
        };
        match wrong {
            None => answer,
            // What it says next would belong to what it was asked before.
            Some(message) => Err(match self.running.take() {
                Some(running) => running.end(message),
                None => message,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn ask(script: &str, timeout: f64, items: usize) -> Result<Vec<f64>, String> {
        let run = ["sh", "-c", script].map(String::from).to_vec();
        let mut lines = Lines {
            command: Command { run, timeout },
            running: None,
        };
        lines.ask(&vec![json!({"response": "x"}); items])
    }

    #[test]
    fn a_process_stays() {
        let run = [
            "sh",
            "-c",
            "n=0; while read line; do n=$((n+1)); echo \"[$n, 0.5]\"; done",
        ];
        let run = run.map(String::from).to_vec();
        let mut lines = Lines {
            command: Command { run, timeout: 60.0 },
            running: None,
        };
        let items = vec![json!({"response": "x"}); 2];
        for n in 1..4 {
            assert_eq!(lines.ask(&items).unwrap(), [f64::from(n), 0.5]);
        }
    }

    #[test]
    fn what_goes_wrong_comes_with_the_last_words() {
        for (script, timeout, message) in [
            (
                "read x; echo 'no model' >&2; exit 3",
                60.0,
                "ended without an answer to 2 responses",
            ),
            (
                "read x; echo 'no model' >&2; exit 3",
                60.0,
                "its last words:\nno model",
            ),
            (
                "echo hello; exec sleep 60",
                60.0,
                "answered \"hello\", which is no JSON list of numbers",
            ),
            (
                "read x; echo '[1, NaN]'; exec sleep 60",
                60.0,
                "answered \"[1, NaN]\"",
            ),
            (
                "read x; echo '[1]'; exec sleep 60",
                60.0,
                "gave 1 scores to 2 responses; it said nothing",
            ),
            (
                "echo busy >&2; exec sleep 60",
                0.2,
                "no answer to 2 responses within 0.2 s",
            ),
        ] {
            let error = ask(script, timeout, 2).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        // One that does not read holds nobody.
        let error = ask("exec sleep 60", 0.2, 100_000).unwrap_err();
        assert!(error.starts_with("no answer to 100000"), "{error}");
        let mut gone = Lines {
            command: Command {
                run: vec!["no-such-program-here".into()],
                timeout: 1.0,
            },
            running: None,
        };
        assert!(gone.ask(&[]).unwrap_err().starts_with("cannot be started"));
    }

    #[test]
    fn arguments_that_are_files() {
        for (argument, file) in [
            ("reward.py", true),
            ("./reward", true),
            ("/opt/reward", true),
            ("python3", false),
            ("--lr=0.5/2", false),
            ("http://127.0.0.1:1/x", false),
            ("0.5", false),
        ] {
            assert_eq!(is_file(argument), file, "{argument}");
        }
    }

    #[test]
    fn both_forms_are_read() {
        let read = |text: &str| -> Scorer { serde_json::from_str(text).unwrap() };
        let list = read(r#"{"Command": ["python3", "reward.py"]}"#);
        let settings = read(r#"{"Command": {"run": ["python3", "reward.py"]}}"#);
        assert_eq!(list, settings);
        let text = serde_json::to_string(&list).unwrap();
        assert_eq!(read(&text), list);
    }
}
