//! `config.json` of each family, read as transformers 5 reads it: which fields its class has, and what an absent one
//! means.

use std::path::Path;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::rope_fields::{Ropes, ropes};
use super::scales;
use crate::config::{Activation, DecoderConfig, Experts, Family, LayerKind, LayerRope};
use crate::{Error, Result};

/// The families that can be read, by `model_type`.
pub(super) const FAMILIES: [&str; 17] = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
    "smollm3",
    "olmo2",
    "olmo3",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "granite",
    "glm",
    "glm4",
];

/// transformers' class of a family that generates text.
pub(crate) fn class(family: &str) -> Option<&'static str> {
    Some(match family {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "gemma2" => "Gemma2ForCausalLM",
        "gemma3_text" => "Gemma3ForCausalLM",
        "phi3" => "Phi3ForCausalLM",
        "smollm3" => "SmolLM3ForCausalLM",
        "olmo2" => "Olmo2ForCausalLM",
        "olmo3" => "Olmo3ForCausalLM",
        "qwen2_moe" => "Qwen2MoeForCausalLM",
        "qwen3_moe" => "Qwen3MoeForCausalLM",
        "mixtral" => "MixtralForCausalLM",
        "granite" => "GraniteForCausalLM",
        "glm" => "GlmForCausalLM",
        "glm4" => "Glm4ForCausalLM",
        _ => return None,
    })
}

/// What absent fields mean: the defaults of transformers' config classes (5.24).
pub(super) struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    /// `None`: as many as heads.
    kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    head_dim: Option<usize>,
    pub context: usize,
    norm_eps: f64,
    pub theta: f64,
    tied: bool,
}

impl Defaults {
    fn of(family: &str) -> Self {
        let llama = Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            layers: 32,
            heads: 32,
            kv_heads: None,
            head_dim: None,
            context: 2048,
            norm_eps: 1e-6,
            theta: 1e4,
            tied: false,
        };
        let mistral = Self {
            intermediate_size: 14_336,
            kv_heads: Some(8),
            context: 131_072,
            ..llama
        };
        let qwen = Self {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            kv_heads: Some(32),
            context: 32_768,
            ..llama
        };
        let qwen_moe = Self {
            hidden_size: 2048,
            intermediate_size: 5632,
            layers: 24,
            heads: 16,
            kv_heads: Some(16),
            ..qwen
        };
        let gemma2 = Self {
            vocab_size: 256_000,
            hidden_size: 2304,
            intermediate_size: 9216,
            layers: 26,
            heads: 8,
            kv_heads: Some(4),
            head_dim: Some(256),
            context: 8192,
            tied: true,
            ..llama
        };
        let olmo = Self {
            vocab_size: 50_304,
            norm_eps: 1e-5,
            ..llama
        };
        match family {
            "mistral" => mistral,
            "mixtral" => Self {
                norm_eps: 1e-5,
                theta: 1e6,
                ..mistral
            },
            "qwen2" => qwen,
            "qwen3" => Self {
                head_dim: Some(128),
                ..qwen
            },
            "qwen2_moe" => qwen_moe,
            "qwen3_moe" => Self {
                intermediate_size: 6144,
                heads: 32,
                kv_heads: Some(4),
                ..qwen_moe
            },
            "gemma2" => gemma2,
            "gemma3_text" => Self {
                vocab_size: 262_208,
                context: 131_072,
                theta: 1e6,
                ..gemma2
            },
            "phi3" => Self {
                vocab_size: 32_064,
                hidden_size: 3072,
                intermediate_size: 8192,
                context: 4096,
                norm_eps: 1e-5,
                ..llama
            },
            "smollm3" => Self {
                vocab_size: 128_256,
                hidden_size: 2048,
                layers: 36,
                heads: 16,
                kv_heads: Some(4),
                context: 32_768,
                theta: 2e6,
                tied: true,
                ..llama
            },
            "olmo2" => olmo,
            "olmo3" => Self { theta: 5e5, ..olmo },
            "glm" | "glm4" => Self {
                vocab_size: 151_552,
                intermediate_size: 13_696,
                layers: 40,
                kv_heads: Some(2),
                head_dim: Some(128),
                context: 131_072,
                norm_eps: 1.5625e-7,
                ..llama
            },
            _ => llama,
        }
    }
}

/// `config.json` of a text model, and of the text model inside of one for pictures: its family and shape.
///
/// # Errors
/// Another family by its name; features that would change the result; a field of another type; numbers that do not
/// fit together.
pub(super) fn decoder_config(
    path: &Path,
    fields: &Map<String, Value>,
) -> Result<(String, DecoderConfig)> {
    let unsupported = |what: String, supported: &str| Error::unsupported(path, what, supported);
    let named = match fields.get("model_type") {
        Some(Value::String(family)) => family.as_str(),
        _ => {
            let class = fields.get("architectures").and_then(|a| a.get(0)?.as_str());
            let class = class.map_or(String::new(), |c| format!(" (of class {c})"));
            let families = FAMILIES.join(", ");
            let message = format!("no model_type in it{class}; supported: model_type {families}");
            return Err(Error::format(path, message));
        }
    };
    if !FAMILIES.contains(&named) {
        let families = format!("model_type {}", FAMILIES.join(", "));
        return Err(unsupported(format!("model_type '{named}'"), &families));
    }
    let (family, fields) = match (named, fields.get("text_config")) {
        ("gemma3", Some(Value::Object(text))) => ("gemma3_text", text),
        ("gemma3", _) => {
            let message =
                "no text_config in it; a model_type 'gemma3' describes its language model there";
            return Err(Error::format(path, message));
        }
        (family, _) => (family, fields),
    };
    let f = Fields { path, map: fields };
    refuse(&f)?;
    let d = Defaults::of(family);
    let config = shape(&f, family, &d)?;
    config
        .validate()
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok((named.into(), config))
}

/// Refuses what changes the result and is not computed here.
fn refuse(f: &Fields<'_>) -> Result<()> {
    if let Some(quantised) = f.get("quantization_config") {
        scales::check(f.path, quantised)?;
    }
    for (name, supported) in [
        ("rope_interleaved", "the half-split layout"),
        (
            "use_bidirectional_attention",
            "queries that see no later token",
        ),
    ] {
        if f.flag(name, false)? {
            return Err(f.unsupported(name.into(), supported));
        }
    }
    Ok(())
}

fn activation(f: &Fields<'_>, family: &str) -> Result<Activation> {
    let (name, default) = match family.starts_with("gemma") {
        true => ("hidden_activation", "gelu_pytorch_tanh"),
        false => ("hidden_act", "silu"),
    };
    match f.text(name)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => Err(f.unsupported(format!("{name} '{other}'"), "silu, gelu_pytorch_tanh")),
    }
}

/// The config of a family whose fields are all there or have defaults.
fn shape(f: &Fields<'_>, family: &str, d: &Defaults) -> Result<DecoderConfig> {
    let (hidden_size, heads) = (
        f.size("hidden_size", d.hidden_size)?,
        f.size("num_attention_heads", d.heads)?,
    );
    let layers = f.size("num_hidden_layers", d.layers)?;
    let kv_heads = f.size_or_null("num_key_value_heads", d.kv_heads)?;
    let head_dim = f.size_or_null("head_dim", d.head_dim)?;
    let head_dim = head_dim.unwrap_or(hidden_size / heads.max(1));
    let context = f.size("max_position_embeddings", d.context)?;
    let (kinds, sliding_window) = kinds(f, family, layers)?;
    let Ropes {
        main,
        local,
        rotated,
        stretched,
    } = ropes(f, family, d, head_dim, context)?;
    let biases = biases(f, family)?;
    let mut config = DecoderConfig {
        vocab_size: f.size("vocab_size", d.vocab_size)?,
        hidden_size,
        intermediate_size: f.size("intermediate_size", d.intermediate_size)?,
        layers,
        heads,
        kv_heads: kv_heads.unwrap_or(heads),
        head_dim,
        context_length: context.max(stretched),
        norm_eps: f.number("rms_norm_eps", d.norm_eps)?,
        rope: main,
        tied_head: f.flag("tie_word_embeddings", d.tied)?,
        qkv_bias: biases.qkv,
        output_bias: biases.output,
        mlp_bias: biases.mlp,
        qk_norm: ["qwen3", "qwen3_moe", "gemma3_text", "olmo2", "olmo3"].contains(&family),
        sliding_window,
        family: Family {
            activation: activation(f, family)?,
            layers: kinds,
            local_rope: local,
            rotated,
            experts: experts(f, family, layers)?,
            ..traits(f, family, hidden_size)?
        },
    };
    simplify(&mut config);
    Ok(config)
}

/// Layers that are all alike are told by the config alone.
fn simplify(config: &mut DecoderConfig) {
    let family = &mut config.family;
    if family.local_rope.as_ref() == Some(&config.rope) {
        family.local_rope = None;
    }
    if family.local_rope.is_none() {
        for kind in &mut family.layers {
            if kind.rope == LayerRope::Local {
                kind.rope = LayerRope::Main;
            }
        }
    }
    let Some(first) = family.layers.first().copied() else {
        return;
    };
    if first.rope == LayerRope::Main && family.layers.iter().all(|kind| *kind == first) {
        family.layers.clear();
        if !first.sliding {
            config.sliding_window = None;
        }
    }
}

struct Biases {
    qkv: bool,
    output: bool,
    mlp: bool,
}

fn biases(f: &Fields<'_>, family: &str) -> Result<Biases> {
    let attention = |default| f.flag("attention_bias", default);
    let (qkv, output) = match family {
        "qwen2" => (true, false),
        "qwen2_moe" => (f.flag("qkv_bias", true)?, false),
        "glm" | "glm4" => (attention(true)?, false),
        "mistral" | "mixtral" | "phi3" => (false, false),
        _ => (attention(false)?, attention(false)?),
    };
    let mlp = match family {
        "llama" | "granite" | "smollm3" => f.flag("mlp_bias", false)?,
        _ => false,
    };
    Ok(Biases { qkv, output, mlp })
}

/// Norms, multipliers, caps and the layout of files.
fn traits(f: &Fields<'_>, family: &str, hidden_size: usize) -> Result<Family> {
    let plain = Family::of(family, hidden_size);
    Ok(match family {
        "gemma2" | "gemma3_text" => {
            let first = family == "gemma2";
            let cap = |name: &str, default: Option<f64>| f.number_or_null(name, default);
            let scalar = f.number("query_pre_attn_scalar", 256.0)?;
            Family {
                attention_scale: Some(scalar.powf(-0.5)),
                // transformers reads the cap of Gemma 3's scores, and does not use it.
                attention_cap: match first {
                    true => cap("attn_logit_softcapping", Some(50.0))?,
                    false => None,
                },
                logit_cap: cap("final_logit_softcapping", first.then_some(30.0))?,
                ..plain
            }
        }
        "granite" => Family {
            attention_scale: Some(f.number("attention_multiplier", 1.0)?),
            embedding_multiplier: f.number("embedding_multiplier", 1.0)?,
            residual_multiplier: f.number("residual_multiplier", 1.0)?,
            logit_divisor: f.number("logits_scaling", 1.0)?,
            ..plain
        },
        _ => plain,
    })
}

fn experts(f: &Fields<'_>, family: &str, layers: usize) -> Result<Option<Experts>> {
    let experts = match family {
        "mixtral" => Experts {
            count: f.size("num_local_experts", 8)?,
            chosen: f.size("num_experts_per_tok", 2)?,
            intermediate_size: f.size("intermediate_size", 14_336)?,
            normalised: true,
            shared: None,
            dense_layers: vec![],
        },
        "qwen2_moe" | "qwen3_moe" => {
            let second = family == "qwen2_moe";
            let (count, chosen, width) = if second { (60, 4, 1408) } else { (128, 8, 768) };
            let step = f.size("decoder_sparse_step", 1)?;
            let only = f.sizes("mlp_only_layers")?.unwrap_or_default();
            // transformers 5 calls them num_local_experts in some files.
            let count = match f.get("num_experts") {
                Some(_) => f.size("num_experts", count)?,
                None => f.size("num_local_experts", count)?,
            };
            let dense = |layer: &usize| {
                only.contains(layer) || count == 0 || !(layer + 1).is_multiple_of(step.max(1))
            };
            let shared = match second {
                true => Some(f.size("shared_expert_intermediate_size", 5632)?),
                false => None,
            };
            Experts {
                count,
                chosen: f.size("num_experts_per_tok", chosen)?,
                intermediate_size: f.size("moe_intermediate_size", width)?,
                normalised: f.flag("norm_topk_prob", false)?,
                shared,
                dense_layers: (0..layers.min(1 << 16)).filter(dense).collect(),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(experts))
}

/// What each layer sees and how it is rotated, and the width of the window; no kinds where all layers are alike.
fn kinds(f: &Fields<'_>, family: &str, layers: usize) -> Result<(Vec<LayerKind>, Option<usize>)> {
    let used = || f.flag("use_sliding_window", false);
    let window = match family {
        "mistral" | "gemma2" | "gemma3_text" | "olmo3" => {
            f.size_or_null("sliding_window", Some(4096))?
        }
        "mixtral" | "phi3" => f.size_or_null("sliding_window", None)?,
        "smollm3" if used()? => f.size_or_null("sliding_window", None)?,
        "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" if used()? => {
            f.size_or_null("sliding_window", Some(4096))?
        }
        _ => None,
    };
    // Before anything is made for each layer of a config: a file has no more than that.
    if layers > 1 << 16 {
        return Err(Error::format(
            f.path,
            format!("{layers} layers; 65,536 at most"),
        ));
    }
    let local = matches!(family, "gemma3_text" | "olmo3");
    let rotated = match family {
        "smollm3" => Some(rotated_layers(f, layers)?),
        _ => None,
    };
    let sliding: Box<dyn Fn(usize) -> bool> = match family {
        "gemma2" => Box::new(|layer| layer % 2 == 0),
        "gemma3_text" => {
            let pattern = f.size("sliding_window_pattern", 6)?.max(1);
            Box::new(move |layer| (layer + 1) % pattern != 0)
        }
        "olmo3" => Box::new(|layer| (layer + 1) % 4 != 0),
        "qwen2" | "qwen3" => {
            let full = f.size("max_window_layers", 28)?;
            Box::new(move |layer| layer >= full)
        }
        "qwen2_moe" => {
            let windowed = f.size("max_window_layers", 28)?;
            Box::new(move |layer| layer % 2 == 0 && layer < windowed)
        }
        "smollm3" => {
            let rotated = rotated.clone().unwrap_or_default();
            Box::new(move |layer| !rotated[layer])
        }
        _ => return Ok((vec![], window)),
    };
    let listed = layer_types(f, layers)?;
    let kind = |layer: usize| {
        let listed = listed.as_ref().map(|listed| listed[layer]);
        let sliding = listed.unwrap_or_else(|| sliding(layer));
        let rope = match (&rotated, sliding && local) {
            (Some(rotated), _) if !rotated[layer] => LayerRope::None,
            (_, true) => LayerRope::Local,
            _ => LayerRope::Main,
        };
        LayerKind {
            sliding: sliding && window.is_some(),
            rope,
        }
    };
    Ok(((0..layers).map(kind).collect(), window))
}

/// `layer_types`: whether each layer has the sliding window.
fn layer_types(f: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(types) = f.list("layer_types")? else {
        return Ok(None);
    };
    if types.len() < layers {
        let message = format!(
            "layer_types has {} entries for {layers} layers",
            types.len()
        );
        return Err(Error::format(f.path, message));
    }
    let sliding = types.iter().take(layers).map(|kind| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => {
            let supported = "full_attention, sliding_attention";
            Err(f.unsupported(format!("a layer of type {kind}"), supported))
        }
    });
    sliding.collect::<Result<_>>().map(Some)
}

/// SmolLM3's layers with a rotary embedding.
fn rotated_layers(f: &Fields<'_>, layers: usize) -> Result<Vec<bool>> {
    let Some(listed) = f.sizes("no_rope_layers")? else {
        let interval = f.size("no_rope_layer_interval", 4)?.max(1);
        return Ok((0..layers)
            .map(|layer| (layer + 1) % interval != 0)
            .collect());
    };
    if listed.len() < layers {
        let message = format!(
            "no_rope_layers has {} entries for {layers} layers",
            listed.len()
        );
        return Err(Error::format(f.path, message));
    }
    Ok(listed.iter().take(layers).map(|rope| *rope != 0).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_fields_mean_what_the_classes_of_transformers_say() {
        let text = include_str!("../../tests/fixtures/families/defaults.json");
        let classes: Map<String, Value> = serde_json::from_str(text).unwrap();
        assert_eq!(classes.len(), FAMILIES.len() - 1);
        for (family, class) in &classes {
            let fields = Map::from_iter([("model_type".to_string(), json!(family))]);
            let (_, config) = decoder_config(Path::new("config.json"), &fields).unwrap();
            let size = |name: &str| class[name].as_u64().map(|v| v as usize);
            let rope = &class["rope_parameters"];
            let main = rope.get("full_attention").unwrap_or(rope);
            let local = rope.get("sliding_attention").unwrap_or(rope);
            let head_dim = size("head_dim").unwrap_or(config.hidden_size / config.heads);
            let kv_heads = size("num_key_value_heads").unwrap_or(config.heads);
            for (name, got, expected) in [
                ("vocab_size", config.vocab_size, size("vocab_size")),
                ("hidden_size", config.hidden_size, size("hidden_size")),
                (
                    "intermediate_size",
                    config.intermediate_size,
                    size("intermediate_size"),
                ),
                ("layers", config.layers, size("num_hidden_layers")),
                ("heads", config.heads, size("num_attention_heads")),
                ("kv_heads", config.kv_heads, Some(kv_heads)),
                ("head_dim", config.head_dim, Some(head_dim)),
                (
                    "context",
                    config.context_length,
                    size("max_position_embeddings"),
                ),
            ] {
                assert_eq!(Some(got), expected, "{family}: {name}");
            }
            let number = |value: &Value| value.as_f64().unwrap() as f32;
            assert_eq!(config.norm_eps, number(&class["rms_norm_eps"]), "{family}");
            assert_eq!(
                json!(config.tied_head),
                class["tie_word_embeddings"],
                "{family}"
            );
            assert_eq!(config.rope.theta, number(&main["rope_theta"]), "{family}");
            if let Some(rope) = &config.family.local_rope {
                assert_eq!(rope.theta, number(&local["rope_theta"]), "{family}");
            }
            let types = class["layer_types"].as_array();
            for layer in 0..config.layers {
                let expected = match types.map(|types| types[layer].as_str().unwrap()) {
                    Some("full_attention") => usize::MAX,
                    _ => size("sliding_window").unwrap_or(usize::MAX),
                };
                assert_eq!(config.window(layer), expected, "{family}: layer {layer}");
            }
        }
    }
}
