//! Tiny models of every shape against transformers and peft, and the invariants of lanes, on every
//! device of the build.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{close, devices, expected, full_logits, pico, pico_ids, pico_in};
use mope_lm::device::WgpuKind;
use mope_lm::{Adapter, AdapterStack, DeviceSpec, Engine, Error, Format, to_host};

const SHAPES: [&str; 6] = [
    "llama",
    "llama_untied_biases",
    "llama3_rope",
    "mistral_window",
    "qwen2",
    "qwen3",
];

#[test]
fn logits_equal_transformers() {
    for (spec, device) in devices() {
        for shape in SHAPES {
            let logits = full_logits(&pico(shape, &device), &[&pico_ids()], None);
            let expected = expected(&format!("pico/{shape}/expected.safetensors"), "logits");
            close(&format!("{spec} {shape}"), &logits[0], &expected, 1e-4);
        }
    }
}

/// In 16 bits logits are off by about a hundredth of their own size, on devices that compute in them.
#[test]
fn logits_in_16_bits_stay_near() {
    for (spec, device) in devices() {
        if let Err(error) = spec.offers(Format::Bf16) {
            assert!(error.to_string().contains("but in F32"), "{spec}: {error}");
            continue;
        }
        for shape in SHAPES {
            let logits = full_logits(&pico_in(shape, &device, Format::Bf16), &[&pico_ids()], None);
            let expected = expected(&format!("pico/{shape}/expected.safetensors"), "logits");
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v * v)).sum::<f64>().sqrt()
            };
            let mut off = logits[0].iter().zip(&expected).map(|(a, b)| a - b);
            let error = norm(&mut off) / norm(&mut expected.iter().copied());
            println!("{spec} {shape}: {error:.4}");
            assert!((1e-5..2e-2).contains(&error), "{spec} {shape}: {error}");
        }
    }
}

#[test]
fn packed_formats_need_the_packed_engine() {
    for spec in DeviceSpec::built() {
        for format in [Format::Q8, Format::Q4] {
            assert_eq!(
                spec.offers(format).is_ok(),
                spec == DeviceSpec::Cpu,
                "{spec}"
            );
        }
    }
}

#[test]
fn a_device_that_the_machine_lacks_is_refused_by_name() {
    let missing = [
        DeviceSpec::Wgpu(WgpuKind::Discrete(99)),
        DeviceSpec::LibtorchCuda(99),
        DeviceSpec::Cuda(99),
    ];
    for spec in missing {
        let error = spec.offers(Format::F32).unwrap_err();
        let built = matches!(error, Error::NoDevice { .. });
        assert!(
            built || matches!(error, Error::MissingFeature { .. }),
            "{error}"
        );
        assert!(
            error.to_string().starts_with(&format!("device {spec}: ")),
            "{error}"
        );
    }
    for spec in DeviceSpec::built() {
        spec.offers(Format::F32).unwrap();
    }
}

/// `Cpu` is the packed engine, every other device burn's; both give the same logits.
#[test]
fn each_device_has_its_engine() {
    let checkpoint = pico::checkpoint("llama");
    let expected = expected("pico/llama/expected.safetensors", "logits");
    for spec in DeviceSpec::built() {
        let engine = Engine::load(&checkpoint, &spec, Format::F32).unwrap();
        let packed = matches!(engine, Engine::Packed(_));
        assert_eq!(packed, spec == DeviceSpec::Cpu, "{spec}");
        let ids = pico_ids();
        let mut cache = engine.cache(1, ids.len());
        let mut logits = vec![0.0; 96];
        engine
            .next_logits(&[&ids], &mut cache, None, &mut logits)
            .unwrap();
        let last = &expected[(ids.len() - 1) * 96..];
        close(&format!("{spec}"), &logits, last, 1e-4);
    }
}

#[test]
fn prefill_and_decode_equal_one_forward() {
    for (spec, device) in devices() {
        for shape in SHAPES {
            let decoder = pico(shape, &device);
            let ids = pico_ids();
            let expected = expected(&format!("pico/{shape}/expected.safetensors"), "logits");
            let mut cache = decoder.cache(1, 64);
            let mut at = 0;
            for step in [7, 1, 1, 5, 1, 9] {
                let logits = decoder
                    .next_logits(&[&ids[at..at + step]], &mut cache, None)
                    .unwrap();
                at += step;
                let row = &expected[(at - 1) * 96..at * 96];
                close(
                    &format!("{spec} {shape} at {at}"),
                    &to_host(logits).unwrap(),
                    row,
                    1e-4,
                );
            }
            assert_eq!(at, ids.len());
        }
    }
}

#[test]
fn ragged_lanes_equal_each_alone() {
    for (spec, device) in devices() {
        for shape in SHAPES {
            let decoder = pico(shape, &device);
            let ids = pico_ids();
            let lanes = [&ids[..3], &ids[5..24], &ids[2..3]];
            let mut cache = decoder.cache(3, 64);
            let first = to_host(decoder.next_logits(&lanes, &mut cache, None).unwrap()).unwrap();
            let next = [&ids[3..5], &ids[..1], &ids[3..6]];
            let second = to_host(decoder.next_logits(&next, &mut cache, None).unwrap()).unwrap();
            for lane in 0..3 {
                let mut alone = decoder.cache(1, 64);
                for (part, batch) in [(lanes[lane], &first), (next[lane], &second)] {
                    let logits = decoder.next_logits(&[part], &mut alone, None).unwrap();
                    let row = &batch[lane * 96..][..96];
                    close(
                        &format!("{spec} {shape} {lane}"),
                        row,
                        &to_host(logits).unwrap(),
                        1e-5,
                    );
                }
            }
        }
    }
}

#[test]
fn adapters_equal_peft_alone_and_stacked() {
    for (spec, device) in devices() {
        let decoder = pico("llama", &device);
        let ids = pico_ids();
        let load = |name: &str| {
            Adapter::load(&pico::path(&format!("adapter_{name}")), decoder.config()).unwrap()
        };
        let (plain, patterns) = (load("plain"), load("patterns"));
        let file = "pico/llama/expected.safetensors";
        let reference = ["logits_plain", "logits", "logits_patterns"].map(|t| expected(file, t));
        let order = [Some(&plain), None, Some(&patterns)];
        let stack = AdapterStack::new(&order, decoder.config(), &device);
        let lanes: Vec<&[u32]> = vec![&ids; 3];
        let together = full_logits(&decoder, &lanes, Some(&stack));
        for (expert, (reference, adapter)) in reference.iter().zip(order).enumerate() {
            close(
                &format!("{spec} expert {expert}"),
                &together[expert],
                reference,
                1e-4,
            );
            let stack = AdapterStack::new(&[adapter], decoder.config(), &device);
            let alone = full_logits(&decoder, &lanes[..1], Some(&stack));
            close(
                &format!("{spec} expert {expert} alone"),
                &alone[0],
                &together[expert],
                1e-5,
            );
        }
    }
}

#[test]
fn truncated_and_forked_caches_continue_as_if_nothing_had_been() {
    for (spec, device) in devices() {
        let decoder = pico("qwen3", &device);
        let ids = pico_ids();
        let mut cache = decoder.cache(2, 40);
        decoder
            .next_logits(&[&ids[..6], &ids[..9]], &mut cache, None)
            .unwrap();
        cache.truncate(0, 4);
        cache.truncate(1, 5);
        assert_eq!((cache.lengths(), cache.used()), (&[4, 5][..], 5));
        let mut forked = cache.fork(&[1, 0, 1]).unwrap();
        let next = [&ids[5..7], &ids[4..8], &ids[5..6]];
        let logits = to_host(decoder.next_logits(&next, &mut forked, None).unwrap()).unwrap();
        for (lane, end) in [7, 8, 6].into_iter().enumerate() {
            let at_once = full_logits(&decoder, &[&ids[..end]], None);
            let last = &at_once[0][(end - 1) * 96..];
            close(
                &format!("{spec} lane {lane}"),
                &logits[lane * 96..][..96],
                last,
                1e-5,
            );
        }
        assert!(cache.fork(&[2]).is_err());
    }
}

#[test]
fn impossible_requests_are_refused_and_change_nothing() {
    let (_, device) = devices().remove(0);
    let decoder = pico("llama", &device);
    let ids = pico_ids();
    let mut cache = decoder.cache(2, 16);
    let stack = AdapterStack::new(&[None, None, None], decoder.config(), &device);
    let long: Vec<u32> = vec![1; 200];
    let cases: [(&[&[u32]], _, &str); 6] = [
        (&[&ids[..3]], None, "1 lanes of tokens for a cache of 2"),
        (&[&[], &[]], None, "2 lanes of tokens"),
        (
            &[&[1], &[96]],
            None,
            "token 96 is outside of the vocabulary of 96",
        ),
        (
            &[&[1], &long],
            None,
            "200 tokens do not fit into 128 (the model's context)",
        ),
        (
            &[&[1], &long[..17]],
            None,
            "17 tokens do not fit into 16 (the capacity",
        ),
        (&[&[1], &[2]], Some(&stack), "2 lanes for 3 experts"),
    ];
    for (lanes, adapters, message) in cases {
        let error = decoder
            .hidden(lanes, &mut cache, adapters)
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!((cache.used(), cache.lengths()), (0, &[0, 0][..]));
    }
}
