//! Strategies that look at rewards: best of n, and the best single expert.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{contents, done, experiment, fails, same, stderr, stdout, write};
use serde_json::Value;

/// The pico experiment with other strategies, a validation set, and one preference.
fn choosing(folder: &Path, strategies: &str, more: &str) {
    let start = common::EXPERIMENT.find("strategies: {").unwrap();
    let end = start + common::EXPERIMENT[start..].find("},\n    prompts").unwrap();
    let text = format!(
        "{}{more} strategies: {{ {strategies} {}",
        &common::EXPERIMENT[..start],
        &common::EXPERIMENT[end..]
    );
    let one = "\"both\": (text: \"be good\", weights: {\"informative\": 2.0, \"friendly\": 1.0}),";
    let text = text.replace(one, "");
    write(folder, "choosing.ron", &text);
    std::fs::write(folder.join("others.txt"), "How so?\nWho?\nWhere to?\n").unwrap();
}

/// Mean utility by strategy.
fn utility(summary: &Value, strategy: &str) -> f64 {
    let rows = summary["ranking"].as_array().unwrap();
    let row = rows.iter().find(|r| r["strategy"] == strategy);
    let row = row.unwrap_or_else(|| panic!("{summary}"));
    row["utility"].as_f64().unwrap_or_else(|| panic!("{row}"))
}

fn run(folder: &Path, out: &str) -> (Value, String) {
    let output = done(folder, &["--json", "run", "choosing.ron", "--out", out]);
    (
        serde_json::from_str(&stdout(&output)).unwrap(),
        stderr(&output),
    )
}

#[test]
fn the_best_single_expert_is_chosen_on_other_prompts() {
    let folder = experiment();
    let here = folder.path();
    let singles = ["concise", "friendly", "informative"];
    let listed: String = singles
        .iter()
        .map(|n| format!("\"{n}\": Single(expert: \"{n}\"),"))
        .collect();
    let strategies = format!("\"base\": Base(), {listed} \"best\": BestSingle()");
    choosing(here, &strategies, "validation: \"others.txt\",");
    let text = std::fs::read_to_string(here.join("choosing.ron")).unwrap();
    // Greedy, so that a strategy's name plays no role.
    let text = text.replace("temperature: 0.9", "temperature: 0");
    std::fs::write(here.join("choosing.ron"), text).unwrap();
    let (summary, said) = run(here, "one");
    let utilities: Vec<(f64, &str)> = said
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(": ")?.1.split_once(" has utility ")?;
            Some((rest.split(' ').next()?.parse().ok()?, name))
        })
        .collect();
    assert_eq!(utilities.len(), 3, "{said}");
    let most = utilities.iter().map(|f| f.0).fold(f64::MIN, f64::max);
    let chosen = utilities.iter().find(|f| f.0 == most).unwrap().1;
    assert!(utilities.iter().any(|f| f.0 < most), "{said}");
    assert_eq!(utility(&summary, "best"), utility(&summary, chosen));
    let manifest = std::fs::read_to_string(here.join("one/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["sessions"][0]["chosen"]["best"]["short"], chosen);
    // Nothing is made twice.
    let before = contents(&here.join("one"));
    run(here, "one");
    same(&before, &contents(&here.join("one")));

    choosing(here, &strategies, "");
    let error = fails(here, &["check", "choosing.ron"], 2);
    assert!(error.contains("validation: \"prompts.jsonl\""), "{error}");
    choosing(here, &strategies, "validation: \"prompts.jsonl\",");
    let error = fails(here, &["check", "choosing.ron"], 2);
    assert!(
        error.contains("prompt 'one' is in the compared set"),
        "{error}"
    );
    let ask = ["generate", "--config", "choosing.ron", "--strategy", "best"];
    let error = fails(
        here,
        &[&ask[..], &["--preference", "short", "--prompt", "x"]].concat(),
        1,
    );
    assert!(error.contains("name the strategy itself"), "{error}");
}

#[test]
fn weights_and_settings_are_chosen_for_each_preference() {
    let folder = experiment();
    let here = folder.path();
    let of = "Mod()";
    let strategies = format!(
        "\"base\": Base(), \"weights\": BestWeights(steps: 2), \"mod\": BestWeights(of: {of}, steps: 2), \
         \"any\": BestOnValidation(of: {{\"near\": DeRa(lambda: 0.5), \"far\": DeRa(lambda: 3), \"mean\": Uniform()}})"
    );
    choosing(here, &strategies, "validation: \"others.txt\",");
    let text = std::fs::read_to_string(here.join("choosing.ron")).unwrap();
    let two = "\"both\": (text: \"be good\", weights: {\"informative\": 2.0, \"friendly\": 1.0}),";
    let text = text.replace("preferences: {", &format!("preferences: {{ {two}"));
    std::fs::write(here.join("choosing.ron"), text).unwrap();
    let (_, said) = run(here, "one");
    let manifest = std::fs::read_to_string(here.join("one/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let chosen = &manifest["sessions"][0]["chosen"];
    for strategy in ["weights", "mod", "any"] {
        for preference in ["both", "short"] {
            let start = format!("{strategy} {preference}: ");
            let utilities: Vec<(f64, &str)> = said
                .lines()
                .filter_map(|line| {
                    let (name, rest) = line.strip_prefix(&start)?.split_once(" has utility ")?;
                    Some((rest.split(' ').next()?.parse().ok()?, name))
                })
                .collect();
            let chosen = &chosen[strategy][preference];
            assert_eq!(utilities.len(), 3, "{start} {said}");
            let most = utilities.iter().map(|f| f.0).fold(f64::MIN, f64::max);
            assert!(
                utilities.contains(&(most, chosen.as_str().unwrap())),
                "{chosen} {said}"
            );
        }
    }
    let before = contents(&here.join("one"));
    run(here, "one");
    same(&before, &contents(&here.join("one")));

    for (strategy, expected) in [
        ("BestWeights(of: Uniform())", "takes no weights"),
        ("BestWeights(steps: 0)", "steps is 0"),
        ("BestOnValidation(of: {})", "nothing to choose from"),
        (
            "BestOnValidation(of: {\"a\": BestOfN(n: 2), \"b\": Base()})",
            "best of several responses",
        ),
        (
            "BestOnValidation(of: {\"a\": BestSingle()})",
            "itself still to be chosen",
        ),
    ] {
        choosing(
            here,
            &format!("\"x\": {strategy}"),
            "validation: \"others.txt\",",
        );
        let error = fails(here, &["check", "choosing.ron"], 2);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn more_attempts_are_better() {
    let folder = experiment();
    let here = folder.path();
    let of = "of: Single(expert: \"friendly\")";
    choosing(
        here,
        &format!(
            "\"base\": Base(), \"one\": BestOfN(n: 1, {of}), \"many\": BestOfN(n: 12, {of}), \
             \"plain\": BestOfN()"
        ),
        "",
    );
    let (summary, _) = run(here, "one");
    assert!(
        utility(&summary, "many") > utility(&summary, "one"),
        "{summary}"
    );
    run(here, "two");
    same(&contents(&here.join("one")), &contents(&here.join("two")));
    let ask = ["generate", "--config", "choosing.ron", "--strategy", "many"];
    let error = fails(
        here,
        &[&ask[..], &["--preference", "short", "--prompt", "x"]].concat(),
        1,
    );
    assert!(error.contains("needs rewards"), "{error}");
}
