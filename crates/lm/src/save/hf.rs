//! A model as a Hugging Face folder: `config.json`, `model.safetensors`, tokenizer, chat template and
//! generation config. Models that came in such a folder keep their own files; those of a GGUF file are
//! made from its metadata.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Precision, SafetensorsWriter, new_folder, write_json};
use crate::adapter::Adapter;
use crate::config::{DecoderConfig, Rope, RopeScaling};
use crate::load::Checkpoint;
use crate::load::families::class;
use crate::load::hf::read_json;
use crate::{Error, Result, Tokenizer};

/// Files that go along as they are.
const KEPT: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

impl Checkpoint {
    /// Writes this model, an adapter merged into it, as a Hugging Face folder.
    ///
    /// # Errors
    /// Those of [`write()`]; a missing, misshapen or unknown tensor; an adapter of another shape.
    pub fn export(
        &self,
        folder: &Path,
        precision: Precision,
        adapter: Option<&Adapter>,
    ) -> Result<()> {
        self.check()?;
        let reader = self.reader();
        write(self, folder, precision, |name, shape| {
            let mut data = reader.get(name, shape)?;
            if let Some(adapter) = adapter {
                adapter.add_to(name, &mut data)?;
            }
            Ok(data)
        })
    }
}

/// Writes a model of the shape of `like`, with its tokenizer, as a Hugging Face folder. `tensor` gives the
/// values of each tensor by name and shape, in the order of [`DecoderConfig::tensors`].
///
/// # Errors
/// A folder that is not empty, a shape that no `model_type` has, numbers that are not finite, and what
/// `tensor` or the system says. Nothing is left then.
pub fn write(
    like: &Checkpoint,
    folder: &Path,
    precision: Precision,
    mut tensor: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
) -> Result<()> {
    new_folder(folder, |beside| {
        match like.gguf {
            None => copied(like, beside, precision)?,
            Some(_) => made(like, beside, precision)?,
        }
        let tensors = like.config().file_tensors();
        let listed: Vec<_> = tensors
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone()))
            .collect();
        let path = beside.join("model.safetensors");
        let mut file = SafetensorsWriter::create(&path, &listed, precision)?;
        for stored in &tensors {
            let mut data = Vec::new();
            for (name, shape) in &stored.parts {
                let mut part = tensor(name, shape)?;
                like.config().outward(name, &mut part);
                data = if data.is_empty() {
                    part
                } else {
                    [data, part].concat()
                };
            }
            file.write(&stored.name, &data)?;
        }
        file.finish()
    })
}

/// The files of a Hugging Face folder; `config.json` names the new number format.
fn copied(like: &Checkpoint, to: &Path, precision: Precision) -> Result<()> {
    let path = like.path().join("config.json");
    let mut config: Map<String, Value> = read_json(&path)?;
    // Of a model for pictures, the language model alone is read and written.
    if let Some(Value::Object(text)) = config.get("text_config") {
        config = text.clone();
        let named = like.family();
        config
            .entry("model_type")
            .or_insert(json!(format!("{named}_text")));
    }
    config.remove("quantization_config");
    // A head of its own may have stood in the file against the config.
    if config.contains_key("tie_word_embeddings") {
        let tied = like.config().tied_head;
        config.insert("tie_word_embeddings".into(), json!(tied));
    }
    let newer = config.contains_key("dtype");
    let field = if newer { "dtype" } else { "torch_dtype" };
    config.insert(field.into(), json!(precision.torch()));
    // A folder that was saved from the bare body says so; what is written has a head.
    let kind = config.get("model_type").and_then(Value::as_str);
    let class = kind.map(architecture).transpose()?;
    if let Some(class) = class {
        config.insert("architectures".into(), json!([class]));
    }
    write_json(&to.join("config.json"), &Value::Object(config))?;
    for name in KEPT {
        let from = like.path().join(name);
        if from.is_file() {
            fs::copy(&from, to.join(name)).map_err(Error::io(&from))?;
        }
    }
    Ok(())
}

fn architecture(model_type: &str) -> Result<&'static str> {
    class(model_type).ok_or_else(|| Error::ModelType(model_type.into()))
}

/// The files of a model that came as GGUF.
fn made(like: &Checkpoint, to: &Path, precision: Precision) -> Result<()> {
    let tokenizer = Tokenizer::load(like)?;
    let path = to.join("tokenizer.json");
    fs::write(&path, tokenizer.to_json()?).map_err(Error::io(&path))?;
    let id = |text: &Option<String>| text.as_deref().and_then(|t| tokenizer.id(t));
    let (bos, eos) = (id(&like.bos_token), id(&like.eos_token));
    let mut config = config_json(like.path(), like.config())?;
    config.insert("torch_dtype".into(), json!(precision.torch()));
    config.insert("bos_token_id".into(), json!(bos));
    config.insert("eos_token_id".into(), json!(eos));
    write_json(&to.join("config.json"), &Value::Object(config))?;
    let mut words = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": like.bos_token,
        "eos_token": like.eos_token,
        "clean_up_tokenization_spaces": false,
        "model_max_length": like.config().context_length,
    });
    if let Some(template) = &like.chat_template {
        words["chat_template"] = json!(template);
    }
    write_json(&to.join("tokenizer_config.json"), &words)?;
    let ends = match like.end_tokens.as_slice() {
        [] => json!(eos),
        [only] => json!(only),
        several => json!(several),
    };
    let generation = json!({"bos_token_id": bos, "eos_token_id": ends});
    write_json(&to.join("generation_config.json"), &generation)
}

/// `config.json` for a shape: the family is the one that has its parts.
fn config_json(path: &Path, c: &DecoderConfig) -> Result<Map<String, Value>> {
    if let Some(what) = c.unlike_llama() {
        let what = format!("a config.json for a GGUF file of this family ({what})");
        return Err(Error::unsupported(
            path,
            what,
            "those of llama, mistral, qwen2, qwen3",
        ));
    }
    let family = match (
        c.qk_norm,
        c.sliding_window,
        c.qkv_bias,
        c.output_bias,
        c.mlp_bias,
    ) {
        (true, None, q, o, false) if q == o => "qwen3",
        (false, Some(_), false, false, false) => "mistral",
        (false, None, true, false, false) => "qwen2",
        (false, None, q, o, _) if q == o => "llama",
        _ => {
            let what = "this combination of biases, norms and sliding window";
            return Err(Error::unsupported(
                path,
                what,
                "those of llama, mistral, qwen2, qwen3",
            ));
        }
    };
    let mut document = json!({
        "model_type": family,
        "architectures": [architecture(family)?],
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": decimal(c.norm_eps),
        "rope_theta": decimal(c.rope.theta),
        "rope_scaling": rope_scaling(path, c)?,
        "tie_word_embeddings": c.tied_head,
        "hidden_act": "silu",
    });
    match family {
        "llama" => {
            document["attention_bias"] = json!(c.qkv_bias);
            document["mlp_bias"] = json!(c.mlp_bias);
        }
        "qwen3" => document["attention_bias"] = json!(c.qkv_bias),
        "mistral" => document["sliding_window"] = json!(c.sliding_window),
        _ => {}
    }
    match document {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// The number as people write it: `1e-5`, not `9.999999747378752e-6`.
fn decimal(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(json!(value), |v| json!(v))
}

fn rope_scaling(path: &Path, c: &DecoderConfig) -> Result<Value> {
    let llama3 = |factor: f32, low: f32, high: f32, context: f32| {
        json!({
            "rope_type": "llama3",
            "factor": decimal(factor),
            "low_freq_factor": decimal(low),
            "high_freq_factor": decimal(high),
            "original_max_position_embeddings": context as usize,
        })
    };
    Ok(match &c.rope.scaling {
        RopeScaling::Plain => Value::Null,
        RopeScaling::Linear(factor) => json!({"rope_type": "linear", "factor": decimal(*factor)}),
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context,
        } => llama3(factor, low, high, original_context),
        RopeScaling::Yarn { .. } | RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. } => {
            let what = "a rope scaling of this kind in a GGUF file";
            return Err(Error::unsupported(
                path,
                what,
                "linear and those of LLaMA 3",
            ));
        }
        // GGUF keeps the quotients only. Those of LLaMA 3 come from these numbers.
        RopeScaling::Factors(factors) => {
            let factor = factors.iter().copied().fold(1.0, f32::max);
            let (low, high, context) = (1.0, 4.0, 8192.0);
            let guess = Rope {
                theta: c.rope.theta,
                scaling: RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: context,
                },
            };
            let (guess, factors) = (
                guess.frequencies(c.head_dim),
                c.rope.frequencies(c.head_dim),
            );
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs();
            if !guess.iter().zip(&factors).all(near) {
                let what = "rope_freqs with other factors";
                return Err(Error::unsupported(path, what, "those of LLaMA 3"));
            }
            llama3(factor, low, high, context)
        }
    })
}
