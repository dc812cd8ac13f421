//! `mope inspect`: what a model or an adapter holds.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use lm::load::Checkpoint;
use lm::{Adapter, Tokenizer};
use serde_json::json;

use super::Global;

pub fn inspect(global: &Global, path: &Path) -> Result<()> {
    if path.join("adapter_config.json").is_file() {
        return adapter(global, path);
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
        format!(
            "{}\n{:.1} M parameters in {} tensors ({})\n{config:#?}\ntokenizer: {tokenizer_state}\n\
             chat template: {}",
            path.display(),
            config.parameters() as f64 / 1e6,
            tensors.len(),
            formats.join(", "),
            if checkpoint.has_chat_template() {
                "yes"
            } else {
                "none"
            }
        )
    })
}

fn adapter(global: &Global, path: &Path) -> Result<()> {
    let adapter = Adapter::describe(path)?;
    global.print(json!(adapter), || {
        format!(
            "{}: {}\nrank {}, alpha {}, trained on {}\n{} tensors, {} parameters",
            path.display(),
            adapter.peft_type,
            adapter.rank,
            adapter.alpha,
            adapter
                .base
                .as_deref()
                .unwrap_or("a model that is not named"),
            adapter.tensors.len(),
            adapter.parameters
        )
    })
}
