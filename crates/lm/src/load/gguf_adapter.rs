//! LoRA in a GGUF file, as llama.cpp's converter writes it: pairs `NAME.lora_a` and `NAME.lora_b` for a base's tensor
//! `NAME`, and one alpha.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::gguf::Header;
use super::gguf_config::{architecture, hf_name, interleaved};
use super::layout::half_split;
use super::mapped::{Mapped, all_finite};
use super::peft::{Description, joined_size, matrices, pairs};
use crate::adapter::{LowRank, Target, transposed};
use crate::config::DecoderConfig;
use crate::{Error, Result};

/// A path names a GGUF file.
pub(super) fn is_file(path: &Path) -> bool {
    path.is_file()
        && path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// It does, and the file says that it holds an adapter.
pub(super) fn says_adapter(path: &Path) -> bool {
    let header = || Header::parse(&Mapped::open(path).ok()?).ok();
    is_file(path) && header().is_some_and(|h| h.string("general.type") == Some("adapter"))
}

/// Header of an adapter, and its alpha.
fn open(path: &Path) -> Result<(Mapped, Header, f64)> {
    let file = Mapped::open(path)?;
    let header = Header::parse(&file)?;
    let unsupported = |what: String| Error::unsupported(path, what, "LoRA in GGUF");
    match header.string("general.type") {
        Some("adapter") => {}
        Some(other) => {
            return Err(unsupported(format!(
                "general.type '{other}' for an adapter"
            )));
        }
        None => {
            let message = "no general.type in it; a LoRA in GGUF says 'adapter' there";
            return Err(Error::format(path, message));
        }
    }
    if let Some(kind) = header.string("adapter.type").filter(|kind| *kind != "lora") {
        return Err(unsupported(format!("adapter.type '{kind}'")));
    }
    if header
        .metadata
        .contains_key("adapter.alora.invocation_tokens")
    {
        let what =
            "adapter.alora.invocation_tokens (an adapter that is active behind these tokens only)";
        return Err(unsupported(what.into()));
    }
    let alpha = header.number("adapter.lora.alpha").unwrap_or(0.0);
    Ok((file, header, alpha))
}

/// What the file says of itself.
pub(super) fn describe(path: &Path) -> Result<Description> {
    let (_file, header, alpha) = open(path)?;
    let shapes = header.tensors.iter();
    let tensors: BTreeMap<String, Vec<usize>> = shapes
        .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
        .collect();
    let first = tensors.iter().find(|(name, _)| name.ends_with(".lora_a"));
    Ok(Description {
        peft_type: "LORA".into(),
        rank: first.map_or(0, |(_, shape)| shape[0]),
        alpha,
        base: header.string("general.base_model.0.name").map(String::from),
        parameters: tensors.values().map(|s| s.iter().product::<usize>()).sum(),
        tensors,
    })
}

/// Reads the pairs for a model of shape `config`.
///
/// # Errors
/// A module that the model lacks, tensors of another shape, half a pair, numbers that are not finite.
pub(super) fn load(
    path: &Path,
    config: &DecoderConfig,
) -> Result<HashMap<(usize, Target), LowRank>> {
    let (file, header, alpha) = open(path)?;
    let arch = architecture(path, &header)?;
    if is_other(arch, config) {
        let message = format!(
            "an adapter for architecture '{arch}', but the model is of another: it was made for another model"
        );
        return Err(Error::format(path, message));
    }
    let mut names: Vec<&String> = header.tensors.keys().collect();
    names.sort();
    let mut all = HashMap::new();
    for name in &names {
        let Some(base) = name.strip_suffix(".lora_a") else {
            if name
                .strip_suffix(".lora_b")
                .is_none_or(|base| !header.tensors.contains_key(&format!("{base}.lora_a")))
            {
                let what = format!("tensor '{name}'");
                return Err(Error::unsupported(path, what, "pairs of lora_a and lora_b"));
            }
            continue;
        };
        let known = hf_name(arch, base);
        let module = known.strip_suffix(".weight").unwrap_or(&known);
        let of = matrices(config, module).filter(|(layer, _)| *layer < config.layers);
        let Some((layer, targets)) = of else {
            let what = format!("an adapter on '{base}'");
            return Err(Error::unsupported(
                path,
                what,
                "projections that the model has",
            ));
        };
        let partner = format!("{base}.lora_b");
        let (Some(a), Some(b)) = (header.tensors.get(*name), header.tensors.get(&partner)) else {
            return Err(Error::MissingTensor {
                path: path.into(),
                tensor: partner,
            });
        };
        let (inputs, outputs) = joined_size(&targets, config);
        let rank = a.shape[0];
        for (name, tensor, expected) in [(*name, a, [rank, inputs]), (&partner, b, [outputs, rank])]
        {
            if tensor.shape != expected {
                return Err(Error::Shape {
                    path: path.into(),
                    tensor: name.clone(),
                    expected: expected.into(),
                    got: tensor.shape.clone(),
                });
            }
        }
        let scale = if alpha == 0.0 {
            1.0
        } else {
            (alpha / rank as f64) as f32
        };
        let mut numbers = file.read(&partner, b)?;
        numbers.iter_mut().for_each(|v| *v *= scale);
        all_finite(
            path,
            &format!("{partner} (scaled by {scale})"),
            &b.shape,
            &numbers,
        )?;
        // GLM-4's are interleaved in Hugging Face's files, too.
        let rotated = matches!(targets[..], [Target::Query | Target::Key]);
        if interleaved(arch) && !config.family.layout.interleaved && rotated {
            half_split(config, rank, &mut numbers, true);
        }
        let a = transposed(&file.read(name, a)?, rank, inputs);
        for (target, pair) in targets
            .iter()
            .zip(pairs(config, &targets, rank, &a, numbers))
        {
            all.insert((layer, *target), pair);
        }
    }
    match all.is_empty() {
        true => Err(Error::format(path, "the adapter has no tensors")),
        false => Ok(all),
    }
}

/// The architecture is not that of the model, as far as the config tells.
fn is_other(arch: &str, config: &DecoderConfig) -> bool {
    let (family, layout) = (&config.family, config.family.layout);
    let other_norms = layout.norm_offset || family.wide_qk_norm;
    match arch {
        "phi3" => !layout.fused_qkv,
        "gemma2" | "gemma3" => !layout.norm_offset,
        "olmo2" => !family.wide_qk_norm,
        "glm4" => !layout.interleaved,
        "qwen2" | "qwen2moe" => !config.qkv_bias || layout.interleaved,
        "qwen3" | "qwen3moe" => !config.qk_norm || other_norms,
        _ => config.qk_norm || other_norms || layout.fused_qkv || layout.interleaved,
    }
}
