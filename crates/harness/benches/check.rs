//! What checking large prompt sets takes: `cargo bench -p mope-harness --bench check`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fmt::Write;
use std::path::Path;

use divan::Bencher;
use mope_harness::experiment::Experiment;
use mope_harness::prompts;
use mope_harness::splits::Splits;

/// Prompts of 6 to 15 words, of which some are much more frequent than others; a set has those from `first` on.
fn set(path: &Path, first: usize, count: usize) {
    let mut text = String::new();
    for i in first..first + count {
        // Knuth's generator.
        let mut state = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut unit = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let length = 6 + (unit() * 10.0) as usize;
        let words = (0..length).map(|_| format!("w{}", (unit().powi(3) * 20_000.0) as usize));
        let prompt = words.collect::<Vec<_>>().join(" ");
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
