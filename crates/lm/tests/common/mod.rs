//! What the tests share: fixtures, devices, comparisons.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod gguf;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use mope_lm::{AdapterStack, Decoder, DeviceSpec, Format, to_host};
use safetensors::SafeTensors;

/// Path of a committed fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The devices of this build that burn's operations run on, opened.
pub fn devices() -> Vec<(DeviceSpec, Device)> {
    DeviceSpec::built()
        .into_iter()
        .filter(|spec| *spec != DeviceSpec::Cpu)
        .map(|spec| (spec.clone(), spec.open().unwrap()))
        .collect()
}

/// A tensor of a safetensors fixture as f32.
pub fn expected(file: &str, tensor: &str) -> Vec<f32> {
    let bytes = std::fs::read(fixture(file)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(tensor).unwrap();
    let four = |b: &[u8]| [b[0], b[1], b[2], b[3]];
    match data.dtype() {
        safetensors::Dtype::I32 => data
            .data()
            .chunks(4)
            .map(|b| i32::from_le_bytes(four(b)) as f32)
            .collect(),
        _ => data
            .data()
            .chunks(4)
            .map(|b| f32::from_le_bytes(four(b)))
            .collect(),
    }
}

/// A tiny random model.
pub fn pico(name: &str, device: &Device) -> Decoder {
    pico_in(name, device, Format::F32)
}

/// The same in a number format.
pub fn pico_in(name: &str, device: &Device, format: Format) -> Decoder {
    Decoder::load(&pico::checkpoint(name), device, format).unwrap()
}

/// The token sequence that the pico fixtures were made with.
pub fn pico_ids() -> Vec<u32> {
    (0..24).map(|i| (7 * i * i + 3 * i + 1) % 96).collect()
}

/// Logits `[lanes][time · vocab]` of whole sequences from an empty cache.
pub fn full_logits(
    decoder: &Decoder,
    lanes: &[&[u32]],
    adapters: Option<&AdapterStack>,
) -> Vec<Vec<f32>> {
    let longest = lanes.iter().map(|l| l.len()).max().unwrap();
    let mut cache = decoder.cache(lanes.len(), longest);
    let hidden = decoder.hidden(lanes, &mut cache, adapters).unwrap();
    let [count, time, width] = hidden.dims();
    let logits: Tensor<2> = decoder.logits(hidden.reshape([count * time, width]));
    let vocab = logits.dims()[1];
    let all = to_host(logits).unwrap();
    let of = |(i, lane): (usize, &&[u32])| all[i * time * vocab..][..lane.len() * vocab].to_vec();
    lanes.iter().enumerate().map(of).collect()
}

/// Fails with the largest difference when it is above `tolerance`.
pub fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    let difference = |(a, b): (&f32, &f32)| (a - b).abs();
    let worst = got.iter().zip(expected).map(difference).fold(0.0, f32::max);
    assert!(
        worst <= tolerance && !worst.is_nan(),
        "{what}: largest difference {worst}"
    );
    println!("{what}: largest difference {worst:e}");
}
