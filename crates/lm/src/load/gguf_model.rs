//! A GGUF file as a [`Checkpoint`]: metadata to config, tensor names to Hugging Face's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::gguf::{Header, Value};
use super::mapped::{Mapped, StoredTensor};
use super::{Checkpoint, template_source};
use crate::config::{DecoderConfig, Rope, RopeScaling};
use crate::{Error, Result};

const ARCHITECTURES: &str = "general.architecture llama, mistral, qwen2, qwen3";

/// The config that a header's metadata describe. In one piece, because each field of the config is a key of the
/// metadata and its default.
///
/// # Errors
/// [`Error::Format`] for a key that is missing, [`Error::Unsupported`] for a model that is not run.
fn decoder_config(
    path: &Path,
    header: &Header,
    tensors: &HashMap<String, (usize, StoredTensor)>,
    factors: Option<Vec<f32>>,
) -> Result<DecoderConfig> {
    let Some(arch) = header.string("general.architecture") else {
        return Err(Error::format(
            path,
            "no general.architecture in the metadata",
        ));
    };
    if !["llama", "mistral", "qwen2", "qwen3"].contains(&arch) {
        return Err(Error::unsupported(
            path,
            format!("architecture '{arch}'"),
            ARCHITECTURES,
        ));
    }
    let optional = |key: &str| header.integer(&format!("{arch}.{key}"));
    let needed = |key: &str| {
        let message = || format!("metadata '{arch}.{key}' is missing or not a number");
        optional(key).ok_or_else(|| Error::format(path, message()))
    };
    let number = |key: &str| header.number(&format!("{arch}.{key}")).map(|v| v as f32);
    if optional("expert_count").is_some_and(|n| n > 0) {
        return Err(Error::unsupported(
            path,
            "a model with routed experts",
            "dense models",
        ));
    }
    let (hidden_size, heads) = (needed("embedding_length")?, needed("attention.head_count")?);
    let head_dim = optional("attention.key_length").unwrap_or(hidden_size / heads.max(1));
    for (key, expected) in [
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
    ] {
        if let Some(got) = optional(key).filter(|&got| got != expected) {
            let what = format!("{arch}.{key} = {got} with heads of {head_dim}");
            return Err(Error::unsupported(path, what, "the size of a head"));
        }
    }
    let scaling = header
        .string(&format!("{arch}.rope.scaling.type"))
        .unwrap_or("none");
    let scaling = match (factors, scaling) {
        (Some(factors), _) => RopeScaling::Factors(factors),
        (None, "none") => RopeScaling::Plain,
        (None, "linear") => RopeScaling::Linear(number("rope.scaling.factor").unwrap_or(1.0)),
        (None, other) => {
            let what = format!("rope scaling '{other}'");
            return Err(Error::unsupported(path, what, "none, linear, rope_freqs"));
        }
    };
    let vocab_size = match header.array("tokenizer.ggml.tokens") {
        Some(tokens) => tokens.len(),
        None => needed("vocab_size")?,
    };
    let has = |name: &str| tensors.contains_key(&hf_name(name));
    let config = DecoderConfig {
        vocab_size,
        hidden_size,
        intermediate_size: needed("feed_forward_length")?,
        layers: needed("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        context_length: needed("context_length")?,
        norm_eps: number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        rope: Rope {
            theta: number("rope.freq_base").unwrap_or(10_000.0),
            scaling,
        },
        tied_head: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        qk_norm: has("blk.0.attn_q_norm.weight"),
        sliding_window: optional("attention.sliding_window").filter(|&w| w > 0),
    };
    config
        .validate()
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok(config)
}

/// Hugging Face's name of a GGUF tensor; an unknown name stays as it is and is refused later.
fn hf_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let parts: Vec<_> = name.split('.').collect();
    let &["blk", layer, part, kind] = parts.as_slice() else {
        return name.into();
    };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return name.into(),
    };
    format!("model.layers.{layer}.{part}.{kind}")
}

/// Brings the rows of q and k (weights, biases) from the interleaved RoPE layout, row `2 j + half`
/// of a head, to the half-split one, row `half · head_dim / 2 + j`. Other tensors stay as they are.
pub(super) fn unpermute(config: &DecoderConfig, interleaved: bool, name: &str, data: &mut [f32]) {
    let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
    if !interleaved || !rotated {
        return;
    }
    let columns = if name.ends_with(".bias") {
        1
    } else {
        config.hidden_size
    };
    let half = config.head_dim / 2;
    let mut head = vec![0.0; config.head_dim * columns];
    for rows in data.chunks_exact_mut(config.head_dim * columns) {
        for (row, source) in rows.chunks_exact(columns).enumerate() {
            let target = (row % 2 * half + row / 2) * columns;
            head[target..target + columns].copy_from_slice(source);
        }
        rows.copy_from_slice(&head);
    }
}

impl Checkpoint {
    /// GGUF stores q and k of `llama` for interleaved rotation, those of Qwen half-split.
    pub(super) fn rope_interleaved(&self) -> bool {
        let arch = self
            .gguf
            .as_ref()
            .and_then(|h| h.string("general.architecture"));
        arch.is_some_and(|a| !a.starts_with("qwen"))
    }
}

/// The other parts of a model that llama.cpp's `gguf-split` cut, in their order; none for a whole one.
///
/// # Errors
/// A part that is not the first, or another one that is missing.
fn other_parts(path: &Path, header: &Header) -> Result<Vec<PathBuf>> {
    let count = header.integer("split.count").unwrap_or(1);
    if count < 2 {
        return Ok(vec![]);
    }
    let part = header.integer("split.no").unwrap_or(0) + 1;
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let number = |part: usize| format!("-{part:05}-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&number(part)) else {
        let message = format!(
            "part {part} of {count} of a model, but its name does not end in '{}'; give the parts the names that \
             gguf-split gave them",
            number(part)
        );
        return Err(Error::format(path, message));
    };
    if part != 1 {
        let first = format!("{stem}{}", number(1));
        let message = format!("part {part} of {count} of a model; open the first, {first}");
        return Err(Error::format(path, message));
    }
    let others = (2..=count).map(|part| path.with_file_name(format!("{stem}{}", number(part))));
    let others: Vec<PathBuf> = others.take(1 << 16).collect();
    match others.iter().find(|p| !p.is_file()) {
        None => Ok(others),
        Some(missing) => {
            let missing = missing.display();
            let message = format!("part 1 of {count} of a model; {missing} is missing: fetch it");
            Err(Error::format(path, message))
        }
    }
}

/// All files of the model that a `.gguf` file is, or is the first part of.
///
/// # Errors
/// A file that is no GGUF; a part that is not the first, or another one that is missing.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let header = Header::parse(&Mapped::open(path)?)?;
    let others = other_parts(path, &header)?;
    Ok([vec![path.to_path_buf()], others].concat())
}

/// Whether a file is a part of a model other than the first, by the name that `gguf-split` gave it.
pub(crate) fn is_later_part(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|s| s.to_str());
    let number = stem.and_then(|s| s.rsplit_once("-of-")?.0.rsplit_once('-').map(|(_, n)| n));
    number.is_some_and(|n| n.len() == 5 && n.parse::<u32>().is_ok_and(|n| n > 1))
}

/// Opens a `.gguf` file, or the first of a model's.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let file = Mapped::open(path)?;
    let mut header = Header::parse(&file)?;
    let mut files = vec![file];
    let mut tensors: HashMap<String, (usize, StoredTensor)> = HashMap::new();
    let mut parts = vec![std::mem::take(&mut header.tensors)];
    for part in other_parts(path, &header)? {
        let file = Mapped::open(&part)?;
        parts.push(Header::parse(&file)?.tensors);
        files.push(file);
    }
    let mut factors = None;
    for (number, part) in parts.into_iter().enumerate() {
        let mut part: Vec<_> = part.into_iter().collect();
        part.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in part {
            if name == "rope_freqs.weight" && factors.is_none() {
                factors = Some(files[number].read(&name, &tensor)?);
                continue;
            }
            let known = hf_name(&name);
            if tensors.insert(known.clone(), (number, tensor)).is_some() {
                let message =
                    format!("two tensors are '{known}', one of them by the name '{name}'");
                return Err(Error::format(files[number].path(), message));
            }
        }
    }
    let config = decoder_config(path, &header, &tensors, factors)?;
    let token = |key: &str| header.integer(key).and_then(|id| u32::try_from(id).ok());
    let eos = token("tokenizer.ggml.eos_token_id");
    let ends = [
        eos,
        token("tokenizer.ggml.eot_token_id"),
        token("tokenizer.ggml.eom_token_id"),
    ];
    let text = |id: Option<u32>| match header.array("tokenizer.ggml.tokens")?.get(id? as usize)? {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    Ok(Checkpoint {
        path: path.into(),
        chat_template: header
            .string("tokenizer.chat_template")
            .map(template_source),
        bos_token: text(token("tokenizer.ggml.bos_token_id")),
        eos_token: text(eos),
        end_tokens: ends.into_iter().flatten().collect(),
        config,
        files,
        tensors,
        gguf: Some(header),
        edit: None,
    })
}
