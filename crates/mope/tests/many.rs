//! Several runs: fields set from outside, shards, batches of neighbours, comparison, prompt sets kept apart.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{contents, done, experiment, fails, same, stderr, stdout, write};
use serde_json::Value;

fn json(output: &std::process::Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

#[test]
fn shards_together_are_the_whole_run() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "alone/whole"]);
    for part in ["1/3", "3/3", "2/3"] {
        let run = [
            "--json",
            "run",
            "pico.ron",
            "--out",
            "parts/run",
            "--shard",
            part,
        ];
        let made = json(&done(here, &run));
        assert!(made["responses"].as_u64().unwrap() > 0);
    }
    let made = std::fs::read_dir(here.join("parts/run/generations"))
        .unwrap()
        .count();
    let output = done(here, &["run", "pico.ron", "--out", "parts/run"]);
    let after = std::fs::read_dir(here.join("parts/run/generations"))
        .unwrap()
        .count();
    assert_eq!(made, after, "{}", stderr(&output));
    same(
        &contents(&here.join("alone/whole")),
        &contents(&here.join("parts/run")),
    );
    let manifest = std::fs::read_to_string(here.join("parts/run/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["sessions"].as_array().unwrap().len(), 4);
    let best = common::EXPERIMENT.replace("Prompting()", "BestOfN(n: 2)");
    write(here, "best.ron", &best);
    let error = fails(here, &["run", "best.ron", "--shard", "1/2"], 2);
    assert!(error.contains("'prompting' chooses by rewards"), "{error}");
}

#[test]
fn settings_make_a_grid_and_compare_says_what_differs() {
    let folder = experiment();
    let here = folder.path();
    let grid = [
        "run",
        "pico.ron",
        "--set",
        "seed=3,4",
        "--set",
        "generation.sampling.temperature=0.5",
    ];
    done(here, &grid);
    let two = ["runs/pico/seed=3", "runs/pico/seed=4"];
    let output = done(here, &["compare", two[0], two[1]]);
    assert!(stdout(&output).contains("- experiment.seed\n    seed=3: 3\n    seed=4: 4\n"));
    assert!(!stdout(&output).contains("temperature"));
    let compared = json(&done(here, &["--json", "compare", two[0], two[1], two[0]]));
    let rows = compared["comparison"].as_array().unwrap();
    assert_eq!(rows.len(), 6 * 3);
    // The same run again is the same in everything, another seed is not.
    let row = |i: usize| {
        rows.iter()
            .filter(move |r| r["strategy"] == "uniform")
            .nth(i)
            .unwrap()
    };
    assert_eq!(
        (&row(2)["difference"], &row(2)["same_responses"]),
        (&0.0.into(), &1.0.into())
    );
    assert!(row(1)["same_responses"].as_f64().unwrap() < 0.5);
    assert_eq!(row(0)["difference"], Value::Null);
    done(here, &["compare", two[0], two[1], "--out", "both"]);
    assert!(
        here.join("both/comparison.tex").is_file() && here.join("both/differing.json").is_file()
    );
    for (set, message) in [
        ("sed=3", "unknown field `sed`"),
        (
            "generaton.sampling.temperature=1",
            "did you mean 'generation'",
        ),
        ("seed=high", "--set: invalid type"),
        ("samples=0", "--set: samples: at least 1"),
    ] {
        let error = fails(here, &["run", "pico.ron", "--set", set], 2);
        assert!(error.contains(message), "{error}");
    }
    fails(here, &["compare", two[0]], 2);
    let error = fails(here, &["compare", two[0], "runs"], 1);
    assert!(error.contains("runs"), "{error}");
}

#[test]
fn a_neighbours_batches_are_taken() {
    let folder = experiment();
    let here = folder.path();
    let scored = |output: &std::process::Output| {
        let said = common::stderr(output);
        let line = said.lines().find_map(|l| l.strip_prefix("score: "));
        line.unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    let first = scored(&done(here, &["run", "pico.ron", "--out", "runs/first"]));
    assert_eq!(first % 6, 0);
    // One strategy more: only its responses are made.
    let more = common::EXPERIMENT.replace(
        "\"uniform\": Uniform(),",
        "\"uniform\": Uniform(),\n\"another\": Uniform(space: Log),",
    );
    write(here, "more.ron", &more);
    let output = done(here, &["run", "more.ron", "--out", "runs/second"]);
    assert_eq!(scored(&output), first / 6);
    let manifest = std::fs::read_to_string(here.join("runs/second/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let tokens = manifest["sessions"][0]["tokens"].as_object().unwrap();
    assert_eq!(tokens.keys().collect::<Vec<_>>(), ["another"]);
}

#[test]
fn what_is_retained_is_measured_and_kept() {
    let folder = experiment();
    let here = folder.path();
    let field = "retention: (text: \"prose.txt\", questions: \"asked.jsonl\", preferences: [\"both\"]),\n    prompts: ";
    let text = common::EXPERIMENT.replace("prompts: ", field);
    write(
        here,
        "kept.ron",
        &text.replace("Prompting()", "BestOfN(n: 2)"),
    );
    std::fs::write(here.join("prose.txt"), "A b c.\n\nD e f g.\n").unwrap();
    let question = "{\"question\": \"a?\", \"options\": [\"x\", \"y z\"], \"answer\": 1}\n";
    std::fs::write(here.join("asked.jsonl"), question).unwrap();
    done(here, &["run", "kept.ron", "--out", "run"]);
    let table = std::fs::read_to_string(here.join("run/tables/retention.csv")).unwrap();
    assert!(table.starts_with("strategy,perplexity,perplexity_low,perplexity_high,accuracy,"));
    let value = |name: &str| -> f64 {
        let line = table.lines().find(|l| l.starts_with(name)).unwrap();
        line.split(',').nth(1).unwrap().parse().unwrap()
    };
    // Against what `mope score` says of the same passages.
    let (mut total, mut tokens) = (0.0, 0);
    for passage in ["A b c.", "D e f g."] {
        let model = common::fixture("llama");
        let score = ["--json", "score", "--model", model.to_str().unwrap()];
        let asked = ["--prompt", "Write a short text.", "--response", passage];
        let scored = json(&done(here, &[&score[..], &asked[..]].concat()));
        total -= scored["total"].as_f64().unwrap();
        tokens += scored["tokens"].as_array().unwrap().len();
    }
    let expected = (total / tokens as f64).exp();
    assert!(
        (value("base,") / expected - 1.0).abs() < 1e-5,
        "{table} {expected}"
    );
    assert!(value("uniform,") != value("base,"));
    let first = contents(&here.join("run"));
    assert_eq!(
        first.keys().filter(|n| n.starts_with("retention/")).count(),
        6
    );
    done(here, &["report", "run"]);
    same(&first, &contents(&here.join("run")));
    std::fs::write(here.join("asked.jsonl"), question.replace("1}", "2}")).unwrap();
    let error = fails(here, &["run", "kept.ron", "--out", "run"], 2);
    assert!(error.contains("asked.jsonl:1: answer must be"), "{error}");
}

#[test]
fn prompt_sets_are_kept_apart() {
    let folder = experiment();
    let here = folder.path();
    let with = |name: &str| {
        let field = format!("training: [\"{name}\"],\n    prompts: ");
        write(
            here,
            "apart.ron",
            &common::EXPERIMENT.replace("prompts: ", &field),
        );
    };
    std::fs::write(here.join("train.txt"), "How far is it?\nAND so on\n").unwrap();
    with("train.txt");
    let error = fails(here, &["check", "apart.ron"], 2);
    assert!(
        error.contains("train.txt: prompt '2'") && error.contains("no training saw"),
        "{error}"
    );
    std::fs::write(
        here.join("train.txt"),
        "How far is it?\nAnd so on and so forth?\n",
    )
    .unwrap();
    let output = done(here, &["run", "apart.ron"]);
    assert!(
        stderr(&output)
            .contains("nearly the same as compared ones (1 prompt, 1 pair): '2' and '3'")
    );
    let report = std::fs::read_to_string(here.join("runs/pico/report.html")).unwrap();
    assert!(report.contains("nearly the same as compared ones"));
    std::fs::write(here.join("train.txt"), "How far is it?\n").unwrap();
    assert!(!stderr(&done(here, &["run", "apart.ron"])).contains("nearly"));
    // What is chosen on must not have been trained on, either.
    std::fs::write(here.join("choose.txt"), "HOW far is it\n").unwrap();
    let text = std::fs::read_to_string(here.join("apart.ron")).unwrap();
    let text = text.replace(
        "prompts: \"",
        "validation: \"choose.txt\",\n    prompts: \"",
    );
    std::fs::write(here.join("apart.ron"), text).unwrap();
    let error = fails(here, &["check", "apart.ron"], 2);
    assert!(
        error.contains("train.txt: prompt '1' is in the validation set, too"),
        "{error}"
    );
    std::fs::write(here.join("choose.txt"), "How far is it now?\n").unwrap();
    let output = done(here, &["check", "apart.ron"]);
    assert!(stderr(&output).contains("train.txt is nearly the same as validation ones"));
}

#[test]
fn repetitions_are_told_apart_from_prompts() {
    let folder = experiment();
    let here = folder.path();
    let with = |repeats: &str| {
        let field = format!("repeats: {repeats},\n    prompts: ");
        write(
            here,
            "repeats.ron",
            &common::EXPERIMENT.replace("prompts: ", &field),
        );
    };
    with("{\"mixed\": [\"uniform\", \"fixed\", \"weighted\"]}");
    done(here, &["run", "repeats.ron"]);
    let table = std::fs::read_to_string(here.join("runs/pico/tables/seeds.csv")).unwrap();
    let heads: Vec<&str> = table
        .lines()
        .filter_map(|l| l.split(",0.").next())
        .collect();
    assert_eq!(heads[1], "mixed,trainings,3", "{table}");
    assert_eq!(heads[2], "base,samples,2", "{table}");
    assert_eq!(heads.len(), 2 + 6);
    let report = std::fs::read_to_string(here.join("runs/pico/report.html")).unwrap();
    assert!(report.contains("<h2 id=\"seeds\">"));
    for (repeats, message) in [
        (
            "{\"base\": [\"uniform\", \"fixed\"]}",
            "'base' is a strategy",
        ),
        ("{\"mixed\": [\"uniform\"]}", "at least two strategies"),
        (
            "{\"mixed\": [\"uniform\", \"fixd\"]}",
            "did you mean 'fixed'",
        ),
        (
            "{\"a\": [\"uniform\", \"fixed\"], \"b\": [\"fixed\", \"base\"]}",
            "'fixed' is named twice",
        ),
    ] {
        with(repeats);
        let error = fails(here, &["check", "repeats.ron"], 2);
        assert!(error.contains(message), "{error}");
    }
}
