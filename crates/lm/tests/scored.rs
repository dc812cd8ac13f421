//! Reward models against transformers (`scripts/fixtures/reward_models.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use mope_lm::chat::{Message, Prompt};
use mope_lm::scored::ScoredModel;
use mope_lm::{DeviceSpec, Format};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    pico::path(&format!("scored_{name}"))
}

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Vec<u32>>,
    scores: Vec<Vec<f32>>,
    chats: Vec<Vec<Message>>,
    chat_scores: Vec<Vec<f32>>,
}

fn expected(name: &str) -> Expected {
    let path = folder(name).join("expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Prints the largest difference and fails where it is above 1e-4.
fn near(name: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    let numbers = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(numbers(got), numbers(expected), "{name}");
    let pairs = got.iter().flatten().zip(expected.iter().flatten());
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: largest difference {largest:e}");
    assert!(largest < 1e-4, "{name}: {largest}");
}

#[test]
fn scores_are_those_of_transformers_on_both_engines() {
    for name in ["llama", "mistral", "qwen2", "gemma2", "qwen3"] {
        let expected = expected(name);
        for device in [DeviceSpec::Cpu, DeviceSpec::BurnFlex] {
            let model = ScoredModel::open(&folder(name), &device, Format::F32).unwrap();
            let name = format!("{name} on {device}");
            // Padding at the end is passed over, and so is what stands beside.
            let scores = model.scores_of_tokens(&expected.sequences).unwrap();
            near(&name, &scores, &expected.scores);
            let chats = expected.chats.iter().map(|messages| {
                let (response, prompt) = messages.split_last().unwrap();
                (Prompt::Chat(prompt.to_vec()), response.content.as_str())
            });
            let chats: Vec<(Prompt, &str)> = chats.collect();
            let items: Vec<(&Prompt, &str)> = chats.iter().map(|(p, r)| (p, *r)).collect();
            near(&name, &model.scores(&items).unwrap(), &expected.chat_scores);
        }
    }
}

#[test]
fn labels_and_what_is_refused() {
    let open = |name: &str| ScoredModel::open(&folder(name), &DeviceSpec::Cpu, Format::F32);
    let labels = |name: &str| open(name).unwrap().labels().to_vec();
    assert_eq!(labels("qwen2"), ["helpful", "harmless", "honest"]);
    assert_eq!(labels("llama"), ["LABEL_0"]);
    assert!(ScoredModel::is_scored(&folder("qwen3")));
    assert!(!ScoredModel::is_scored(&pico::path("qwen3")));
    let error = ScoredModel::open(&pico::path("llama"), &DeviceSpec::Cpu, Format::F32);
    assert!(error.unwrap_err().to_string().contains("'score.weight'"));
    let model = open("llama").unwrap();
    assert!(model.scores_of_tokens(&[vec![]]).is_err());
    assert!(model.scores_of_tokens(&[vec![96]]).is_err());
    assert!(model.scores_of_tokens(&[]).unwrap().is_empty());
    // What is longer than the context keeps its end.
    let prompt = Prompt::Raw("x".repeat(500));
    let tokens = model.tokens(&prompt, "the end").unwrap();
    assert_eq!(tokens.len(), 128);
    assert_eq!(model.scores(&[(&prompt, "the end")]).unwrap().len(), 1);
}
