//! What a training reads, as hashes: two trainings with the same file and the same inputs give the same result.

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::rewards::Scorer;
use experts::{ExpertSpec, Files};
use mixing::Named;
use serde_json::{Map, Value, json};

use super::file::{PcmTraining, Recipe, Training};
use harness::failure::usage;
use harness::models::{hashes, resolve, resolve_adapter};
use harness::store::folder::parquet_files;

/// SHA-256 of everything that a training reads; `model` is where its base model lies.
///
/// # Errors
/// [`harness::failure::Usage`] for a file that is not there.
pub(super) fn inputs(training: &Training, model: &Path) -> Result<Value> {
    let (data, texts) = files(&training.recipe);
    for file in [Some(data), texts].into_iter().flatten() {
        if !file.is_file() {
            let message = format!("{}: there is no such file", file.display());
            return Err(usage(message));
        }
    }
    let start = training.start.as_deref();
    let start = start.map(|folder| hashes(&resolve_adapter(folder)?));
    let start = start.transpose()?;
    let texts = texts.map(|t| hashes(t)).transpose()?;
    let (pretrained, records) = match &training.recipe {
        Recipe::Pcm(recipe) => (pretrained(recipe)?, records(recipe)?),
        _ => (None, Vec::new()),
    };
    let scorers = training.recipe.scorers().into_iter();
    let rewards: Vec<Value> = scorers
        .flat_map(Scorer::models)
        .map(|m| Ok(json!(hashes(&m)?)))
        .collect::<Result<_>>()?;
    Ok(json!({
        "model": hashes(model)?,
        "data": hashes(data)?,
        "start": start,
        "texts": texts,
        "experts": experts(&training.recipe)?,
        "records": records,
        "pretrained": pretrained,
        "rewards": rewards,
    }))
}

/// The file of prompts or responses, and that of wordings.
pub(super) fn files(recipe: &Recipe) -> (&PathBuf, Option<&PathBuf>) {
    match recipe {
        Recipe::Sft(t) | Recipe::Dpo(t) => (&t.data, None),
        Recipe::Reward(t) => (&t.data, None),
        Recipe::Rebel(t) => (&t.prompts, None),
        Recipe::BestWorst(t) => (&t.prompts, None),
        Recipe::Morl(t) => (&t.prompts, None),
        Recipe::Classifier(t) => (&t.prompts, None),
        Recipe::Pcm(t) => (&t.prompts, Some(&t.texts)),
    }
}

/// Hashes of what an expert reads; `None` where that is the base alone.
fn expert_hashes(expert: &ExpertSpec) -> Result<Option<Value>> {
    Ok(match expert.files() {
        Some(Files::Adapter(folder)) => Some(json!(hashes(&resolve_adapter(&folder)?)?)),
        Some(Files::Model(model)) => Some(json!(hashes(&resolve(&model)?)?)),
        None => None,
    })
}

/// Hashes of the experts that answer, by name.
fn experts(recipe: &Recipe) -> Result<Map<String, Value>> {
    let none = Named::default();
    let (candidates, named): (&[ExpertSpec], _) = match recipe {
        Recipe::BestWorst(t) => (&t.candidates, &none),
        Recipe::Pcm(t) => (&[], &t.experts),
        Recipe::Classifier(t) => (&[], &t.experts),
        _ => (&[], &none),
    };
    let mut experts = Map::new();
    for (number, candidate) in candidates.iter().enumerate() {
        if let Some(files) = expert_hashes(candidate)? {
            experts.insert(format!("candidate {number}"), files);
        }
    }
    for (name, expert) in named.iter() {
        if let Some(files) = expert_hashes(expert)? {
            experts.insert(name.to_string(), files);
        }
    }
    Ok(experts)
}

/// Hashes of the decoder that a PCM begins as.
fn pretrained(recipe: &PcmTraining) -> Result<Option<Value>> {
    let model = recipe.pretrained.as_deref();
    model.map(|m| Ok(json!(hashes(&resolve(m)?)?))).transpose()
}

/// Hashes of recorded rollouts, by folder.
fn records(recipe: &PcmTraining) -> Result<Vec<Vec<String>>> {
    let mut records = Vec::new();
    for folder in &recipe.records {
        let files = parquet_files(folder).map_err(|e| usage(format!("records: {e:#}")))?;
        let hashes = files.iter().map(|f| lm::source::sha256(f));
        records.push(hashes.collect::<lm::Result<Vec<String>>>()?);
    }
    Ok(records)
}
