//! What a strategy's file says of it is complete: strategies in it, folders, weights, a card in the book.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mope_mixing::strategies::{Instance, InstanceContext};
use mope_mixing::{Preference, Strategy, merging};
use serde_json::{Value, json};

/// Folders that nothing opens.
const FOLDERS: [&str; 2] = ["some/classifier", "some/pcm"];

fn instances() -> Vec<Instance> {
    Strategy::instances(&InstanceContext {
        directions: &["concise", "friendly"],
        other: "rude",
        classifier: Path::new(FOLDERS[0]),
        pcm: Path::new(FOLDERS[1]),
    })
}

/// Every strategy that is written inside of one: an object of one key that is a strategy's name.
fn written_inside(strategy: &Value, names: &BTreeSet<String>) -> Vec<Value> {
    fn search(value: &Value, names: &BTreeSet<String>, strategies: &mut Vec<Value>) {
        match value {
            Value::Object(fields) => {
                let tag = fields.keys().next().filter(|key| names.contains(*key));
                if fields.len() == 1 && tag.is_some() {
                    strategies.push(value.clone());
                }
                fields
                    .values()
                    .for_each(|field| search(field, names, strategies));
            }
            Value::Array(items) => items
                .iter()
                .for_each(|item| search(item, names, strategies)),
            _ => {}
        }
    }
    let mut strategies = Vec::new();
    let parameters = strategy.as_object().unwrap().values();
    parameters.for_each(|parameters| search(parameters, names, &mut strategies));
    strategies
}

/// Every strategy in one, those in those included.
fn listed_inside(strategy: &mut Strategy) -> Vec<Value> {
    let mut strategies = Vec::new();
    for child in strategy.children_mut() {
        strategies.push(json!(child));
        strategies.extend(listed_inside(child));
    }
    strategies
}

#[test]
fn no_strategy_inside_another_is_overlooked() {
    // Names as they are written, which are not always those of the registry.
    let names = instances().into_iter().map(|instance| {
        let written = json!(instance.strategy);
        written.as_object().unwrap().keys().next().unwrap().clone()
    });
    let names: BTreeSet<String> = names.collect();
    let mut wrappers = BTreeSet::new();
    for Instance { mut strategy, .. } in instances() {
        let written = written_inside(&json!(strategy), &names);
        assert_eq!(listed_inside(&mut strategy), written, "{strategy:?}");
        if !written.is_empty() {
            wrappers.insert(strategy.name());
        }
    }
    let expected = [
        "BestOfN",
        "BestOnValidation",
        "BestWeights",
        "TopK",
        "WithMerged",
    ];
    assert!(
        expected.iter().all(|name| wrappers.contains(name)),
        "{wrappers:?}"
    );
}

#[test]
fn no_folder_is_overlooked() {
    let mut users = BTreeSet::new();
    for Instance { mut strategy, .. } in instances() {
        let mentions = |strategy: &Strategy| {
            let text = json!(strategy).to_string();
            let count = |folder: &&str| text.matches(&format!("\"{folder}\"")).count();
            FOLDERS.iter().map(count).sum::<usize>()
        };
        let count = mentions(&strategy);
        assert_eq!(strategy.models().len(), count, "{strategy:?}");
        if count > 0 {
            users.insert(strategy.name());
            let error = strategy.try_models().unwrap_err().to_string();
            assert!(error.contains("some/"), "{error}");
        } else {
            strategy.try_models().unwrap();
        }
        strategy.resolve(Path::new("/study"));
        assert_eq!(mentions(&strategy), 0, "{strategy:?}");
        let mut models = strategy.models().into_iter();
        assert!(models.all(|model| model.starts_with("/study/some")));
    }
    let expected = ["Cliper", "Pcm", "WithMerged"];
    assert!(
        expected.iter().all(|name| users.contains(name)),
        "{users:?}"
    );
}

#[test]
fn every_strategy_with_weights_takes_them() {
    let weights = BTreeMap::from([
        ("concise".to_string(), 0.25),
        ("friendly".to_string(), 0.75),
    ]);
    for Instance { strategy, .. } in instances() {
        let written = json!(strategy);
        let parameters = written.as_object().unwrap().values().next().unwrap();
        let weighted = strategy.weighted(weights.clone()).map(|s| json!(s));
        let set =
            weighted.map(|s| s.as_object().unwrap().values().next().unwrap()["weights"].clone());
        match parameters.get("weights") {
            Some(_) => assert_eq!(set, Some(json!(weights)), "{strategy:?}"),
            None => assert_eq!(set, None, "{strategy:?}"),
        }
    }
}

#[test]
fn strategies_are_read_as_they_are_written_and_by_their_names() {
    for Instance { strategy, .. } in instances() {
        let written = json!(strategy);
        let again: Strategy = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(again, strategy);
        let parameters = written.as_object().unwrap().values().next().unwrap();
        let by_name = json!({ strategy.name(): parameters });
        assert_eq!(
            serde_json::from_value::<Strategy>(by_name).unwrap(),
            strategy
        );
    }
    // What an earlier version wrote is what this one writes, or else its responses would be made again.
    let read = |text: &str| -> Strategy { serde_json::from_str(text).unwrap() };
    for old in [
        "{\"Pack\":{\"tau\":1.0,\"space\":\"Log\"}}",
        "{\"Best\":{\"of\":{\"a\":{\"Base\":{}}}}}",
    ] {
        assert_eq!(
            json!(read(old)).to_string(),
            json!(serde_json::from_str::<Value>(old).unwrap()).to_string()
        );
    }
    assert!(matches!(
        read("{\"Over\":{\"experts\":{},\"of\":{\"Base\":{}}}}"),
        Strategy::WithMerged(_)
    ));
    let stated: Preference =
        serde_json::from_str("{\"text\":\"\",\"weights\":{\"a\":2.0}}").unwrap();
    assert_eq!(json!(stated), json!({"text": "", "weights": {"a": 2.0}}));
}

#[test]
fn every_strategy_and_every_method_is_in_the_book() {
    let book = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/strategies.md");
    let book = std::fs::read_to_string(book).unwrap();
    let headings = book.lines().filter(|line| line.starts_with('#'));
    let cards: BTreeSet<&str> = headings
        .flat_map(|line| line.split(|c: char| !c.is_alphanumeric()))
        .collect();
    let named = |name: &&&str| !cards.contains(**name);
    let missing: Vec<_> = Strategy::NAMES.iter().filter(named).collect();
    assert!(
        missing.is_empty(),
        "no card in docs/src/strategies.md: {missing:?}"
    );
    let methods = merging::Method::NAMES.iter();
    let missing: Vec<_> = methods
        .filter(|name| !book.contains(&format!("`{name}(")))
        .collect();
    assert!(missing.is_empty(), "not in the card of Merge: {missing:?}");
    // What is fixed, or recorded elsewhere, is not decoded.
    let mut with_instance: BTreeSet<&str> = instances().iter().map(|i| i.strategy.name()).collect();
    for fixed in ["Canned", "Empty", "Recorded"] {
        assert!(with_instance.insert(fixed));
    }
    assert_eq!(with_instance.len(), Strategy::NAMES.len());
}
