//! Hugging Face folders: `config.json`, (sharded) safetensors, generation config, chat template.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::dequant::Format;
use super::mapped::{Mapped, StoredTensor};
use super::{Checkpoint, read_text, template_source};
use crate::config::{DecoderConfig, Rope, RopeScaling};
use crate::{Error, Result};

const FAMILIES: &str = "model_type llama, mistral, qwen2, qwen3";

/// The fields of `config.json` that decide how the model runs.
#[derive(Debug, Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    /// Newer form of `rope_theta` and `rope_scaling`.
    rope_parameters: Option<Value>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    rope_interleaved: Option<bool>,
}

/// Reads and parses a JSON file.
///
/// # Errors
/// With path, line and column.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &super::read_text(path)?)
}

/// Parses the JSON text of a file.
///
/// # Errors
/// With path, line and column.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::format(path, format!("not as expected: {e}")))
}

fn rope_scaling(path: &Path, value: Option<&Value>) -> Result<RopeScaling> {
    let Some(value) = value.filter(|v| !v.is_null()) else {
        return Ok(RopeScaling::Plain);
    };
    let number = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_f64)
            .map(|v| v as f32)
            .ok_or_else(|| {
                Error::format(path, format!("rope_scaling has no number '{key}': {value}"))
            })
    };
    let kind = value
        .get("rope_type")
        .or_else(|| value.get("type"))
        .and_then(Value::as_str);
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::Plain),
        "linear" => Ok(RopeScaling::Linear(number("factor")?)),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_context: number("original_max_position_embeddings")?,
        }),
        other => {
            let what = format!("rope_scaling of type '{other}'");
            Err(Error::unsupported(path, what, "default, linear, llama3"))
        }
    }
}

/// Puts what a field that is not there means: the defaults of transformers' config classes.
fn put_defaults(hf: &mut HfConfig, fields: &Map<String, Value>) {
    let (context, kv_heads, window, head_dim) = match hf.model_type.as_str() {
        "llama" => (2048, None, None, None),
        "mistral" => (131_072, Some(8), Some(4096), None),
        "qwen3" => (32_768, Some(32), None, Some(128)),
        _ => (32_768, Some(32), None, None),
    };
    hf.max_position_embeddings.get_or_insert(context);
    hf.rms_norm_eps.get_or_insert(1e-6);
    // A null says something else than an absence here: as many as heads, no window, hidden / heads.
    for (name, field, default) in [
        ("num_key_value_heads", &mut hf.num_key_value_heads, kv_heads),
        ("sliding_window", &mut hf.sliding_window, window),
        ("head_dim", &mut hf.head_dim, head_dim),
    ] {
        if !fields.contains_key(name) {
            *field = default;
        }
    }
}

/// Reads `config.json`: the family first, then the fields that its class has.
///
/// # Errors
/// Another family by its name; features of `config.json` that would change the result.
fn hf_config(path: &Path) -> Result<HfConfig> {
    let text = read_text(path)?;
    let fields: Map<String, Value> = parse_json(path, &text)?;
    let family = match fields.get("model_type") {
        Some(Value::String(family)) => family.clone(),
        _ => {
            let class = fields.get("architectures").and_then(|a| a.get(0)?.as_str());
            let class = class.map_or(String::new(), |c| format!(" (of class {c})"));
            return Err(Error::format(
                path,
                format!("no model_type in it{class}; supported: {FAMILIES}"),
            ));
        }
    };
    let unsupported = |what: String, supported| Err(Error::unsupported(path, what, supported));
    if !["llama", "mistral", "qwen2", "qwen3"].contains(&family.as_str()) {
        return unsupported(format!("model_type '{family}'"), FAMILIES);
    }
    if let Some(quantised) = fields.get("quantization_config").filter(|q| !q.is_null()) {
        let method = quantised.get("quant_method").and_then(Value::as_str);
        let what = format!("quantization_config of '{}'", method.unwrap_or("no method"));
        return unsupported(what, "F32, F16, BF16 in safetensors, and GGUF");
    }
    let partial = [fields.get("rope_parameters"), fields.get("rope_scaling")];
    let partial = partial.map(|p| p.and_then(|p| p.get("partial_rotary_factor")));
    let partial = partial
        .into_iter()
        .chain([fields.get("partial_rotary_factor")]);
    if let Some(factor) = partial
        .flatten()
        .find(|f| f.as_f64() != Some(1.0) && !f.is_null())
    {
        let what = format!("partial_rotary_factor {factor}");
        return unsupported(what, "heads that are rotated whole");
    }
    if let Some(Value::Object(parameters)) = fields.get("rope_parameters")
        && let Some((layers, _)) = parameters.iter().find(|(_, v)| v.is_object())
    {
        let what = format!("rope_parameters of their own for '{layers}' layers");
        return unsupported(what, "one rope for all layers");
    }
    let mut hf: HfConfig = parse_json(path, &text)?;
    put_defaults(&mut hf, &fields);
    Ok(hf)
}

/// Converts `config.json`.
fn decoder_config(path: &Path) -> Result<DecoderConfig> {
    let hf = hf_config(path)?;
    let family = hf.model_type.as_str();
    if let Some(act) = hf
        .hidden_act
        .as_deref()
        .filter(|a| !["silu", "swish"].contains(a))
    {
        return Err(Error::unsupported(
            path,
            format!("hidden_act '{act}'"),
            "silu",
        ));
    }
    if hf.rope_interleaved == Some(true) {
        return Err(Error::unsupported(
            path,
            "rope_interleaved",
            "the half-split layout",
        ));
    }
    let qwen = family.starts_with("qwen");
    if qwen && hf.use_sliding_window == Some(true) {
        return Err(Error::unsupported(
            path,
            "use_sliding_window",
            "full attention for Qwen",
        ));
    }
    let parameters = hf.rope_parameters.as_ref();
    let theta = parameters
        .and_then(|p| p.get("rope_theta"))
        .and_then(Value::as_f64);
    let theta = theta
        .map(|t| t as f32)
        .or(hf.rope_theta)
        .unwrap_or(10_000.0);
    let bias = hf.attention_bias.unwrap_or(false);
    let config = DecoderConfig {
        vocab_size: hf.vocab_size,
        hidden_size: hf.hidden_size,
        intermediate_size: hf.intermediate_size,
        layers: hf.num_hidden_layers,
        heads: hf.num_attention_heads,
        kv_heads: hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
        head_dim: match hf.head_dim {
            Some(head_dim) => head_dim,
            None => hf.hidden_size / hf.num_attention_heads.max(1),
        },
        context_length: hf.max_position_embeddings.unwrap_or(0),
        norm_eps: hf.rms_norm_eps.unwrap_or(f32::NAN),
        rope: Rope {
            theta,
            scaling: rope_scaling(path, parameters.or(hf.rope_scaling.as_ref()))?,
        },
        tied_head: hf.tie_word_embeddings.unwrap_or(false),
        qkv_bias: bias || family == "qwen2",
        output_bias: bias && family != "qwen2",
        mlp_bias: hf.mlp_bias.unwrap_or(false),
        qk_norm: family == "qwen3",
        sliding_window: if qwen { None } else { hf.sliding_window },
    };
    config
        .validate()
        .map_err(|e| Error::format(path, e.to_string()))?;
    Ok(config)
}

/// Tensors of one safetensors file, with the format's own checks (bounds, overlaps, sizes).
pub(crate) fn safetensors(file: &Mapped) -> Result<HashMap<String, StoredTensor>> {
    let invalid = |e: &dyn std::fmt::Display| {
        let message = format!("damaged safetensors ({e}); fetch the file again");
        Error::format(file.path(), message)
    };
    let (header, metadata): (usize, Metadata) =
        safetensors::SafeTensors::read_metadata(file.bytes()).map_err(|e| invalid(&e))?;
    let data = header + 8;
    let mut tensors = HashMap::new();
    for (name, info) in metadata.tensors() {
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            other => {
                let what = format!("tensor '{name}' of type {other:?}");
                return Err(Error::unsupported(file.path(), what, "F32, F16, BF16"));
            }
        };
        let (start, end) = info.data_offsets;
        let elements = info
            .shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n));
        let bytes = elements.and_then(|n| format.bytes(n));
        if end > file.bytes().len() - data || bytes != end.checked_sub(start) {
            return Err(invalid(&format!("tensor '{name}' lies at {start}..{end}")));
        }
        let tensor = StoredTensor {
            shape: info.shape.clone(),
            format,
            range: data + start..data + end,
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// `weight_map` of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

pub(crate) fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.is_file() {
        return Ok(vec![single]);
    }
    if !index.is_file() {
        return Err(Error::format(
            folder,
            "neither model.safetensors nor model.safetensors.index.json is there; if the model is \
             in another format, convert it to safetensors or GGUF",
        ));
    }
    let map: Index = read_json(&index)?;
    let mut names: Vec<_> = map.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for name in &names {
        let plain = Path::new(name)
            .file_name()
            .is_some_and(|f| f == name.as_str());
        if !plain {
            return Err(Error::format(
                &index,
                format!("shard '{name}' is not a file name"),
            ));
        }
        if !folder.join(name).is_file() {
            return Err(Error::format(
                folder,
                format!("shard '{name}' is missing; fetch it"),
            ));
        }
    }
    Ok(names.into_iter().map(|n| folder.join(n)).collect())
}

/// Token ids that end a response: one number or a list.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => vec![],
    }
}

/// The chat template: `chat_template.jinja`, or the field of `tokenizer_config.json` (a text, or a
/// list of named templates of which "default" counts).
fn chat_template(folder: &Path, tokenizer_config: &Value) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        return super::read_text(&file).map(|text| Some(template_source(&text)));
    }
    Ok(match tokenizer_config.get("chat_template") {
        Some(Value::String(text)) => Some(template_source(text)),
        Some(Value::Array(named)) => named
            .iter()
            .find(|t| t.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|t| t.get("template")?.as_str())
            .map(template_source),
        _ => None,
    })
}

/// A special token's text: as transformers has it, from `special_tokens_map.json` where
/// `tokenizer_config.json` has no `added_tokens_decoder`, else from the latter; where neither names it, the
/// default of the tokenizer's class.
fn token_text(config: &Value, map: &Value, key: &str) -> Option<String> {
    let text = |v: &Value| {
        let text = v.as_str().or_else(|| v.get("content")?.as_str());
        text.map(String::from)
    };
    let legacy = config.get("added_tokens_decoder").is_none();
    if let Some(value) = map.get(key).filter(|_| legacy).or_else(|| config.get(key)) {
        return text(value);
    }
    let class = config.get("tokenizer_class").and_then(Value::as_str)?;
    let default = match (class.trim_end_matches("Fast"), key) {
        ("LlamaTokenizer" | "CodeLlamaTokenizer", "bos_token") => "<s>",
        ("LlamaTokenizer" | "CodeLlamaTokenizer", "eos_token") => "</s>",
        ("Qwen2Tokenizer", "eos_token") => "<|endoftext|>",
        _ => return None,
    };
    Some(default.into())
}

/// The file holds a head that differs from the embedding, so that the config's `tie_word_embeddings` does not
/// describe it. transformers uses such a head, too.
fn has_other_head(
    files: &[Mapped],
    tensors: &HashMap<String, (usize, StoredTensor)>,
) -> Result<bool> {
    let names = ["model.embed_tokens.weight", "lm_head.weight"];
    let [Some((at, embedding)), Some((head_at, head))] = names.map(|name| tensors.get(name)) else {
        return Ok(false);
    };
    let (file, head_file) = (&files[*at], &files[*head_at]);
    if embedding.shape != head.shape {
        return Ok(true);
    }
    if embedding.format == head.format {
        return Ok(file.raw(embedding) != head_file.raw(head));
    }
    Ok(file.read(names[0], embedding)? != head_file.read(names[1], head)?)
}

/// Opens a folder as written by `save_pretrained`.
pub(super) fn open(folder: &Path) -> Result<Checkpoint> {
    let config_path = folder.join("config.json");
    let mut config = decoder_config(&config_path)?;
    let optional = |name: &str| -> Result<Value> {
        let path = folder.join(name);
        if path.is_file() {
            read_json(&path)
        } else {
            Ok(Value::Null)
        }
    };
    let tokenizer_config = optional("tokenizer_config.json")?;
    let special_tokens = optional("special_tokens_map.json")?;
    let mut end_tokens = ids(optional("generation_config.json")?.get("eos_token_id"));
    if end_tokens.is_empty() {
        end_tokens = ids(optional("config.json")?.get("eos_token_id"));
    }
    let mut files = Vec::new();
    let mut tensors = HashMap::new();
    for path in shards(folder)? {
        let file = Mapped::open(&path)?;
        for (name, tensor) in safetensors(&file)? {
            if tensors
                .insert(name.clone(), (files.len(), tensor))
                .is_some()
            {
                return Err(Error::format(
                    &path,
                    format!("tensor '{name}' is in two shards"),
                ));
            }
        }
        files.push(file);
    }
    // A model saved from its bare body has no "model." before the names.
    if !tensors.contains_key("model.embed_tokens.weight")
        && tensors.contains_key("embed_tokens.weight")
    {
        tensors = tensors
            .into_iter()
            .map(|(n, t)| (format!("model.{n}"), t))
            .collect();
    }
    if config.tied_head && has_other_head(&files, &tensors)? {
        config.tied_head = false;
    }
    Ok(Checkpoint {
        path: folder.into(),
        config,
        chat_template: chat_template(folder, &tokenizer_config)?,
        bos_token: token_text(&tokenizer_config, &special_tokens, "bos_token"),
        eos_token: token_text(&tokenizer_config, &special_tokens, "eos_token"),
        end_tokens,
        files,
        tensors,
        gguf: None,
        edit: None,
        scores: None,
    })
}
