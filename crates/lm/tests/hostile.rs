//! Damaged and hostile files: one clear error that names the file, no panic, no huge allocation.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::gguf::{Gguf, number, string, strings};
use mope_lm::chat::{Message, Prompt};
use mope_lm::load::Checkpoint;
use mope_lm::load::gguf::{Header, Value};
use mope_lm::load::mapped::Mapped;
use mope_lm::{Adapter, DeviceSpec, Format, LanguageModel, Tokenizer};
use pico::copy;
use proptest::prelude::*;
use tempfile::TempDir;

fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn file_of(gguf: &Gguf) -> (TempDir, PathBuf) {
    file("model.gguf", &gguf.bytes())
}

fn open(path: &Path) -> mope_lm::Result<LanguageModel> {
    LanguageModel::open(path, &DeviceSpec::Cpu, Format::F32)
}

fn written(gguf: &Gguf) -> (TempDir, PathBuf) {
    file("model.gguf", &gguf.bytes())
}

/// The error of opening a file; it names the file.
fn refused(file: &Gguf) -> String {
    let (_folder, path) = written(file);
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("model.gguf"), "{error}");
    error
}

#[test]
fn the_pico_file_itself_is_fine() {
    let (_folder, path) = written(&Gguf::pico());
    let model = open(&path).unwrap();
    let ids = model.tokenizer.encode("cabt", true).unwrap();
    assert_eq!((ids, model.end_tokens), (vec![2, 18, 19], vec![19]));
}

#[test]
fn a_gguf_that_lies_is_refused() {
    let change = |f: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::pico();
        f(&mut file);
        refused(&file)
    };
    type Change<'a> = (&'a dyn Fn(&mut Gguf), &'a str);
    let cases: [Change<'_>; 14] = [
        (
            &|f| f.tensor_count = Some(1 << 60),
            "claims 1152921504606846976 tensors",
        ),
        (&|f| f.data.truncate(100), "it is truncated; fetch it again"),
        (
            &|f| f.tensors[0].1 = vec![1 << 40, 1 << 40],
            "is impossible in F32",
        ),
        (&|f| f.tensors[0].2 = u64::MAX - 8, "overflows"),
        (&|f| f.tensors[1].2 = 0, "overlap"),
        (
            &|f| f.tensors[2].0 = "blk.0.surprise.weight".into(),
            "input_layernorm",
        ),
        (
            &|f| f.tensors[4].1 = vec![4, 16],
            "expected shape [8, 8], got [16, 4]",
        ),
        (
            &|f| f.set("general.architecture", string("gpt5")),
            "architecture 'gpt5'",
        ),
        (
            &|f| f.set("llama.attention.head_count", number(0)),
            "model.gguf",
        ),
        (
            &|f| f.set("llama.attention.head_count", number(3)),
            "model.gguf",
        ),
        (
            &|f| f.set("llama.block_count", number(u32::MAX)),
            "model.gguf",
        ),
        (&|f| f.set("tokenizer.ggml.merges", strings(&[])), "merges"),
        (
            &|f| f.set("tokenizer.ggml.merges", strings(&["a zz".into()])),
            "model.gguf",
        ),
        (
            &|f| f.set("tokenizer.ggml.eos_token_id", number(77)),
            "end token 77",
        ),
    ];
    for (change_it, expected) in cases {
        let error = change(change_it);
        assert!(error.contains(expected), "{error}");
    }
    let mut missing = Gguf::pico();
    missing
        .metadata
        .retain(|(key, _)| key != "tokenizer.ggml.merges");
    assert!(refused(&missing).contains("'tokenizer.ggml.merges' is missing"));
}

#[test]
fn a_gguf_cut_anywhere_is_refused() {
    let bytes = Gguf::pico().bytes();
    for length in (0..bytes.len() - 32).step_by(7) {
        let (_folder, path) = file("cut.gguf", &bytes[..length]);
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("cut.gguf"), "{error}");
    }
}

/// Splits a safetensors file into header text and data.
fn parts(bytes: &[u8]) -> (String, Vec<u8>) {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (
        String::from_utf8(bytes[8..8 + n].to_vec()).unwrap(),
        bytes[8 + n..].to_vec(),
    )
}

fn joined(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

#[test]
fn a_safetensors_file_that_lies_is_refused() {
    let original = std::fs::read(pico::path("llama").join("model.safetensors")).unwrap();
    let (header, data) = parts(&original);
    let mut json: serde_json::Value = serde_json::from_str(&header).unwrap();
    let norm = "model.norm.weight";
    let offsets = json["model.embed_tokens.weight"]["data_offsets"].clone();
    let start = offsets[0].as_u64().unwrap();
    json[norm]["data_offsets"] = serde_json::json!([start, start + 128]);
    let overlapping = joined(&json.to_string(), &data);
    json[norm]["data_offsets"] = serde_json::json!([0, u64::MAX]);
    let beyond = joined(&json.to_string(), &data);
    let mut endless = original.clone();
    endless[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let pickle = b"\x80\x02ctorch".to_vec();
    for (what, bytes) in [
        ("overlapping", overlapping),
        ("beyond", beyond),
        ("endless", endless),
        ("cut", original[..original.len() - 1].to_vec()),
        ("half", original[..original.len() / 2].to_vec()),
        ("no header", original[..8].to_vec()),
        ("empty", vec![]),
        ("text", joined("{not json", &data)),
        ("pickle", pickle),
    ] {
        let folder = copy("llama");
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{what}: {error}");
    }
}

#[test]
fn a_folder_with_a_wrong_part_is_refused() {
    let change = |name: &str, from: &str, to: &str| {
        let folder = copy("llama");
        let path = folder.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        open(folder.path()).unwrap_err().to_string()
    };
    for (name, from, to, expected) in [
        ("config.json", "\"llama\"", "\"mamba\"", "mamba"),
        (
            "config.json",
            "\"hidden_size\": 32",
            "\"hidden_size\": -32",
            "config.json",
        ),
        (
            "config.json",
            "\"hidden_size\": 32",
            "\"hidden_size\": 64",
            "expected shape",
        ),
        (
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 3",
            "is missing",
        ),
        (
            "config.json",
            "\"vocab_size\": 96",
            "\"vocab_size\": 90",
            "expected shape [90, 32]",
        ),
        ("config.json", "{", "", "config.json"),
        (
            "tokenizer.json",
            "\"merges\"",
            "\"nothing\"",
            "tokenizer.json",
        ),
        ("tokenizer.json", "{", "[", "tokenizer.json"),
    ] {
        let error = change(name, from, to);
        assert!(error.contains(expected), "{error}");
    }
    // A template that does not parse is told where somebody needs it; raw prompts go without.
    let folder = copy("llama");
    let path = folder.path().join("tokenizer_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("{% endfor %}", "{% endif %}", 1)).unwrap();
    let model = open(folder.path()).unwrap();
    let chat = Prompt::Chat(vec![Message::user("the cat")]);
    let error = model.prompt_tokens(&chat).unwrap_err().to_string();
    assert!(
        error.starts_with("chat template: does not parse"),
        "{error}"
    );
    assert!(error.len() < 300, "{error}");
    assert!(model.prompt_tokens(&Prompt::Raw("the cat".into())).is_ok());
    let folder = copy("llama");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(
        open(folder.path())
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(
        open(empty.path())
            .unwrap_err()
            .to_string()
            .contains("not a model")
    );
}

#[test]
fn an_adapter_of_another_kind_is_refused_by_its_name() {
    let config = pico::checkpoint("llama").config().clone();
    let change = |from: &str, to: &str| {
        let folder = copy("adapter_plain");
        let path = folder.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        Adapter::load(folder.path(), &config)
            .unwrap_err()
            .to_string()
    };
    for (from, to, expected) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        (
            "\"peft_type\": \"LORA\"",
            "\"peft_type\": \"IA3\"",
            "peft_type 'IA3'",
        ),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias = 'all'"),
        (
            "\"modules_to_save\": null",
            "\"modules_to_save\": [\"lm_head\"]",
            "modules_to_save",
        ),
        ("\"r\": ", "\"r\": 1", "expected"),
    ] {
        let error = change(from, to);
        assert!(error.contains(expected), "{error}");
    }
    // What peft writes for trained embeddings, an adapted embedding, an adapted head, and trained norms.
    for extra in [
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.norm.weight",
    ] {
        let folder = copy("adapter_plain");
        let path = folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors = stored.tensors();
        let copied = tensors[0].1.clone();
        tensors.push((extra.into(), copied));
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let error = Adapter::load(folder.path(), &config)
            .unwrap_err()
            .to_string();
        let name = extra
            .trim_start_matches("base_model.model.")
            .trim_end_matches(".lora_A.weight");
        assert!(error.contains(name), "{error}");
    }
    let other = pico::checkpoint("qwen3");
    let error = Adapter::load(&pico::path("adapter_plain"), other.config()).unwrap_err();
    assert!(error.to_string().contains("expected shape"), "{error}");
}

#[test]
fn sizes_are_believed_only_if_the_file_can_hold_them() {
    let huge = [1 << 20, 1 << 29, 1 << 30, u32::MAX];
    let keys = [
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.context_length",
    ];
    for key in keys {
        for size in huge {
            let mut file = Gguf::pico();
            file.set(key, number(size));
            let (_folder, path) = file_of(&file);
            if let Ok(checkpoint) = Checkpoint::open(&path) {
                // Whatever opens can be described.
                assert!(checkpoint.config().parameters() > 0);
                let checked = checkpoint.check();
                assert!(
                    checked.is_err() || key == "llama.context_length",
                    "{key} {size}"
                );
            }
        }
    }
    let folder = copy("llama");
    let path = folder.path().join("config.json");
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let sizes = config.as_object().unwrap().iter();
    let sizes = sizes.filter(|(_, v)| v.is_u64()).map(|(key, _)| key);
    for key in sizes {
        for size in [1u64 << 29, 1 << 30, 1 << 62, u64::MAX] {
            let mut changed = config.clone();
            changed[key] = size.into();
            std::fs::write(&path, changed.to_string()).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
                assert!(checkpoint.config().parameters() > 0);
                drop(checkpoint.check());
            }
        }
    }
}

#[test]
fn arrays_of_numbers_are_kept_as_they_are_stored() {
    let array = |kind: u32, bytes: &[u8], count: u64| {
        let head = [&9u32.to_le_bytes()[..], &kind.to_le_bytes()].concat();
        [&head[..], &count.to_le_bytes(), bytes].concat()
    };
    let mut file = Gguf::pico();
    for (key, value) in [
        ("bools", array(7, &[0, 1, 2], 3)),
        (
            "signed",
            array(3, &[(-2i16).to_le_bytes(), 7i16.to_le_bytes()].concat(), 2),
        ),
        ("floats", array(6, &1.5f32.to_le_bytes(), 1)),
        ("large", array(10, &u64::MAX.to_le_bytes(), 1)),
    ] {
        file.metadata.push((key.into(), value));
    }
    let (_folder, path) = file_of(&file);
    let header = Header::parse(&Mapped::open(&path).unwrap()).unwrap();
    let numbers = |key: &str| header.numbers(key).unwrap().iter().collect::<Vec<_>>();
    assert_eq!(numbers("bools"), [false, true, true].map(Value::Bool));
    assert_eq!(numbers("signed"), [-2, 7].map(Value::Signed));
    assert_eq!(numbers("floats"), [Value::Float(1.5)]);
    assert_eq!(numbers("large"), [Value::Unsigned(u64::MAX)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_gguf_makes_the_reader_panic(
        changes in prop::collection::vec((0usize..1500, any::<u8>()), 1..6),
        cut in prop::option::of(0usize..1500),
    ) {
        let mut bytes = Gguf::pico().bytes();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        let (_folder, path) = file("fuzzed.gguf", &bytes);
        if let Err(error) = open(&path) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (_folder, path) = file("noise", &bytes);
        prop_assert!(Checkpoint::open(&path).is_err());
        let (_folder, path) = file("noise.gguf", &[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        drop(Header::parse(&Mapped::open(&path).unwrap()));
    }

    #[test]
    fn no_safetensors_header_makes_the_reader_panic(
        changes in prop::collection::vec((0usize..2200, any::<u8>()), 1..6),
    ) {
        let folder = copy("llama");
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = open(folder.path()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_tokenizer_or_config_makes_the_reader_panic(
        name in prop::sample::select(vec!["tokenizer.json", "config.json", "tokenizer_config.json"]),
        at in 0.0f64..1.0,
        inserted in "[\\[\\]{}\",:0-9a-z-]{0,6}",
        removed in 0usize..12,
    ) {
        let folder = copy("llama");
        let path = folder.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let start = (at * bytes.len() as f64) as usize;
        let end = (start + removed).min(bytes.len());
        bytes.splice(start..end, inserted.bytes());
        std::fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            drop(Tokenizer::load(&checkpoint));
            drop(open(folder.path()));
        }
    }
}
