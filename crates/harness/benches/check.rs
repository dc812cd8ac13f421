//! What checking large prompt sets takes: `cargo bench -p mope-harness --bench check`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fmt::Write;
use std::path::Path;

use divan::Bencher;
use mope_harness::experiment::Experiment;
use mope_harness::prompts;
use mope_harness::splits::Splits;

/// Prompts of a few kinds with other words, as collections of them are; a set has those from `first` on.
fn set(path: &Path, first: usize, count: usize) {
    let mut text = String::new();
    for i in first..first + count {
        let (a, b, c) = (i % 997, i / 997, i * 31 % 1009);
        let prompt = match i % 4 {
            0 => format!("What is w{a} of v{b}?"),
            1 => format!(
                "Please write a short text about w{a} and v{b} for u{c}, and say why it matters to them."
            ),
            2 => format!("How do I w{a} the v{b}?"),
            _ => format!(
                "Explain w{a}v{b} to a child who has never heard of u{c} in a few simple sentences."
            ),
        };
        writeln!(text, "{{\"id\": {i}, \"prompt\": \"{prompt}\"}}").unwrap();
    }
    std::fs::write(path, text).unwrap();
}

const EXPERIMENT: &str = r#"(
    name: "large",
    model: "base",
    dimensions: {"style": (scorer: Style, low: "unfriendly", high: "friendly")},
    experts: {"friendly": Prompted("be kind")},
    preferences: {"kind": (text: "be kind", weights: {"friendly": 1.0})},
    strategies: {"uniform": Uniform()},
    prompts: "prompts.jsonl",
    training: ["training.jsonl"],
)"#;

/// An experiment in a folder of its own, with so many prompts to compare and as many that were trained on.
fn experiment(count: usize) -> (tempfile::TempDir, Experiment) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    set(&here.join("prompts.jsonl"), 0, count);
    set(&here.join("training.jsonl"), count, count);
    std::fs::write(here.join("large.ron"), EXPERIMENT).unwrap();
    let experiment = Experiment::load(&here.join("large.ron")).unwrap();
    (folder, experiment)
}

#[divan::bench(args = [1_000, 10_000, 100_000], sample_count = 5, sample_size = 1)]
fn load(bencher: Bencher, count: usize) {
    let (_folder, experiment) = experiment(count);
    bencher.bench(|| prompts::load(&experiment.prompts).unwrap());
}

#[divan::bench(args = [1_000, 10_000, 100_000], sample_count = 5, sample_size = 1)]
fn apart(bencher: Bencher, count: usize) {
    let (_folder, experiment) = experiment(count);
    bencher.bench(|| Splits::load(&experiment).unwrap());
}

fn main() {
    divan::main();
}
