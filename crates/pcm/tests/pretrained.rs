//! A PCM that begins as a decoder.
#![allow(clippy::unwrap_used, reason = "tests")]

use lm::{DeviceSpec, Format, LanguageModel};
use mope_pcm::{Context, Pcm, PcmConfig, PreferenceInput};

#[test]
fn a_pretrained_pcm_reads_as_its_checkpoint_does_and_only_its_tokens() {
    let path = pico::path("llama");
    let open =
        |path: &std::path::Path| LanguageModel::open(path, &DeviceSpec::Cpu, Format::F32).unwrap();
    let model = open(&path);
    let config = PcmConfig {
        preference: PreferenceInput::Text,
        ..PcmConfig::tiny(&["a", "b", "c"], 16)
    };
    let mut pcm = Pcm::pretrained(&config, &path, &model.tokenizer, 1).unwrap();
    // Its three outputs read what the checkpoint's head gives the tokens 5, 6 and 7.
    let mut values = pcm.values().to_vec();
    let d = model.config().hidden_size;
    let head = values.len() - 3 * 4 - 3 * d;
    for token in 0..3 {
        let row = &mut values[head + token * d..head + (token + 1) * d];
        model.engine.embedding(token as u32 + 5, row).unwrap();
    }
    pcm.set_values(&values);
    let folder = tempfile::tempdir().unwrap();
    pcm.save(folder.path()).unwrap();
    let pcm = Pcm::load(folder.path()).unwrap();
    let context = Context {
        tokens: vec![1, 40, 41],
        shares: vec![0.4, 0.3, 0.3],
        statistics: Vec::new(),
    };
    let response = [50u32, 51, 52, 53];
    let nobody = |_: u32, _: &mut [f32]| unreachable!("it has embeddings of its own");
    let got = pcm.logits(&[(&context, &response)], &nobody).unwrap();
    let read = [&context.tokens[..], &response[..3]].concat();
    let mut expected = Vec::new();
    let row = |_, t: usize, row: &mut [f32]| {
        if t >= 2 {
            expected.extend_from_slice(&row[5..8]);
        }
    };
    model.engine.all_logits(&[&read], None, row).unwrap();
    assert_eq!(got[0].len(), 12);
    for (got, expected) in got[0].iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    }
    // Another vocabulary is refused, and so is another kind of block.
    let json = std::fs::read_to_string(path.join("tokenizer.json")).unwrap();
    let other = folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(path.join(file), other.join(file)).unwrap();
    }
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    let id = vocabulary.remove("E").unwrap();
    vocabulary.insert("renamed".into(), id.clone());
    let renamed = json.to_string();
    std::fs::write(other.join("tokenizer.json"), renamed).unwrap();
    let error = Pcm::pretrained(&config, &other, &model.tokenizer, 1).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains(&format!("its token {id} is")) && error.contains("presets"),
        "{error}"
    );
    let qwen = pico::path("qwen3");
    let other = open(&qwen);
    let error = Pcm::pretrained(&config, &qwen, &other.tokenizer, 1).unwrap_err();
    assert!(error.to_string().contains("fill its stream"), "{error}");
}
