//! Curves of utility against divergence, and rows that no model made.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{EXPERIMENT, done, experiment, fails, stdout, write};
use eval::rows;
use eval::table::read_parquet;
use serde_json::Value;

/// A table by its columns.
struct Table(BTreeMap<String, Vec<String>>);

fn table(here: &Path, name: &str) -> Table {
    let path = here.join(format!("runs/pico/tables/{name}.csv"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().map(|line| line.split(','));
    let names = lines.next().unwrap();
    let mut columns: Vec<(String, Vec<String>)> = names.map(|n| (n.into(), vec![])).collect();
    for line in lines {
        let cells = columns.iter_mut().zip(line);
        cells.for_each(|((_, column), cell)| column.push(cell.into()));
    }
    Table(columns.into_iter().collect())
}

impl Table {
    fn height(&self) -> usize {
        self.0.values().map(Vec::len).max().unwrap()
    }
}

fn number(table: &Table, column: &str, row: usize) -> Option<f64> {
    table.0[column][row].parse().ok()
}

#[test]
fn a_run_draws_curves_and_keeps_them_out_of_the_ranking() {
    let folder = experiment();
    let here = folder.path();
    let curves = "frontier: {
        \"dera\": (of: DeRa(), strengths: [0.5, 1.0, 2.0]),
        \"best_of_n\": (of: BestOfN(), strengths: [1, 4]),
    }, prompts:";
    write(here, "pico.ron", &EXPERIMENT.replace("prompts:", curves));
    let output = done(here, &["--json", "run", "pico.ron"]);
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ranking = printed["ranking"].as_array().unwrap();
    assert_eq!(ranking.len(), 6);
    let base = ranking.iter().find(|r| r["strategy"] == "base").unwrap();
    assert_eq!((&base["kl"], &base["a"]), (&0.0.into(), &Value::Null));
    let uniform = ranking.iter().find(|r| r["strategy"] == "uniform").unwrap();
    assert!(uniform["kl"].as_f64().unwrap() > 0.0 && uniform["a"].is_f64());

    let frontier = table(here, "frontier");
    assert_eq!(frontier.height(), 5);
    let kl: Vec<f64> = (0..5)
        .map(|i| number(&frontier, "kl", i).unwrap())
        .collect();
    assert!(kl[0] < kl[1] && kl[1] < kl[2], "{kl:?}");
    // Choosing among one adds nothing, among four at most ln 4 − 3/4.
    assert_eq!(kl[3], 0.0);
    assert!((kl[4] - (4f64.ln() - 0.75)).abs() < 1e-12);
    let kinds = &frontier.0["kl_is"];
    assert_eq!(
        (kinds[2].as_str(), kinds[4].as_str()),
        ("measured", "bound")
    );
    let differences = table(here, "frontier_differences");
    assert_eq!(differences.height(), 6);
    for row in 0..3 {
        // Nothing is said where a curve does not go.
        let nats = number(&differences, "nats", row).unwrap();
        let reached = nats < kl[2];
        assert!(
            reached || number(&differences, "utility", row).is_none(),
            "{nats} {kl:?}"
        );
        assert_eq!(number(&differences, "utility", row + 3), None);
    }
    assert!(here.join("runs/pico/plots/frontier.svg").is_file());
    let report = std::fs::read_to_string(here.join("runs/pico/report.html")).unwrap();
    assert!(report.contains("At equal divergence"));
    // The same comes of the rows.
    let before = std::fs::read(here.join("runs/pico/tables/frontier.csv")).unwrap();
    done(here, &["report", "runs/pico"]);
    assert_eq!(
        before,
        std::fs::read(here.join("runs/pico/tables/frontier.csv")).unwrap()
    );

    for (wrong, expected) in [
        (
            "\"x\": (of: Uniform(), strengths: [1.0, 2.0])",
            "Uniform does not steer",
        ),
        (
            "\"x\": (of: DeRa(), strengths: [1.0])",
            "at least two strengths",
        ),
        (
            "\"x\": (of: DeRa(), strengths: [1.0, 1.0])",
            "is there twice",
        ),
        (
            "\"x\": (of: BestOfN(), strengths: [1.5, 2.0])",
            "has no strength 1.5",
        ),
    ] {
        let text = EXPERIMENT.replace("prompts:", &format!("frontier: {{{wrong}}}, prompts:"));
        write(here, "wrong.ron", &text);
        let error = fails(here, &["check", "wrong.ron"], 2);
        assert!(error.contains(expected), "{error}");
    }
    let text = EXPERIMENT.replace("prompts:", &format!("kl: false, {curves}"));
    write(here, "wrong.ron", &text);
    assert!(fails(here, &["check", "wrong.ron"], 2).contains("needs the divergence"));
}

#[test]
fn texts_that_no_model_made_stand_in_every_table() {
    let folder = experiment();
    let here = folder.path();
    let controls = "\"canned\": Canned(), \"empty\": Empty(), \"uniform\": Uniform(),";
    write(
        here,
        "pico.ron",
        &EXPERIMENT.replace("\"uniform\": Uniform(),", controls),
    );
    let output = done(here, &["--json", "run", "pico.ron"]);
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let ranking = printed["ranking"].as_array().unwrap();
    assert_eq!(ranking.len(), 8);
    for row in ranking {
        let text = ["canned", "empty"].contains(&row["strategy"].as_str().unwrap());
        assert_eq!(row["kl_is"], if text { "text" } else { "measured" });
        assert_eq!(row["responses"], 12);
    }
    let of = |strategy: &str, preference: &str| {
        let files = std::fs::read_dir(here.join("runs/pico/generations")).unwrap();
        let name = format!("{strategy}.{preference}.");
        let mut files = files.map(|f| f.unwrap().path());
        let file = files.find(|f| f.file_name().unwrap().to_str().unwrap().starts_with(&name));
        let file = file.unwrap();
        rows::generations(&file, &read_parquet(&file).unwrap()).unwrap()
    };
    for row in of("empty", "both") {
        assert_eq!(
            (row.response.as_str(), row.tokens.len(), row.ended),
            ("", 1, true)
        );
        // What says nothing else is as far away as its text is unlikely.
        assert!(row.kl[0] > 0.0 && row.kl[0] == -row.base_log_probs[0]);
    }
    // The same for every prompt, cut at twelve tokens.
    let canned = of("canned", "both");
    assert!(
        canned
            .iter()
            .all(|row| row.tokens == canned[0].tokens && row.tokens.len() == 12)
    );
    // Nothing else decodes them.
    let inside = EXPERIMENT.replace(
        "\"uniform\": Uniform()",
        "\"uniform\": BestOfN(of: Canned())",
    );
    write(here, "inside.ron", &inside);
    assert!(fails(here, &["check", "inside.ron"], 2).contains("its text is fixed"));
    let text = EXPERIMENT.replace("prompts:", "kl: false, prompts:");
    write(
        here,
        "rewards.ron",
        &text.replace("\"pico\"", "\"rewards\""),
    );
    let output = done(here, &["--json", "run", "rewards.ron"]);
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(printed.get("ranking").is_none() && printed["rewards"].is_array());
    let tables = here.join("runs/rewards/tables");
    assert!(tables.join("rewards.csv").is_file() && !tables.join("ranking.csv").exists());
    assert!(!tables.join("paper.md").exists());
}

#[test]
fn what_the_base_would_not_say_loses() {
    let folder = experiment();
    let here = folder.path();
    let controls = "\"canned\": Canned(), \"best\": BestOfN(n: 2), \"uniform\": Uniform(),";
    let text = EXPERIMENT.replace("\"uniform\": Uniform(),", controls);
    write(
        here,
        "pico.ron",
        &text.replace("prompts:", "bounds: (samples: 40), prompts:"),
    );
    done(here, &["run", "pico.ron"]);
    let quality = table(here, "quality");
    let lost = |strategy: &str| {
        let row = quality.0["strategy"]
            .iter()
            .position(|s| s == strategy)
            .unwrap();
        number(&quality, "lost", row).unwrap()
    };
    // 120 responses of the base to three prompts; a hundredth of these, twice, would lose.
    assert!(lost("base") <= 0.25, "{}", lost("base"));
    let references = std::fs::read_dir(here.join("runs/pico/references")).unwrap();
    let rows: usize = references
        .map(|file| read_parquet(&file.unwrap().path()).unwrap().height())
        .sum();
    assert_eq!(rows, 120);
    for (field, expected) in [
        (
            "bounds: (samples: 0), prompts:",
            "bounds: samples: at least 1",
        ),
        ("bounds: (), kl: false, prompts:", "what the base thinks"),
        ("bounds: (), utility: Mean, prompts:", "BradleyTerry alone"),
    ] {
        write(here, "wrong.ron", &EXPERIMENT.replace("prompts:", field));
        let error = fails(here, &["check", "wrong.ron"], 2);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn hypotheses_are_written_down_before() {
    let folder = experiment();
    let here = folder.path();
    let hypotheses = "hypotheses: {
        \"mixing_helps\": (better: \"uniform\", than: \"base\", smallest: 0.01),
        \"weights_help\": (better: \"fixed\", than: \"uniform\", smallest: 0.01),
    }, prompts:";
    write(
        here,
        "pico.ron",
        &EXPERIMENT.replace("prompts:", hypotheses),
    );
    let register = ["run", "pico.ron", "--preregister", "before.json"];
    done(here, &register);
    let registered = std::fs::read_to_string(here.join("before.json")).unwrap();
    let written: Value = serde_json::from_str(&registered).unwrap();
    assert_eq!(written["registered"]["family"][1], "weights_help");
    assert_eq!(
        written["registered"]["hypotheses"]["mixing_helps"]["smallest"],
        0.01
    );
    assert_eq!(
        written["registered"]["inputs"]["prompts"]["prompts"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    let manifest = |run: &str| -> Value {
        let text = std::fs::read_to_string(here.join(run).join("manifest.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(
        manifest("runs/pico")["preregistration"]["file"],
        "before.json"
    );
    assert_eq!(manifest("runs/pico")["openings"], 1);
    let table = table(here, "hypotheses");
    assert_eq!(table.0["hypothesis"], ["mixing_helps", "weights_help"]);
    // Three prompts show nothing.
    let open = |v: &String| v == "open" || v == "less than what matters";
    assert!(table.0["verdict"].iter().all(open), "{:?}", table.0);
    // Going on is no new opening, and the registration stays as it is.
    done(here, &register);
    assert_eq!(manifest("runs/pico")["openings"], 1);
    assert_eq!(
        registered,
        std::fs::read_to_string(here.join("before.json")).unwrap()
    );
    // Another run on the same prompts is one, and cannot be registered in the same file, nor afterwards.
    done(here, &["--seed", "9", "run", "pico.ron", "--out", "second"]);
    assert_eq!(manifest("second")["openings"], 2);
    assert!(manifest("second")["preregistration"].is_null());
    let late = [
        "--seed",
        "9",
        "run",
        "pico.ron",
        "--out",
        "second",
        "--preregister",
        "late.json",
    ];
    assert!(fails(here, &late, 2).contains("too late"));
    assert!(!here.join("late.json").exists());
    let other = [
        "--seed",
        "9",
        "run",
        "pico.ron",
        "--out",
        "third",
        "--preregister",
        "before.json",
    ];
    assert!(fails(here, &other, 2).contains("registered for another run"));
    let text = EXPERIMENT.replace("prompts:", &hypotheses.replace("\"fixed\"", "\"fixed2\""));
    write(here, "wrong.ron", &text);
    assert!(fails(here, &["check", "wrong.ron"], 2).contains("no strategy 'fixed2'"));
}
