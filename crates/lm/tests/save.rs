//! What is written is read back as it was, by every reader here; `scripts/fixtures/check_saved.py` does the
//! same with transformers and peft.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{close, expected, pico_ids};
use mope_lm::adapter::{LowRank, Target};
use mope_lm::chat::{Message, Prompt};
use mope_lm::load::Checkpoint;
use mope_lm::save::Precision;
use mope_lm::{Adapter, DeviceSpec, Format, LanguageModel};
use pico::checkpoint;
use proptest::prelude::*;

const SHAPES: [&str; 6] = [
    "llama",
    "llama_untied_biases",
    "llama3_rope",
    "mistral_window",
    "qwen2",
    "qwen3",
];

/// Logits of the fixtures' sequence.
fn logits(folder: &Path, adapter: Option<&Adapter>) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let engine = mope_lm::Engine::load(&checkpoint, &DeviceSpec::Cpu, Format::F32).unwrap();
    let stack = adapter.map(|a| engine.adapters(&[Some(a)]));
    let mut out = Vec::new();
    let row = |_, _, row: &mut [f32]| out.extend_from_slice(row);
    engine
        .all_logits(&[&pico_ids()], stack.as_ref(), row)
        .unwrap();
    out
}

/// The tensors of a folder, in the order of a forward pass.
fn tensors(folder: &Path) -> Vec<Vec<f32>> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let reader = checkpoint.reader();
    let all = checkpoint.config().tensors().into_iter();
    let read = all.map(|(n, s)| reader.get(&n, &s).unwrap()).collect();
    reader.finish().unwrap();
    read
}

#[test]
fn every_shape_is_exported_and_read_back_bit_for_bit() {
    let temp = tempfile::tempdir().unwrap();
    for shape in SHAPES {
        let out = temp.path().join(shape);
        checkpoint(shape)
            .export(&out, Precision::F32, None)
            .unwrap();
        let again = Checkpoint::open(&out).unwrap();
        assert_eq!(again.config(), checkpoint(shape).config());
        assert_eq!(tensors(&out), tensors(&pico::path(shape)), "{shape}");
        let half = temp.path().join(format!("{shape}_half"));
        checkpoint(shape)
            .export(&half, Precision::Bf16, None)
            .unwrap();
        for (a, b) in tensors(&half)
            .iter()
            .flatten()
            .zip(tensors(&out).iter().flatten())
        {
            assert!((a - b).abs() <= b.abs() / 256.0, "{shape}: {a} {b}");
        }
        let names = std::fs::read_dir(temp.path()).unwrap();
        let left = names.filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.')
        });
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn a_merged_model_says_what_model_and_adapter_say() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["plain", "patterns"] {
        let base = checkpoint("llama");
        let folder = pico::path(&format!("adapter_{name}"));
        let adapter = Adapter::load(&folder, base.config()).unwrap();
        let out = temp.path().join(name);
        base.export(&out, Precision::F32, Some(&adapter)).unwrap();
        let reference = expected("pico/llama/expected.safetensors", &format!("logits_{name}"));
        close(name, &logits(&out, None), &reference, 1e-4);
        let model = LanguageModel::open(&out, &DeviceSpec::Cpu, Format::F32).unwrap();
        let tokens = model
            .prompt_tokens(&Prompt::Chat(vec![Message::user("Why?")]))
            .unwrap();
        assert_eq!(model.tokenizer.decode(&tokens).unwrap(), "u:Why?a:");
        assert_eq!(model.end_tokens, [2]);
    }
}

#[test]
fn adapters_are_saved_with_their_own_ranks() {
    let temp = tempfile::tempdir().unwrap();
    let base = pico::path("llama");
    for name in ["plain", "patterns"] {
        let config = checkpoint("llama").config().clone();
        let adapter = Adapter::load(&pico::path(&format!("adapter_{name}")), &config).unwrap();
        let out = temp.path().join(name);
        adapter
            .save(&out, &config, Some("some/base"), Precision::F32)
            .unwrap();
        assert_eq!(Adapter::load(&out, &config).unwrap(), adapter);
        let reference = expected("pico/llama/expected.safetensors", &format!("logits_{name}"));
        let again = Adapter::load(&out, &config).unwrap();
        close(name, &logits(&base, Some(&again)), &reference, 1e-4);
        let about = Adapter::describe(&out).unwrap();
        assert_eq!(
            (about.base.as_deref(), about.alpha),
            (Some("some/base"), about.rank as f64)
        );
    }
}

#[test]
fn a_gguf_model_is_exported_in_full() {
    let temp = tempfile::tempdir().unwrap();
    let out = temp.path().join("out");
    let source = pico::path("llama.gguf");
    Checkpoint::open(&source)
        .unwrap()
        .export(&out, Precision::F32, None)
        .unwrap();
    // The layout of q and k is undone: these are the numbers that the file was made from.
    assert_eq!(tensors(&out), tensors(&pico::path("llama")));
    let reference = expected("pico/llama/expected.safetensors", "logits");
    close("gguf", &logits(&out, None), &reference, 1e-4);
    let open = |path: &Path| LanguageModel::open(path, &DeviceSpec::Cpu, Format::F32).unwrap();
    let (made, source) = (open(&out), open(&source));
    assert_eq!(made.config(), source.config());
    assert_eq!(made.end_tokens, source.end_tokens);
    let messages = [Message::user("Why, A b?</s>!")];
    let tokens = made
        .prompt_tokens(&Prompt::Chat(messages.to_vec()))
        .unwrap();
    assert_eq!(
        tokens,
        source
            .prompt_tokens(&Prompt::Chat(messages.to_vec()))
            .unwrap()
    );
    assert_eq!(
        tokens,
        open(&pico::path("llama"))
            .prompt_tokens(&Prompt::Chat(messages.to_vec()))
            .unwrap()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_adapter_survives_saving(
        ranks in proptest::collection::vec(0usize..5, 14),
        seed in 0u32..1000,
        half in proptest::bool::ANY,
    ) {
        let config = checkpoint("llama").config().clone();
        let mut adapter = Adapter::default();
        let places = (0..2).flat_map(|l| Target::ALL.map(|t| (l, t)));
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few bits, so that every format holds them exactly.
            ((state >> 24) as f32 - 128.0) / 64.0
        };
        for (matrix, rank) in places.zip(ranks).filter(|(_, r)| *r > 0) {
            let (inputs, outputs) = matrix.1.size(&config);
            let a = (0..inputs * rank).map(|_| number()).collect();
            let b = (0..outputs * rank).map(|_| number()).collect();
            adapter.pairs.insert(matrix, LowRank { rank, a, b });
        }
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("adapter");
        let precision = if half { Precision::Bf16 } else { Precision::F16 };
        let saved = adapter.save(&out, &config, None, precision);
        if adapter.pairs.is_empty() {
            prop_assert!(saved.unwrap_err().to_string().contains("no pairs"));
        } else {
            saved.unwrap();
            prop_assert_eq!(Adapter::load(&out, &config).unwrap(), adapter);
        }
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let base = checkpoint("llama");
    let out = temp.path().join("out");
    let write = |adapter: Option<&Adapter>| {
        let error = base.export(&out, Precision::F32, adapter).unwrap_err();
        error.to_string()
    };
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "x").unwrap();
    assert!(write(None).contains("not empty"));
    std::fs::remove_file(out.join("mine")).unwrap();
    let pair = |rank: usize, value: f32| {
        let (a, b) = (vec![value; 32 * rank], vec![1.0; 32 * rank]);
        Adapter {
            pairs: [((0, Target::Query), LowRank { rank, a, b })].into(),
        }
    };
    assert!(write(Some(&pair(1, f32::NAN))).contains("NaN"));
    let mut other = pair(1, 1.0);
    other.pairs.insert(
        (1, Target::Key),
        LowRank {
            rank: 1,
            a: vec![1.0; 5],
            b: vec![1.0; 7],
        },
    );
    assert!(write(Some(&other)).contains("made for another model"));
    let error = other
        .save(&out, base.config(), None, Precision::F32)
        .unwrap_err();
    assert!(
        error.to_string().contains("layers.1.self_attn.k_proj"),
        "{error}"
    );
    let error = pair(1, 1e30)
        .save(&out, base.config(), None, Precision::F16)
        .unwrap_err();
    assert!(
        error.to_string().contains("does not fit into F16"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    std::fs::remove_dir(&out).unwrap();
    std::fs::write(&out, "").unwrap();
    assert!(write(None).contains("there is a file of that name"));
    // An empty folder is as good as none.
    std::fs::remove_file(&out).unwrap();
    std::fs::create_dir(&out).unwrap();
    base.export(&out, Precision::F32, Some(&pair(2, 0.5)))
        .unwrap();
}
