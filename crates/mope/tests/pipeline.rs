//! Whole runs over tiny models: what is written, that it repeats, that it survives being killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{contents, done, experiment, mope, same, stderr, stdout, write};
use eval::rows;
use eval::table::read_parquet;
use serde_json::Value;

#[test]
fn a_run_writes_everything_and_a_second_process_writes_the_same() {
    let folder = experiment();
    let here = folder.path();
    let output = done(here, &["--json", "run", "pico.ron"]);
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(printed["run"], "runs/pico");
    assert_eq!(printed["ranking"].as_array().unwrap().len(), 6);
    let first = contents(&here.join("runs/pico"));
    for table in [
        "ranking",
        "quality",
        "rewards",
        "preferences",
        "win_rates",
        "differences",
        "fronts",
        "weights",
    ] {
        for format in ["csv", "md", "tex", "parquet"] {
            assert!(first.contains_key(&format!("tables/{table}.{format}")));
        }
    }
    for plot in [
        "utility",
        "rewards",
        "win_rates",
        "preferences",
        "utility_by_divergence",
    ] {
        assert!(first.contains_key(&format!("plots/{plot}.svg")));
        assert!(first.contains_key(&format!("plots/{plot}.png")));
    }
    let ranking = String::from_utf8(first["tables/ranking.csv"].clone()).unwrap();
    assert!(
        ranking.starts_with(
            "rank,strategy,utility,utility_low,utility_high,kl,kl_low,kl_high,kl_is,a,"
        )
    );
    // Tables that don't rank keep the order of the file.
    let quality = String::from_utf8(first["tables/quality.csv"].clone()).unwrap();
    let names = quality.lines().skip(1).filter_map(|l| l.split(',').next());
    let order = [
        "base",
        "prompting",
        "single",
        "uniform",
        "fixed",
        "weighted",
    ];
    assert_eq!(names.collect::<Vec<_>>(), order);
    let wins = String::from_utf8(first["tables/win_rates.csv"].clone()).unwrap();
    assert!(wins.starts_with("strategy,opponent,measure,win_rate,low,high,ties,pairs\n"));
    assert_eq!(wins.lines().count(), 1 + 3 * 6 * 5);
    let utility = wins.lines().filter(|l| l.contains(",utility,"));
    assert_eq!(utility.clone().count(), 30);
    assert!(utility.clone().all(|l| l.ends_with(",12")), "{wins}");

    done(here, &["run", "pico.ron", "--out", "again"]);
    same(&first, &contents(&here.join("again")));
    // Once more over what is there, and the report from the rows alone.
    done(here, &["run", "pico.ron"]);
    same(&first, &contents(&here.join("runs/pico")));
    for part in ["tables", "plots"] {
        std::fs::remove_dir_all(here.join("runs/pico").join(part)).unwrap();
    }
    done(here, &["report", "runs/pico"]);
    same(&first, &contents(&here.join("runs/pico")));

    // Another seed says something else; the old rows are kept aside.
    done(here, &["--seed", "4", "run", "pico.ron"]);
    let other = contents(&here.join("runs/pico"));
    assert!(
        other
            .keys()
            .any(|n| n.starts_with("superseded/generations/"))
    );
    assert!(other["tables/ranking.csv"] != first["tables/ranking.csv"]);
}

#[test]
fn rows_hold_what_was_generated() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let mut count = 0;
    for entry in std::fs::read_dir(here.join("run/generations")).unwrap() {
        let path = entry.unwrap().path();
        for row in rows::generations(&path, &read_parquet(&path).unwrap()).unwrap() {
            count += 1;
            let n = row.tokens.len();
            assert!(n > 0 && n <= 12 && row.ended == (row.tokens[n - 1] == 2));
            assert_eq!((row.pieces.len(), row.log_probs.len()), (n, n));
            assert_eq!((row.kl.len(), row.base_log_probs.len()), (n, n));
            if row.identity.strategy == "base" {
                assert_eq!((&row.base_log_probs, row.kl[0]), (&row.log_probs, 0.0));
            }
            assert_eq!(row.pieces.concat(), row.response);
            assert!(row.log_probs.iter().all(|v| *v <= 0.0));
            for weights in row.weights.chunks(row.experts.len()) {
                assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            }
            let expected: &[&str] = match (
                row.identity.strategy.as_str(),
                row.identity.preference.as_str(),
            ) {
                ("base" | "prompting", _) => &["base"],
                ("single", _) => &["friendly"],
                ("weighted", _) => &["base", "informative"],
                (_, "both") => &["friendly", "informative"],
                _ => &["concise", "friendly"],
            };
            assert_eq!(row.experts, expected);
        }
    }
    assert_eq!(count, 3 * 2 * 2 * 6);
}

#[test]
fn another_batch_size_changes_no_token_here() {
    let folder = experiment();
    let here = folder.path();
    write(
        here,
        "wide.ron",
        &common::EXPERIMENT.replace("batch_size: 4", "batch_size: 64"),
    );
    done(here, &["run", "pico.ron", "--out", "one/a"]);
    done(here, &["run", "wide.ron", "--out", "other/b"]);
    let tokens = |run: &str| {
        let mut all = std::collections::BTreeMap::new();
        for entry in std::fs::read_dir(here.join(run).join("generations")).unwrap() {
            let path = entry.unwrap().path();
            for row in rows::generations(&path, &read_parquet(&path).unwrap()).unwrap() {
                all.insert(row.identity, row.tokens);
            }
        }
        all
    };
    assert_eq!(tokens("one/a"), tokens("other/b"));
}

#[test]
fn a_killed_run_goes_on_to_the_same_files() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "whole"]);
    let expected = contents(&here.join("whole"));
    for wait in [20, 60, 110, 170, 240, 320, 410] {
        let mut child = mope(here, &["run", "pico.ron", "--out", "apart/killed"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // What a kill in the middle of a write leaves, and a file that the disk damaged.
    std::fs::create_dir_all(here.join("apart/killed/generations")).unwrap();
    std::fs::write(
        here.join("apart/killed/generations/.half.parquet.part"),
        b"PAR1",
    )
    .unwrap();
    done(here, &["run", "pico.ron", "--out", "apart/killed"]);
    same(&expected, &contents(&here.join("apart/killed")));
    let victim = expected
        .keys()
        .find(|n| n.starts_with("generations/fixed"))
        .unwrap();
    std::fs::write(here.join("apart/killed").join(victim), b"PAR1 nothing PAR1").unwrap();
    let output = done(here, &["run", "pico.ron", "--out", "apart/killed"]);
    assert!(stderr(&output).contains("changed since the run; made again"));
    let mut after = contents(&here.join("apart/killed"));
    after.retain(|name, _| !name.starts_with("superseded/"));
    same(&expected, &after);
}
