//! `mope inspect`: what a model, an adapter or a PCM holds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use lm::load::Checkpoint;
use lm::{Adapter, Tokenizer};
use pcm::Pcm;
use serde_json::{Value, json};

use super::Global;

pub fn inspect(global: &Global, path: &Path) -> Result<()> {
    if Adapter::is_at(path) {
        return adapter(global, path);
    }
    if is_pcm(path) {
        return preference_model(global, path);
    }
    let checkpoint = Checkpoint::open(path)?;
    let config = checkpoint.config();
    let tokenizer = Tokenizer::load(&checkpoint);
    let mut formats: BTreeMap<String, usize> = BTreeMap::new();
    let tensors = checkpoint.tensors();
    for (_, tensor) in &tensors {
        *formats.entry(format!("{:?}", tensor.format)).or_default() += 1;
    }
    let list: Vec<_> = tensors
        .iter()
        .map(|(name, t)| json!({"name": name, "shape": t.shape, "format": format!("{:?}", t.format)}))
        .collect();
    let tokenizer_state = match &tokenizer {
        Ok(t) => format!("{} ids", t.vocab_size()),
        Err(e) => format!("unusable: {e}"),
    };
    let document = json!({
        "path": path.display().to_string(),
        "config": config,
        "parameters": config.parameters(),
        "tensors": list,
        "tokenizer": tokenizer_state,
        "chat_template": checkpoint.has_chat_template(),
    });
    global.print(document, || {
        let formats: Vec<String> = formats.iter().map(|(f, n)| format!("{n} {f}")).collect();
        let mut rows = vec![
            ("model".into(), path.display().to_string()),
            ("parameters".into(), millions(config.parameters())),
            (
                "tensors".into(),
                format!("{} ({})", tensors.len(), formats.join(", ")),
            ),
        ];
        fields("", &json!(config), &mut rows);
        rows.push(("tokenizer".into(), tokenizer_state));
        rows.push((
            "chat_template".into(),
            readable(&checkpoint.has_chat_template().into()),
        ));
        lines(&rows)
    })
}

fn adapter(global: &Global, path: &Path) -> Result<()> {
    let adapter = Adapter::describe(path)?;
    global.print(json!(adapter), || {
        let base = adapter.base.as_deref();
        lines(&[
            ("adapter".into(), path.display().to_string()),
            ("kind".into(), adapter.peft_type.clone()),
            ("parameters".into(), millions(adapter.parameters)),
            ("tensors".into(), adapter.tensors.len().to_string()),
            ("rank".into(), adapter.rank.to_string()),
            ("alpha".into(), adapter.alpha.to_string()),
            (
                "trained_on".into(),
                base.unwrap_or("a model that is not named").into(),
            ),
        ])
    })
}

/// Whether a folder holds a PCM: its config names experts, where a model's names its type.
fn is_pcm(path: &Path) -> bool {
    let text = std::fs::read_to_string(path.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    config.get("experts").is_some_and(Value::is_array) && config.get("model_type").is_none()
}

fn preference_model(global: &Global, path: &Path) -> Result<()> {
    let pcm = Pcm::load(path)?;
    let (config, parameters) = (pcm.config(), pcm.values().len());
    let document = json!({
        "path": path.display().to_string(),
        "pcm": config,
        "parameters": parameters,
    });
    global.print(document, || {
        let mut rows = vec![
            ("pcm".into(), path.display().to_string()),
            ("parameters".into(), millions(parameters)),
        ];
        fields("", &json!(config), &mut rows);
        lines(&rows)
    })
}

fn millions(parameters: usize) -> String {
    format!("{parameters} ({:.1} M)", parameters as f64 / 1e6)
}

/// The fields of a config with their values; those in others as `outer.inner`.
fn fields(outer: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(inner) => {
            for (name, value) in inner {
                let name = match outer {
                    "" => name.clone(),
                    outer => format!("{outer}.{name}"),
                };
                fields(&name, value, rows);
            }
        }
        value => rows.push((outer.into(), readable(value))),
    }
}

fn readable(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(readable).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A line for each key, values below each other.
fn lines(rows: &[(String, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    rows.iter()
        .map(|(key, value)| format!("{key:<width$}  {value}\n"))
        .collect()
}
