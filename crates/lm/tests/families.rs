//! Models of every family against transformers: tiny random ones, made by `scripts/fixtures/architectures.py`, longer
//! than their sliding windows and original contexts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;

use common::{close, expected, fixture};
use mope_lm::device::WgpuKind;
use mope_lm::engine::Adapters;
use mope_lm::load::Checkpoint;
use mope_lm::save::Precision;
use mope_lm::tuning::{LoraConfig, LoraParameters, Loss, Sequence, TuningDecoder};
use mope_lm::{Adapter, DeviceSpec, Engine, Format};

const FAMILIES: [&str; 18] = [
    "gemma2",
    "gemma2_scalar",
    "gemma3",
    "glm",
    "glm4",
    "granite",
    "llama_dynamic",
    "llama_yarn",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
    "phi3_window",
    "qwen2_moe",
    "qwen2_windows",
    "qwen3_moe",
    "qwen3_moe_mixed",
    "smollm3",
];
/// Families whose rotary frequencies follow the length.
const STRETCHED: [&str; 2] = ["llama_dynamic", "phi3"];
const VOCAB: usize = 48;
const LENGTH: usize = 40;

fn folder(family: &str) -> PathBuf {
    fixture("families").join(family)
}

fn open(family: &str) -> Checkpoint {
    Checkpoint::open(&folder(family)).unwrap()
}

/// On every device of the build that runs it.
fn engines(checkpoint: &Checkpoint) -> Vec<(String, Engine)> {
    let experts = checkpoint.config().family.experts.is_some();
    let mut specs = DeviceSpec::built();
    specs.retain(|spec| !experts || !matches!(spec, DeviceSpec::Wgpu(_)));
    let specs = specs.into_iter();
    let engine = |spec: DeviceSpec| {
        let engine = Engine::load(checkpoint, &spec, Format::F32).unwrap();
        (spec.to_string(), engine)
    };
    specs.map(engine).collect()
}

fn ids() -> Vec<u32> {
    (0..LENGTH as u32)
        .map(|i| (7 * i * i + 3 * i + 1) % 48)
        .collect()
}

fn reference(family: &str, tensor: &str) -> Vec<f32> {
    expected(&format!("families/{family}/expected.safetensors"), tensor)
}

/// Logits `[lanes][time · vocab]` of whole sequences.
fn logits(engine: &Engine, lanes: &[&[u32]], adapters: Option<&Adapters>) -> Vec<Vec<f32>> {
    let mut out = vec![vec![]; lanes.len()];
    let row = |lane: usize, _: usize, row: &mut [f32]| {
        let out: &mut Vec<f32> = &mut out[lane];
        out.extend_from_slice(row);
    };
    engine.all_logits(lanes, adapters, row).unwrap();
    out
}

/// What transformers gives for the last token of the first `length` ones.
fn row_at(family: &str, length: usize) -> Vec<f32> {
    let tensor = match STRETCHED.contains(&family) {
        true => "prefixes",
        false => "logits",
    };
    reference(family, tensor)[(length - 1) * VOCAB..length * VOCAB].to_vec()
}

#[test]
fn logits_equal_those_of_transformers() {
    for family in FAMILIES {
        let checkpoint = open(family);
        checkpoint.check().unwrap();
        for (name, engine) in engines(&checkpoint) {
            let got = logits(&engine, &[&ids()], None);
            let what = format!("{family} on {name}");
            close(&what, &got[0], &reference(family, "logits"), 1e-4);
        }
    }
}

#[test]
fn every_tensor_is_read_or_an_error() {
    for family in FAMILIES {
        let bytes = std::fs::read(folder(family).join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let changed = |without: Option<&str>, with: Option<&str>| {
            let copy = tempfile::tempdir().unwrap();
            let config = folder(family).join("config.json");
            std::fs::copy(config, copy.path().join("config.json")).unwrap();
            let norm = file.tensor("model.norm.weight").unwrap();
            let mut views = file.tensors();
            views.retain(|(name, _)| Some(name.as_str()) != without);
            views.extend(with.map(|name| (name.to_string(), norm)));
            let path = copy.path().join("model.safetensors");
            safetensors::serialize_to_file(views, None, &path).unwrap();
            let checkpoint = Checkpoint::open(copy.path());
            checkpoint
                .and_then(|c| c.check())
                .map_err(|e| e.to_string())
        };
        assert_eq!(changed(None, None), Ok(()), "{family}");
        for extra in [
            "model.layers.0.self_attn.sinks",
            "model.layers.1.mlp.router.weight",
            "score.weight",
        ] {
            let error = changed(None, Some(extra)).unwrap_err();
            assert!(error.contains(extra), "{family}: {error}");
        }
        for (name, _) in file.tensors() {
            let error = changed(Some(&name), None).unwrap_err();
            assert!(error.contains("is missing"), "{family}: {error}");
        }
    }
}

#[test]
fn a_prefill_and_steps_equal_one_reading() {
    for family in FAMILIES {
        for (name, engine) in engines(&open(family)) {
            let mut cache = engine.cache(1, LENGTH);
            let mut at = 0;
            for step in [5, 6, 1, 1, 1, 1, 1, 1, 1, 7, 1, 1, 13] {
                let mut row = vec![0.0; VOCAB];
                let next = &ids()[at..at + step];
                engine
                    .next_logits(&[next], &mut cache, None, &mut row)
                    .unwrap();
                at += step;
                let what = format!("{family} on {name} at {at}");
                close(&what, &row, &row_at(family, at), 1e-4);
            }
            assert_eq!(at, LENGTH);
        }
    }
}

#[test]
fn lanes_of_other_lengths_change_nothing() {
    for family in FAMILIES {
        for (name, engine) in engines(&open(family)) {
            let ids = ids();
            let parts = [
                [&ids[..3], &ids[3..30]],
                [&ids[..16], &ids[16..18]],
                [&ids[..20], &ids[20..21]],
            ];
            let read = |lanes: &[[&[u32]; 2]]| {
                let mut cache = engine.cache(lanes.len(), LENGTH + 20);
                let mut rows = Vec::new();
                for part in 0..2 {
                    let tokens: Vec<&[u32]> = lanes.iter().map(|lane| lane[part]).collect();
                    let mut out = vec![0.0; lanes.len() * VOCAB];
                    engine
                        .next_logits(&tokens, &mut cache, None, &mut out)
                        .unwrap();
                    rows.push(out);
                }
                rows
            };
            let together = read(&parts);
            for (lane, part) in parts.iter().enumerate() {
                let alone = read(&[*part]);
                for (together, alone) in together.iter().zip(&alone) {
                    let row = &together[lane * VOCAB..(lane + 1) * VOCAB];
                    match name.as_str() {
                        "Cpu" => assert_eq!(row, &alone[..], "{family}"),
                        _ => close(&format!("{family} on {name}"), row, alone, 2e-5),
                    }
                }
            }
        }
    }
}

#[test]
fn adapters_equal_those_of_peft_alone_and_beside_the_base() {
    for family in FAMILIES {
        let checkpoint = open(family);
        let adapter = Adapter::load(&folder(family).join("adapter"), checkpoint.config()).unwrap();
        let (adapted, plain) = (
            reference(family, "logits_adapter"),
            reference(family, "logits"),
        );
        for (name, engine) in engines(&checkpoint) {
            let ids = ids();
            let what = format!("{family} on {name}");
            let stack = engine.adapters(&[None, Some(&adapter)]);
            let got = logits(&engine, &[&ids, &ids], Some(&stack));
            close(&what, &got[0], &plain, 1e-4);
            close(&what, &got[1], &adapted, 1e-4);
        }
        // It is not the base.
        assert!(
            adapted
                .iter()
                .zip(&plain)
                .any(|(a, b)| (a - b).abs() > 1e-2),
            "{family}"
        );
    }
}

#[test]
fn forked_and_truncated_caches_follow_their_own_length() {
    for family in STRETCHED {
        for (name, engine) in engines(&open(family)) {
            let ids = ids();
            let mut row = vec![0.0; VOCAB];
            let mut long = engine.cache(1, LENGTH);
            engine
                .next_logits(&[&ids[..15]], &mut long, None, &mut row)
                .unwrap();
            let mut short = long.fork(&[0]).unwrap();
            engine
                .next_logits(&[&ids[15..20]], &mut long, None, &mut row)
                .unwrap();
            close(
                &format!("{family} on {name}, long"),
                &row,
                &row_at(family, 20),
                1e-4,
            );
            engine
                .next_logits(&[&ids[15..16]], &mut short, None, &mut row)
                .unwrap();
            close(
                &format!("{family} on {name}, short"),
                &row,
                &row_at(family, 16),
                1e-4,
            );
            // Back below the original context.
            match &mut long {
                mope_lm::engine::Cache::Burn(cache) => cache.truncate(0, 10),
                mope_lm::engine::Cache::Packed(cache, _) => cache.truncate(0, 10),
            }
            engine
                .next_logits(&[&ids[10..13]], &mut long, None, &mut row)
                .unwrap();
            close(
                &format!("{family} on {name}, cut"),
                &row,
                &row_at(family, 13),
                1e-4,
            );
        }
    }
}

#[test]
fn gguf_files_hold_the_same_models() {
    for family in FAMILIES {
        let path = folder(family).join("model.gguf");
        if !path.is_file() {
            continue;
        }
        let checkpoint = Checkpoint::open(&path).unwrap();
        checkpoint.check().unwrap();
        let engine = Engine::load(&checkpoint, &DeviceSpec::Cpu, Format::F32).unwrap();
        let got = logits(&engine, &[&ids()], None);
        close(
            &format!("{family} in GGUF"),
            &got[0],
            &reference(family, "logits"),
            2e-4,
        );
        // An adapter of the model in Hugging Face's format fits, too.
        let adapter = Adapter::load(&folder(family).join("adapter"), checkpoint.config()).unwrap();
        let stack = engine.adapters(&[Some(&adapter)]);
        let got = logits(&engine, &[&ids()], Some(&stack));
        let adapted = reference(family, "logits_adapter");
        close(
            &format!("{family} in GGUF, adapter"),
            &got[0],
            &adapted,
            2e-4,
        );
    }
}

#[test]
fn adapters_in_gguf_are_those_of_peft() {
    for family in ["gemma3", "llama_yarn", "phi3"] {
        let checkpoint = open(family);
        let of = |name: &str| {
            let path = folder(family).join("adapter").join(name);
            Adapter::load(&path, checkpoint.config()).unwrap()
        };
        assert_eq!(of("adapter.gguf"), of(""), "{family}");
        let path = folder(family).join("adapter/adapter.gguf");
        assert!(Adapter::is_at(&path) && !Adapter::is_at(&folder(family).join("model.gguf")));
        assert_eq!(Adapter::describe(&path).unwrap().rank, 2);
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(error.contains("general.type 'adapter'"), "{error}");
    }
    let path = folder("gemma3").join("adapter/adapter.gguf");
    let error = Adapter::load(&path, open("gemma2").config()).unwrap_err();
    assert!(
        error.to_string().contains("an adapter on 'blk.2."),
        "{error}"
    );
    let error = Adapter::load(&path, open("olmo3").config())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("an adapter for architecture 'gemma3'"),
        "{error}"
    );
    let model = open("gemma3");
    let error = Adapter::load(&folder("gemma3").join("model.gguf"), model.config());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no general.type"), "{error}");
}

#[test]
fn what_is_written_is_read_again() {
    for family in FAMILIES {
        let checkpoint = open(family);
        let out = tempfile::tempdir().unwrap();
        let (plain, merged) = (out.path().join("plain"), out.path().join("merged"));
        checkpoint.export(&plain, Precision::F32, None).unwrap();
        let engine = |path: &std::path::Path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            checkpoint.check().unwrap();
            Engine::load(&checkpoint, &DeviceSpec::Cpu, Format::F32).unwrap()
        };
        let got = logits(&engine(&plain), &[&ids()], None);
        close(family, &got[0], &reference(family, "logits"), 1e-4);
        // Names and shapes are those of the file that transformers wrote.
        let names = |path: &std::path::Path| {
            let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut all: Vec<(String, Vec<usize>)> = file
                .iter()
                .map(|(n, t)| (n.to_string(), t.shape().to_vec()))
                .collect();
            all.sort();
            all
        };
        assert_eq!(names(&plain), names(&folder(family)), "{family}");
        let adapter = Adapter::load(&folder(family).join("adapter"), checkpoint.config()).unwrap();
        checkpoint
            .export(&merged, Precision::F32, Some(&adapter))
            .unwrap();
        let got = logits(&engine(&merged), &[&ids()], None);
        close(family, &got[0], &reference(family, "logits_adapter"), 1e-4);
        let saved = out.path().join("adapter");
        adapter
            .save(&saved, checkpoint.config(), None, Precision::F32)
            .unwrap();
        let again = Adapter::load(&saved, checkpoint.config()).unwrap();
        assert!(again == adapter, "{family}");
        let shapes = |folder: &std::path::Path| Adapter::describe(folder).unwrap().tensors;
        assert_eq!(
            shapes(&saved),
            shapes(&folder(family).join("adapter")),
            "{family}"
        );
    }
}

#[test]
fn pairs_of_joined_matrices_that_share_nothing_are_written_exactly() {
    let checkpoint = open("phi3");
    let mut adapter = Adapter::load(&folder("phi3").join("adapter"), checkpoint.config()).unwrap();
    let key = (0, mope_lm::adapter::Target::Key);
    adapter.pairs.get_mut(&key).unwrap().a[3] += 0.5;
    adapter.pairs.remove(&(1, mope_lm::adapter::Target::Gate));
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("adapter");
    adapter
        .save(&saved, checkpoint.config(), None, Precision::F32)
        .unwrap();
    let again = Adapter::load(&saved, checkpoint.config()).unwrap();
    let engine = Engine::load(&checkpoint, &DeviceSpec::Cpu, Format::F32).unwrap();
    let of = |adapter: &Adapter| {
        let stack = engine.adapters(&[Some(adapter)]);
        logits(&engine, &[&ids()], Some(&stack)).remove(0)
    };
    close("joined", &of(&again), &of(&adapter), 1e-5);
}

#[test]
fn small_formats_stay_near_and_lanes_apart() {
    for family in ["gemma3", "phi3", "qwen2_moe", "olmo2"] {
        let checkpoint = open(family);
        let reference = reference(family, "logits");
        let spread = reference.iter().map(|v| v.abs()).fold(0.0, f32::max);
        for (format, share) in [(Format::Bf16, 0.05), (Format::Q8, 0.15)] {
            let engine = Engine::load(&checkpoint, &DeviceSpec::Cpu, format).unwrap();
            let ids = ids();
            let alone = logits(&engine, &[&ids], None);
            close(
                &format!("{family} in {format:?}"),
                &alone[0],
                &reference,
                share * spread,
            );
            let together = logits(&engine, &[&ids[..7], &ids, &ids[5..19]], None);
            assert_eq!(together[1], alone[0], "{family} in {format:?}");
        }
    }
}

#[test]
fn packed_training_refuses_other_families_by_name() {
    for (family, expected) in [
        (
            "gemma3",
            "training of 'gemma3_text' (norms behind attention)",
        ),
        (
            "qwen3_moe",
            "training of 'qwen3_moe' (experts that a router chooses)",
        ),
        ("granite", "training of 'granite' (multipliers"),
        ("llama_yarn", "training of 'llama' (a rope scaling"),
        ("smollm3", "training of 'smollm3' (layers of several kinds)"),
    ] {
        let error = TuningDecoder::load(&open(family), &DeviceSpec::Cpu, Format::F32).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn experts_are_refused_on_webgpu() {
    let device = DeviceSpec::Wgpu(WgpuKind::Cpu);
    let error = Engine::load(&open("qwen3_moe"), &device, Format::F32).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("a mixture of experts on WebGPU"),
        "{message}"
    );
}

/// Through burn all dense families train: log-probabilities are transformers', and the gradient is their slope.
#[test]
fn dense_families_train_on_the_other_devices() {
    let others = DeviceSpec::built()
        .into_iter()
        .filter(|d| *d != DeviceSpec::Cpu);
    for (device, family) in others.flat_map(|d| FAMILIES.map(|family| (d.clone(), family))) {
        let checkpoint = open(family);
        let decoder = match TuningDecoder::load(&checkpoint, &device, Format::F32) {
            Ok(decoder) => decoder,
            Err(error) => {
                assert!(checkpoint.config().family.experts.is_some(), "{error}");
                assert!(
                    error.to_string().contains("a mixture of experts"),
                    "{error}"
                );
                continue;
            }
        };
        let what = format!("{device} {family}");
        // One more token, so that as many are read as for the reference: rotary frequencies may depend on it.
        let read = ids();
        let sequence = Sequence::new(&read[..1], &[&read[1..], &read[..1]].concat());
        let logits = expected(&format!("families/{family}/expected.safetensors"), "logits");
        let reference = logits.chunks(VOCAB).zip(&read[1..]).map(|(row, next)| {
            let mut row = row.to_vec();
            mope_lm::sampling::log_softmax(&mut row);
            row[*next as usize]
        });
        let got = decoder
            .log_probs(None, std::slice::from_ref(&sequence))
            .unwrap();
        let reference: Vec<f32> = reference.collect();
        close(&what, &got[0][..reference.len()], &reference, 2e-4);

        let mut lora = LoraParameters::new(&LoraConfig::default(), decoder.config(), 1).unwrap();
        let wave = |i: usize, step: f32| (i as f32 * step).sin();
        let start = lora.values.clone();
        let start: Vec<f32> = start
            .iter()
            .enumerate()
            .map(|(i, v)| v + 0.05 * wave(i, 1.7))
            .collect();
        let direction: Vec<f32> = (0..start.len()).map(|i| wave(i, 0.9)).collect();
        let mut at = |by: f32| {
            let moved = start.iter().zip(&direction).map(|(v, d)| v + by * d);
            lora.values = moved.collect();
            let loss = |_: usize, l: &[Vec<f32>]| Loss {
                value: l[0].iter().map(|v| f64::from(*v)).sum(),
                gradient: vec![vec![1.0; l[0].len()]],
            };
            decoder
                .gradient(&lora, &[vec![sequence.clone()]], &loss)
                .unwrap()
        };
        let along = at(0.0)
            .values
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(g * d))
            .sum::<f64>();
        let mut slope = |by: f32| (at(by).losses[0] - at(-by).losses[0]) / f64::from(2.0 * by);
        // Without the error in the square of the step (Richardson).
        let slope = (4.0 * slope(1.5e-3) - slope(3e-3)) / 3.0;
        println!("{what}: slope {slope:.4}, gradient {along:.4}");
        assert!(
            (slope - along).abs() < 0.02 * slope.abs().max(0.5),
            "{what}: {slope} {along}"
        );
    }
}
