//! What a run does, decided once, before anything is generated: which strategy serves which preference with which
//! experts, on which prompts, in which files.
//!
//! Everything behind this file only carries a [`RunPlan`] out. The one thing that is still open when a run starts is
//! which candidate serves a preference where a strategy chooses on the validation set; [`RunPlan::choose`] settles it.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::models::Pools;
//! use mope_harness::plan::RunPlan;
//!
//! let folder = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let plan = RunPlan::resolve(&experiment, &mut Pools::open(&experiment)?)?;
//! let uniform = &plan.entries[1];
//! assert_eq!((uniform.strategy.as_str(), uniform.preference.as_str()), ("uniform", "kind"));
//! assert_eq!(uniform.plan.experts, ["friendly", "informative"]);
//! // One file of rows, called by what they are and by a hash of all that they follow from.
//! assert!(uniform.batches[0].file.starts_with("uniform.kind.0000."));
//! # anyhow::Ok(())
//! ```

mod batches;
mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result};
use lm::chat::Prompt;
use mixing::strategies::Single;
use mixing::{BASE, Plan, Strategy};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::check::unused;
use crate::experiment::{Experiment, Resolved};
use crate::failure::usage;
use crate::models::Pools;
use crate::prompts::NamedPrompt;
use crate::recorded::{self, Responses};
use crate::splits::Splits;
pub use batches::Batch;
pub(crate) use batches::key;
pub use inputs::{FileHashes, Input, Inputs};

/// Name that stands for a strategy in the rows of the reference responses.
pub const REFERENCE: &str = "reference";

/// Name that stands for a strategy in the rows of the validation set.
pub const VALIDATION: &str = "validation";

/// What responses are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The base's response to each prompt, which utility refers to.
    Reference,
    /// Candidates' responses to the validation prompts, by which one is chosen.
    Validation,
    /// The strategies' responses, which are compared.
    Generation,
}

impl Stage {
    /// The part of the run folder that holds its rows.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Reference => "references",
            Self::Validation => "validation",
            Self::Generation => "generations",
        }
    }
}

/// One set of responses: a strategy for a preference, a candidate on the validation set, or the references.
pub struct Entry {
    /// What they are for.
    pub stage: Stage,
    /// The strategy's name in the rows; [`REFERENCE`] or [`VALIDATION`] outside of [`Stage::Generation`].
    pub strategy: String,
    /// The preference's name in the rows; a candidate's [`label`], and empty for the references.
    pub preference: String,
    /// How it is served; every batch decodes with a clone. Where a candidate is still to be chosen, the plan lists the
    /// candidates.
    pub plan: Plan,
    /// Responses per prompt that are kept.
    pub samples: u32,
    /// The files that its rows are in.
    pub batches: Vec<Batch>,
    /// What the strategy and the preference say, files by content: part of each batch's key.
    definition: Value,
}

/// A candidate for a strategy and a preference of the experiment.
struct Candidate {
    name: String,
    strategy: Strategy,
    /// Its entry among those of the validation set.
    label: String,
}

/// The strategies' choices on the validation set: the candidate's place in its plan, by strategy and preference.
pub type Choices = BTreeMap<(String, String), usize>;

/// What a run does.
pub struct RunPlan<'a> {
    /// What was asked for.
    pub experiment: &'a Experiment,
    /// The prompts that are compared and those that are chosen on.
    pub splits: Splits,
    /// The input files, by what they belong to.
    pub inputs: Inputs,
    /// The references.
    pub references: Entry,
    /// The base and every candidate on the validation set; empty where nothing is to be chosen.
    pub validation: Vec<Entry>,
    /// Every strategy for every preference, in the experiment's order.
    pub entries: Vec<Entry>,
    /// Responses that were made elsewhere, by file.
    pub recorded: BTreeMap<PathBuf, Responses>,
    /// What a reader must know before believing the tables.
    pub warnings: Vec<String>,
    /// What an expert's responses follow from, by its name.
    fingerprints: BTreeMap<String, Value>,
    /// The candidates of those that choose, by strategy and preference.
    candidates: BTreeMap<(String, String), Vec<Candidate>>,
}

impl<'a> RunPlan<'a> {
    /// Resolves every strategy for every preference, opens the experts that they need, hashes all input files and
    /// checks that every prompt fits.
    ///
    /// # Errors
    /// A prompt set that cannot be read; a strategy that does not fit; a model or adapter that cannot be opened; a
    /// prompt that is too long for an expert.
    pub fn resolve(experiment: &'a Experiment, pools: &mut Pools) -> Result<Self> {
        let mut splits = Splits::load(experiment)?;
        let mut warnings = std::mem::take(&mut splits.warnings);
        warnings.extend(unused(experiment)?);
        let recorded = recorded::load_all(experiment, &splits.prompts)?;
        let mut plan = Self {
            experiment,
            splits,
            recorded,
            inputs: Inputs::of_files(experiment)?,
            references: Entry {
                samples: experiment.reference_samples(),
                ..single(experiment, Stage::Reference, REFERENCE, "", BASE)?
            },
            validation: Vec::new(),
            entries: Vec::new(),
            warnings,
            fingerprints: BTreeMap::new(),
            candidates: BTreeMap::new(),
        };
        plan.hash_models(pools)?;
        let mut candidates: BTreeMap<String, Entry> = BTreeMap::new();
        for resolved in experiment.resolve_all()? {
            plan.add(resolved, &mut candidates)?;
        }
        if !candidates.is_empty() {
            let base = single(experiment, Stage::Validation, VALIDATION, BASE, BASE)?;
            candidates.insert(BASE.into(), base);
        }
        plan.validation = candidates.into_values().collect();
        plan.open_experts(pools)?;
        plan.check_lengths(pools)?;
        plan.warn_of_special_tokens(pools)?;
        plan.cut_all()?;
        plan.warn_of_selection();
        Ok(plan)
    }

    /// All entries: references, validation set, strategies.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        let first = std::iter::once(&self.references).chain(&self.validation);
        first.chain(&self.entries)
    }

    /// The prompts that an entry answers.
    pub fn prompts(&self, entry: &Entry) -> &[NamedPrompt] {
        match entry.stage {
            Stage::Validation => &self.splits.validation,
            Stage::Reference | Stage::Generation => &self.splits.prompts,
        }
    }

    /// The candidates of a strategy for a preference: name and label, in the plan's order.
    pub fn candidates(
        &self,
        strategy: &str,
        preference: &str,
    ) -> impl Iterator<Item = (&str, &str)> {
        let key = (strategy.to_string(), preference.to_string());
        let candidates = self.candidates.get(&key).into_iter().flatten();
        candidates.map(|c| (c.name.as_str(), c.label.as_str()))
    }

    /// Settles what was chosen on the validation set, and cuts those entries into batches.
    ///
    /// # Errors
    /// A choice that is missing.
    pub fn choose(&mut self, choices: &Choices) -> Result<()> {
        for number in 0..self.entries.len() {
            let entry = &self.entries[number];
            let key = (entry.strategy.clone(), entry.preference.clone());
            let Some(candidates) = self.candidates.get(&key) else {
                continue;
            };
            let chosen = choices.get(&key).and_then(|&i| candidates.get(i));
            let chosen = chosen
                .with_context(|| format!("nothing was chosen for '{}' and '{}'", key.0, key.1))?;
            let definition = self.strategy_definition(&chosen.strategy)?;
            // It serves as it did on the validation set.
            let answered = self.validation_entry(&chosen.label);
            let answered = answered.with_context(|| format!("'{}' has not answered", chosen.label));
            let plan = answered?.plan.clone();
            let entry = &mut self.entries[number];
            if let Value::Array(parts) = &mut entry.definition {
                parts.insert(2, definition);
            }
            entry.plan = plan;
            let batches = self.cut(&self.entries[number])?;
            self.entries[number].batches = batches;
        }
        Ok(())
    }

    /// Forward passes of experts for a token that is kept, by strategy, averaged over preferences. Where a candidate
    /// is still to be chosen, those of the first.
    pub fn passes(&self) -> BTreeMap<String, f64> {
        let preferences = self.experiment.preferences.names().len() as f64;
        let mut passes: BTreeMap<String, f64> = BTreeMap::new();
        for entry in self.entries.iter().filter(|e| e.plan.recorded.is_none()) {
            let mut candidates = self.candidates(&entry.strategy, &entry.preference);
            let first = candidates.next().map(|(_, label)| label);
            let candidate = match entry.plan.candidates.is_empty() {
                true => None,
                false => first.and_then(|label| self.validation_entry(label)),
            };
            let plan = candidate.map_or(&entry.plan, |c| &c.plan);
            let per_token = (plan.experts.len() * plan.samples) as f64;
            *passes.entry(entry.strategy.clone()).or_default() += per_token / preferences;
        }
        passes
    }

    /// A candidate's entry on the validation set.
    fn validation_entry(&self, label: &str) -> Option<&Entry> {
        self.validation.iter().find(|e| e.preference == label)
    }

    fn add(&mut self, resolved: Resolved, candidates: &mut BTreeMap<String, Entry>) -> Result<()> {
        let experiment = self.experiment;
        let Resolved {
            strategy,
            preference,
            plan,
            candidate_plans,
        } = resolved;
        let (spec, stated) = (
            experiment.strategy(&strategy)?.clone(),
            experiment.preference(&preference)?.clone(),
        );
        for (candidate, served) in plan.candidates.iter().zip(candidate_plans) {
            let label = label(&preference, &candidate.strategy);
            let key = (strategy.clone(), preference.clone());
            self.candidates.entry(key).or_default().push(Candidate {
                name: candidate.name.clone(),
                strategy: candidate.strategy.clone(),
                label: label.clone(),
            });
            if candidates.contains_key(&label) {
                continue;
            }
            // A single expert reads no preference and answers once for all of them.
            let definition = match &candidate.strategy {
                Strategy::Single(_) => json!(null),
                other => json!([self.strategy_definition(other)?, stated]),
            };
            let entry = Entry {
                stage: Stage::Validation,
                strategy: VALIDATION.into(),
                preference: label.clone(),
                plan: served,
                samples: 1,
                batches: Vec::new(),
                definition,
            };
            candidates.insert(label, entry);
        }
        let mut definition = vec![self.strategy_definition(&spec)?, json!(stated)];
        if plan.samples > 1 {
            // What is kept follows from the rewards, too.
            definition.push(self.rewards_definition()?);
        }
        self.entries.push(Entry {
            stage: Stage::Generation,
            strategy,
            preference,
            plan,
            samples: experiment.samples,
            batches: Vec::new(),
            definition: json!(definition),
        });
        Ok(())
    }

    /// Hashes the trained models that strategies and dimensions use; those of strategies are opened once, so that
    /// what is wrong with them is found out now, not after hours.
    fn hash_models(&mut self, pools: &mut Pools) -> Result<()> {
        let experiment = self.experiment;
        self.inputs.add(Input::Model, pools.base_path())?;
        for (name, strategy) in experiment.strategies.iter() {
            let tried = strategy.try_models();
            tried.with_context(|| format!("strategy '{name}'"))?;
            for (number, model) in strategy.models().into_iter().enumerate() {
                let input = Input::Strategy(name.into(), number);
                self.inputs.add(input, &model)?;
            }
        }
        let relevance = experiment.bounds.iter().flat_map(|b| &b.relevance);
        for (number, folder) in relevance.flat_map(|scorer| scorer.models()).enumerate() {
            self.inputs
                .add(Input::Dimension("relevance".into(), number), &folder)?;
        }
        for (name, dimension) in experiment.dimensions.iter() {
            for (number, folder) in dimension.scorer.models().into_iter().enumerate() {
                let input = Input::Dimension(name.into(), number);
                self.inputs.add(input, &folder)?;
            }
        }
        Ok(())
    }

    fn open_experts(&mut self, pools: &mut Pools) -> Result<()> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        let resolved = std::iter::once(&self.references).chain(&self.validation);
        for entry in resolved.chain(&self.entries) {
            // What candidates need, their own entries have.
            if entry.plan.candidates.is_empty() {
                pools.open_experts(self.experiment, &entry.plan)?;
                names.extend(entry.plan.sources().into_iter().map(String::from));
            }
        }
        for name in names {
            let spec = self.experiment.expert(&name);
            let path = pools.files(&spec)?;
            let files = match &path {
                Some(path) => Some(self.inputs.add(Input::Expert(name.clone()), path)?),
                None => None,
            };
            // Files count by content; where they lie does not.
            let fingerprint = match (files, spec.capabilities().top_k) {
                (Some(files), Some(top_k)) => json!([files, {"top_k": top_k}]),
                (Some(files), None) => json!(files),
                (None, _) => json!(spec),
            };
            self.fingerprints.insert(name, fingerprint);
        }
        Ok(())
    }

    fn check_lengths(&self, pools: &Pools) -> Result<()> {
        // Candidates and preferences differ in how they mix, seldom in what they read: of those that read alike, one.
        let mut seen = BTreeSet::new();
        for entry in self.all().filter(|e| e.plan.candidates.is_empty()) {
            let plan = &entry.plan;
            let what = json!([plan.experts, plan.instruction, plan.examples]);
            if seen.insert(what.to_string()) {
                self.check_length(plan, pools)?;
            }
        }
        Ok(())
    }

    fn check_length(&self, plan: &Plan, pools: &Pools) -> Result<()> {
        let new = self.experiment.generation.max_new_tokens;
        let Splits {
            prompts,
            validation,
            ..
        } = &self.splits;
        for NamedPrompt { id, prompt } in prompts.iter().chain(validation) {
            let prompt: Prompt = plan.prompt(prompt)?;
            for name in &plan.experts {
                // What is merged reads and remembers as the base does.
                let merged = plan.merged.contains_key(name);
                let expert = pools.expert(if merged { BASE } else { name })?;
                let limit = expert.model.config().context_length;
                let tokens = expert.tokens(&prompt);
                let tokens = tokens.with_context(|| format!("prompt '{id}'"))?.len();
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

    /// Says how many special tokens are written in prompts and preferences, where they are text.
    fn warn_of_special_tokens(&mut self, pools: &Pools) -> Result<()> {
        let tokenizer = &pools.base().tokenizer;
        let (mut count, mut texts) = (0, 0);
        let mut look = |text: &str| -> Result<()> {
            let held = tokenizer.special_in(text)?;
            count += held;
            texts += usize::from(held > 0);
            Ok(())
        };
        for NamedPrompt { prompt, .. } in self.splits.prompts.iter().chain(&self.splits.validation)
        {
            if let Prompt::Chat(messages) = prompt {
                messages.iter().try_for_each(|m| look(&m.content))?;
            }
        }
        for (_, preference) in self.experiment.preferences.iter() {
            look(&preference.text)?;
        }
        if count > 0 {
            self.warnings.push(format!(
                "{count} special tokens of the model, as <|im_end|>, are written in {texts} messages or preferences; \
                 they are read as text"
            ));
        }
        Ok(())
    }

    fn warn_of_selection(&mut self) {
        for name in self.experiment.strategies.names() {
            let mut entries = self.entries.iter().filter(|e| e.strategy == name);
            if entries.any(|e| e.plan.samples > 1) {
                self.warnings.push(format!(
                    "'{name}' keeps those of its responses that score best on the rewards that it is compared \
                     by, and on the very prompts."
                ));
            }
        }
    }
}

/// One expert alone, which reads no preference: one answer serves all of them.
fn single(
    experiment: &Experiment,
    stage: Stage,
    strategy: &str,
    preference: &str,
    expert: &str,
) -> Result<Entry> {
    let any = experiment.preferences.iter().next();
    let (_, stated) = any.context("no preference")?;
    let expert = expert.to_string();
    let alone = Strategy::Single(Single { expert });
    Ok(Entry {
        stage,
        strategy: strategy.into(),
        preference: preference.into(),
        plan: experiment.resolve_strategy(&alone, stated)?,
        samples: 1,
        batches: Vec::new(),
        definition: json!(null),
    })
}

/// What stands for the preference in a candidate's rows and files: the expert's name where it is one alone.
pub fn label(preference: &str, candidate: &Strategy) -> String {
    match candidate {
        Strategy::Single(single) => single.expert.clone(),
        other => {
            let key = Sha256::digest(json!(other).to_string().as_bytes());
            format!("{preference}.{}", lm::source::hex(&key[..4]))
        }
    }
}
