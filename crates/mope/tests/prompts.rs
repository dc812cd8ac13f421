//! Runs in which a prompt is read once, and once for each that asks: they write the same files.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{contents, experiment, mope, same, stderr, write};
use serde_json::Value;

/// Strategies of every kind that reads prompts in a way of its own.
fn several(here: &Path) {
    let config = pcm::PcmConfig::tiny(&["friendly", "informative"], 32);
    let model = pcm::Pcm::new(&config, 1).unwrap();
    model.save(&here.join("pcm")).unwrap();
    let strategies = r#"strategies: {
        "base": Base(),
        "prompting": Prompting(),
        "uniform": Uniform(),
        "log": Fixed(space: Log),
        "nll": PackLlm(),
        "pcm": Pcm(model: "pcm"),
        "many": BestOfN(n: 3, of: Uniform()),
        "soup": Merge(method: Soup()),
        "best": BestSingle(),
    },
    validation: "others.txt",
    prompts:"#;
    let start = common::EXPERIMENT.find("strategies: {").unwrap();
    let end = common::EXPERIMENT.find("prompts:").unwrap() + "prompts:".len();
    let (before, after) = (&common::EXPERIMENT[..start], &common::EXPERIMENT[end..]);
    let text = format!("{before}{strategies}{after}");
    // Experts that can be merged and that the PCM knows.
    let short = "\"short\": (text: \"be brief\", weights: {\"concise\": 1.0, \"friendly\": 1.0}),";
    let other =
        "\"much\": (text: \"tell much\", weights: {\"informative\": 5.0, \"friendly\": 1.0}),";
    let text = text.replace(short, other).replace(
        "\"friendly\": Prompted(\"be kind\")",
        "\"friendly\": Adapter(\"PATTERNS\")",
    );
    let patterns = common::fixture("adapter_patterns");
    let text = text.replace("PATTERNS", patterns.to_str().unwrap());
    write(here, "several.ron", &text);
    std::fs::write(here.join("others.txt"), "How so?\nWho?\nWhose?\n").unwrap();
    let many: String = (0..9).map(|i| format!("Question {i}?\n")).collect();
    let prompts = std::fs::read_to_string(here.join("prompts.jsonl")).unwrap();
    let lines = many.lines().map(|q| format!("{{\"prompt\": \"{q}\"}}\n"));
    let all = prompts + &lines.collect::<String>();
    std::fs::write(here.join("prompts.jsonl"), all).unwrap();
}

fn run(here: &Path, out: &str, mebibytes: &str) {
    let mut command = mope(here, &["run", "several.ron", "--out", out]);
    let output = command.env("MOPE_PROMPT_CACHE", mebibytes).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// What the last session of a run read of its prompts: asked and read.
fn prompts(run: &Path) -> (u64, u64) {
    let text = std::fs::read_to_string(run.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let sessions = manifest["sessions"].as_array().unwrap();
    let prompts = &sessions.last().unwrap()["prompts"];
    let number = |name: &str| prompts[name].as_u64().unwrap();
    assert!(number("tokens_read") <= number("tokens_asked"));
    (number("asked"), number("read"))
}

#[test]
fn a_run_reads_a_prompt_once_and_writes_the_same() {
    let folder = experiment();
    let here = folder.path();
    several(here);
    run(here, "with/run", "64");
    run(here, "without/run", "0");
    let whole = contents(&here.join("with/run"));
    same(&whole, &contents(&here.join("without/run")));
    let (asked, read) = prompts(&here.join("with/run"));
    let (asked_without, read_without) = prompts(&here.join("without/run"));
    assert_eq!(asked, asked_without);
    assert!(
        4 * read < asked && 2 * read < read_without,
        "{asked} {read} {read_without}"
    );

    // Killed here and there, it goes on to the same.
    for wait in [150, 300, 600] {
        let mut child = mope(here, &["run", "several.ron", "--out", "killed/run"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(here, "killed/run", "64");
    same(&whole, &contents(&here.join("killed/run")));
}

#[test]
fn a_budget_that_is_no_number_is_refused() {
    let folder = experiment();
    let mut command = mope(folder.path(), &["run", "pico.ron"]);
    let output = command.env("MOPE_PROMPT_CACHE", "much").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(
        error.contains("MOPE_PROMPT_CACHE is 'much', not a number of MiB"),
        "{error}"
    );
}
