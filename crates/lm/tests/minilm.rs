//! all-MiniLM-L6-v2 against sentence-transformers (`scripts/fixtures/encoders.py`). Fetches the model on first use.
#![allow(clippy::unwrap_used, reason = "tests")]

use mope_lm::DeviceSpec;
use mope_lm::encoders::{SentenceEncoder, cosine};
use mope_lm::source::Registry;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let registry = Registry::load().unwrap();
    let folder = registry
        .resolve("all-minilm-l6-v2", &mut |_, _, _| {})
        .unwrap();
    let encoder = SentenceEncoder::open(&folder, &DeviceSpec::Cpu).unwrap();
    let Expected { texts, vectors } =
        serde_json::from_str(include_str!("fixtures/encoders/minilm.json")).unwrap();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let got = encoder.embed(&texts).unwrap();
    let mut largest = 0.0f32;
    for (got, expected) in got.iter().zip(&vectors) {
        // The registered files are without the last module, which only sets the length.
        let length = got.iter().map(|v| v * v).sum::<f32>().sqrt();
        let differences = got
            .iter()
            .zip(expected)
            .map(|(a, b)| (a / length - b).abs());
        largest = differences.fold(largest, f32::max);
    }
    println!("largest difference {largest:e}");
    assert!(largest < 1e-5, "{largest}");
    let near = |a: usize, b: usize| cosine(&got[a], &got[b]);
    // An answer is nearer to its question than another text.
    assert!(
        near(0, 1) > near(0, 2) + 0.2,
        "{} {}",
        near(0, 1),
        near(0, 2)
    );
}
