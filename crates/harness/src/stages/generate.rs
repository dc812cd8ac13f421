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
use super::reading;
use super::scorer::{set_references, utility};
use super::texts;
use crate::failure::usage;
use crate::memory::gigabytes;
use crate::models::Pools;
use crate::plan::{Batch, Entry, RunPlan, Stage};
use crate::progress::{Progress, say};
use crate::prompts::NamedPrompt;
use crate::recorded::{LONGEST, Responses};
use crate::store::folder::RunFolder;
use crate::store::manifest::{PromptsRead, Session};
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
    // Whoever rates a response needs all references first; elsewhere they share their prompts with the strategies.
    let rated = plan.entries.iter().any(|e| e.plan.samples > 1) || plan.experiment.bounds.is_some();
    let mut bounds = None;
    if rated {
        let entries = [&plan.references];
        let mut batches =
            Batches::new("references", plan, pools, folder, session, &entries, shard)?;
        let references: Vec<_> = batches.rows(&unrated)?.into_iter().flatten().collect();
        batches.finish();
        set_references(scorer, &plan.splits.prompts, &references)?;
        bounds = RunBounds::of(plan, &references)?;
    }
    let mut entries = vec![&plan.references];
    entries.extend(&plan.entries);
    let mut batches = Batches::new("generate", plan, pools, folder, session, &entries, shard)?;
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
    let mut rows = batches.rows(&rate)?.into_iter();
    batches.finish();
    Ok(Rows {
        references: rows.next().unwrap_or_default(),
        generations: rows.flatten().collect(),
        bounds,
    })
}

/// Where nothing is chosen by its utility.
pub(super) fn unrated(_: &Entry, _: &NamedPrompt, _: &str, _: &Response) -> Result<f64> {
    Ok(0.0)
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
    /// The pool that made the last batch.
    open: Option<OpenPool>,
}

/// A pool, and for which entries it serves.
struct OpenPool {
    pool: ExpertPool,
    experts: Vec<String>,
    rephrased: bool,
    /// The one entry whose experts were merged.
    merged_for: Option<usize>,
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
            open: None,
        })
    }

    /// The rows of every entry, generated where they are not there.
    pub(super) fn rows(&mut self, rate: &Rate<'_>) -> Result<Vec<Vec<GenerationRow>>> {
        let order = reading::order(&self.entries);
        let prompts = self.pools.prompts().clone();
        let before = prompts.reading();
        let uses = reading::uses(self.plan, self.pools, &self.entries, &order)?;
        let peak = reading::peak_bytes(self.plan, self.pools, &self.entries, &uses);
        if let Some(bytes) = peak {
            say(&format!("memory: at most about {}", gigabytes(bytes)));
        }
        prompts.expect(uses);
        let mut files: Vec<BTreeMap<usize, Vec<GenerationRow>>> = Vec::new();
        files.resize_with(self.entries.len(), BTreeMap::new);
        for (step, &(number, batch)) in order.iter().enumerate() {
            prompts.begin(step as u64);
            let (entry, batches) = &self.entries[number];
            let (entry, file) = (*entry, batches[batch]);
            let stored = |path: &Path| self.stored(entry, file, path);
            let stored = self
                .folder
                .found(entry.stage.folder(), &file.file, stored)?;
            let rows = match stored {
                Some(stored) => {
                    self.progress.skip(file.limit);
                    stored
                }
                None if entry.plan.text.is_some() => {
                    self.progress.skip(file.limit);
                    let requests = self.plan.requests(entry, file);
                    let rows = texts::rows(self.plan, self.pools, entry, &requests)?;
                    self.write(entry, file, &rows)?;
                    rows
                }
                None if entry.plan.recorded.is_some() => {
                    self.progress.skip(file.limit);
                    self.copy(entry, file)?
                }
                None => {
                    kernels::memory::reset_peak();
                    let pool = self.pool(number)?;
                    let rows = self.make(entry, file, &pool.pool, rate)?;
                    self.open = Some(pool);
                    rows
                }
            };
            files[number].insert(batch, rows);
        }
        prompts.clear();
        self.open = None;
        self.session.prompts.add(prompts.reading() - before);
        let of_entry = |files: BTreeMap<usize, Vec<GenerationRow>>| {
            files.into_values().flatten().collect::<Vec<_>>()
        };
        Ok(files.into_iter().map(of_entry).collect())
    }

    /// The pool of an entry: the last one, where the same experts run.
    fn pool(&mut self, number: usize) -> Result<OpenPool> {
        let plan = &self.entries[number].0.plan;
        let merged_for = (!plan.merged.is_empty()).then_some(number);
        let serves = |open: &OpenPool| {
            let same = (&open.experts, open.rephrased) == (&plan.experts, plan.rephrases());
            same && open.merged_for == merged_for
        };
        if let Some(open) = self.open.take().filter(serves) {
            return Ok(open);
        }
        Ok(OpenPool {
            pool: self.pools.pool(plan, self.plan.experiment.kl)?,
            experts: plan.experts.clone(),
            rephrased: plan.rephrases(),
            merged_for,
        })
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
        let PromptsRead { asked, read, .. } = self.session.prompts;
        if read > 0 {
            say(&format!(
                "prompts: experts read {read} of {asked}; the others were known"
            ));
        }
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
        let (start, prompts) = (Instant::now(), self.pools.prompts());
        let before = prompts.reading();
        let rows = self.respond(entry, batch, pool, rate)?;
        // Whichever strategy comes first would read for all.
        let reading = (prompts.reading() - before).time;
        let spent = start.elapsed().saturating_sub(reading).as_secs_f64();
        let tokens: usize = rows.iter().map(|r| r.tokens.len()).sum();
        *self.session.tokens.entry(strategy.clone()).or_default() += tokens as u64;
        *self.spent.entry(strategy.clone()).or_default() += spent;
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
