//! Memory that models, caches, adapters and trainings take, from shapes alone: before anything is loaded.
//!
//! ```
//! use mope_lm::{DeviceSpec, Format, footprint, shape};
//!
//! let config = shape::config("llama-3.1-8b").expect("a known shape");
//! let gib = |format| footprint::weights(&config, &DeviceSpec::Cpu, format) as f64 / f64::from(1 << 30);
//! assert!(gib(Format::F32) > 29.0 && gib(Format::Q4) < 6.0);
//! // Three experts of 16 sequences each that go up to 256 tokens, keys and values in 8 bits.
//! let cache = footprint::cache(&config, &DeviceSpec::Cpu, Format::Q4, 48, 256);
//! assert!((0.7..0.9).contains(&(cache as f64 / f64::from(1 << 30))));
//! ```

use kernels::attention::POSITIONS;
use kernels::{Matrix, Team};

use crate::adapter::Target;
use crate::config::DecoderConfig;
use crate::tuning::{CHUNK, LoraConfig};
use crate::{DeviceSpec, Format};

/// Bytes of a model's weights on a device.
pub fn weights(config: &DecoderConfig, device: &DeviceSpec, format: Format) -> u64 {
    let (mut bytes, mut vectors) = (0u64, 0u64);
    for (name, shape) in config.tensors() {
        let [rows, columns] = shape[..] else {
            vectors += shape.iter().product::<usize>() as u64;
            continue;
        };
        let vocabulary = rows == config.vocab_size && !name.contains(".layers.");
        bytes += match device {
            DeviceSpec::Cpu if vocabulary => {
                Matrix::bytes_of(format.vocabulary(), rows, columns) as u64
            }
            DeviceSpec::Cpu => Matrix::bytes_of(format.projection(), rows, columns) as u64,
            _ => float(format) * (rows * columns) as u64,
        };
    }
    bytes + 4 * vectors
}

/// Bytes of the largest tensor in 32 bits: what loading takes beside the weights.
pub fn loading(config: &DecoderConfig) -> u64 {
    let sizes = config.tensors().into_iter();
    let sizes = sizes.map(|(_, shape)| shape.iter().product::<usize>());
    4 * sizes.max().unwrap_or(0) as u64
}

/// Bytes of a number where matrices are not packed.
fn float(format: Format) -> u64 {
    match format {
        Format::F32 => 4,
        Format::Bf16 | Format::Q8 | Format::Q4 => 2,
    }
}

/// Bytes of keys and values of so many lanes with room for `capacity` tokens each.
pub fn cache(
    config: &DecoderConfig,
    device: &DeviceSpec,
    format: Format,
    lanes: usize,
    capacity: usize,
) -> u64 {
    let heads = (config.layers * config.kv_heads) as u64;
    let width = config.head_dim as u64;
    let (tokens, head) = match (device, format) {
        (DeviceSpec::Cpu, Format::F32) => (capacity.next_multiple_of(POSITIONS), 4 * width),
        (DeviceSpec::Cpu, Format::Bf16) => (capacity.next_multiple_of(POSITIONS), 2 * width),
        // With a scale each.
        (DeviceSpec::Cpu, _) => (capacity.next_multiple_of(POSITIONS), width + 4),
        _ => (capacity, 4 * width),
    };
    let keys = heads * head * tokens as u64;
    keys.saturating_mul(2).saturating_mul(lanes as u64)
}

/// Bytes of an adapter of so many parameters that runs beside a model in a format.
pub fn adapter(parameters: usize, device: &DeviceSpec, format: Format) -> u64 {
    let half = *device == DeviceSpec::Cpu && format != Format::F32;
    parameters as u64 * if half { 2 } else { 4 }
}

/// What a training of an adapter takes on the processor, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    /// The frozen model.
    pub weights: u64,
    /// The adapter's numbers.
    pub adapter: u64,
    /// Their derivatives, a set for each chunk of a batch and one for the sum.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimiser: u64,
    /// What blocks read, which every thread keeps for its chunk's way back.
    pub activations: u64,
}

impl Training {
    /// Of a model in a format with an adapter of this shape, for batches of `batch` tokens on this process's threads, the
    /// longest sequence of `longest`.
    pub fn new(
        config: &DecoderConfig,
        format: Format,
        lora: &LoraConfig,
        (batch, longest): (usize, usize),
    ) -> Self {
        let threads = Team::global().size();
        let parameters = lora_parameters(config, lora) as u64;
        let chunk = longest.max(CHUNK.min(batch)) as u64;
        let chunks = (batch as u64).div_ceil(chunk.max(1)).max(1);
        let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
        let (query, key) = (
            (config.heads * config.head_dim) as u64,
            (config.kv_heads * config.head_dim) as u64,
        );
        let normed = if config.qk_norm { query + key } else { 0 };
        let sides = (lora.targets.len() * lora.rank) as u64;
        let layer = 2 * hidden + normed + 2 * query + 2 * key + 2 * inner + sides;
        // Beside the tape, a block's derivatives on the way back.
        let token = config.layers as u64 * layer + 4 * hidden + 3 * inner + 2 * query;
        Self {
            weights: dense(config, format),
            adapter: 4 * parameters,
            gradients: 4 * parameters * (chunks + 1),
            optimiser: 8 * parameters,
            activations: 4 * token * chunk * chunks.min(threads as u64),
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.gradients + self.optimiser + self.activations
    }
}

/// Bytes of weights through which gradients flow.
fn dense(config: &DecoderConfig, format: Format) -> u64 {
    let sizes = config.tensors().into_iter();
    let bytes = sizes.map(|(_, shape)| {
        let numbers = shape.iter().product::<usize>() as u64;
        numbers * if shape.len() > 1 { float(format) } else { 4 }
    });
    bytes.sum()
}

/// Number of parameters of an adapter of this shape.
pub fn lora_parameters(config: &DecoderConfig, lora: &LoraConfig) -> usize {
    let size = |target: &Target| {
        let (inputs, outputs) = target.size(config);
        (inputs + outputs) * lora.rank
    };
    config.layers * lora.targets.iter().map(size).sum::<usize>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::load::Checkpoint;
    use crate::packed::PackedDecoder;
    use crate::shape;
    use crate::tuning::LoraParameters;

    #[test]
    fn weights_are_what_the_engine_holds() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pico");
        for name in ["llama", "qwen3", "llama_untied_biases"] {
            let path = std::path::Path::new(fixtures).join(name);
            let checkpoint = Checkpoint::open(&path).unwrap();
            let config = checkpoint.config().clone();
            let tensors = config.tensors().into_iter();
            let vectors = tensors.filter(|(_, shape)| shape.len() == 1);
            let vectors: usize = vectors.map(|(_, shape)| 4 * shape[0]).sum();
            for format in Format::ALL {
                let decoder = PackedDecoder::load(&checkpoint, format).unwrap();
                // A step reads the head; of an untied embedding it looks rows up.
                let table = match config.tied_head {
                    true => 0,
                    false => {
                        Matrix::bytes_of(format.vocabulary(), config.vocab_size, config.hidden_size)
                    }
                };
                let held = decoder.bytes() + table + vectors;
                assert_eq!(
                    weights(&config, &DeviceSpec::Cpu, format),
                    held as u64,
                    "{name} {format:?}"
                );
            }
            let lora = LoraConfig::default();
            let fresh = LoraParameters::new(&lora, &config, 1).unwrap();
            assert_eq!(lora_parameters(&config, &lora), fresh.values.len());
        }
    }

    #[test]
    fn an_8b_model_in_4_bits_fits_into_24_gib_with_room() {
        let config = shape::config("llama-3.1-8b").unwrap();
        let total = |format| {
            let device = &DeviceSpec::Cpu;
            let caches = cache(&config, device, format, 3 * 16, 512);
            weights(&config, device, format) + loading(&config) + caches
        };
        assert!(total(Format::Q4) < 10 << 30 && total(Format::F32) > 24 << 30);
        // 32 layers of 8 heads of 128 numbers, with a scale for each head, of keys and of values.
        assert_eq!(
            cache(&config, &DeviceSpec::Cpu, Format::Q4, 1, 16),
            2 * 16 * 32 * 8 * 132
        );
        assert_eq!(
            cache(&config, &DeviceSpec::Cpu, Format::F32, 2, 1),
            2 * 2 * 16 * 32 * 8 * 512
        );
        assert_eq!(
            cache(&config, &DeviceSpec::BurnFlex, Format::F32, 2, 1),
            2 * 2 * 32 * 8 * 512
        );
    }
}
