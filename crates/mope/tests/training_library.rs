//! A training through the library, without a process: it stops, resumes, and ends as one that did not stop.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{fixture, write};
use mope::harness::failure::is_usage;
use mope::training::{Outcome, Product, TrainOptions, Training, train, trainings};

/// A training on given responses over the tiny model: four epochs of two steps each.
fn training(folder: &Path) -> Training {
    let responses = "{\"prompt\": \"a b c\", \"response\": \"e d\"}\n{\"prompt\": \"d\", \"response\": \"a a\"}\n";
    write(folder, "responses.jsonl", responses);
    let text = format!(
        "(name: \"sft\", seed: 3, model: {:?}, lora: (rank: 2, alpha: 4.0), \
         recipe: Sft(data: \"responses.jsonl\", settings: (epochs: 4, minibatch: 1)))",
        fixture("llama")
    );
    write(folder, "sft.ron", &text);
    Training::load(&folder.join("sft.ron")).unwrap()
}

fn adapter(outcome: &Outcome) -> Vec<u8> {
    let Product::Adapter { folder, last } = &outcome.product else {
        panic!("{outcome:?}")
    };
    assert!(last["loss"].as_f64().unwrap() > 0.0);
    std::fs::read(folder.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_training_is_carried_out_in_this_process() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let training = training(here);
    let into = |out: &str, stop_after: Option<usize>| TrainOptions {
        source: here.join("sft.ron"),
        out: here.join(out),
        stop_after,
    };
    let at_once = train(&training, &into("whole", None)).unwrap();
    assert_eq!((at_once.finished, at_once.done), (true, 8));
    assert_eq!(at_once.training, "sft");
    let part = train(&training, &into("cut", Some(3))).unwrap();
    assert_eq!((part.finished, part.done), (false, 3));
    assert_ne!(adapter(&part), adapter(&at_once));
    let rest = train(&training, &into("cut", None)).unwrap();
    assert_eq!((rest.finished, rest.done), (true, 8));
    assert_eq!(adapter(&rest), adapter(&at_once));
    let manifest = std::fs::read_to_string(here.join("cut/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(
        manifest["source"],
        std::fs::read_to_string(here.join("sft.ron")).unwrap()
    );
    // Another training does not go on from there, and what is there stays.
    let sweep = trainings(&training, &["seed=4,5".parse().unwrap()]).unwrap();
    let names: Vec<&str> = sweep.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["seed=4", "seed=5"]);
    let error = train(&sweep[0].1, &into("cut", None)).unwrap_err();
    assert!(
        is_usage(&error) && error.to_string().contains("other settings"),
        "{error}"
    );
    let rest = train(&training, &into("cut", None)).unwrap();
    assert_eq!(adapter(&rest), adapter(&at_once));
}
