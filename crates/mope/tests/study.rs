//! A study with people, from the run to the analysis.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{done, experiment, fails, stdout};
use serde_json::{Value, json};

#[test]
fn pairs_are_blinded_and_answers_come_back() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let export = ["study", "export", "run", "--out", "study", "--pairs", "30"];
    done(
        here,
        &[&export[..], &["--strategies", "base,uniform,fixed"]].concat(),
    );
    let read = |name: &str| std::fs::read_to_string(here.join("study").join(name)).unwrap();
    let page = read("study.html");
    // Neither the page nor the table says who wrote what.
    for blinded in [&page, &read("pairs.csv")] {
        assert!(!blinded.contains("uniform") && !blinded.contains("\"base\""));
    }
    assert!(!page.contains("src=") && !page.contains("http"));
    let key: Value = serde_json::from_str(&read("key.json")).unwrap();
    // Another export into the same folder would lose the key.
    let before = read("key.json");
    for seed in ["1", "2"] {
        let again = [&export[..], &["--seed", seed]].concat();
        let error = fails(here, &again, 2);
        assert!(
            error.contains("not empty") && error.contains("--out"),
            "{error}"
        );
    }
    assert_eq!(read("key.json"), before);
    let pairs = key["pairs"].as_object().unwrap();
    assert_eq!(pairs.len(), 30);
    // Raters who prefer whoever comes last in the alphabet; the second one sees a tie now and then.
    for (rater, ties) in [("ann", 0), ("bob", 5)] {
        let answer = |(id, pair): (&String, &Value)| {
            let left = pair["left"].as_str() > pair["right"].as_str();
            let tie = ties > 0 && id.parse::<u32>().unwrap() % ties == 0;
            (
                id.clone(),
                json!(if tie {
                    "tie"
                } else if left {
                    "left"
                } else {
                    "right"
                }),
            )
        };
        let answers: serde_json::Map<String, Value> = pairs.iter().map(answer).collect();
        let answers = json!({"study": key["study"], "rater": rater, "answers": answers});
        std::fs::write(here.join(format!("{rater}.json")), answers.to_string()).unwrap();
    }
    let import = ["--json", "study", "import", "study", "ann.json", "bob.json"];
    let agreement: Value = serde_json::from_str(&stdout(&done(here, &import))).unwrap();
    assert_eq!(agreement["raters"], 2);
    let alpha = agreement["krippendorff_alpha"].as_f64().unwrap();
    assert!(alpha > 0.5 && alpha < 1.0, "{alpha}");
    let strength = |name: &str| {
        let mut all = agreement["strengths"].as_array().unwrap().iter();
        all.find(|r| r["strategy"] == name).unwrap()["strength"]
            .as_f64()
            .unwrap()
    };
    assert!(strength("uniform") > strength("fixed") && strength("fixed") > strength("base"));
    for pair in agreement["pairs"].as_array().unwrap() {
        let count = |name: &str| pair[name].as_u64().unwrap();
        assert_eq!(count("wins") + count("losses") + count("ties"), 20);
        // Two raters of a pair are one vote, and all votes on one of three prompts turn together.
        let (won, lost) = (count("pairs_won"), count("pairs_lost"));
        assert!(won.max(lost) > 2 * won.min(lost) && won + lost <= 10);
        let p = pair["p"].as_f64().unwrap();
        assert!((0.25..=0.5).contains(&p), "{p}");
    }
    let twice = fails(
        here,
        &["study", "import", "study", "ann.json", "ann.json"],
        1,
    );
    assert!(twice.contains("'ann' comes twice"), "{twice}");
    let text = std::fs::read_to_string(here.join("ann.json")).unwrap();
    for (from, to, message) in [
        (
            key["study"].as_str().unwrap(),
            "another",
            "answers to study another",
        ),
        ("\"1\":", "\"99\":", "no pair 99"),
        ("\"left\"", "\"both\"", "wrong.json:1:"),
    ] {
        std::fs::write(here.join("wrong.json"), text.replacen(from, to, 1)).unwrap();
        let error = fails(here, &["study", "import", "study", "wrong.json"], 1);
        assert!(error.contains(message), "{error}");
    }
}
