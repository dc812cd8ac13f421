//! The model card of a written adapter: `README.md` as the hub shows it, with base, data, command and figures.

use std::path::Path;

use anyhow::Result;
use lm::source::hub::HubId;
use lm::source::sha256;
use serde_json::{Map, Value};

use super::Job;
use super::file::Recipe;

/// What a recipe is called, and the file that it learns from.
fn learned(recipe: &Recipe) -> (&'static str, &Path) {
    match recipe {
        Recipe::Sft(t) => ("supervised fine-tuning", &t.data),
        Recipe::Dpo(t) => ("direct preference optimisation", &t.data),
        Recipe::Rebel(t) => ("REBEL", &t.prompts),
        Recipe::BestWorst(t) => (
            "REBEL's regression on the best and the worst of many responses",
            &t.prompts,
        ),
        Recipe::Morl(t) => ("one policy for all preferences (MORL)", &t.prompts),
        Recipe::Reward(t) => ("a Bradley-Terry reward model", &t.data),
        Recipe::Classifier(t) => ("a classifier", &t.prompts),
        Recipe::Pcm(t) => ("a Preference Control Model", &t.prompts),
    }
}

/// The name by which others know the base: its id on the hub, or what the file says.
pub(super) fn base(model: &str) -> String {
    match HubId::parse(model) {
        Some(id) => id.repository(),
        None => model.into(),
    }
}

/// A text between quotes in YAML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Writes the card of the adapter in `folder`; `last` are the figures of the last step or iteration.
///
/// # Errors
/// Data that is gone, a folder that cannot be written.
pub(super) fn write(job: &Job<'_>, folder: &Path, last: &Map<String, Value>) -> Result<()> {
    let training = job.training;
    let (method, data) = learned(&training.recipe);
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let hash = sha256(data)?;
    let file = job.options.source.file_name().unwrap_or_default();
    let (base, lora) = (base(&training.model), &training.lora);
    let numbers = last
        .iter()
        .filter_map(|(name, v)| Some((name, v.as_f64()?)));
    let rows: String = numbers
        .map(|(name, v)| format!("| {name} | {v:.4} |\n"))
        .collect();
    let table = match rows.is_empty() {
        true => String::new(),
        false => format!("\n| last step | |\n|---|--:|\n{rows}"),
    };
    let card = format!(
        "---\nbase_model: {}\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- mope\n---\n\n\
         # {}\n\n\
         A LoRA adapter of rank {} for {base}, by {method}.\n\n\
         - data: `{name}` (SHA-256 `{hash}`)\n\
         - command: `mope train {}`, version {}, seed {}\n\
         - trained in {:?}, written in {:?}\n{table}",
        quoted(&base),
        training.name,
        lora.rank,
        file.to_string_lossy(),
        env!("CARGO_PKG_VERSION"),
        training.seed,
        training.format,
        training.precision,
    );
    Ok(eval::write_atomic(
        &folder.join("README.md"),
        card.as_bytes(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_of_the_hub_has_the_hubs_name() {
        assert_eq!(base("hf://Qwen/Qwen3-4B@main"), "Qwen/Qwen3-4B");
        assert_eq!(base("smollm2-135m-instruct"), "smollm2-135m-instruct");
        assert_eq!(base("/data/models/base"), "/data/models/base");
        assert_eq!(quoted("a \"b\": c"), r#""a \"b\": c""#);
    }
}
