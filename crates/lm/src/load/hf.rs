//! Hugging Face folders: `config.json`, (sharded) safetensors, generation config, chat template.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::dequant::Format;
use super::layout::apart;
use super::mapped::{Mapped, StoredTensor};
use super::scales::Scales;
use super::{Checkpoint, families, template_source};
use crate::{Error, Result};

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
            Dtype::F8_E4M3 => Format::F8_E4M3,
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

/// The tensors of the language model inside of one for pictures, by the names that they have in one without.
fn language_model(
    tensors: HashMap<String, (usize, StoredTensor)>,
) -> HashMap<String, (usize, StoredTensor)> {
    let inner = |(name, tensor): (String, _)| {
        // transformers 5 has all below "model.", older versions each part by itself.
        let rest = name.strip_prefix("model.").unwrap_or(&name);
        if rest.starts_with("vision_tower.") || rest.starts_with("multi_modal_projector.") {
            return None;
        }
        let name = match rest.strip_prefix("language_model.") {
            Some(part) if part.starts_with("model.") || part.starts_with("lm_head.") => part.into(),
            Some(part) => format!("model.{part}"),
            None => name,
        };
        Some((name, tensor))
    };
    tensors.into_iter().filter_map(inner).collect()
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
    let fields: Map<String, Value> = read_json(&config_path)?;
    let (family, mut config) = families::decoder_config(&config_path, &fields)?;
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
        end_tokens = ids(fields.get("eos_token_id"));
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
    if family == "gemma3" {
        tensors = language_model(tensors);
    }
    let mut tensors = apart(folder, &config, tensors)?;
    // A model saved from its bare body has no "model." before the names.
    if !tensors.contains_key("model.embed_tokens.weight")
        && tensors.contains_key("embed_tokens.weight")
    {
        tensors = tensors
            .into_iter()
            .map(|(n, t)| (format!("model.{n}"), t))
            .collect();
    }
    let scales = Scales::take(folder, fields.get("quantization_config"), &mut tensors)?;
    if config.tied_head && has_other_head(&files, &tensors)? {
        config.tied_head = false;
    }
    Ok(Checkpoint {
        path: folder.into(),
        family,
        config,
        chat_template: chat_template(folder, &tokenizer_config)?,
        bos_token: token_text(&tokenizer_config, &special_tokens, "bos_token"),
        eos_token: token_text(&tokenizer_config, &special_tokens, "eos_token"),
        end_tokens,
        files,
        tensors,
        scales,
        gguf: None,
        edit: None,
        scores: None,
    })
}
