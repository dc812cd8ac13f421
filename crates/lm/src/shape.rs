//! Published models by their shape, with weights at random: for measuring and planning at any size without files.
//!
//! `shape://llama-3.1-8b` is a model like any other: wherever a path is taken, it is opened, its tensors are made one
//! at a time as they are read, and go straight into the number format that is asked for. `shape://llama-3.1-8b@3` has
//! other weights, by the seed behind `@` (default 0). Matrices are uniform with standard deviation 0.02, as most models
//! are initialised; norms are 1, biases 0. The tokenizer has a token for every byte and names for all others, the chat
//! template writes roles before texts.
//!
//! ```
//! use mope_lm::load::Checkpoint;
//! use mope_lm::shape;
//!
//! let config = shape::config("llama-3.1-8b").expect("a known shape");
//! assert_eq!(config.parameters(), 8_030_261_248);
//! let model = Checkpoint::open("shape://llama-3.1-8b".as_ref())?;
//! assert_eq!(model.config(), &config);
//! let error = Checkpoint::open("shape://llama-3.1".as_ref()).unwrap_err();
//! assert!(error.to_string().contains("llama-3.1-8b"));
//! # Ok::<(), mope_lm::Error>(())
//! ```

use std::collections::HashMap;
use std::path::Path;

use kernels::Team;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::config::{DecoderConfig, Family, Rope, RopeScaling};
use crate::load::mapped::{Mapped, StoredTensor};
use crate::load::{Checkpoint, dequant, scales::Scales};
use crate::token_text::letter_of;
use crate::{Error, Result};

/// What the name of such a model begins with.
pub const SCHEME: &str = "shape://";

/// Standard deviation of the weights of matrices; transformers' `initializer_range`.
const DEVIATION: f32 = 0.02;

/// `[vocab, hidden, intermediate, layers, heads, kv heads, head_dim, context]`, from the models' `config.json`.
type Sizes = [usize; 8];

/// The shapes there are, with their sizes and whether the head is the embedding.
const SHAPES: [(&str, Sizes, bool); 14] = [
    (
        "smollm2-135m",
        [49_152, 576, 1536, 30, 9, 3, 64, 8192],
        true,
    ),
    (
        "smollm2-360m",
        [49_152, 960, 2560, 32, 15, 5, 64, 8192],
        true,
    ),
    (
        "smollm2-1.7b",
        [49_152, 2048, 8192, 24, 32, 32, 64, 8192],
        true,
    ),
    (
        "tinyllama-1.1b",
        [32_000, 2048, 5632, 22, 32, 4, 64, 2048],
        false,
    ),
    (
        "llama-3.2-1b",
        [128_256, 2048, 8192, 16, 32, 8, 64, 131_072],
        true,
    ),
    (
        "llama-3.2-3b",
        [128_256, 3072, 8192, 28, 24, 8, 128, 131_072],
        true,
    ),
    (
        "llama-3.1-8b",
        [128_256, 4096, 14_336, 32, 32, 8, 128, 131_072],
        false,
    ),
    (
        "llama-3.1-70b",
        [128_256, 8192, 28_672, 80, 64, 8, 128, 131_072],
        false,
    ),
    (
        "mistral-7b-v0.3",
        [32_768, 4096, 14_336, 32, 32, 8, 128, 32_768],
        false,
    ),
    (
        "qwen2.5-0.5b",
        [151_936, 896, 4864, 24, 14, 2, 64, 32_768],
        true,
    ),
    (
        "qwen2.5-7b",
        [152_064, 3584, 18_944, 28, 28, 4, 128, 131_072],
        false,
    ),
    (
        "qwen3-0.6b",
        [151_936, 1024, 3072, 28, 16, 8, 128, 40_960],
        true,
    ),
    (
        "qwen3-4b",
        [151_936, 2560, 9728, 36, 32, 8, 128, 40_960],
        true,
    ),
    (
        "qwen3-8b",
        [151_936, 4096, 12_288, 36, 32, 8, 128, 40_960],
        false,
    ),
];

/// The names of all shapes.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, ..)| *name)
}

/// The shape of that name.
pub fn config(name: &str) -> Option<DecoderConfig> {
    let (name, sizes, tied_head) = SHAPES.into_iter().find(|(known, ..)| *known == name)?;
    let [
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        context_length,
    ] = sizes;
    let is = |family: &str| name.starts_with(family);
    let scaling = |factor| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192.0,
    };
    let (theta, scaling) = match name {
        _ if is("llama-3.2") => (500_000.0, scaling(32.0)),
        _ if is("llama-3.1") => (500_000.0, scaling(8.0)),
        _ if is("qwen") || is("mistral") => (1_000_000.0, RopeScaling::Plain),
        "smollm2-1.7b" => (130_000.0, RopeScaling::Plain),
        _ if is("smollm2") => (100_000.0, RopeScaling::Plain),
        _ => (10_000.0, RopeScaling::Plain),
    };
    Some(DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        context_length,
        norm_eps: if is("qwen") { 1e-6 } else { 1e-5 },
        rope: Rope { theta, scaling },
        tied_head,
        qkv_bias: is("qwen2.5"),
        output_bias: false,
        mlp_bias: false,
        qk_norm: is("qwen3"),
        sliding_window: None,
        family: Family::default(),
    })
}

/// Whether a path is the name of such a model.
pub fn is_shape(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(SCHEME))
}

/// What stands for the weights where others have hashes of files; `None` for a path.
pub fn hash(path: &Path) -> Option<String> {
    let name = path.to_str()?.strip_prefix(SCHEME)?;
    Some(crate::source::hex(&Sha256::digest(format!(
        "random weights 1 {name}"
    ))))
}

/// Opens `shape://name` or `shape://name@seed`.
///
/// # Errors
/// A name that is not known, with those that are.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let text = path.to_str().unwrap_or_default();
    let name = text.strip_prefix(SCHEME).unwrap_or(text);
    let (name, seed) = name.split_once('@').unwrap_or((name, "0"));
    let known = config(name).zip(seed.parse::<u64>().ok());
    let (config, seed) = known.ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        let message = format!(
            "no such shape, perhaps with @ and a seed; there are: {}",
            known.join(", ")
        );
        Error::format(path, message)
    })?;
    Ok(random(path, config, seed))
}

/// A checkpoint of this shape with weights at random; `path` is what it is called.
pub fn random(path: &Path, config: DecoderConfig, seed: u64) -> Checkpoint {
    let tensor = |shape: Vec<usize>| StoredTensor {
        shape,
        format: dequant::Format::F32,
        range: 0..0,
    };
    let tensors = config.tensors().into_iter();
    let tensors: HashMap<_, _> = tensors
        .map(|(name, shape)| (name, (0, tensor(shape))))
        .collect();
    let end = config.vocab_size.saturating_sub(1) as u32;
    let checkpoint = Checkpoint {
        path: path.into(),
        config,
        chat_template: Some(TEMPLATE.into()),
        bos_token: None,
        eos_token: None,
        end_tokens: vec![end],
        files: vec![Mapped::empty(path)],
        tensors,
        gguf: None,
        edit: None,
        family: "llama".into(),
        scales: Scales::default(),
        scores: None,
    };
    checkpoint.edited(Box::new(move |name, shape, mut data| {
        fill(seed, name, shape, &mut data);
        Ok(data)
    }))
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";

/// Numbers that are drawn from one hash of place and tensor.
const PART: usize = 1 << 16;

/// The weights of a tensor: they follow from seed, name and place alone.
fn fill(seed: u64, name: &str, shape: &[usize], data: &mut [f32]) {
    if shape.len() < 2 {
        let value = if name.ends_with(".bias") { 0.0 } else { 1.0 };
        data.fill(value);
        return;
    }
    let hash = Sha256::digest([&seed.to_le_bytes()[..], name.as_bytes()].concat());
    let key = hash
        .iter()
        .take(8)
        .fold(0, |key, byte| key << 8 | u64::from(*byte));
    // Uniform within ±√3 deviations.
    let bound = DEVIATION * 3f32.sqrt();
    let step = 2.0 * bound / 65_536.0;
    let width = data.len();
    Team::global().for_each_part(data, width, PART, |_, at, data| {
        let mut state = key ^ (at as u64).wrapping_mul(0xd134_2543_de82_ef95);
        for four in data.chunks_mut(4) {
            let mut bits = splitmix(&mut state);
            for value in four {
                *value = (bits & 0xffff) as f32 * step - bound;
                bits >>= 16;
            }
        }
    });
}

/// The next number of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `tokenizer.json` of a vocabulary of this size: a token for each byte, and names for the others, which no text holds.
pub(crate) fn tokenizer(vocab_size: usize) -> Value {
    let bytes = (0..=u8::MAX).map(|byte| letter_of(byte).to_string());
    let others = (256..).map(|id| format!("<{id}>"));
    let tokens = bytes.chain(others).take(vocab_size).enumerate();
    let vocab: Map<String, Value> = tokens.map(|(id, token)| (token, id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn shapes_have_the_parameters_of_their_models() {
        // As transformers counts those of the published checkpoints.
        for (name, parameters) in [
            ("smollm2-135m", 134_515_008),
            ("tinyllama-1.1b", 1_100_048_384),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("mistral-7b-v0.3", 7_248_023_552),
        ] {
            assert_eq!(config(name).unwrap().parameters(), parameters, "{name}");
        }
        // Without biases and norms of heads, which `parameters` leaves out.
        for (name, parameters, rest) in [
            ("qwen3-4b", 4_022_468_096, 36 * 2 * 128),
            ("qwen2.5-0.5b", 494_032_768, 24 * (896 + 2 * 128)),
        ] {
            assert_eq!(
                config(name).unwrap().parameters(),
                parameters - rest,
                "{name}"
            );
        }
        for name in names() {
            config(name).unwrap().validate().unwrap();
        }
    }

    #[test]
    fn weights_follow_from_seed_name_and_place() {
        let filled = |seed, name: &str, shape: &[usize]| {
            let mut data = vec![0.0; shape.iter().product()];
            fill(seed, name, shape, &mut data);
            data
        };
        let one = filled(1, "a.weight", &[300, 700]);
        assert_eq!(one, filled(1, "a.weight", &[300, 700]));
        assert_ne!(one, filled(2, "a.weight", &[300, 700]));
        assert_ne!(one, filled(1, "b.weight", &[300, 700]));
        let n = one.len() as f64;
        let mean = one.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let variance = one.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
        // Four standard errors: 0.02 / √210,000 and, of a uniform one's variance, 0.0004 · √(0.8 / 210,000).
        assert!(mean.abs() < 4.0 * 4.4e-5, "{mean}");
        assert!((variance - 4e-4).abs() < 4.0 * 7.9e-7, "{variance}");
        assert_ne!(one[..PART], one[PART..2 * PART]);
        assert_eq!(filled(1, "norm.weight", &[3]), [1.0; 3]);
        assert_eq!(filled(1, "q_proj.bias", &[3]), [0.0; 3]);
    }
}
