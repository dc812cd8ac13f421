//! An experiment through the library, without a process: its plan, its run, and a second run that finds everything.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{contents, experiment, same, write};
use mope::harness::experiment::Experiment;
use mope::harness::models::Pools;
use mope::harness::plan::{Choices, Entry, REFERENCE, RunPlan, Stage};
use mope::harness::run::run;
use mope::harness::store::manifest::Manifest;

fn plan(experiment: &Experiment) -> RunPlan<'_> {
    let mut pools = Pools::open(experiment).unwrap();
    RunPlan::resolve(experiment, &mut pools).unwrap()
}

/// Names of the files that an entry's rows are in.
fn files(entry: &Entry) -> Vec<String> {
    entry.batches.iter().map(|b| b.file.clone()).collect()
}

/// Names of the files in a part of a run folder.
fn listed(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn a_plan_lists_what_is_made_in_the_order_of_the_file() {
    let folder = experiment();
    let mut experiment = Experiment::load(&folder.path().join("pico.ron")).unwrap();
    experiment.batch_size = 1;
    let plan = plan(&experiment);
    assert_eq!(plan.references.stage, Stage::Reference);
    assert_eq!(plan.references.strategy, REFERENCE);
    assert!(plan.validation.is_empty() && plan.warnings.is_empty());
    let served: Vec<[&str; 2]> = plan
        .entries
        .iter()
        .map(|e| [e.strategy.as_str(), e.preference.as_str()])
        .collect();
    let strategies = experiment.strategies.names();
    let expected = strategies.iter().flat_map(|s| [[s, "both"], [s, "short"]]);
    assert_eq!(served, expected.collect::<Vec<_>>());
    let uniform = plan.entries.iter().find(|e| e.strategy == "uniform");
    assert_eq!(uniform.unwrap().plan.experts, ["friendly", "informative"]);
    // Three prompts, of each two samples, four responses a file; of the references one sample.
    let requests = |entry: &Entry| -> Vec<_> {
        let batches = entry.batches.iter();
        batches.map(|b| b.requests.clone()).collect()
    };
    assert_eq!(requests(&plan.references).len(), 1);
    assert_eq!(plan.references.batches[0].requests, 0..3);
    for entry in &plan.entries {
        assert_eq!(entry.stage, Stage::Generation);
        assert_eq!(requests(entry), [0..4, 4..6]);
        let asked = plan.requests(entry, &entry.batches[1]);
        let asked: Vec<(&str, u32)> = asked.iter().map(|(p, s)| (p.id.as_str(), *s)).collect();
        assert_eq!(asked, [("3", 0), ("3", 1)]);
        for (number, file) in files(entry).iter().enumerate() {
            let start = format!("{}.{}.{number:04}.", entry.strategy, entry.preference);
            let key = file.strip_prefix(&start).unwrap();
            let key = key.strip_suffix(".parquet").unwrap();
            let hexadecimal = |c: char| c.is_ascii_hexdigit();
            assert!(key.len() == 12 && key.chars().all(hexadecimal), "{file}");
        }
    }
    let all: Vec<String> = plan.all().flat_map(files).collect();
    assert_eq!(
        all.len(),
        1 + 2 * plan.entries.len(),
        "every entry has its files"
    );
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn an_experiment_is_carried_out_in_this_process_and_found_again() {
    let folder = experiment();
    let (source, out) = (folder.path().join("pico.ron"), folder.path().join("run"));
    let experiment = Experiment::load(&source).unwrap();
    let ranking = run(&experiment, &source, &out).unwrap();
    let strategies = ranking.column("strategy").unwrap().str().unwrap();
    let utility = ranking.column("utility").unwrap().f64().unwrap();
    let ranked = (0..ranking.height()).map(|row| {
        let utility = utility.get(row).unwrap();
        assert!(utility > 0.0 && utility < 1.0, "{utility}");
        strategies.get(row).unwrap()
    });
    let expected: BTreeSet<&str> = experiment.strategies.names().into_iter().collect();
    assert_eq!(ranked.collect::<BTreeSet<_>>(), expected);

    // What is there is what was planned.
    let plan = plan(&experiment);
    let planned: BTreeSet<String> = plan.entries.iter().flat_map(files).collect();
    assert_eq!(listed(&out.join("generations")), planned);
    let references: BTreeSet<String> = files(&plan.references).into_iter().collect();
    assert_eq!(listed(&out.join("references")), references);

    let before = contents(&out);
    let again = run(&experiment, &source, &out).unwrap();
    assert!(again.equals_missing(&ranking));
    same(&before, &contents(&out));
    let manifest = Manifest::load(&out).unwrap();
    let made: Vec<bool> = manifest
        .sessions
        .iter()
        .map(|s| !s.tokens.is_empty())
        .collect();
    assert_eq!(made, [true, false]);
}

#[test]
fn the_second_model_of_a_choice_is_in_the_names_of_its_batches() {
    let folder = experiment();
    let here = folder.path();
    let directions = [["concise", "informative"], ["unfriendly", "friendly"]];
    let models = [(); 2].map(|()| pico::classifier(&directions));
    let guided = |model: &Path| format!("Cliper(model: {model:?})");
    let [one, two] = [0, 1].map(|i| guided(models[i].path()));
    let best = format!("\"best\": BestOnValidation(of: {{\"one\": {one}, \"two\": {two}}})");
    let text = common::EXPERIMENT
        .replace("\"base\": Base(),", &format!("\"base\": Base(), {best},"))
        .replace(
            "prompts: \"prompts.jsonl\",",
            "prompts: \"prompts.jsonl\", validation: \"others.txt\",",
        );
    write(here, "choice.ron", &text);
    std::fs::write(here.join("others.txt"), "How so?\nWho?\n").unwrap();
    let experiment = Experiment::load(&here.join("choice.ron")).unwrap();

    // The candidates' files by name, the file of what is chosen, and that of a strategy that chooses nothing.
    let names = || {
        let mut plan = plan(&experiment);
        let candidates = plan.candidates("best", "both").map(|(name, label)| {
            let entry = plan.validation.iter().find(|e| e.preference == label);
            let entry = entry.unwrap();
            assert_eq!(entry.stage, Stage::Validation);
            (name.to_string(), files(entry))
        });
        let candidates: Vec<_> = candidates.collect();
        let chosen = |plan: &RunPlan<'_>| {
            let mut entries = plan.entries.iter();
            let entry =
                entries.find(|e| (e.strategy.as_str(), e.preference.as_str()) == ("best", "both"));
            (files(entry.unwrap()), entry.unwrap().plan.candidates.len())
        };
        assert_eq!(chosen(&plan), (Vec::new(), 2), "nothing is chosen yet");
        let second = ["both", "short"].map(|p| (("best".to_string(), p.to_string()), 1));
        plan.choose(&Choices::from(second)).unwrap();
        let (chosen, open) = chosen(&plan);
        assert_eq!((chosen.len(), open), (1, 0));
        let uniform = plan.entries.iter().find(|e| e.strategy == "uniform");
        (candidates, chosen, files(uniform.unwrap()))
    };
    let before = names();
    assert_eq!(names(), before);
    let table = models[1].path().join("classifier.safetensors");
    let mut bytes = std::fs::read(&table).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&table, bytes).unwrap();
    let after = names();
    assert_eq!(after.0[0], before.0[0], "the first model is the same");
    assert_ne!(after.0[1].1, before.0[1].1, "the second is not");
    assert_ne!(after.1, before.1);
    assert_eq!(after.2, before.2);
}
