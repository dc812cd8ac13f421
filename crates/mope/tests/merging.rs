//! Merged experts in an experiment and on the command line.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{contents, done, experiment, fails, fixture, same, stdout, write};
use serde_json::Value;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let all = [&["--json"], arguments].concat();
    serde_json::from_str(&stdout(&done(folder, &all))).unwrap()
}

/// An experiment whose experts have parameters: two adapters and a whole model.
fn mergeable(folder: &Path, strategies: &str) {
    let (model, adapter) = (fixture("llama"), fixture("adapter_patterns"));
    let (model, adapter) = (model.to_str().unwrap(), adapter.to_str().unwrap());
    if !folder.join("whole").exists() {
        let export = [
            "export",
            "--model",
            model,
            "--adapter",
            adapter,
            "--out",
            "whole",
        ];
        done(folder, &export);
    }
    let start = common::EXPERIMENT.find("strategies: {").unwrap();
    let end = start + common::EXPERIMENT[start..].find("},\n    prompts").unwrap();
    let text = format!(
        "{}strategies: {{ {strategies} {}",
        &common::EXPERIMENT[..start],
        &common::EXPERIMENT[end..]
    );
    let text = text
        .replace("Prompted(\"be kind\")", &format!("Adapter({adapter:?})"))
        .replace("Full(\"OTHER\")", "Full(\"whole\")");
    write(folder, "merge.ron", &text);
}

#[test]
fn merged_experts_run_and_resume_like_others() {
    let folder = experiment();
    let here = folder.path();
    let methods = [
        "Soup()",
        "Soup(average: Delta)",
        "TaskArithmetic(scale: 0.7)",
        "Slerp()",
        "Ties(density: 0.4)",
        "Dare(density: 0.6, ties: true)",
        "Della()",
        "Breadcrumbs()",
        "ModelStock()",
        "Ram()",
    ];
    let named = methods.iter().enumerate();
    let strategies: String = named
        .map(|(i, m)| format!("\"m{i}\": Merge(method: {m}),"))
        .collect();
    mergeable(here, &format!("\"base\": Base(), {strategies}"));
    let summary = json(here, &["run", "merge.ron", "--out", "one"]);
    assert_eq!(summary["ranking"].as_array().unwrap().len() % 11, 0);
    done(here, &["run", "merge.ron", "--out", "two"]);
    same(&contents(&here.join("one")), &contents(&here.join("two")));
    // What the command writes answers as the strategy does.
    let ask = [
        "--prompt",
        "Why is it so?",
        "--max-new-tokens",
        "8",
        "--temperature",
        "0",
    ];
    for (strategy, kind) in [("m0", "model"), ("m4", "model")] {
        let arguments = [
            "--config",
            "merge.ron",
            "--strategy",
            strategy,
            "--preference",
            "short",
        ];
        let written = json(
            here,
            &[&["merge"], &arguments[..], &["--out", strategy]].concat(),
        );
        assert_eq!(written["kind"], kind);
        let mixed = json(here, &[&["generate"], &arguments[..], &ask].concat());
        assert_eq!(mixed["experts"], serde_json::json!(["merged"]));
        let alone = json(
            here,
            &[&["generate", "--model", strategy], &ask[..]].concat(),
        );
        assert_eq!(mixed["tokens"], alone["tokens"], "{strategy}");
    }
}

#[test]
fn strategies_run_over_merged_experts() {
    let folder = experiment();
    let here = folder.path();
    let soup =
        "\"calm\": Merge(method: Soup(), weights: {\"informative\": 0.25, \"friendly\": 0.75})";
    let of = "Mod(weights: {\"calm\": 0.5, \"concise\": 0.5})";
    let further =
        "\"friendly\": Merge(method: TaskArithmetic(scale: 2), weights: {\"friendly\": 1.0})";
    let strategies = format!(
        "\"over\": WithMerged(experts: {{{soup}}}, of: {of}), \
         \"instead\": WithMerged(experts: {{{further}}}, of: Uniform()), \
         \"unused\": WithMerged(experts: {{{soup}}}, of: Uniform()), \"uniform\": Uniform(), \
         \"soup\": Merge(method: Soup(), weights: {{\"informative\": 0.25, \"friendly\": 0.75}})"
    );
    mergeable(here, &strategies);
    let ask = |config: &str, strategy: &str| {
        let arguments = [
            "generate",
            "--config",
            config,
            "--strategy",
            strategy,
            "--preference",
            "both",
            "--prompt",
            "Why is it so?",
            "--max-new-tokens",
            "8",
            "--temperature",
            "0",
        ];
        json(here, &arguments)
    };
    let over = ask("merge.ron", "over");
    assert_eq!(over["experts"], serde_json::json!(["calm", "concise"]));
    // As with an expert that was written before.
    let arguments = [
        "--config",
        "merge.ron",
        "--strategy",
        "soup",
        "--preference",
        "both",
    ];
    done(
        here,
        &[&["merge"], &arguments[..], &["--out", "calm"]].concat(),
    );
    let text = std::fs::read_to_string(here.join("merge.ron")).unwrap();
    let expert = "experts: {\n        \"calm\": Adapter(\"calm\"),";
    let text = text.replacen("experts: {", expert, 1);
    let written = text.replace(&format!("WithMerged(experts: {{{soup}}}, of: {of})"), of);
    assert_ne!(written, text);
    write(here, "written.ron", &written);
    assert_eq!(over["tokens"], ask("written.ron", "over")["tokens"]);
    assert_eq!(over["log_probs"], ask("written.ron", "over")["log_probs"]);
    let (unused, uniform) = (ask("merge.ron", "unused"), ask("merge.ron", "uniform"));
    assert_eq!(unused["tokens"], uniform["tokens"]);
    assert_ne!(
        ask("merge.ron", "instead")["log_probs"],
        uniform["log_probs"]
    );
    // A run goes the same way, and again finds all of it.
    done(here, &["run", "merge.ron", "--out", "one"]);
    let before = contents(&here.join("one"));
    done(here, &["run", "merge.ron", "--out", "one"]);
    same(&before, &contents(&here.join("one")));
    for (strategy, message) in [
        (
            format!("WithMerged(experts: {{{soup}}}, of: BestSingle())"),
            "still to be chosen",
        ),
        (
            format!(
                "WithMerged(experts: {{{soup}}}, of: Merge(method: Soup(), weights: {{\"calm\": 1.0}}))"
            ),
            "merged itself",
        ),
        (
            "WithMerged(experts: {\"x\": Merge(method: Ties(density: 0.0))}, of: Uniform())".into(),
            "density is 0",
        ),
    ] {
        mergeable(here, &format!("\"m\": {strategy}"));
        let text = std::fs::read_to_string(here.join("merge.ron")).unwrap();
        let text = text.replace("prompts: \"", "validation: \"others.txt\", prompts: \"");
        std::fs::write(here.join("others.txt"), "How so?\n").unwrap();
        std::fs::write(here.join("merge.ron"), text).unwrap();
        let error = fails(here, &["check", "merge.ron"], 2);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn adapters_are_merged_on_the_command_line() {
    let folder = experiment();
    let here = folder.path();
    let [model, plain, patterns] = ["llama", "adapter_plain", "adapter_patterns"]
        .map(|n| fixture(n).to_str().unwrap().to_string());
    let (plain, patterns) = (format!("{plain}=0.25"), format!("{patterns}=0.75"));
    let merge = [
        "merge", "--model", &model, "--expert", &plain, "--expert", &patterns,
    ];
    let run = |more: &[&str]| json(here, &[&merge[..], more].concat());
    assert_eq!(run(&["--out", "soup"])["kind"], "adapter");
    assert_eq!(run(&["--out", "whole_soup", "--whole"])["kind"], "model");
    assert_eq!(
        run(&["--out", "ties", "--method", "Ties()"])["kind"],
        "model"
    );
    let about = json(here, &["inspect", "soup"]);
    assert_eq!(
        (&about["peft_type"], &about["rank"]),
        (&"LORA".into(), &4.into())
    );
    let ask = ["--prompt", "Why is it so?", "--max-new-tokens", "8"];
    let low = ["generate", "--model", &model, "--adapter", "soup"];
    let low = json(here, &[&low[..], &ask].concat());
    let full = json(
        here,
        &[&["generate", "--model", "whole_soup"], &ask[..]].concat(),
    );
    assert_eq!(low["tokens"], full["tokens"]);
    for (more, message) in [
        (&["--method", "Tiess()"][..], "did you mean 'Ties'?"),
        (&["--method", "Ties(density: 2.0)"], "density is 2"),
        (
            &["--method", "Soup(average: Factor)"],
            "take Soup(average: Delta)",
        ),
        (&["--expert", "nowhere=0.5"], "nowhere"),
        (&["--expert", "nowhere"], "not of the form PATH=WEIGHT"),
        (&["--expert", &plain], "the weights sum to 1.25"),
    ] {
        let error = fails(here, &[&merge[..], more, &["--out", "new"]].concat(), 2);
        assert!(error.contains(message), "{error}");
        assert!(!here.join("new").exists());
    }
    let taken = fails(here, &[&merge[..], &["--out", "soup"]].concat(), 1);
    assert!(taken.contains("not empty"), "{taken}");
}

#[test]
fn experts_without_parameters_are_refused_by_name() {
    let folder = experiment();
    let here = folder.path();
    let text = common::EXPERIMENT.replace("Fixed(space: Log)", "Merge(method: Soup())");
    write(here, "prompted.ron", &text);
    let error = fails(here, &["check", "prompted.ron"], 2);
    for part in [
        "strategy 'fixed'",
        "the parameters of expert 'friendly'",
        "Fixed and Mod",
    ] {
        assert!(error.contains(part), "{error}");
    }
    for (method, message) in [
        (
            "ModelStock(), weights: {\"base\": 1.0}",
            "has no use for weights",
        ),
        ("Ties(density: 0.0)", "density is 0"),
        ("Soap()", "did you mean 'Soup'?"),
    ] {
        mergeable(here, &format!("\"m\": Merge(method: {method})"));
        let error = fails(here, &["check", "merge.ron"], 2);
        assert!(error.contains(message), "{error}");
    }
}
