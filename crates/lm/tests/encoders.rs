//! Encoders against transformers and sentence-transformers (`scripts/fixtures/encoders.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use mope_lm::DeviceSpec;
use mope_lm::encoders::{SentenceEncoder, TextClassifier};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/encoders")
        .join(name)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<String>,
    pairs: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Expected {
    texts: Vec<Vec<f32>>,
    #[serde(default)]
    pairs: Vec<Vec<f32>>,
}

fn texts() -> Texts {
    read(&folder("texts.json"))
}

/// Prints the largest difference and fails where it is above 1e-4.
fn near(name: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(got.len(), expected.len());
    let mut largest = 0.0f32;
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.len(), expected.len());
        let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
        largest = differences.fold(largest, f32::max);
    }
    println!("{name}: largest difference {largest:e}");
    assert!(largest < 1e-4, "{name}: {largest}");
}

/// A copy of a folder, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let file = entry.unwrap().path();
        if file.is_file() {
            std::fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// The same config with one field set.
fn set(folder: &Path, field: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = read(&path);
    config[field] = value;
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn classifiers_of_all_families() {
    let Texts { texts, pairs } = texts();
    let texts: Vec<_> = texts.iter().map(|t| (t.as_str(), None)).collect();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(a, b)| (a.as_str(), Some(b.as_str())))
        .collect();
    for name in [
        "bert",
        "roberta",
        "distilbert",
        "deberta",
        "deberta_v2",
        "modern_bert",
    ] {
        let classifier = TextClassifier::open(&folder(name), &DeviceSpec::Cpu).unwrap();
        let expected: Expected = read(&folder(name).join("expected.json"));
        near(name, &classifier.logits(&texts).unwrap(), &expected.texts);
        near(name, &classifier.logits(&pairs).unwrap(), &expected.pairs);
        // Alone as beside others.
        for (text, expected) in texts.iter().zip(&expected.texts) {
            near(
                name,
                &classifier.logits(&[*text]).unwrap(),
                std::slice::from_ref(expected),
            );
        }
    }
}

#[test]
fn sentences_by_their_modules() {
    let encoder = SentenceEncoder::open(&folder("bert_sentences"), &DeviceSpec::Cpu).unwrap();
    let expected: Expected = read(&folder("bert_sentences").join("expected.json"));
    let texts = texts().texts;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    near(
        "sentences",
        &encoder.embed(&texts).unwrap(),
        &expected.texts,
    );
    assert!(encoder.embed(&[]).unwrap().is_empty());
    // Without modules the states are averaged.
    let plain = SentenceEncoder::open(&folder("bert"), &DeviceSpec::Cpu).unwrap();
    assert_eq!(plain.embed(&["a cat"]).unwrap()[0].len(), 16);
}

#[test]
fn labels_and_their_odds() {
    let classifier = TextClassifier::open(&folder("bert"), &DeviceSpec::Cpu).unwrap();
    assert_eq!(classifier.labels(), ["cold", "warm", "odd"]);
    assert!(!classifier.is_multi_label());
    let texts = [("a cat", None)];
    let logits = classifier.logits(&texts).unwrap().swap_remove(0);
    let [a, b, c] = [0, 1, 2].map(|i| f64::from(logits[i]));
    let odds = classifier.log_odds(&texts, 1).unwrap()[0];
    assert!((odds - (b - (a.exp() + c.exp()).ln())).abs() < 1e-9);
    let regression = TextClassifier::open(&folder("distilbert"), &DeviceSpec::Cpu).unwrap();
    let logit = f64::from(regression.logits(&texts).unwrap()[0][0]);
    assert_eq!(regression.log_odds(&texts, 0).unwrap(), [logit]);
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    use serde_json::json;
    for (name, field, value, message) in [
        ("bert", "model_type", json!("t5"), "model_type 't5'"),
        (
            "bert",
            "position_embedding_type",
            json!("relative_key"),
            "position_embedding_type 'relative_key'",
        ),
        ("bert", "hidden_act", json!("mish"), "hidden_act 'mish'"),
        (
            "bert",
            "vocab_size",
            json!(7),
            "word_embeddings.weight': expected shape [7, 16]",
        ),
        (
            "bert",
            "num_hidden_layers",
            json!(1),
            "unknown tensor(s), the first 'bert.encoder.layer.1.",
        ),
        (
            "bert",
            "num_attention_heads",
            json!(3),
            "no multiple of the heads",
        ),
        (
            "bert",
            "hidden_size",
            json!(0),
            "field 'hidden_size' is to be a number above 0",
        ),
        ("deberta", "conv_kernel_size", json!(3), "conv_kernel_size"),
        ("deberta", "pos_att_type", json!("p2p|c2p"), "pos_att_type"),
    ] {
        let folder = copy(name);
        set(folder.path(), field, value);
        match TextClassifier::open(folder.path(), &DeviceSpec::Cpu) {
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(message), "{error}");
            }
            Ok(_) => panic!("{field} is not looked at"),
        }
    }
    let error = TextClassifier::open(&folder("bert_sentences"), &DeviceSpec::Cpu).unwrap_err();
    assert!(error.to_string().contains("no head for labels"), "{error}");

    let folder = copy("bert");
    for (file, content, message) in [
        (
            "modules.json",
            r#"[{"path": "", "type": "a.b.WordWeights"}]"#,
            "module 'WordWeights'",
        ),
        (
            "modules.json",
            r#"[{"path": "", "type": "a.b.Transformer"}]"#,
            "no module pools",
        ),
    ] {
        std::fs::write(folder.path().join(file), content).unwrap();
        let error = SentenceEncoder::open(folder.path(), &DeviceSpec::Cpu).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}
