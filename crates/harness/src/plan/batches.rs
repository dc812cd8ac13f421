//! Entries cut into batches by content. A batch's file name ends in a hash of all that its rows follow from, so a
//! batch is the same whether or not others are there already, and is found again wherever it lies.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result};
use eval::dimension::Normalisation;
use eval::rewards::MEASURED_AT;
use mixing::Strategy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Entry, FileHashes, RunPlan, Stage};
use crate::prompts::NamedPrompt;

/// A file holds several times as many responses as are decoded together, so that a finished one can make
/// room for the next; a kill loses one file's work at most.
const BATCHES_PER_FILE: usize = 4;

/// Responses that are made together and lie in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Numbers of its requests among those of the entry: prompt by prompt, and of each prompt sample by sample.
    pub requests: Range<usize>,
    /// Name of the file, in the stage's [folder](Stage::folder).
    pub file: String,
    /// Tokens to make at most.
    pub limit: u64,
}

/// A hash of what something follows from, short enough for a file's name.
pub(crate) fn key(content: &Value) -> String {
    lm::source::hex(&Sha256::digest(content.to_string().as_bytes())[..6])
}

impl RunPlan<'_> {
    /// The requests of a batch: a prompt, and the number of the sample.
    pub fn requests(&self, entry: &Entry, batch: &Batch) -> Vec<(&NamedPrompt, u32)> {
        let prompts = self.prompts(entry);
        let samples = entry.samples as usize;
        let numbers = batch.requests.clone();
        numbers
            .map(|number| (&prompts[number / samples], (number % samples) as u32))
            .collect()
    }

    /// Cuts whatever is settled.
    pub(super) fn cut_all(&mut self) -> Result<()> {
        self.references.batches = self.cut(&self.references)?;
        for number in 0..self.validation.len() {
            self.validation[number].batches = self.cut(&self.validation[number])?;
        }
        for number in 0..self.entries.len() {
            if self.entries[number].plan.candidates.is_empty() {
                self.entries[number].batches = self.cut(&self.entries[number])?;
            }
        }
        Ok(())
    }

    pub(super) fn cut(&self, entry: &Entry) -> Result<Vec<Batch>> {
        let experiment = self.experiment;
        let content = self.content(entry)?;
        let attempts = entry.plan.samples as u64 * experiment.generation.max_new_tokens as u64;
        let total = self.prompts(entry).len() * entry.samples as usize;
        let step = experiment.batch_size * BATCHES_PER_FILE;
        let starts = (0..total).step_by(step).enumerate();
        let batches = starts.map(|(number, start)| {
            let mut batch = Batch {
                requests: start..total.min(start + step),
                file: String::new(),
                limit: 0,
            };
            let requests = self.requests(entry, &batch);
            let asked: Vec<Value> = requests
                .iter()
                .map(|(p, sample)| json!([p.id, p.prompt, sample]))
                .collect();
            let key = key(&json!([
                content,
                {
                    "seed": experiment.seed,
                    "generation": experiment.generation,
                    "kl": experiment.kl,
                    "requests": asked,
                },
            ]));
            let (strategy, preference) = (&entry.strategy, &entry.preference);
            batch.file = match entry.stage {
                Stage::Reference => format!("{number:04}.{key}.parquet"),
                Stage::Validation => format!("{preference}.{number:04}.{key}.parquet"),
                Stage::Generation => format!("{strategy}.{preference}.{number:04}.{key}.parquet"),
            };
            batch.limit = requests.len() as u64 * attempts;
            batch
        });
        Ok(batches.collect())
    }

    /// What an entry's distributions follow from. The words are those of version 0.1, whose rows are found again.
    ///
    /// # Errors
    /// An expert or a model whose files were not hashed.
    pub fn content(&self, entry: &Entry) -> Result<Value> {
        let mut experts: BTreeMap<&str, &Value> = BTreeMap::new();
        for name in entry.plan.sources() {
            let fingerprint = self.fingerprints.get(name);
            let fingerprint = fingerprint
                .with_context(|| format!("the files of expert '{name}' were not hashed"))?;
            experts.insert(name, fingerprint);
        }
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.experiment.device.content_key(),
            "weights": self.experiment.format,
            "model": self.inputs.model()?,
            "experts": experts,
            "strategy": entry.strategy,
            "preference": entry.preference,
            "definition": entry.definition,
        }))
    }

    /// What utility follows from, files by content.
    ///
    /// # Errors
    /// A model whose files were not hashed.
    pub fn rewards_definition(&self) -> Result<Value> {
        let mut dimensions = Vec::new();
        for (name, dimension) in self.experiment.dimensions.iter() {
            let mut dimension = dimension.clone();
            let files = self.files_at(dimension.scorer.take_models())?;
            let tokens = self.experiment.generation.max_new_tokens;
            let given = matches!(dimension.normaliser, Some(Normalisation::Given(_)));
            // The words are those of version 0.1 where its normalisers hold.
            dimensions.push(match given || tokens == MEASURED_AT {
                true => json!([name, dimension, files]),
                false => json!([name, dimension, files, tokens]),
            });
        }
        let Some(bounds) = &self.experiment.bounds else {
            return Ok(json!([dimensions, self.experiment.utility]));
        };
        let mut bounds = bounds.clone();
        let models = bounds.relevance.as_mut().map(|scorer| scorer.take_models());
        let files = self.files_at(models.unwrap_or_default())?;
        Ok(json!([dimensions, self.experiment.utility, bounds, files]))
    }

    /// What a strategy does: files count by content; where they lie does not.
    pub(super) fn strategy_definition(&self, strategy: &Strategy) -> Result<Value> {
        let mut strategy = strategy.clone();
        let models = strategy.models_mut().into_iter();
        let models: Vec<PathBuf> = models.map(std::mem::take).collect();
        if models.is_empty() {
            return Ok(json!(strategy));
        }
        let files = self.files_at(models)?;
        Ok(json!([strategy, files]))
    }

    /// What is in the files of models.
    fn files_at(&self, models: Vec<PathBuf>) -> Result<Vec<&FileHashes>> {
        models.iter().map(|model| self.inputs.at(model)).collect()
    }
}
