//! Stage "generate": responses of every strategy to every prompt for every preference, batch by batch. A batch that is
//! there already, in this run folder or a neighbouring one, is read instead.
//!
//! ```
//! use eval::rows::Identity;
//! use mope_harness::stages::generate::draws;
//!
//! // The randomness of a response follows from the seed and from what it answers, not from what runs beside it.
//! let response = |sample| Identity {
//!     strategy: "uniform".into(),
//!     preference: "kind".into(),
//!     prompt: "sky".into(),
//!     sample,
//! };
//! let first = |seed, sample| draws(seed, &response(sample)).uniform(0);
//! assert_eq!(first(7, 0), first(7, 0));
//! assert_ne!(first(7, 0), first(7, 1));
//! assert_ne!(first(7, 0), first(8, 0));
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use eval::rows::{self, GenerationRow, Identity, generations_frame};
use eval::scoring::ResponseScorer;
use eval::table::{parquet, read_parquet_within};
use experts::ExpertPool;
use lm::LanguageModel;
use lm::sampling::Draws;
use mixing::{Generator, Request, Response};

use super::bounds::Answer;
pub use super::bounds::RunBounds;
use super::scorer::{set_references, utility};
use super::texts;
use crate::failure::usage;
use crate::models::Pools;
use crate::plan::{Batch, Entry, RunPlan, Stage};
use crate::progress::{Progress, say};
use crate::prompts::NamedPrompt;
use crate::recorded::{LONGEST, Responses};
use crate::store::folder::RunFolder;
use crate::store::manifest::Session;
use crate::store::rows::limits;
use crate::store::shard::Shard;

/// All rows of a run.
pub struct Rows {
    /// The base's response to each prompt, which utility refers to.
    pub references: Vec<GenerationRow>,
    /// Responses of the strategies.
    pub generations: Vec<GenerationRow>,
    /// What counts as an answer; `None` where nothing is bounded.
    pub bounds: Option<RunBounds>,
}

/// Utility of a response for an entry's preference, where one of several is kept.
pub(super) type Rate<'a> = dyn Fn(&Entry, &NamedPrompt, &str, &Response) -> Result<f64> + 'a;

/// Generates what is missing and returns all rows; of a shard, those that belong to it.
///
/// # Errors
/// A model that fails, a folder that cannot be written. What is done stays.
pub fn generate(
    plan: &RunPlan<'_>,
    pools: &Pools,
    scorer: &mut ResponseScorer,
    folder: &RunFolder,
    session: &mut Session,
    shard: Option<Shard>,
) -> Result<Rows> {
    let mut entries = vec![&plan.references];
    entries.extend(&plan.entries);
    let mut batches = Batches::new("generate", plan, pools, folder, session, &entries, shard)?;
    let unrated = |_: &Entry, _: &NamedPrompt, _: &str, _: &Response| Ok(0.0);
    let references = batches.rows(&plan.references, &unrated)?;
    if plan.entries.iter().any(|e| e.plan.samples > 1) {
        set_references(scorer, &plan.splits.prompts, &references)?;
    }
    let bounds = RunBounds::of(plan, &references)?;
    let rate = |entry: &Entry, prompt: &NamedPrompt, text: &str, response: &Response| {
        let answer = Answer {
            prompt: &prompt.prompt,
            text,
            tokens: &response.tokens,
            base_log_probs: &response.reference_log_probs,
        };
        let crossed = bounds.as_ref().map(|b| b.crossed(&[answer]));
        if crossed.transpose()?.is_some_and(|crossed| crossed[0]) {
            return Ok(0.0);
        }
        let rewards = scorer.reward(&prompt.prompt, text)?;
        let preference = &entry.preference;
        utility(plan.experiment, scorer, preference, &prompt.id, &rewards)
    };
    let mut generations = Vec::new();
    for entry in &plan.entries {
        generations.extend(batches.rows(entry, &rate)?);
    }
    batches.finish();
    Ok(Rows {
        references,
        generations,
        bounds,
    })
}

/// Moves the files of these entries' stages away that belong to none of them.
fn supersede_others(folder: &RunFolder, entries: &[(&Entry, Vec<&Batch>)]) -> Result<()> {
    let mut files: BTreeMap<Stage, BTreeSet<String>> = BTreeMap::new();
    for (entry, batches) in entries {
        let names = batches.iter().map(|b| b.file.clone());
        files.entry(entry.stage).or_default().extend(names);
    }
    for (stage, files) in files {
        let part = stage.folder();
        let moved = folder.keep_only(part, &files)?;
        if moved > 0 {
            say(&format!(
                "{part}: {moved} files of another config moved to superseded/"
            ));
        }
    }
    Ok(())
}

/// The batches of several entries on their way to rows.
pub(super) struct Batches<'a, 'b> {
    plan: &'a RunPlan<'b>,
    pools: &'a Pools,
    folder: &'a RunFolder,
    session: &'a mut Session,
    /// What is to be made of each entry, in order.
    entries: Vec<(&'a Entry, Vec<&'a Batch>)>,
    progress: Progress,
    /// Seconds by strategy.
    spent: BTreeMap<String, f64>,
}

impl<'a, 'b> Batches<'a, 'b> {
    /// The batches of `entries`, or a shard's part of them. The files of these stages that belong to none of them are
    /// moved away, unless others make their parts of the same run.
    pub(super) fn new(
        name: &str,
        plan: &'a RunPlan<'b>,
        pools: &'a Pools,
        folder: &'a RunFolder,
        session: &'a mut Session,
        entries: &[&'a Entry],
        shard: Option<Shard>,
    ) -> Result<Self> {
        let entries = entries.iter().map(|&e| (e, e.batches.iter().collect()));
        let mut entries: Vec<(&Entry, Vec<&Batch>)> = entries.collect();
        match shard {
            None => supersede_others(folder, &entries)?,
            Some(shard) => {
                let mut index = 0..;
                for (_, batches) in &mut entries {
                    batches.retain(|_| index.next().is_some_and(|i| shard.has(i)));
                }
            }
        }
        let limits = entries.iter().flat_map(|(_, batches)| batches);
        Ok(Self {
            progress: Progress::new(name, "tokens", limits.map(|b| b.limit).sum()),
            plan,
            pools,
            folder,
            session,
            entries,
            spent: BTreeMap::new(),
        })
    }

    /// The rows of one entry, generated where they are not there.
    pub(super) fn rows(&mut self, entry: &Entry, rate: &Rate<'_>) -> Result<Vec<GenerationRow>> {
        let batches = self.entries.iter().find(|(e, _)| std::ptr::eq(*e, entry));
        let batches = batches.map_or(Vec::new(), |(_, batches)| batches.clone());
        let mut rows = Vec::new();
        // Opened for the first batch that is not there.
        let mut pool = None;
        for batch in batches {
            let stored = |path: &Path| self.stored(entry, batch, path);
            let stored = self
                .folder
                .found(entry.stage.folder(), &batch.file, stored)?;
            rows.extend(match stored {
                Some(stored) => {
                    self.progress.skip(batch.limit);
                    stored
                }
                None if entry.plan.text.is_some() => {
                    self.progress.skip(batch.limit);
                    let requests = self.plan.requests(entry, batch);
                    let rows = texts::rows(self.plan, self.pools, entry, &requests)?;
                    self.write(entry, batch, &rows)?;
                    rows
                }
                None if entry.plan.recorded.is_some() => {
                    self.progress.skip(batch.limit);
                    self.copy(entry, batch)?
                }
                None => {
                    if pool.is_none() {
                        kernels::memory::reset_peak();
                        let reference = self.plan.experiment.kl;
                        pool = Some(self.pools.pool(&entry.plan, reference)?);
                    }
                    let pool = pool.as_ref().context("the pool is open")?;
                    self.make(entry, batch, pool, rate)?
                }
            });
        }
        Ok(rows)
    }

    /// The rows of a file, where they are those of the batch.
    fn stored(&self, entry: &Entry, batch: &Batch, path: &Path) -> Option<Vec<GenerationRow>> {
        let limits = limits(self.plan.experiment, batch.requests.len());
        let frame = read_parquet_within(path, limits).ok()?;
        let rows = rows::generations(path, &frame).ok()?;
        let requests = self.plan.requests(entry, batch);
        let tokenizer = &self.pools.base().tokenizer;
        let recorded = self.recorded(entry).ok()?;
        let text = |row: &GenerationRow| match recorded {
            None => tokenizer.decode(&row.tokens).ok().as_ref() == Some(&row.response),
            Some(responses) => {
                let Identity {
                    preference,
                    prompt,
                    sample,
                    ..
                } = &row.identity;
                let response = responses.get(preference, prompt, *sample);
                response.is_ok_and(|r| r.text == row.response && r.ended == row.ended)
            }
        };
        let asked = |(row, request): (&GenerationRow, &(&NamedPrompt, u32))| {
            row.identity == identity(entry, request)
                && row.question == request.0.prompt.question()
                && text(row)
        };
        let as_asked = rows.len() == requests.len() && rows.iter().zip(&requests).all(asked);
        as_asked.then_some(rows)
    }

    /// The responses of an entry that were made elsewhere.
    fn recorded(&self, entry: &Entry) -> Result<Option<&'a Responses>> {
        let Some(file) = &entry.plan.recorded else {
            return Ok(None);
        };
        let responses = self.plan.recorded.get(file);
        let responses = responses.with_context(|| format!("{} was not read", file.display()))?;
        Ok(Some(responses))
    }

    /// The rows of responses that were made elsewhere. Their tokens are the base's, so that lengths compare; of
    /// probabilities only those of the texts under the base are known, where they fit into its context.
    fn copy(&mut self, entry: &Entry, batch: &Batch) -> Result<Vec<GenerationRow>> {
        let responses = self.recorded(entry)?.context("it was recorded")?;
        let tokenizer = &self.pools.base().tokenizer;
        let mut rows = Vec::new();
        for request in self.plan.requests(entry, batch) {
            let identity = identity(entry, &request);
            let id = &identity.prompt;
            let response = responses.get(&identity.preference, id, identity.sample)?;
            let tokens = tokenizer.encode(&response.text, false)?;
            if tokens.len() > LONGEST {
                let (strategy, n) = (&entry.strategy, tokens.len());
                return Err(usage(format!(
                    "strategy '{strategy}': the response to prompt '{id}' has {n} tokens, at most {LONGEST}"
                )));
            }
            rows.push(GenerationRow {
                question: request.0.prompt.question().into(),
                response: response.text.clone(),
                pieces: tokenizer.increments(&tokens)?,
                tokens,
                log_probs: Vec::new(),
                kl: Vec::new(),
                base_log_probs: Vec::new(),
                experts: Vec::new(),
                weights: Vec::new(),
                ended: response.ended,
                identity,
            });
        }
        texts::measure(
            self.plan,
            self.pools,
            &self.plan.requests(entry, batch),
            &mut rows,
        )?;
        self.write(entry, batch, &rows)?;
        Ok(rows)
    }

    fn write(&self, entry: &Entry, batch: &Batch, rows: &[GenerationRow]) -> Result<()> {
        let path = self.folder.path(entry.stage.folder()).join(&batch.file);
        let mut frame = generations_frame(rows)?;
        Ok(eval::write_atomic(&path, &parquet(&path, &mut frame)?)?)
    }

    /// The last batch is there.
    pub(super) fn finish(self) {
        self.session.generating.extend(self.spent);
        self.progress.finish();
    }

    /// Generates a batch and writes it, and notes what it took.
    fn make(
        &mut self,
        entry: &Entry,
        batch: &Batch,
        pool: &ExpertPool,
        rate: &Rate<'_>,
    ) -> Result<Vec<GenerationRow>> {
        let strategy = &entry.strategy;
        self.progress
            .message(format!("{strategy} {}", entry.preference));
        let start = Instant::now();
        let rows = self.respond(entry, batch, pool, rate)?;
        let tokens: usize = rows.iter().map(|r| r.tokens.len()).sum();
        *self.session.tokens.entry(strategy.clone()).or_default() += tokens as u64;
        *self.spent.entry(strategy.clone()).or_default() += start.elapsed().as_secs_f64();
        let peak = self.session.peak_bytes.entry(strategy.clone()).or_default();
        *peak = kernels::memory::peak_bytes().max(*peak);
        self.write(entry, batch, &rows)?;
        Ok(rows)
    }

    fn respond(
        &mut self,
        entry: &Entry,
        batch: &Batch,
        pool: &ExpertPool,
        rate: &Rate<'_>,
    ) -> Result<Vec<GenerationRow>> {
        let experiment = self.plan.experiment;
        let (settings, width) = (&experiment.generation, experiment.batch_size);
        let base = self.pools.base();
        let mut generator = Generator::new(pool, entry.plan.clone(), &base.end_tokens)?;
        let asked = self.plan.requests(entry, batch);
        let requests = asked.iter().map(|request| Request {
            prompt: request.0.prompt.clone(),
            draws: draws(experiment.seed, &identity(entry, request)),
        });
        let several = generator.plan().samples > 1;
        let utility = |request: usize, response: &Response| match several {
            false => Ok(0.0),
            true => {
                let text = base.tokenizer.decode(&response.tokens)?;
                rate(entry, asked[request].0, &text, response)
            }
        };
        let progress = &mut self.progress;
        let responses = generator.best(
            requests.collect(),
            width,
            settings,
            utility,
            |_, response| {
                progress.advance(1);
                if response.ended {
                    progress.skip((settings.max_new_tokens - response.tokens.len()) as u64);
                }
            },
        );
        let samples = generator.plan().samples.max(1);
        let responses = responses.map_err(|e| {
            with_prompt_id(e, |request| {
                let request = asked.get(request / samples)?;
                Some(request.0.id.as_str())
            })
        })?;
        let rows = asked.iter().zip(responses).map(|(request, response)| {
            let question = request.0.prompt.question();
            row(
                base,
                identity(entry, request),
                question,
                generator.experts(),
                response,
            )
        });
        rows.collect()
    }
}

/// What names the response to a request.
pub(super) fn identity(entry: &Entry, (prompt, sample): &(&NamedPrompt, u32)) -> Identity {
    Identity {
        strategy: entry.strategy.clone(),
        preference: entry.preference.clone(),
        prompt: prompt.id.clone(),
        sample: *sample,
    }
}

/// Puts the prompt's id into an error that knows only the request's number.
pub fn with_prompt_id<'p>(
    error: anyhow::Error,
    id: impl Fn(usize) -> Option<&'p str>,
) -> anyhow::Error {
    match error.downcast::<mixing::Error>() {
        Ok(mixing::Error::NoNumbers {
            who,
            request,
            token,
            prompt,
        }) => {
            let prompt = id(request).map_or(prompt, |id| format!("'{id}'"));
            let error = mixing::Error::NoNumbers {
                who,
                request,
                token,
                prompt,
            };
            error.into()
        }
        Ok(other) => other.into(),
        Err(other) => other,
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
