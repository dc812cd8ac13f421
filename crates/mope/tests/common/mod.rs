//! A tiny model, an experiment over it, and the program.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "tests; each file uses its part"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A committed fixture of the tiny models.
pub fn fixture(name: &str) -> PathBuf {
    pico::path(name)
}

/// The program, with arguments; it finds no model but those of the test.
pub fn mope(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mope"));
    command
        .current_dir(folder)
        .args(arguments)
        .env("MOPE_CACHE", folder.join("cache"));
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs and expects success.
pub fn done(folder: &Path, arguments: &[&str]) -> Output {
    let output = mope(folder, arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    output
}

/// Runs and expects one clear error with this exit code; returns it.
pub fn fails(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = mope(folder, arguments).output().unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert_eq!(stdout(&output), "");
    error
}

/// An experiment over the pico model with every kind of expert and strategy.
pub const EXPERIMENT: &str = r#"(
    name: "pico",
    seed: 3,
    model: "MODEL",
    dimensions: {
        "informativeness": (scorer: Informativeness, low: "concise", high: "informative",
            normaliser: (mean: 3.676, sd: 0.325)),
        "style": (scorer: Style, low: "unfriendly", high: "friendly", normaliser: (mean: 0.196, sd: 0.228)),
    },
    experts: {
        "informative": Adapter("PLAIN"),
        "friendly": Prompted("be kind"),
        "concise": Full("OTHER"),
    },
    preferences: {
        "both": (text: "be good", weights: {"informative": 2.0, "friendly": 1.0}),
        "short": (text: "be brief", weights: {"concise": 1.0, "friendly": 1.0}),
    },
    strategies: {
        "base": Base(),
        "prompting": Prompting(),
        "single": Single(expert: "friendly"),
        "uniform": Uniform(),
        "fixed": Fixed(space: Log),
        "weighted": Fixed(weights: {"base": 0.5, "informative": 0.5}),
    },
    prompts: "prompts.jsonl",
    samples: 2,
    generation: (max_new_tokens: 12, sampling: (temperature: 0.9)),
    batch_size: 4,
)"#;

/// Writes the experiment and its prompts into a new folder.
pub fn experiment() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let prompts = concat!(
        "{\"id\": \"one\", \"prompt\": \"Why?\"}\n",
        "{\"id\": \"two\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, ",
        "{\"role\": \"assistant\", \"content\": \"Ho\"}, {\"role\": \"user\", \"content\": \"Hum\"}]}\n",
        "{\"prompt\": \"And so on?\"}\n",
    );
    std::fs::write(folder.path().join("prompts.jsonl"), prompts).unwrap();
    write(folder.path(), "pico.ron", EXPERIMENT);
    folder
}

/// Writes an experiment with the models' paths filled in.
pub fn write(folder: &Path, name: &str, text: &str) {
    let text = text
        .replace("MODEL", fixture("llama").to_str().unwrap())
        .replace("OTHER", fixture("qwen3").to_str().unwrap())
        .replace("PLAIN", fixture("adapter_plain").to_str().unwrap());
    std::fs::write(folder.join(name), text).unwrap();
}

/// Every file of a run except locks and those that hold times (the manifest, the cost table and its plot, and the
/// report, which shows them), by relative path.
pub fn contents(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![run.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let file = path.file_name().unwrap().to_str().unwrap();
                let left = [
                    ".lock",
                    "manifest.json",
                    "cost.",
                    "utility_by_cost.",
                    "report.html",
                ];
                if left.iter().any(|t| file.starts_with(t)) {
                    continue;
                }
                let name = path
                    .strip_prefix(run)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_string();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Fails with the first name whose bytes differ.
pub fn same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    let names = |m: &BTreeMap<String, Vec<u8>>| m.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}
