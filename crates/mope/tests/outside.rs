//! Rewards that another program computes, in whole runs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{contents, done, experiment, fails, same};
use serde_json::{Value, json};

/// Scores responses by their place in a batch, and notes how many it was asked about.
const REWARD: &str = r#"
while read -r line; do
    n=$(printf '%s' "$line" | grep -o '"response":' | wc -l)
    echo "$n" >> asked
    scores=
    for i in $(seq "$n"); do scores="$scores${scores:+,}$i.5"; done
    echo "[$scores]"
done
"#;

fn with_reward(folder: &Path, scorer: &str) {
    let file = folder.join("pico.ron");
    let text = std::fs::read_to_string(&file).unwrap();
    let dimensions = format!(
        "dimensions: {{\"advice\": (scorer: {scorer}, low: \"plain\", high: \"practical\"),"
    );
    std::fs::write(file, text.replace("dimensions: {", &dimensions)).unwrap();
}

fn asked(folder: &Path) -> usize {
    let text = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
    text.lines()
        .map(|n| n.trim().parse::<usize>().unwrap())
        .sum()
}

fn manifest(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("runs/pico/manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_command_scores_each_response_once() {
    let folder = experiment();
    let here = folder.path();
    std::fs::write(here.join("reward.sh"), REWARD).unwrap();
    with_reward(here, "Command([\"sh\", \"reward.sh\"])");
    done(here, &["run", "pico.ron"]);
    let first = contents(&here.join("runs/pico"));
    let (manifest, hash) = (
        manifest(here),
        lm::source::sha256(&here.join("reward.sh")).unwrap(),
    );
    assert_eq!(
        manifest["inputs"]["dimension advice"]["reward.sh"],
        json!(hash)
    );
    // Nothing is known of its scores before: they are in standard deviations of the references'.
    assert!(manifest["normalisers"]["advice"]["sd"].as_f64().unwrap() > 0.0);
    // At most 3 references and 72 responses, of which equal ones are one.
    let once = asked(here);
    assert!((1..=75).contains(&once), "{once}");
    // Scores are kept beside runs, too.
    std::fs::remove_dir_all(here.join("runs/pico/scores")).unwrap();
    done(here, &["run", "pico.ron"]);
    assert_eq!(asked(here), once);
    same(&first, &contents(&here.join("runs/pico")));
}

#[test]
fn a_program_that_fails_loses_nothing_and_says_why() {
    let folder = experiment();
    let here = folder.path();
    let broken = "read -r line; echo 'the weights are gone' >&2; exit 3";
    std::fs::write(here.join("reward.sh"), broken).unwrap();
    with_reward(
        here,
        "Command((run: [\"sh\", \"reward.sh\"], timeout: 60.0))",
    );
    done(here, &["check", "pico.ron"]);
    let message = fails(here, &["run", "pico.ron"], 1);
    for part in ["dimension 'advice'", "reward.sh", "the weights are gone"] {
        assert!(message.contains(part), "{message}");
    }
    let responses = std::fs::read_dir(here.join("runs/pico/generations"))
        .unwrap()
        .count();
    assert!(responses > 0);
    std::fs::write(here.join("reward.sh"), REWARD).unwrap();
    done(here, &["run", "pico.ron"]);
    // A file that is not there is found before anything runs.
    std::fs::remove_file(here.join("reward.sh")).unwrap();
    let message = fails(here, &["check", "pico.ron"], 2);
    assert!(message.contains("reward.sh: No such file"), "{message}");
}

#[test]
fn runs_of_different_normalisers_are_not_compared() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "one"]);
    done(here, &["--seed", "9", "run", "pico.ron", "--out", "two"]);
    done(here, &["compare", "one", "two"]);
    let text = std::fs::read_to_string(here.join("pico.ron")).unwrap();
    let measured = text.replace(
        "normaliser: (mean: 0.196, sd: 0.228)",
        "normaliser: Measured",
    );
    let measured = measured.replace(
        "normaliser: (mean: 3.676, sd: 0.325)",
        "normaliser: Measured",
    );
    assert_ne!(measured, text);
    std::fs::write(here.join("pico.ron"), measured).unwrap();
    done(here, &["run", "pico.ron", "--out", "three"]);
    let message = fails(here, &["compare", "one", "three"], 2);
    assert!(
        message.contains("is normalised by (mean: 3.676, sd: 0.325) in one"),
        "{message}"
    );
}

#[test]
fn rows_of_a_run_for_other_programs() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron"]);
    let export = |rows: &str, out: &str| {
        done(here, &["export", "runs/pico", "--rows", rows, "--out", out]);
    };
    for out in ["scores.csv", "scores.jsonl", "scores.parquet"] {
        export("scores", out);
    }
    let lines = std::fs::read_to_string(here.join("scores.jsonl")).unwrap();
    // 6 strategies, 2 preferences, 3 prompts, 2 samples.
    assert_eq!(lines.lines().count(), 72);
    let row: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for field in [
        "strategy",
        "sample",
        "question",
        "response",
        "utility",
        "reward_style",
    ] {
        assert!(!row[field].is_null(), "{field}: {row}");
    }
    let message = fails(
        here,
        &[
            "export",
            "runs/pico",
            "--rows",
            "scores",
            "--out",
            "scores.csv",
        ],
        2,
    );
    assert!(message.contains("is there already"), "{message}");

    export("pairs", "pairs.jsonl");
    let pairs = std::fs::read_to_string(here.join("pairs.jsonl")).unwrap();
    assert_eq!(pairs.lines().count(), 6);
    for line in pairs.lines() {
        let pair: Value = serde_json::from_str(line).unwrap();
        assert!(pair["utilities"][0].as_f64() > pair["utilities"][1].as_f64());
        assert_ne!(pair["chosen"], pair["rejected"]);
    }
    // As a training reads them.
    done(here, &["import", "pairs.jsonl", "--out", "imported.jsonl"]);
    let imported = std::fs::read_to_string(here.join("imported.jsonl")).unwrap();
    assert_eq!(imported.lines().count(), 6);

    export("lm-eval", "lm-eval");
    let results = std::fs::read_to_string(here.join("lm-eval/uniform/results.json")).unwrap();
    let results: Value = serde_json::from_str(&results).unwrap();
    let both = &results["results"]["both"];
    assert_eq!(results["n-samples"]["both"]["original"], 6);
    assert!(both["utility_stderr,none"].as_f64().unwrap() > 0.0);
    let scored = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let scored = scored.filter(|r| r["strategy"] == "uniform" && r["preference"] == "both");
    let utilities: Vec<f64> = scored.map(|r| r["utility"].as_f64().unwrap()).collect();
    let mean = utilities.iter().sum::<f64>() / 6.0;
    assert!((both["utility,none"].as_f64().unwrap() - mean).abs() < 1e-12);
    let samples = here.join("lm-eval/uniform/samples_both.jsonl");
    assert_eq!(std::fs::read_to_string(samples).unwrap().lines().count(), 6);
}
