//! Stage "generate": responses of every strategy to every prompt for every preference.
//!
//! Batches are cut by content, so a batch is the same whether or not others are there already. A
//! batch's file carries a key of all that its rows follow from: inputs, settings, seed, version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use eval::rewards::Normaliser;
use eval::rows::{self, GenerationRow, Identity, generations_frame};
use eval::table::{parquet, read_parquet};
use experts::{Expert, ExpertPool};
use kernels::memory;
use lm::LanguageModel;
use lm::sampling::Draws;
use mixing::merging::Source;
use mixing::{Candidate, Generator, Plan, Request, Response};
use serde_json::{Value, json};

use super::folder::RunFolder;
use super::grid::Shard;
use super::jobs::{Batch, Job, REFERENCE};
use super::manifest::Session;
use super::score::Scorer;
use super::validation;
use crate::experiment::Experiment;
use crate::failure::usage;
use crate::models::{Models, hashes};
use crate::progress::Progress;
use crate::prompts::NamedPrompt;

/// Everything that generating needs.
pub struct Generate<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) prompts: &'a [NamedPrompt],
    pub(super) validation: &'a [NamedPrompt],
    /// What was chosen, by strategy and preference.
    pub(super) chosen: BTreeMap<(String, String), Candidate>,
    pub(super) base: Arc<LanguageModel>,
    models: Models,
    pub(super) experts: BTreeMap<String, Expert>,
    /// Parameters of the experts that are merged.
    sources: BTreeMap<String, Source>,
    /// What an expert's responses follow from, by its name.
    pub(super) fingerprints: BTreeMap<String, Value>,
    /// Hashes of input files by what they belong to.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
    /// What rewards are normalised by, once it has run.
    pub normalisers: BTreeMap<String, Normaliser>,
    /// Only its part of the batches is made.
    pub shard: Option<Shard>,
}

/// All rows of a run.
pub struct Rows {
    /// The base's response to each prompt, which utility refers to.
    pub references: Vec<GenerationRow>,
    /// Responses of the strategies.
    pub generations: Vec<GenerationRow>,
    /// The files that they are in, by strategy and by [`REFERENCE`]; their names say what they follow from.
    pub files: BTreeMap<String, Vec<String>>,
}

/// What [`Generate::make`] tells.
pub(super) enum Made<'a> {
    /// A batch is there.
    Rows(&'a Batch<'a>, Vec<GenerationRow>),
    /// One of several responses to a prompt, as text.
    Attempt(&'a Job<'a>, &'a NamedPrompt, &'a str),
}

impl<'a> Generate<'a> {
    /// Opens the models and checks that every prompt fits.
    ///
    /// # Errors
    /// A model or adapter that can't be opened, a prompt that is too long.
    pub fn open(
        experiment: &'a Experiment,
        prompts: &'a [NamedPrompt],
        validation: &'a [NamedPrompt],
    ) -> Result<Self> {
        let mut models = Models::on(&experiment.device, experiment.weights)?;
        let base = models.open(&experiment.model)?;
        let base_hashes = hashes(&models.path(&experiment.model)?)?;
        let (mut used, mut merged) = (BTreeSet::new(), BTreeSet::new());
        for (strategy, _) in experiment.strategies.iter() {
            for (preference, _) in experiment.preferences.iter() {
                for plan in experiment.plans(strategy, preference)? {
                    for name in plan.experts {
                        match plan.merged.get(&name) {
                            Some(recipe) => merged.extend(recipe.experts.iter().cloned()),
                            None => _ = used.insert(name),
                        }
                    }
                }
            }
        }
        used.insert(mixing::BASE.to_string());
        let mut generate = Self {
            experiment,
            prompts,
            validation,
            chosen: BTreeMap::new(),
            models,
            experts: BTreeMap::new(),
            sources: BTreeMap::new(),
            fingerprints: BTreeMap::new(),
            inputs: [("model".to_string(), base_hashes)].into(),
            normalisers: BTreeMap::new(),
            shard: None,
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
        for (name, strategy) in experiment.strategies.iter() {
            // Found out now, not after hours.
            let tried = strategy.try_models();
            tried.with_context(|| format!("strategy '{name}'"))?;
            for (i, model) in strategy.models().into_iter().enumerate() {
                let files = hashes(model)?;
                let user = format!("strategy {name}");
                generate.inputs.insert(model_input(&user, i), files);
            }
        }
        for (name, dimension) in experiment.dimensions.iter() {
            for (i, folder) in dimension.scorer.models().into_iter().enumerate() {
                let files = hashes(folder)?;
                let user = format!("dimension {name}");
                generate.inputs.insert(model_input(&user, i), files);
            }
        }
        generate.check_lengths()?;
        Ok(generate)
    }

    fn check_lengths(&self) -> Result<()> {
        let new = self.experiment.generation.max_new_tokens;
        for (strategy, _) in self.experiment.strategies.iter() {
            for (preference, _) in self.experiment.preferences.iter() {
                // Candidates differ in how they mix, seldom in what they read: of those that read alike, one.
                let mut seen = BTreeSet::new();
                for plan in self.experiment.plans(strategy, preference)? {
                    let what = json!([plan.experts, plan.instruction, plan.examples]);
                    if seen.insert(what.to_string()) {
                        self.check_plan(&plan, new)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_plan(&self, plan: &Plan, new: usize) -> Result<()> {
        for NamedPrompt { id, prompt } in self.prompts.iter().chain(self.validation) {
            let prompt = plan.prompt(prompt)?;
            for name in &plan.experts {
                // What is merged reads and remembers as the base does.
                let merged = plan.merged.contains_key(name);
                let expert = &self.experts[if merged { mixing::BASE } else { name }];
                let limit = expert.model.config().context_length;
                let tokens = expert
                    .tokens(&prompt)
                    .with_context(|| format!("prompt '{id}'"))?
                    .len();
                if tokens + new > limit {
                    return Err(usage(format!(
                        "{}: prompt '{id}' has {tokens} tokens for expert '{name}'; with {new} new ones it does \
                         not fit into the context of {limit}; shorten the prompt or lower max_new_tokens",
                        self.experiment.prompts.display()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Forward passes of experts for a token that is kept, by strategy, averaged over preferences.
    ///
    /// # Errors
    /// A strategy that does not fit.
    pub fn passes(&self) -> Result<BTreeMap<String, f64>> {
        let mut out: BTreeMap<String, f64> = BTreeMap::new();
        let preferences = self.experiment.preferences.names();
        for (strategy, _) in self.experiment.strategies.iter() {
            for preference in &preferences {
                let place = (strategy.to_string(), preference.to_string());
                let plan = match self.chosen.get(&place) {
                    Some(chosen) => self.serving(&chosen.strategy, preference)?,
                    None => self.experiment.plans(strategy, preference)?.remove(0),
                };
                let passes = (plan.experts.len() * plan.samples) as f64;
                *out.entry(strategy.into()).or_default() += passes / preferences.len() as f64;
            }
        }
        Ok(out)
    }

    /// Makes what is missing and returns all rows.
    ///
    /// # Errors
    /// A model that fails, a folder that cannot be written. What is done stays.
    pub fn run(&mut self, folder: &RunFolder, session: &mut Session) -> Result<Rows> {
        self.chosen = validation::choose(self, self.experiment, self.validation, folder, session)?;
        for ((strategy, preference), chosen) in &self.chosen {
            let own = session.chosen.entry(strategy.clone()).or_default();
            own.insert(preference.clone(), chosen.name.clone());
        }
        let mut rows = Rows {
            references: Vec::new(),
            generations: Vec::new(),
            files: BTreeMap::new(),
        };
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let asked: BTreeMap<&str, &NamedPrompt> =
            self.prompts.iter().map(|p| (p.id.as_str(), p)).collect();
        let mut scorer = Scorer::new(self.experiment)?;
        self.normalisers = scorer.normalisers();
        let parts = ["references", "generations"];
        self.make(&parts, &self.jobs()?, folder, session, |made| match made {
            Made::Rows(batch, found) if batch.job.part == "references" => {
                let own = files.entry(REFERENCE.into()).or_default();
                own.push(batch.file.clone());
                for row in &found {
                    let id = row.identity.prompt.as_str();
                    let prompt = asked.get(id).with_context(|| format!("no prompt '{id}'"))?;
                    scorer.refer(id, &prompt.prompt, &row.response)?;
                }
                rows.references.extend(found);
                Ok(0.0)
            }
            Made::Rows(batch, found) => {
                let own = files.entry(batch.job.strategy.into()).or_default();
                own.push(batch.file.clone());
                rows.generations.extend(found);
                Ok(0.0)
            }
            Made::Attempt(job, prompt, text) => {
                let own = scorer.reward(&prompt.prompt, text)?;
                scorer.utility(&job.preference, &prompt.id, &own)
            }
        })?;
        rows.files = files;
        Ok(rows)
    }

    /// Makes what is missing of some jobs. `hear` gets the rows of each batch in order, and every attempt of
    /// which one is kept; it says what that is worth.
    pub(super) fn make(
        &self,
        parts: &[&'static str],
        jobs: &[Job<'_>],
        folder: &RunFolder,
        session: &mut Session,
        mut hear: impl FnMut(Made<'_>) -> Result<f64>,
    ) -> Result<()> {
        let mut batches: Vec<Vec<Batch<'_>>> = jobs
            .iter()
            .map(|job| self.batches(job))
            .collect::<Result<_>>()?;
        if let Some(shard) = self.shard {
            let mut index = 0..;
            let mut own = |_: &Batch<'_>| index.next().is_some_and(|i| shard.has(i));
            batches.iter_mut().for_each(|b| b.retain(&mut own));
        }
        // The others' batches belong to the run, too.
        let whole = self.shard.is_none();
        for part in parts.iter().copied().filter(|_| whole) {
            let own = batches.iter().flatten().filter(|b| b.job.part == part);
            let moved = folder.keep_only(part, &own.map(|b| b.file.clone()).collect())?;
            if moved > 0 {
                eprintln!("{part}: {moved} files of another config moved to superseded/");
            }
        }
        let total = batches.iter().flatten().map(|b| b.limit).sum();
        let stage = if parts == ["validation"] {
            "validate"
        } else {
            "generate"
        };
        let mut progress = Progress::new(stage, "tokens", total);
        let mut spent: BTreeMap<String, f64> = BTreeMap::new();
        for (job, batches) in jobs.iter().zip(&batches) {
            // Opened for the first batch that is not there yet.
            let mut pool = None;
            for batch in batches {
                let whole = |path: &Path| {
                    let frame = read_parquet(path).ok()?;
                    let found = rows::generations(path, &frame).ok()?;
                    (found.len() == batch.requests.len()).then_some(found)
                };
                let found = match folder.found(job.part, &batch.file, whole)? {
                    Some(found) => {
                        progress.skip(batch.limit);
                        found
                    }
                    None => {
                        if pool.is_none() {
                            memory::reset_peak();
                            pool = Some(self.pool(job)?);
                        }
                        let pool = pool.as_ref().context("the pool is open")?;
                        let place = format!("{} {}", job.strategy, job.preference);
                        progress.message(place);
                        let start = Instant::now();
                        let made = self.batch(batch, pool, &mut progress, &mut hear)?;
                        let tokens: usize = made.iter().map(|r| r.tokens.len()).sum();
                        *session.tokens.entry(job.strategy.into()).or_default() += tokens as u64;
                        *spent.entry(job.strategy.into()).or_default() +=
                            start.elapsed().as_secs_f64();
                        let peak = session.peak_bytes.entry(job.strategy.into()).or_default();
                        *peak = memory::peak_bytes().max(*peak);
                        let path = folder.path(job.part).join(&batch.file);
                        let mut frame = generations_frame(&made)?;
                        eval::write_atomic(&path, &parquet(&path, &mut frame)?)?;
                        made
                    }
                };
                hear(Made::Rows(batch, found))?;
            }
        }
        session.generating.extend(spent);
        progress.finish();
        Ok(())
    }

    pub(super) fn pool(&self, job: &Job<'_>) -> Result<ExpertPool> {
        let plan = self.plan(job)?;
        let rephrased = plan.instruction.is_some() || !plan.examples.is_empty();
        let experts = plan.experts.iter().map(|name| {
            let Some(recipe) = plan.merged.get(name) else {
                return Ok(self.experts[name].clone());
            };
            let sources = recipe.experts.iter().map(|n| self.sources[n].clone());
            let path = self.models.known(&self.experiment.model)?;
            let merged = self
                .models
                .merged(name, recipe, sources.collect(), path, &self.base);
            merged.with_context(|| format!("merging '{name}'"))
        });
        let experts = experts.collect::<Result<_>>()?;
        let base = self.experts[mixing::BASE].clone();
        Ok(match self.experiment.kl {
            true => ExpertPool::with_reference(experts, base, rephrased)?,
            false => ExpertPool::new(experts)?,
        })
    }

    fn batch(
        &self,
        batch: &Batch<'_>,
        pool: &ExpertPool,
        progress: &mut Progress,
        hear: &mut impl FnMut(Made<'_>) -> Result<f64>,
    ) -> Result<Vec<GenerationRow>> {
        let settings = &self.experiment.generation;
        let (limit, width) = (settings.max_new_tokens, self.experiment.batch_size);
        let plan = self.plan(batch.job)?;
        let mut generator = Generator::new(pool, plan, &self.base.end_tokens)?;
        let identity = |(prompt, sample): &(&NamedPrompt, u32)| Identity {
            strategy: batch.job.strategy.into(),
            preference: batch.job.preference.clone(),
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
        let several = generator.plan().samples > 1;
        let utility = |request: usize, response: &Response| match several {
            false => Ok(0.0),
            true => {
                let text = self.base.tokenizer.decode(&response.tokens)?;
                hear(Made::Attempt(batch.job, batch.requests[request].0, &text))
            }
        };
        let responses = generator.best(requests, width, settings, utility, |_, response| {
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

/// What the files of a trained model are called among the inputs: the user's, such as "strategy pcm", and from its
/// second on a number.
pub(super) fn model_input(user: &str, number: usize) -> String {
    match number {
        0 => user.into(),
        n => format!("{user} {}", n + 1),
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
        kl: response.kl,
        base_log_probs: response.reference_log_probs,
        experts: experts.to_vec(),
        weights: response.weights,
        ended: response.ended,
    })
}
