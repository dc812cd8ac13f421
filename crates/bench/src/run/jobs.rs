//! What a run has to generate, cut into batches by content.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mixing::{Plan, Strategy};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::generate::{Generate, model_input};
use crate::prompts::NamedPrompt;

/// Name that stands for a strategy in the rows of the reference responses.
pub const REFERENCE: &str = "reference";

/// Name that stands for a strategy in the rows of the validation set.
pub const VALIDATION: &str = "validation";

/// A file holds several times as many responses as are decoded together, so that a finished one can make
/// room for the next; a kill loses one file's work at most.
const BATCHES_PER_FILE: usize = 4;

/// What stands for the preference in a candidate's rows and files: the expert's name where it is one alone.
pub(super) fn label(preference: &str, candidate: &Strategy) -> String {
    match candidate {
        Strategy::Single(single) => single.expert.clone(),
        other => {
            let key = Sha256::digest(json!(other).to_string().as_bytes());
            format!("{preference}.{}", lm::source::hex(&key[..4]))
        }
    }
}

/// One strategy for one preference, or the references.
pub(super) struct Job<'a> {
    pub part: &'static str,
    pub strategy: &'a str,
    /// Of a candidate's responses to validation prompts: [`label`].
    pub preference: String,
    /// A candidate, and whom it is to serve.
    served: Option<(&'a str, Strategy)>,
    prompts: &'a [NamedPrompt],
    samples: u32,
    definition: Value,
}

pub(super) struct Batch<'a> {
    pub job: &'a Job<'a>,
    pub requests: Vec<(&'a NamedPrompt, u32)>,
    pub file: String,
    /// Tokens to make at most.
    pub limit: u64,
}

impl Generate<'_> {
    /// Each candidate and the base over the validation prompts. A single expert serves nobody in particular and
    /// answers once for all preferences.
    pub(super) fn validation_jobs(&self) -> Result<Vec<Job<'_>>> {
        let mut jobs = BTreeMap::new();
        for (strategy, _) in self.experiment.strategies.iter() {
            for (preference, stated) in self.experiment.preferences.iter() {
                for candidate in self.experiment.plan(strategy, preference)?.candidates {
                    let label = label(preference, &candidate.strategy);
                    let definition = match candidate.strategy {
                        Strategy::Single(_) => json!(null),
                        ref other => json!([self.strategy_definition(strategy, other), stated]),
                    };
                    let served = Some((preference, candidate.strategy));
                    jobs.entry(label).or_insert((definition, served));
                }
            }
        }
        if !jobs.is_empty() {
            jobs.insert(mixing::BASE.into(), (json!(null), None));
        }
        let jobs = jobs.into_iter().map(|(label, (definition, served))| Job {
            part: "validation",
            strategy: VALIDATION,
            preference: label,
            served,
            prompts: self.validation,
            samples: 1,
            definition,
        });
        Ok(jobs.collect())
    }

    pub(super) fn jobs(&self) -> Result<Vec<Job<'_>>> {
        let mut jobs = vec![Job {
            part: "references",
            strategy: REFERENCE,
            preference: String::new(),
            served: None,
            prompts: self.prompts,
            samples: 1,
            definition: json!(null),
        }];
        for (strategy, spec) in self.experiment.strategies.iter() {
            for (preference, stated) in self.experiment.preferences.iter() {
                let plan = self.experiment.plan(strategy, preference)?;
                let place = (strategy.to_string(), preference.to_string());
                let mut definition = match self.chosen.get(&place) {
                    Some(chosen) => {
                        let own = self.strategy_definition(strategy, &chosen.strategy);
                        vec![self.strategy_definition(strategy, spec), json!(stated), own]
                    }
                    None => vec![self.strategy_definition(strategy, spec), json!(stated)],
                };
                if plan.samples > 1 {
                    // What is kept follows from the rewards, too.
                    definition.push(self.rewards_definition());
                }
                jobs.push(Job {
                    part: "generations",
                    strategy,
                    preference: preference.into(),
                    served: None,
                    prompts: self.prompts,
                    samples: self.experiment.samples,
                    definition: json!(definition),
                });
            }
        }
        Ok(jobs)
    }

    /// What a strategy does: files count by content; where they lie does not.
    fn strategy_definition(&self, name: &str, strategy: &Strategy) -> Value {
        let mut strategy = strategy.clone();
        let models = strategy.models_mut();
        if models.is_empty() {
            return json!(strategy);
        }
        let files = self.contents(&format!("strategy {name}"), models);
        json!([strategy, files])
    }

    /// What is in the files of models, whose paths are taken away.
    fn contents(
        &self,
        user: &str,
        models: Vec<&mut PathBuf>,
    ) -> Vec<Option<&BTreeMap<String, String>>> {
        let each = models.into_iter().enumerate().map(|(i, model)| {
            model.clear();
            self.inputs.get(&model_input(user, i))
        });
        each.collect()
    }

    /// What utility follows from, in the same way.
    pub(super) fn rewards_definition(&self) -> Value {
        let each = self.experiment.dimensions.iter().map(|(name, dimension)| {
            let mut dimension = dimension.clone();
            let models = dimension.scorer.models_mut();
            let files = self.contents(&format!("dimension {name}"), models);
            json!([name, dimension, files])
        });
        json!([each.collect::<Vec<_>>(), self.experiment.utility])
    }

    pub(super) fn plan(&self, job: &Job<'_>) -> Result<Plan> {
        match job.part {
            "references" => self.single(mixing::BASE),
            "validation" => match &job.served {
                None => self.single(mixing::BASE),
                Some((preference, strategy)) => self.serving(strategy, preference),
            },
            _ => {
                let place = (job.strategy.to_string(), job.preference.clone());
                match self.chosen.get(&place) {
                    Some(chosen) => self.serving(&chosen.strategy, &job.preference),
                    None => self.experiment.plan(job.strategy, &job.preference),
                }
            }
        }
    }

    /// How any strategy serves a preference of the experiment.
    pub(super) fn serving(&self, strategy: &Strategy, preference: &str) -> Result<Plan> {
        let stated = self.experiment.preferences.get(preference);
        let stated = stated.context("the preference is known")?;
        self.experiment.serve(strategy, stated)
    }

    /// One expert alone, which serves nobody in particular: whose preference it is does not matter.
    fn single(&self, expert: &str) -> Result<Plan> {
        let any = self.experiment.preferences.iter().next();
        let (_, preference) = any.context("no preference")?;
        let expert = expert.to_string();
        let single = Strategy::Single(mixing::strategies::Single { expert });
        Ok(single.plan(preference, &self.experiment.expert_names())?)
    }

    /// What a job's distributions follow from.
    pub(super) fn content(&self, job: &Job<'_>, plan: &Plan) -> Value {
        let names = plan.sources().into_iter();
        let experts: BTreeMap<&str, &Value> =
            names.map(|name| (name, &self.fingerprints[name])).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.experiment.device.content_key(),
            "weights": self.experiment.weights,
            "model": self.inputs["model"],
            "experts": experts,
            "strategy": job.strategy,
            "preference": job.preference,
            "definition": job.definition,
        })
    }

    /// Cuts a job into batches.
    pub(super) fn batches<'b>(&'b self, job: &'b Job<'b>) -> Result<Vec<Batch<'b>>> {
        let plan = self.plan(job)?;
        let attempts = plan.samples as u64 * self.experiment.generation.max_new_tokens as u64;
        let requests: Vec<(&NamedPrompt, u32)> = job
            .prompts
            .iter()
            .flat_map(|p| (0..job.samples).map(move |s| (p, s)))
            .collect();
        let cut = requests
            .chunks(self.experiment.batch_size * BATCHES_PER_FILE)
            .enumerate();
        let batches = cut.map(|(i, requests)| {
            let asked: Vec<Value> = requests
                .iter()
                .map(|(p, sample)| json!([p.id, p.prompt, sample]))
                .collect();
            let key = json!([
                self.content(job, &plan),
                {
                    "seed": self.experiment.seed,
                    "generation": self.experiment.generation,
                    "kl": self.experiment.kl,
                    "requests": asked,
                },
            ]);
            let key = lm::source::hex(&Sha256::digest(key.to_string().as_bytes())[..6]);
            let file = match job.part {
                "references" => format!("{i:04}.{key}.parquet"),
                "validation" => format!("{}.{i:04}.{key}.parquet", job.preference),
                _ => format!("{}.{}.{i:04}.{key}.parquet", job.strategy, job.preference),
            };
            Batch {
                job,
                limit: requests.len() as u64 * attempts,
                requests: requests.to_vec(),
                file,
            }
        });
        Ok(batches.collect())
    }
}
