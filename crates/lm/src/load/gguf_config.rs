//! What GGUF calls things: metadata to config and tensors to Hugging Face's names, for each architecture as llama.cpp's
//! converters write it.

use std::collections::HashMap;
use std::path::Path;

use super::gguf::{Header, Value};
use super::mapped::StoredTensor;
use crate::config::{
    Activation, DecoderConfig, Experts, Family, LayerKind, LayerRope, Rope, RopeScaling,
};
use crate::{Error, Result};

/// The architectures that can be read, by `general.architecture`.
const ARCHITECTURES: [&str; 13] = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "olmo2",
    "qwen2moe", "qwen3moe", "granite", "glm4",
];

/// Factors of rotary frequencies that a file holds as tensors.
#[derive(Default)]
pub(super) struct Factors {
    /// `rope_freqs.weight`.
    pub all: Option<Vec<f32>>,
    /// `rope_factors_short.weight`.
    pub short: Option<Vec<f32>>,
    /// `rope_factors_long.weight`.
    pub long: Option<Vec<f32>>,
}

impl Factors {
    /// Where a tensor of this name belongs, if it is one of factors.
    pub fn place(&mut self, name: &str) -> Option<&mut Option<Vec<f32>>> {
        match name {
            "rope_freqs.weight" => Some(&mut self.all),
            "rope_factors_short.weight" => Some(&mut self.short),
            "rope_factors_long.weight" => Some(&mut self.long),
            _ => None,
        }
    }
}

/// The architecture that a header names.
///
/// # Errors
/// None, or one that cannot be read.
pub(super) fn architecture<'a>(path: &Path, header: &'a Header) -> Result<&'a str> {
    let Some(arch) = header.string("general.architecture") else {
        let message = "no general.architecture in the metadata";
        return Err(Error::format(path, message));
    };
    if !ARCHITECTURES.contains(&arch) {
        let supported = format!("general.architecture {}", ARCHITECTURES.join(", "));
        let what = format!("architecture '{arch}'");
        return Err(Error::unsupported(path, what, &supported));
    }
    Ok(arch)
}

/// llama.cpp rotates pairs that lie side by side in these.
pub(super) fn interleaved(arch: &str) -> bool {
    matches!(arch, "llama" | "mistral" | "smollm3" | "granite" | "glm4")
}

/// The metadata of one architecture.
struct Keys<'a> {
    path: &'a Path,
    header: &'a Header,
    arch: &'a str,
}

impl Keys<'_> {
    fn size(&self, key: &str) -> Option<usize> {
        self.header.integer(&format!("{}.{key}", self.arch))
    }

    fn needed(&self, key: &str) -> Result<usize> {
        let message = || format!("metadata '{}.{key}' is missing or not a number", self.arch);
        self.size(key)
            .ok_or_else(|| Error::format(self.path, message()))
    }

    fn number(&self, key: &str) -> Option<f32> {
        let number = self.header.number(&format!("{}.{key}", self.arch));
        number.map(|v| v as f32)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.header.string(&format!("{}.{key}", self.arch))
    }
}

/// The config that a header's metadata describe. In one piece, because each field of the config is a key of the
/// metadata and its default.
///
/// # Errors
/// [`Error::Format`] for a key that is missing, [`Error::Unsupported`] for a model that is not run.
pub(super) fn decoder_config(
    path: &Path,
    header: &Header,
    tensors: &HashMap<String, (usize, StoredTensor)>,
    factors: Factors,
) -> Result<DecoderConfig> {
    let arch = architecture(path, header)?;
    let k = Keys { path, header, arch };
    let (hidden_size, heads) = (
        k.needed("embedding_length")?,
        k.needed("attention.head_count")?,
    );
    let head_dim = k.size("attention.key_length");
    let head_dim = head_dim.unwrap_or(hidden_size / heads.max(1));
    let rotated = k.size("rope.dimension_count").unwrap_or(head_dim);
    let partly = matches!(arch, "phi3" | "glm4");
    for (key, got) in [
        ("attention.value_length", k.size("attention.value_length")),
        ("rope.dimension_count", (!partly).then_some(rotated)),
    ] {
        if let Some(got) = got.filter(|&got| got != head_dim) {
            let what = format!("{arch}.{key} = {got} with heads of {head_dim}");
            return Err(Error::unsupported(path, what, "the size of a head"));
        }
    }
    let vocab_size = match header.array("tokenizer.ggml.tokens") {
        Some(tokens) => tokens.len(),
        None => k.needed("vocab_size")?,
    };
    let layers = k.needed("block_count")?;
    let (rope, stretched) = rope(&k, factors)?;
    let window = (arch == "gemma2").then_some(4096);
    let window = k.size("attention.sliding_window").or(window);
    let sliding_window = window.filter(|&w| w > 0);
    let kinds = kinds(&k, layers, sliding_window.is_some())?;
    let has = |name: &str| tensors.contains_key(&hf_name(arch, name));
    let config = DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size: k.needed("feed_forward_length")?,
        layers,
        heads,
        kv_heads: k.size("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        context_length: k.needed("context_length")?.max(stretched),
        norm_eps: k.number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        tied_head: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        sliding_window,
        family: Family {
            local_rope: local_rope(&k, &rope, &kinds),
            layers: kinds,
            rotated: (rotated != head_dim).then_some(rotated),
            experts: experts(&k)?,
            ..traits(&k, layers, hidden_size, heads)
        },
        rope,
    };
    config
        .validate()
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok(config)
}

/// The rotary embedding, and the context length that its scaling makes.
fn rope(k: &Keys<'_>, factors: Factors) -> Result<(Rope, usize)> {
    let factor = k.number("rope.scaling.factor").unwrap_or(1.0);
    let original = k.number("rope.scaling.original_context_length");
    let original =
        || original.map_or_else(|| Ok(k.needed("context_length")? as f32), Ok::<_, Error>);
    let attention_factor = k.number("rope.scaling.attn_factor");
    let mut stretched = 0;
    let named = k.text("rope.scaling.type").unwrap_or("none");
    let scaling = match (factors, named) {
        (
            Factors {
                short: Some(short),
                long: Some(long),
                ..
            },
            _,
        ) => RopeScaling::LongRope {
            short,
            long,
            original_context: original()?,
            attention_factor: attention_factor.unwrap_or(1.0),
        },
        (Factors { all: Some(all), .. }, _) => RopeScaling::Factors(all),
        (_, "none") => RopeScaling::Plain,
        (_, "linear") => RopeScaling::Linear(factor),
        (_, "yarn") => {
            let original_context = original()?;
            stretched = (f64::from(original_context) * f64::from(factor)) as usize;
            let derived = if factor <= 1.0 {
                1.0
            } else {
                0.1 * factor.ln() + 1.0
            };
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: k.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: k.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                truncate: true,
                attention_factor: attention_factor.unwrap_or(derived),
            }
        }
        (_, other) => {
            let what = format!("rope scaling '{other}'");
            let supported = "none, linear, yarn, rope_freqs, rope_factors_long and _short";
            return Err(Error::unsupported(k.path, what, supported));
        }
    };
    let theta = k.number("rope.freq_base").unwrap_or(10_000.0);
    let stretched = if stretched > 1 << 30 { 0 } else { stretched };
    Ok((Rope { theta, scaling }, stretched))
}

/// Of layers with a sliding window, where they have one of their own.
fn local_rope(k: &Keys<'_>, rope: &Rope, kinds: &[LayerKind]) -> Option<Rope> {
    let local = |kind: &LayerKind| kind.rope == LayerRope::Local;
    let theta = k.number("rope.freq_base_swa");
    let theta = theta.unwrap_or(if k.arch == "gemma3" {
        10_000.0
    } else {
        rope.theta
    });
    kinds.iter().any(local).then_some(Rope {
        theta,
        scaling: RopeScaling::Plain,
    })
}

/// What each layer sees and how it is rotated; none where all are alike.
fn kinds(k: &Keys<'_>, layers: usize, windowed: bool) -> Result<Vec<LayerKind>> {
    if layers > 1 << 16 {
        return Err(Error::format(
            k.path,
            format!("{layers} layers; 65,536 at most"),
        ));
    }
    let period = match k.arch {
        "gemma2" => 2,
        "gemma3" => 6,
        "olmo2" => 4,
        "smollm3" => {
            let kind = |layer: usize| LayerKind {
                sliding: false,
                rope: if (layer + 1).is_multiple_of(4) {
                    LayerRope::None
                } else {
                    LayerRope::Main
                },
            };
            return Ok((0..layers).map(kind).collect());
        }
        _ => return Ok(vec![]),
    };
    if !windowed {
        return Ok(vec![]);
    }
    let key = format!("{}.attention.sliding_window_pattern", k.arch);
    let listed: Option<Vec<bool>> = k.header.numbers(&key).map(|all| {
        let sliding = all
            .iter()
            .map(|v| !matches!(v, Value::Bool(false) | Value::Unsigned(0)));
        sliding.collect()
    });
    let period = k
        .size("attention.sliding_window_pattern")
        .unwrap_or(period)
        .max(1);
    let local = k.arch != "gemma2";
    let kind = |layer: usize| {
        let listed = listed.as_ref().and_then(|all| all.get(layer).copied());
        let sliding = listed.unwrap_or(!(layer + 1).is_multiple_of(period));
        let rope = if sliding && local {
            LayerRope::Local
        } else {
            LayerRope::Main
        };
        LayerKind { sliding, rope }
    };
    Ok((0..layers).map(kind).collect())
}

fn experts(k: &Keys<'_>) -> Result<Option<Experts>> {
    let Some(count) = k.size("expert_count").filter(|&n| n > 0) else {
        return Ok(None);
    };
    if !matches!(k.arch, "llama" | "mistral" | "qwen2moe" | "qwen3moe") {
        let what = format!("architecture '{}' with routed experts", k.arch);
        return Err(Error::unsupported(
            k.path,
            what,
            "those of llama, qwen2moe, qwen3moe",
        ));
    }
    let feed_forward = k.needed("feed_forward_length")?;
    let width = k.size("expert_feed_forward_length");
    let shared = k.size("expert_shared_feed_forward_length");
    Ok(Some(Experts {
        count,
        chosen: k.needed("expert_used_count")?,
        intermediate_size: width.unwrap_or(feed_forward),
        normalised: k.arch != "qwen2moe",
        shared: (k.arch == "qwen2moe").then(|| shared.unwrap_or(feed_forward)),
        dense_layers: vec![],
    }))
}

/// Norms, multipliers, caps and the layout that files of Hugging Face have.
fn traits(k: &Keys<'_>, layers: usize, hidden_size: usize, heads: usize) -> Family {
    let plain = Family::of(k.arch, hidden_size);
    match k.arch {
        "gemma2" | "gemma3" => {
            // As llama.cpp: the largest of each divide by another width than that of their heads.
            let largest = if k.arch == "gemma2" { 46 } else { 62 };
            let scale = ((hidden_size / heads.max(1)) as f32).powf(-0.5);
            Family {
                activation: Activation::GeluTanh,
                attention_scale: (layers == largest).then_some(scale),
                attention_cap: match k.arch {
                    "gemma2" => Some(k.number("attn_logit_softcapping").unwrap_or(50.0)),
                    _ => None,
                },
                logit_cap: match k.arch {
                    "gemma2" => Some(k.number("final_logit_softcapping").unwrap_or(30.0)),
                    _ => k.number("final_logit_softcapping"),
                },
                ..plain
            }
        }
        "granite" => Family {
            attention_scale: k.number("attention.scale").filter(|v| *v != 0.0),
            embedding_multiplier: k.number("embedding_scale").unwrap_or(1.0),
            residual_multiplier: k.number("residual_scale").unwrap_or(1.0),
            logit_divisor: k.number("logit_scale").unwrap_or(1.0),
            ..plain
        },
        _ => plain,
    }
}

/// Hugging Face's name of a GGUF tensor; an unknown name stays as it is and is refused later.
pub(super) fn hf_name(arch: &str, name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let parts: Vec<_> = name.split('.').collect();
    let (layer, part, kind) = match *parts.as_slice() {
        ["blk", layer, part, kind] => (layer, part, kind),
        // Experts one by one, as early files have them.
        ["blk", layer, part, expert, "weight"] => {
            let projection = match part {
                "ffn_gate" => "gate_proj",
                "ffn_up" => "up_proj",
                "ffn_down" => "down_proj",
                _ => return name.into(),
            };
            return format!("model.layers.{layer}.mlp.experts.{expert}.{projection}.weight");
        }
        _ => return name.into(),
    };
    let around = matches!(arch, "gemma2" | "gemma3");
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" if around => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" if arch == "glm4" => "post_self_attn_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" if arch == "glm4" => "post_mlp_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" if matches!(arch, "phi3" | "glm4") => "mlp.gate_up_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_gate_up_exps" => "mlp.experts.gate_up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        "ffn_gate_inp_shexp" => "mlp.shared_expert_gate",
        "ffn_gate_shexp" => "mlp.shared_expert.gate_proj",
        "ffn_up_shexp" => "mlp.shared_expert.up_proj",
        "ffn_down_shexp" => "mlp.shared_expert.down_proj",
        _ => return name.into(),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}
