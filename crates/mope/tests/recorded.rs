//! Responses that were made elsewhere, in the tables of a run.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{contents, done, experiment, fails, same};
use eval::rows;
use eval::table::read_parquet;
use serde_json::{Value, json};

/// Adds the strategy "elsewhere" to the experiment of `folder`.
fn add(folder: &Path, strategy: &str) {
    let file = folder.join("pico.ron");
    let text = std::fs::read_to_string(&file).unwrap();
    let strategies = format!("strategies: {{\"elsewhere\": {strategy},");
    std::fs::write(file, text.replace("strategies: {", &strategies)).unwrap();
}

/// The row of a strategy in a table of CSV, by column.
fn row(folder: &Path, table: &str, strategy: &str) -> Vec<(String, String)> {
    let text =
        std::fs::read_to_string(folder.join(format!("runs/pico/tables/{table}.csv"))).unwrap();
    let mut lines = text.lines();
    let head = lines.next().unwrap().split(',').map(String::from);
    let row = lines
        .find(|l| l.split(',').any(|cell| cell == strategy))
        .unwrap();
    head.zip(row.split(',').map(String::from)).collect()
}

/// The responses of a strategy in a finished run, as another program would write them down.
fn written(folder: &Path, strategy: &str) -> String {
    let mut lines = String::new();
    for entry in std::fs::read_dir(folder.join("runs/pico/generations")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(&format!("{strategy}.")) && name.ends_with(".parquet") {
            for row in rows::generations(&path, &read_parquet(&path).unwrap()).unwrap() {
                let line = json!({
                    "prompt": row.identity.prompt,
                    "preference": row.identity.preference,
                    "sample": row.identity.sample,
                    "text": row.response,
                    "ended": row.ended,
                });
                lines += &format!("{line}\n");
            }
        }
    }
    lines
}

#[test]
fn recorded_responses_score_as_those_that_are_made_here() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron"]);
    let lines = written(here, "uniform");
    std::fs::write(here.join("elsewhere.jsonl"), &lines).unwrap();
    add(here, "Recorded(\"elsewhere.jsonl\")");
    done(here, &["check", "pico.ron"]);
    done(here, &["run", "pico.ron"]);
    let first = contents(&here.join("runs/pico"));

    // The same texts have the same utility and the same rewards.
    for table in ["ranking", "rewards"] {
        let [here_made, recorded] = ["uniform", "elsewhere"].map(|s| row(here, table, s));
        for ((column, a), (_, b)) in here_made.iter().zip(&recorded) {
            let of_the_strategy = column.starts_with("utility") || column.starts_with("reward");
            if of_the_strategy {
                assert_eq!(a, b, "{table}: {column}");
            }
        }
    }
    // Of distributions only what the base gives the texts is known.
    let quality = row(here, "quality", "elsewhere");
    assert!(
        quality.iter().all(|(_, value)| !value.is_empty()),
        "{quality:?}"
    );
    let ranking = row(here, "ranking", "elsewhere");
    assert!(
        ranking
            .iter()
            .any(|(column, value)| column == "kl_is" && value == "text")
    );
    let cost = row(here, "cost", "elsewhere");
    assert!(
        cost[1..].iter().all(|(_, value)| value.is_empty()),
        "{cost:?}"
    );

    // The file is one of the run's inputs.
    let manifest = std::fs::read_to_string(here.join("runs/pico/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let hash = lm::source::sha256(&here.join("elsewhere.jsonl")).unwrap();
    let input = &manifest["inputs"]["strategy elsewhere"]["elsewhere.jsonl"];
    assert_eq!(input, &json!(hash));

    // Again, and from the rows alone.
    done(here, &["run", "pico.ron"]);
    same(&first, &contents(&here.join("runs/pico")));
    done(here, &["report", "runs/pico"]);
    same(&first, &contents(&here.join("runs/pico")));

    // Another text is another response.
    let line = lines.lines().next().unwrap();
    let mut changed: Value = serde_json::from_str(line).unwrap();
    changed["text"] = json!("Thank you so much, what a lovely and wonderful question! ".repeat(40));
    let text = lines.replacen(line, &changed.to_string(), 1);
    std::fs::write(here.join("elsewhere.jsonl"), text).unwrap();
    done(here, &["run", "pico.ron"]);
    assert_ne!(
        row(here, "ranking", "elsewhere"),
        row(here, "ranking", "uniform")
    );
    // It has more tokens than the experiment's limit, which is none of its.
    done(here, &["report", "runs/pico"]);
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let folder = experiment();
    let here = folder.path();
    add(here, "Recorded(\"elsewhere.csv\")");
    let message = fails(here, &["check", "pico.ron"], 2);
    assert!(message.contains("elsewhere.csv"), "{message}");
    let path = here.join("elsewhere.csv");
    let some = "prompt,sample,response\none,0,a\none,1,b\ntwo,0,c\ntwo,1,d\n3,0,e\n";
    std::fs::write(&path, some).unwrap();
    let message = fails(here, &["run", "pico.ron"], 2);
    assert!(
        message.contains(
            "there is no response to prompt '3' for preference 'both', sample 1, and 1 more"
        ),
        "{message}"
    );
    assert!(message.contains("strategy 'elsewhere'"), "{message}");
    assert!(!here.join("runs").exists());

    std::fs::write(&path, format!("{some}3,1,f\n")).unwrap();
    let message = fails(
        here,
        &[
            "generate",
            "--config",
            "pico.ron",
            "--strategy",
            "elsewhere",
            "--preference",
            "both",
            "--prompt",
            "Hm?",
        ],
        2,
    );
    assert!(message.contains("recorded elsewhere"), "{message}");

    for inside in [
        "BestOfN(n: 2, of: Recorded(\"elsewhere.csv\"))",
        "TopK(k: 2, of: Recorded(\"elsewhere.csv\"))",
        "BestOnValidation(of: {\"a\": Recorded(\"elsewhere.csv\"), \"b\": Base()})",
    ] {
        let folder = experiment();
        add(folder.path(), inside);
        let message = fails(folder.path(), &["check", "pico.ron"], 2);
        assert!(message.contains("a strategy of their own"), "{message}");
    }
}
