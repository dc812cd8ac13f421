//! Stage "generate": responses of every strategy to every prompt for every preference.
//!
//! Batches are cut by content, so a batch is the same whether or not others are there already. A
//! batch's file carries a key of all that its rows follow from: inputs, settings, seed, version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use eval::rows::{GenerationRow, Identity, generations_frame};
use eval::table::parquet;
use experts::{Expert, ExpertPool};
use lm::LanguageModel;
use lm::sampling::Draws;
use mixing::merging::Source;
use mixing::{Generator, Plan, Request, Response, Strategy};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::folder::RunFolder;
use super::manifest::Session;
use crate::experiment::Experiment;
use crate::failure::usage;
use crate::models::{Models, hashes};
use crate::progress::Progress;
use crate::prompts::NamedPrompt;

/// Name that stands for a strategy in the rows of the reference responses.
pub const REFERENCE: &str = "reference";

/// A file holds several times as many responses as are decoded together, so that a finished one can make
/// room for the next; a kill loses one file's work at most.
const BATCHES_PER_FILE: usize = 4;

/// Everything that generating needs.
pub struct Generate<'a> {
    experiment: &'a Experiment,
    prompts: &'a [NamedPrompt],
    base: Arc<LanguageModel>,
    models: Models,
    experts: BTreeMap<String, Expert>,
    /// Parameters of the experts that are merged.
    sources: BTreeMap<String, Source>,
    /// What an expert's responses follow from, by its name.
    fingerprints: BTreeMap<String, Value>,
    /// Hashes of input files by what they belong to.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
}

/// All rows of a run.
pub struct Rows {
    /// The base's response to each prompt, which utility refers to.
    pub references: Vec<GenerationRow>,
    /// Responses of the strategies.
    pub generations: Vec<GenerationRow>,
}

/// One strategy for one preference, or the references.
struct Job<'a> {
    part: &'static str,
    strategy: &'a str,
    preference: &'a str,
    samples: u32,
    definition: Value,
}

struct Batch<'a> {
    job: &'a Job<'a>,
    requests: Vec<(&'a NamedPrompt, u32)>,
    file: String,
}

impl<'a> Generate<'a> {
    /// Opens the models and checks that every prompt fits.
    ///
    /// # Errors
    /// A model or adapter that can't be opened, a prompt that is too long.
    pub fn open(experiment: &'a Experiment, prompts: &'a [NamedPrompt]) -> Result<Self> {
        let mut models = Models::on(&experiment.device, experiment.weights)?;
        let base = models.open(&experiment.model)?;
        let base_hashes = hashes(&models.path(&experiment.model)?)?;
        let (mut used, mut merged) = (BTreeSet::new(), BTreeSet::new());
        for (strategy, _) in experiment.strategies.iter() {
            for (preference, _) in experiment.preferences.iter() {
                let plan = experiment.plan(strategy, preference)?;
                match plan.merge {
                    Some(recipe) => merged.extend(recipe.experts),
                    None => used.extend(plan.experts),
                }
            }
        }
        used.insert(mixing::BASE.to_string());
        let mut generate = Self {
            experiment,
            prompts,
            models,
            experts: BTreeMap::new(),
            sources: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            inputs: [("model".to_string(), base_hashes)].into(),
            base,
        };
        for name in used.union(&merged).cloned().collect::<Vec<String>>() {
            let spec = experiment.expert(&name);
            let (models, base) = (&mut generate.models, &generate.base);
            if merged.contains(&name) {
                let source = models.source(&name, &spec, base.config())?;
                generate.sources.insert(name.clone(), source);
            }
            if used.contains(&name) {
                let expert = models.expert(&name, &spec, base)?;
                generate.experts.insert(name.clone(), expert);
            }
            let files = match spec.whole() {
                experts::ExpertSpec::Adapter(folder) => Some(hashes(folder)?),
                experts::ExpertSpec::Full(model) => Some(hashes(&models.path(model)?)?),
                _ => None,
            };
            // Files count by content; where they lie does not.
            let what = match (&files, spec.gives().top_k) {
                (Some(files), Some(top_k)) => json!([files, {"top_k": top_k}]),
                (Some(files), None) => json!(files),
                (None, _) => json!(spec),
            };
            generate.fingerprints.insert(name.clone(), what);
            if let Some(files) = files {
                generate.inputs.insert(format!("expert {name}"), files);
            }
        }
        generate.check_lengths()?;
        Ok(generate)
    }

    fn check_lengths(&self) -> Result<()> {
        let new = self.experiment.generation.max_new_tokens;
        for (strategy, _) in self.experiment.strategies.iter() {
            for (preference, _) in self.experiment.preferences.iter() {
                let plan = self.experiment.plan(strategy, preference)?;
                for NamedPrompt { id, prompt } in self.prompts {
                    let prompt = plan.prompt(prompt)?;
                    // What is merged reads and remembers as the base does.
                    let base = [mixing::BASE.to_string()];
                    let names = match &plan.merge {
                        Some(_) => &base[..],
                        None => &plan.experts,
                    };
                    for name in names {
                        let expert = &self.experts[name];
                        let limit = expert.model.config().context_length;
                        let tokens = expert
                            .tokens(&prompt)
                            .with_context(|| format!("prompt '{id}'"))?
                            .len();
                        if tokens + new > limit {
                            return Err(usage(format!(
                                "{}: prompt '{id}' has {tokens} tokens for expert '{name}'; with \
                                 {new} new ones it does not fit into the context of {limit}; \
                                 shorten the prompt or lower max_new_tokens",
                                self.experiment.prompts.display()
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn jobs(&self) -> Vec<Job<'_>> {
        let mut jobs = vec![Job {
            part: "references",
            strategy: REFERENCE,
            preference: "",
            samples: 1,
            definition: json!(null),
        }];
        for (strategy, spec) in self.experiment.strategies.iter() {
            for (preference, stated) in self.experiment.preferences.iter() {
                jobs.push(Job {
                    part: "generations",
                    strategy,
                    preference,
                    samples: self.experiment.samples,
                    definition: json!([spec, stated]),
                });
            }
        }
        jobs
    }

    fn plan(&self, job: &Job<'_>) -> Result<Plan> {
        match job.part {
            // The base serves nobody in particular, so whose preference it is does not matter.
            "references" => {
                let any = self.experiment.preferences.iter().next();
                let (_, preference) = any.context("no preference")?;
                Ok(
                    Strategy::Base(mixing::strategies::Base {})
                        .plan(preference, &[mixing::BASE])?,
                )
            }
            _ => self.experiment.plan(job.strategy, job.preference),
        }
    }

    /// Cuts a job into batches.
    fn batches<'b>(&'b self, job: &'b Job<'b>) -> Result<Vec<Batch<'b>>> {
        let plan = self.plan(job)?;
        let names = plan.sources().iter();
        let experts: BTreeMap<&String, &Value> =
            names.map(|name| (name, &self.fingerprints[name])).collect();
        let requests: Vec<(&NamedPrompt, u32)> = self
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
            let key = json!({
                "version": env!("CARGO_PKG_VERSION"),
                "device": self.experiment.device,
                "weights": self.experiment.weights,
                "seed": self.experiment.seed,
                "model": self.inputs["model"],
                "experts": experts,
                "generation": self.experiment.generation,
                "strategy": job.strategy,
                "preference": job.preference,
                "definition": job.definition,
                "requests": asked,
            });
            let key = lm::source::hex(&Sha256::digest(key.to_string().as_bytes())[..6]);
            let file = match job.part {
                "references" => format!("{i:04}.{key}.parquet"),
                _ => format!("{}.{}.{i:04}.{key}.parquet", job.strategy, job.preference),
            };
            Batch {
                job,
                requests: requests.to_vec(),
                file,
            }
        });
        Ok(batches.collect())
    }

    /// Makes what is missing and returns all rows.
    ///
    /// # Errors
    /// A model that fails, a folder that cannot be written. What is done stays.
    pub fn run(&self, folder: &RunFolder, session: &mut Session) -> Result<Rows> {
        let jobs = self.jobs();
        let batches: Vec<Vec<Batch<'_>>> = jobs
            .iter()
            .map(|job| self.batches(job))
            .collect::<Result<_>>()?;
        for part in ["references", "generations"] {
            let own = batches.iter().flatten().filter(|b| b.job.part == part);
            let moved = folder.keep_only(part, &own.map(|b| b.file.clone()).collect())?;
            if moved > 0 {
                eprintln!("{part}: {moved} files of another config moved to superseded/");
            }
        }
        let limit = self.experiment.generation.max_new_tokens as u64;
        let responses: usize = batches.iter().flatten().map(|b| b.requests.len()).sum();
        let mut progress = Progress::new("generate", "tokens", responses as u64 * limit);
        let mut rows = Rows {
            references: Vec::new(),
            generations: Vec::new(),
        };
        let mut spent: BTreeMap<String, f64> = BTreeMap::new();
        for (job, batches) in jobs.iter().zip(&batches) {
            // Opened for the first batch that is not there yet.
            let mut pool = None;
            for batch in batches {
                let found = match folder.batch(job.part, &batch.file, batch.requests.len())? {
                    Some(found) => {
                        progress.skip(batch.requests.len() as u64 * limit);
                        found
                    }
                    None => {
                        if pool.is_none() {
                            pool = Some(self.pool(job)?);
                        }
                        let pool = pool.as_ref().context("the pool is open")?;
                        let place = format!("{} {}", job.strategy, job.preference);
                        progress.message(place);
                        let start = Instant::now();
                        let made = self.batch(batch, pool, &mut progress)?;
                        let tokens: usize = made.iter().map(|r| r.tokens.len()).sum();
                        *session.tokens.entry(job.strategy.into()).or_default() += tokens as u64;
                        *spent.entry(job.strategy.into()).or_default() +=
                            start.elapsed().as_secs_f64();
                        let path = folder.path(job.part).join(&batch.file);
                        let mut frame = generations_frame(&made)?;
                        eval::write_atomic(&path, &parquet(&path, &mut frame)?)?;
                        made
                    }
                };
                match job.part {
                    "references" => rows.references.extend(found),
                    _ => rows.generations.extend(found),
                }
            }
        }
        for (strategy, seconds) in spent {
            let rate = session.tokens[&strategy] as f64 / seconds.max(1e-9);
            session.tokens_per_second.insert(strategy, rate);
        }
        progress.finish();
        Ok(rows)
    }

    fn pool(&self, job: &Job<'_>) -> Result<ExpertPool> {
        let plan = self.plan(job)?;
        let experts = match &plan.merge {
            Some(recipe) => {
                let sources = recipe.experts.iter().map(|n| self.sources[n].clone());
                let path = self.models.known(&self.experiment.model)?;
                vec![
                    self.models
                        .merged(recipe, sources.collect(), path, &self.base)?,
                ]
            }
            None => {
                let names = plan.experts.iter();
                names.map(|name| self.experts[name].clone()).collect()
            }
        };
        Ok(ExpertPool::new(experts)?)
    }

    fn batch(
        &self,
        batch: &Batch<'_>,
        pool: &ExpertPool,
        progress: &mut Progress,
    ) -> Result<Vec<GenerationRow>> {
        let settings = &self.experiment.generation;
        let (limit, width) = (settings.max_new_tokens, self.experiment.batch_size);
        let plan = self.plan(batch.job)?;
        let mut generator = Generator::new(pool, plan, &self.base.end_tokens)?;
        let identity = |(prompt, sample): &(&NamedPrompt, u32)| Identity {
            strategy: batch.job.strategy.into(),
            preference: batch.job.preference.into(),
            prompt: prompt.id.clone(),
            sample: *sample,
        };
        let requests = batch
            .requests
            .iter()
            .map(|request| Request {
                prompt: request.0.prompt.clone(),
                draws: draws(self.experiment.seed, &identity(request)),
            })
            .collect();
        let responses = generator.generate(requests, width, settings, |_, response| {
            progress.advance(1);
            if response.ended {
                progress.skip((limit - response.tokens.len()) as u64);
            }
        })?;
        let rows = batch.requests.iter().zip(responses).map(|(request, r)| {
            let question = request.0.prompt.question();
            row(
                &self.base,
                identity(request),
                question,
                generator.experts(),
                r,
            )
        });
        rows.collect()
    }
}

/// The randomness of one response.
pub fn draws(seed: u64, identity: &Identity) -> Draws {
    Draws::new(&[
        &seed.to_le_bytes(),
        identity.prompt.as_bytes(),
        identity.preference.as_bytes(),
        identity.strategy.as_bytes(),
        &identity.sample.to_le_bytes(),
    ])
}

fn row(
    base: &LanguageModel,
    identity: Identity,
    question: &str,
    experts: &[String],
    response: Response,
) -> Result<GenerationRow> {
    Ok(GenerationRow {
        identity,
        question: question.into(),
        response: base.tokenizer.decode(&response.tokens)?,
        pieces: base.tokenizer.increments(&response.tokens)?,
        tokens: response.tokens,
        log_probs: response.log_probs,
        experts: experts.to_vec(),
        weights: response.weights,
        ended: response.ended,
    })
}
