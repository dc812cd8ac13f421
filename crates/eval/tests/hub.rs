//! Models of the hub as rewards, over tiny random ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use lm::chat::{Message, Prompt};
use mope_eval::rewards::Scorer;
use serde_json::json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../lm/tests/fixtures")
        .join(name)
}

fn open(scorer: serde_json::Value) -> mope_eval::Result<Box<dyn mope_eval::rewards::Reward>> {
    let scorer: Scorer = serde_json::from_value(scorer).unwrap();
    scorer.validate()?;
    scorer.open()
}

fn error(scorer: serde_json::Value) -> String {
    open(scorer).err().unwrap().to_string()
}

fn why() -> Prompt {
    Prompt::Chat(vec![Message::user("Why is the sky blue?")])
}

#[test]
fn reward_models_score_as_transformers_does() {
    let folder = fixture("pico/scored_qwen2");
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let scores = &expected["chat_scores"][0];
    for (label, number) in [("helpful", 0), ("honest", 2), ("1", 1)] {
        let scorer = json!({"RewardModel": {"model": folder, "label": label, "format": "F32"}});
        let score = open(scorer)
            .unwrap()
            .score(&why(), "It scatters light.")
            .unwrap();
        let expected = scores[number].as_f64().unwrap();
        assert!(
            (score - expected).abs() < 1e-4,
            "{label}: {score} {expected}"
        );
    }
    let message = error(json!({"RewardModel": {"model": folder}}));
    assert!(
        message.contains("name the label that counts; it has: helpful, harmless, honest"),
        "{message}"
    );
    let message = error(json!({"RewardModel": {"model": folder, "label": "kind"}}));
    assert!(message.contains("no label 'kind'"), "{message}");
    let message = error(json!({"RewardModel": {"model": fixture("pico/llama")}}));
    assert!(message.contains("score.weight"), "{message}");
    // Bf16 is the default, and near.
    let single = json!({"RewardModel": {"model": fixture("pico/scored_llama")}});
    let reward = open(single).unwrap();
    assert!(
        reward
            .score(&why(), "It scatters light.")
            .unwrap()
            .is_finite()
    );
    assert!(reward.normaliser().is_none() && reward.measured_at().is_none());
}

#[test]
fn classifiers_give_the_log_odds_of_a_label() {
    let folder = fixture("encoders/bert");
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let texts = std::fs::read_to_string(fixture("encoders/texts.json")).unwrap();
    let texts: serde_json::Value = serde_json::from_str(&texts).unwrap();
    let odds = |logits: &serde_json::Value| {
        let [cold, warm, odd] = [0, 1, 2].map(|i| logits[i].as_f64().unwrap());
        warm - (cold.exp() + odd.exp()).ln()
    };
    let classifier = json!({"Classifier": {"model": folder, "label": "warm"}});
    let text = texts["texts"][0].as_str().unwrap();
    let score = open(classifier).unwrap().score(&why(), text).unwrap();
    assert!((score - odds(&expected["texts"][0])).abs() < 1e-4);
    let classifier = json!({"Classifier": {"model": folder, "label": "warm", "pair": true}});
    let text = texts["pairs"][0][1].as_str().unwrap();
    let score = open(classifier).unwrap().score(&why(), text).unwrap();
    assert!((score - odds(&expected["pairs"][0])).abs() < 1e-4);
    let message = error(json!({"Classifier": {"model": "nowhere", "label": "warm"}}));
    assert!(
        message.starts_with("nowhere/config.json is not there"),
        "{message}"
    );
}

#[test]
fn relevance_is_likeness_to_the_prompt() {
    let relevance = json!({"Relevance": {"model": fixture("encoders/bert_sentences")}});
    let reward = open(relevance).unwrap();
    let prompt = why();
    let items = [
        (&prompt, "Why is the sky blue?"),
        (&prompt, "a red cat"),
        (&prompt, ""),
    ];
    let scores = reward.score_all(&items).unwrap();
    assert!((scores[0] - 1.0).abs() < 1e-6, "{scores:?}");
    assert!(
        scores[1] < 1.0 && scores[2] < 1.0 && scores[1] != scores[2],
        "{scores:?}"
    );
    for (item, score) in items.iter().zip(&scores) {
        assert!((reward.score(item.0, item.1).unwrap() - score).abs() < 1e-6);
    }
}
