//! Numbers that are none: NaN and infinity are refused where tensors are read, and what overflows while a model runs
//! ends in an error or in numbers, in every format, on one thread and on two.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::{fixture, pico_ids};
use mope_lm::load::Checkpoint;
use mope_lm::load::dequant::Format as Stored;
use mope_lm::load::gguf::Header;
use mope_lm::load::mapped::{Mapped, StoredTensor};
use mope_lm::packed::PackedDecoder;
use mope_lm::sampling::log_softmax;
use mope_lm::{Adapter, Error, Format};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];
const NONE: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

/// Name, shape and numbers of a file's tensors.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let parts = view.data().chunks_exact(4);
            let numbers = parts.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name, view.shape().to_vec(), numbers.collect())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn write(path: &Path, tensors: &Tensors, dtype: Dtype) {
    let bytes = |v: &f32| match dtype {
        Dtype::BF16 => half::bf16::from_f32(*v).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(*v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    };
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, numbers)| numbers.iter().flat_map(bytes).collect())
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape, _), data)| {
        (name, TensorView::new(dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A copy of a fixture's folder, the file of its tensors, and these.
fn copy(name: &str, file: &str) -> (TempDir, PathBuf, Tensors) {
    let folder = pico::copy(name);
    let path = folder.path().join(file);
    let tensors = tensors(&path);
    (folder, path, tensors)
}

fn load(folder: &Path, weights: Format) -> mope_lm::Result<PackedDecoder> {
    PackedDecoder::load(&Checkpoint::open(folder)?, weights)
}

/// Prefill of two lanes and two steps after it, normalised as an expert's rows are. Numbers, or an error; never
/// something between.
fn run(decoder: &PackedDecoder, adapter: Option<&Adapter>) -> mope_lm::Result<()> {
    let ids = pico_ids();
    let adapters = adapter.map(|a| decoder.adapters(&[Some(a)]));
    let vocab = decoder.config().vocab_size;
    let mut cache = decoder.cache(2, 16);
    let (mut scratch, mut logits) = (Default::default(), vec![0.0; 2 * vocab]);
    let mut at = 0;
    for step in [6, 1, 1] {
        let lanes: [&[u32]; 2] = [&ids[at..at + step], &ids[at + 2..at + 2 + step]];
        decoder.next_logits(
            &lanes,
            &mut cache,
            adapters.as_ref(),
            &mut scratch,
            &mut logits,
        )?;
        for (lane, row) in logits.chunks_mut(vocab).enumerate() {
            if !log_softmax(row).is_finite() {
                return Err(Error::NoNumbers { lane });
            }
            let total: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            assert!((total - 1.0).abs() < 1e-4, "{total}");
        }
        at += step;
    }
    Ok(())
}

fn is_no_numbers(outcome: &mope_lm::Result<()>) -> bool {
    matches!(outcome, Err(Error::NoNumbers { .. }))
}

#[test]
fn every_tensor_of_a_model_is_refused_by_name_file_and_position() {
    for shape in ["llama_untied_biases", "qwen3"] {
        let (folder, path, clean) = copy(shape, "model.safetensors");
        load(folder.path(), Format::F32).unwrap();
        for (i, (name, shape, numbers)) in clean.iter().enumerate() {
            let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
            let (at, value) = (numbers.len() * 2 / 3, NONE[i / 3 % 3]);
            let mut wrong = clean.clone();
            wrong[i].2[at] = value;
            write(&path, &wrong, dtype);
            let position = match shape.len() {
                1 => format!("[{at}]"),
                _ => format!("[{}, {}]", at / shape[1], at % shape[1]),
            };
            let error = load(folder.path(), FORMATS[i % 4]).unwrap_err().to_string();
            for part in [
                "model.safetensors",
                &format!("tensor '{name}' holds {value} at {position}"),
                "fetch or train it again",
            ] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}

#[test]
fn every_tensor_of_an_adapter_is_refused_by_name() {
    let model = pico::checkpoint("llama");
    let (folder, path, clean) = copy("adapter_plain", "adapter_model.safetensors");
    Adapter::load(folder.path(), model.config()).unwrap();
    for (i, (name, ..)) in clean.iter().enumerate() {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][i % 3];
        let mut wrong = clean.clone();
        wrong[i].2[5] = NONE[i / 3 % 3];
        write(&path, &wrong, dtype);
        let error = Adapter::load(folder.path(), model.config()).unwrap_err();
        assert!(
            matches!(&error, Error::NotFinite { tensor, .. } if tensor == name),
            "{error}"
        );
        assert!(
            error.to_string().contains("adapter_model.safetensors"),
            "{error}"
        );
    }
    // What overflows with the scale α / r, and a scale that is no 32-bit number.
    let mut large = clean.clone();
    large.iter_mut().for_each(|t| t.2.fill(3e38));
    write(&path, &large, Dtype::F32);
    let error = Adapter::load(folder.path(), model.config())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("scaled by 2") && error.contains("inf"),
        "{error}"
    );
    write(&path, &clean, Dtype::F32);
    let config = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("\"lora_alpha\": 8", "\"lora_alpha\": 1e300");
    std::fs::write(&config, text).unwrap();
    let error = Adapter::load(folder.path(), model.config())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("adapter_config.json") && error.contains("lora_alpha"),
        "{error}"
    );
}

/// Where a block's 16-bit scales and minima stand.
fn scales(format: Stored) -> &'static [usize] {
    match format {
        // The scale of MXFP4 is a power of two in eight bits.
        Stored::F32 | Stored::F16 | Stored::BF16 | Stored::MXFP4 | Stored::F8_E4M3 => &[],
        Stored::Q4_0 | Stored::Q5_0 | Stored::Q8_0 | Stored::IQ4_NL | Stored::IQ4_XS => &[0],
        Stored::Q4_1 | Stored::Q5_1 | Stored::Q4_K | Stored::Q5_K => &[0, 2],
        Stored::Q2_K => &[80, 82],
        Stored::Q3_K => &[108],
        Stored::Q6_K => &[208],
    }
}

#[test]
fn scales_of_every_block_format_are_refused() {
    let bytes = std::fs::read(fixture("formats.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("formats.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let header = Header::parse(&Mapped::open(&path).unwrap()).unwrap();
    for format in Stored::ALL {
        let name = format!("{format:?}");
        let tensor = &header.tensors[&name];
        let (weights, size) = format.block();
        let last = tensor.range.end - size;
        for at in scales(format) {
            for bits in [0x7e00u16, 0x7c00, 0xfc00, 0x7c01] {
                let mut wrong = bytes.clone();
                wrong[last + at..last + at + 2].copy_from_slice(&bits.to_le_bytes());
                std::fs::write(&path, &wrong).unwrap();
                let error = Mapped::open(&path)
                    .unwrap()
                    .read(&name, tensor)
                    .unwrap_err();
                let Error::NotFinite { position, .. } = &error else {
                    panic!("{error}");
                };
                assert!(
                    position[0] == 1 && position[1] >= 512 - weights,
                    "{name} {error}"
                );
            }
        }
    }
}

#[test]
fn rope_constants_are_checked() {
    let change = |from: &str, to: &str| {
        let (folder, _, _) = copy("llama3_rope", "model.safetensors");
        let path = folder.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        Checkpoint::open(folder.path()).unwrap_err().to_string()
    };
    let (folder, _, _) = copy("llama3_rope", "model.safetensors");
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let field = |name: &str| {
        let start = text.find(&format!("\"{name}\"")).unwrap();
        let rest = &text[start..];
        rest[..rest.find([',', '\n', '}']).unwrap()].to_string()
    };
    for (name, value) in [
        ("factor", "0.0"),
        ("factor", "-2.0"),
        ("factor", "1e300"),
        ("low_freq_factor", "0.0"),
        ("low_freq_factor", "1e30"),
        ("high_freq_factor", "-1.0"),
        ("original_max_position_embeddings", "0"),
        ("rope_theta", "1e300"),
    ] {
        let error = change(&field(name), &format!("\"{name}\": {value}"));
        assert!(
            error.contains("config.json") && error.contains("rope"),
            "{error}"
        );
    }
    let error = change(
        &field("high_freq_factor"),
        &field("low_freq_factor").replace("low", "high"),
    );
    assert!(error.contains("is not below high_freq_factor"), "{error}");
}

#[test]
fn factors_of_rope_are_numbers_above_zero() {
    use mope_lm::config::RopeScaling;
    let config = pico::checkpoint("llama").config().clone();
    for (value, fine) in [
        (1.0, true),
        (8.0, true),
        (0.0, false),
        (-1.0, false),
        (1e-45, false),
        (f32::NAN, false),
        (f32::INFINITY, false),
    ] {
        let mut config = config.clone();
        let mut factors = vec![1.0; config.head_dim / 2];
        factors[1] = value;
        config.rope.scaling = RopeScaling::Factors(factors);
        assert_eq!(config.validate().is_ok(), fine, "{value}");
        config.rope.scaling = RopeScaling::Linear(value);
        assert_eq!(config.validate().is_ok(), fine, "{value}");
    }
}

/// A number, and a whole tensor, of a size that overflows somewhere on the way.
#[test]
fn large_numbers_in_any_tensor_end_in_an_error_or_in_numbers() {
    if !pico::on_one_thread_and_on_two("large_numbers_in_any_tensor_end_in_an_error_or_in_numbers")
    {
        return;
    }
    // Every third tensor is enough to see that two threads end as one does.
    let step = if std::env::var("MOPE_THREADS").is_ok_and(|n| n == "2") {
        3
    } else {
        1
    };
    for shape in ["llama_untied_biases", "qwen3"] {
        let (folder, path, clean) = copy(shape, "model.safetensors");
        for (i, (name, _, numbers)) in clean.iter().enumerate().step_by(step) {
            for (merged, value) in [(false, 1e30), (true, 1e30), (false, -3e38), (true, 3e38)] {
                let mut large = clean.clone();
                match merged {
                    true => large[i].2.fill(value),
                    false => large[i].2[numbers.len() / 2] = value,
                }
                write(&path, &large, Dtype::F32);
                for weights in FORMATS {
                    let decoder = load(folder.path(), weights).unwrap();
                    let outcome = run(&decoder, None);
                    assert!(outcome.is_ok() || is_no_numbers(&outcome), "{outcome:?}");
                    // Whoever multiplies by infinity must hear of it: the largest of these sums overflow in any case.
                    let sure = [
                        "q_proj.weight",
                        "k_proj.weight",
                        "v_proj.weight",
                        "up_proj.weight",
                    ];
                    let overflows =
                        sure.iter().any(|end| name.ends_with(end)) && merged && value > 1e38;
                    let normed =
                        shape == "qwen3" && !name.contains("up_proj") && !name.contains("v_proj");
                    if overflows && !normed {
                        assert!(is_no_numbers(&outcome), "{shape} {name} {weights:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn large_numbers_in_any_pair_of_an_adapter_end_in_an_error_or_in_numbers() {
    if !pico::on_one_thread_and_on_two(
        "large_numbers_in_any_pair_of_an_adapter_end_in_an_error_or_in_numbers",
    ) {
        return;
    }
    let (folder, path, clean) = copy("adapter_plain", "adapter_model.safetensors");
    for weights in FORMATS {
        let decoder = load(&pico::path("llama"), weights).unwrap();
        for (i, (_, _, numbers)) in clean.iter().enumerate() {
            for (merged, value) in [(false, 1e30), (true, 1e30), (true, 1.5e38)] {
                let mut large = clean.clone();
                match merged {
                    true => large[i].2.fill(value),
                    false => large[i].2[numbers.len() / 2] = value,
                }
                write(&path, &large, Dtype::F32);
                let adapter = Adapter::load(folder.path(), decoder.config()).unwrap();
                let outcome = run(&decoder, Some(&adapter));
                assert!(outcome.is_ok() || is_no_numbers(&outcome), "{outcome:?}");
            }
        }
        // Both factors: their product overflows.
        let mut large = clean.clone();
        large.iter_mut().for_each(|t| t.2.fill(1e30));
        write(&path, &large, Dtype::F32);
        let adapter = Adapter::load(folder.path(), decoder.config()).unwrap();
        let outcome = run(&decoder, Some(&adapter));
        assert!(is_no_numbers(&outcome), "{weights:?} {outcome:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_first_number_that_is_none_is_named(
        rows in 1usize..5,
        columns in 1usize..9000,
        index in any::<prop::sample::Index>(),
        kind in 0usize..3,
    ) {
        let mut numbers = vec![1.0f32; rows * columns];
        let at = index.index(numbers.len());
        numbers[at] = NONE[kind];
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tensor");
        std::fs::write(&path, &bytes).unwrap();
        let tensor = StoredTensor {
            shape: vec![rows, columns],
            format: Stored::F32,
            range: 0..bytes.len(),
        };
        let error = Mapped::open(&path).unwrap().read("a", &tensor).unwrap_err();
        let Error::NotFinite { position, tensor, .. } = error else {
            return Err(TestCaseError::fail("another error"));
        };
        prop_assert_eq!((position, tensor.as_str()), (vec![at / columns, at % columns], "a"));
    }
}
