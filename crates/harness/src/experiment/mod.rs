//! The experiment file: what a user writes, read from RON and checked before anything is loaded.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("kind.ron");
//! std::fs::write(&file, r#"(
//!     name: "kind",
//!     model: "smollm2-135m-instruct",
//!     dimensions: {"style": (scorer: Style, low: "rude", high: "friendly")},
//!     experts: {"friendly": Prompted("Be kind.")},
//!     preferences: {"kind": (text: "be kind", weights: {"friendly": 1.0})},
//!     strategies: {"base": Base(), "uniform": Uniform()},
//!     prompts: "prompts.txt",
//! )"#)?;
//! let experiment = Experiment::load(&file)?;
//! assert_eq!(experiment.strategies.names(), ["base", "uniform"]);
//! // Paths are relative to the file; what is left out has a default.
//! assert_eq!(experiment.prompts, folder.path().join("prompts.txt"));
//! assert_eq!(experiment.batch_size, 16);
//! # anyhow::Ok(())
//! ```

mod retention;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use eval::dimension::{Dimension, Dimensions, locate};
use eval::rewards::Scorer;
use eval::utility::Utility;
use experts::ExpertSpec;
use lm::{DeviceSpec, Format};
use mixing::{BASE, Generation, Named, Plan, Preference, Strategy};
use serde::{Deserialize, Serialize};

use crate::config::{self, model_path, validate_name};
use crate::failure::{nearest, usage};

pub use retention::Retention;

/// One comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Names the run folder, `runs/<name>`.
    pub name: String,
    /// What the experiment asks, as its report opens. Default: the first paragraph of the comment at the head of the file
    /// that is no command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// All randomness follows from it. Default 0 (ours).
    #[serde(default)]
    pub seed: u64,
    /// Base model, by registered name or path (relative to the experiment file).
    pub model: String,
    /// Where it runs. Default `Cpu`.
    #[serde(default)]
    pub device: DeviceSpec,
    /// Number format of the models' matrices. Default `F32` (what the files say).
    #[serde(default, alias = "weights")]
    pub format: Format,
    /// What is measured, and what the two directions of each dimension are called.
    pub dimensions: Named<Dimension>,
    /// Experts by name; `base` is always there. An expert that serves a direction has its name.
    #[serde(default)]
    pub experts: Named<ExpertSpec>,
    /// The preferences that every strategy serves.
    pub preferences: Named<Preference>,
    /// What is compared, in the order of the tables; the first is what differences refer to.
    pub strategies: Named<Strategy>,
    /// Names for strategies that are one method, trained with several seeds: `{"pcm": ["pcm_1", "pcm_2", "pcm_3"]}`.
    /// Table `seeds` has them together. Default: none.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub repeats: Named<Vec<String>>,
    /// Prompt set: `.jsonl` or text, relative to the experiment file.
    pub prompts: PathBuf,
    /// Prompt sets that experts, reward models or PCM were trained on; none of their prompts may be in
    /// `prompts`, and near duplicates are reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub training: Vec<PathBuf>,
    /// Another prompt set, on which `BestSingle`, `BestWeights` and `Best` choose; none of its prompts may be in `prompts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Capability-retention checks: what a strategy must not have forgotten. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Responses per prompt, preference and strategy. Default 1 (ours).
    #[serde(default = "default_samples")]
    pub samples: u32,
    /// Length and sampling of responses.
    #[serde(default)]
    pub generation: Generation,
    /// How rewards become one number. Default `BradleyTerry` (paper).
    #[serde(default)]
    pub utility: Utility,
    /// Measures at every token how far the mixture is from the base, which then runs beside the experts
    /// where it is none of them; `false` where time is what is measured. Default `true` (ours).
    #[serde(default = "default_kl")]
    pub kl: bool,
    /// Corner of the volumes of [fronts](eval::statistics::front), the same in every direction, in
    /// normalised rewards. Default −2: two standard deviations below the base (ours).
    #[serde(default = "default_reference_point")]
    pub reference_point: f64,
    /// Sequences that are decoded together; changes results only through rounding. Default 16 (ours).
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
}

/// A strategy of the experiment, and how it serves one of its preferences.
pub struct Resolved {
    /// The strategy's name.
    pub strategy: String,
    /// The preference's name.
    pub preference: String,
    /// How it serves.
    pub plan: Plan,
    /// How each of the plan's candidates would serve, in their order.
    pub candidate_plans: Vec<Plan>,
}

/// Most responses per prompt, preference and strategy (ours).
pub const SAMPLES: usize = 1 << 16;
/// Most sequences that are decoded together (ours).
pub const BATCH_SIZE: usize = 1 << 16;
/// Longest response in tokens (ours); a model's context is mostly shorter.
pub const NEW_TOKENS: usize = 1 << 24;

fn count(name: &str, number: usize, most: usize) -> Result<()> {
    anyhow::ensure!(number > 0, "{name}: at least 1");
    anyhow::ensure!(number <= most, "{name}: {number}, at most {most}");
    Ok(())
}

fn default_samples() -> u32 {
    1
}

fn default_reference_point() -> f64 {
    -2.0
}

fn default_kl() -> bool {
    true
}

fn default_batch_size() -> usize {
    16
}

impl Experiment {
    /// Reads and checks an experiment file.
    ///
    /// # Errors
    /// With file, line and column where the text is wrong, with the name where the content is.
    pub fn load(path: &Path) -> Result<Self> {
        let mut experiment: Self = config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        experiment.resolve(folder);
        experiment
            .validate()
            .map_err(|e| usage(format!("{}: {e:#}", path.display())))?;
        Ok(experiment)
    }

    /// Paths of the file are relative to its folder.
    fn resolve(&mut self, folder: &Path) {
        self.prompts = folder.join(&self.prompts);
        self.validation = self.validation.as_ref().map(|file| folder.join(file));
        if let Some(retention) = &mut self.retention {
            retention.resolve(folder);
        }
        for file in &mut self.training {
            *file = folder.join(&*file);
        }
        for (_, expert) in self.experts.iter_mut() {
            expert.resolve(folder);
        }
        for (_, strategy) in self.strategies.iter_mut() {
            strategy.resolve(folder);
        }
        for (_, dimension) in self.dimensions.iter_mut() {
            dimension.scorer.resolve(folder);
        }
        self.model = model_path(folder, &self.model);
    }

    /// What the file's reader checks.
    ///
    /// # Errors
    /// With the name of what is wrong.
    pub fn validate(&self) -> Result<()> {
        validate_name("name", &self.name)?;
        for (what, names) in [
            ("expert", self.experts.names()),
            ("preference", self.preferences.names()),
            ("strategy", self.strategies.names()),
            ("dimension", self.dimensions.names()),
            ("repeat", self.repeats.names()),
        ] {
            names
                .iter()
                .try_for_each(|name| validate_name(what, name))?;
        }
        for (what, none) in [
            ("dimensions", self.dimensions.is_empty()),
            ("preferences", self.preferences.is_empty()),
            ("strategies", self.strategies.is_empty()),
        ] {
            anyhow::ensure!(!none, "{what}: at least one is needed");
        }
        anyhow::ensure!(
            self.experts
                .get(BASE)
                .is_none_or(|e| *e == ExpertSpec::Base),
            "expert '{BASE}' is the base model itself; give yours another name"
        );
        count("samples", self.samples as usize, SAMPLES)?;
        count("batch_size", self.batch_size, BATCH_SIZE)?;
        count(
            "generation: max_new_tokens",
            self.generation.max_new_tokens,
            NEW_TOKENS,
        )?;
        anyhow::ensure!(
            self.reference_point.is_finite(),
            "reference_point: {} is no number that rewards can exceed",
            self.reference_point
        );
        let sampling = &self.generation.sampling;
        sampling
            .validate()
            .map_err(|e| anyhow::anyhow!("generation: sampling: {e}"))?;
        let dimensions = self.dimensions();
        self.check_directions()?;
        self.check_serving()?;
        for (name, dimension) in self.dimensions.iter() {
            let checked = dimension.validate();
            checked.with_context(|| format!("dimension '{name}'"))?;
        }
        for (name, preference) in self.preferences.iter() {
            let context = || format!("preference '{name}'");
            let mut scored = false;
            let shares = preference.shares().with_context(context)?;
            for (direction, _) in &shares {
                let (dimension, _) = locate(&dimensions, direction).with_context(context)?;
                scored |= dimensions[dimension].scorer != Scorer::Judged;
            }
            if !scored {
                let directions = shares.into_iter().map(|(direction, _)| direction).collect();
                return Err(eval::Error::NothingScored { directions }).with_context(context);
            }
        }
        self.check_repeats()?;
        for name in self.retention.iter().flat_map(|r| &r.preferences) {
            let known = self.preferences.names();
            anyhow::ensure!(
                known.contains(&name.as_str()),
                "retention: no preference '{name}'; there are: {}",
                known.join(", ")
            );
        }
        for (name, expert) in self.experts.iter() {
            let top_k = expert.capabilities().top_k;
            anyhow::ensure!(top_k != Some(0), "expert '{name}': top_k: at least 1");
            if let ExpertSpec::Adapter(folder) = expert.inner() {
                let config = folder.join("adapter_config.json");
                anyhow::ensure!(
                    lm::Adapter::is_at(folder),
                    "expert '{name}': {} is not there; an adapter is a folder as PEFT saves it, or a LoRA in GGUF",
                    config.display()
                );
            }
        }
        for Resolved { strategy, plan, .. } in self.resolve_all()? {
            anyhow::ensure!(
                plan.candidates.is_empty() || self.validation.is_some(),
                "strategy '{strategy}' chooses on a validation set; name its file: \
                 validation: \"prompts.jsonl\", with other prompts than those of the comparison"
            );
        }
        Ok(())
    }

    /// Repeats are several strategies each, none of them in two.
    fn check_repeats(&self) -> Result<()> {
        let known = self.strategies.names();
        let mut seen: Vec<&str> = Vec::new();
        for (name, members) in self.repeats.iter() {
            anyhow::ensure!(
                !known.contains(&name),
                "repeats: '{name}' is a strategy already; give the repeated method another name"
            );
            anyhow::ensure!(
                members.len() > 1,
                "repeats: '{name}': at least two strategies"
            );
            for member in members.iter().map(String::as_str) {
                if !known.contains(&member) {
                    let hint = nearest(member, known.iter().copied());
                    let known = known.join(", ");
                    anyhow::bail!(
                        "repeats: '{name}': no strategy '{member}'{hint}; there are: {known}"
                    );
                }
                anyhow::ensure!(
                    !seen.contains(&member),
                    "repeats: '{name}': '{member}' is named twice"
                );
                seen.push(member);
            }
        }
        Ok(())
    }

    /// Methods that were trained several times, with the strategies that they are.
    pub fn repeated(&self) -> Vec<(String, Vec<String>)> {
        let repeats = self.repeats.iter();
        repeats
            .map(|(name, members)| (name.to_string(), members.clone()))
            .collect()
    }

    /// A direction belongs to one end of one dimension.
    fn check_directions(&self) -> Result<()> {
        let mut seen: Vec<&str> = Vec::new();
        for (name, dimension) in self.dimensions.iter() {
            for end in [dimension.low.as_str(), dimension.high.as_str()] {
                anyhow::ensure!(
                    !seen.contains(&end),
                    "dimension '{name}': the direction '{end}' is named twice"
                );
                seen.push(end);
            }
        }
        Ok(())
    }

    /// Dimensions by name.
    pub fn dimensions(&self) -> Dimensions {
        let owned = self.dimensions.iter();
        owned.map(|(n, d)| (n.to_string(), d.clone())).collect()
    }

    /// The experts' names, the base among them.
    pub fn expert_names(&self) -> Vec<&str> {
        let mut names = self.experts.names();
        if !names.contains(&BASE) {
            names.push(BASE);
        }
        names
    }

    /// Experts of the file that no strategy runs or merges for any preference.
    ///
    /// # Errors
    /// Those of [`Self::resolve_all`].
    pub fn unused_experts(&self) -> Result<Vec<&str>> {
        let resolved = self.resolve_all()?;
        let plans = resolved
            .iter()
            .flat_map(|r| r.candidate_plans.iter().chain([&r.plan]));
        let used: BTreeSet<&str> = plans.flat_map(Plan::sources).collect();
        let mut names = self.experts.names();
        names.retain(|name| *name != BASE && !used.contains(name));
        Ok(names)
    }

    /// The expert of that name.
    pub fn expert(&self, name: &str) -> ExpertSpec {
        self.experts.get(name).cloned().unwrap_or(ExpertSpec::Base)
    }

    /// The strategy of that name.
    ///
    /// # Errors
    /// An unknown name; the nearest known one is in the message.
    pub fn strategy(&self, name: &str) -> Result<&Strategy> {
        self.strategies.get(name).ok_or_else(|| {
            let names = self.strategies.names();
            let hint = nearest(name, names.iter().copied());
            let known = names.join(", ");
            anyhow::anyhow!("no strategy '{name}'{hint}; there are: {known}")
        })
    }

    /// The preference of that name.
    ///
    /// # Errors
    /// An unknown name; the nearest known one is in the message.
    pub fn preference(&self, name: &str) -> Result<&Preference> {
        self.preferences.get(name).ok_or_else(|| {
            let names = self.preferences.names();
            let hint = nearest(name, names.iter().copied());
            let known = names.join(", ");
            anyhow::anyhow!("no preference '{name}'{hint}; there are: {known}")
        })
    }

    /// How every strategy serves every preference of this file, in its order.
    ///
    /// # Errors
    /// What a strategy says, with its name and the preference's.
    pub fn resolve_all(&self) -> Result<Vec<Resolved>> {
        let mut resolved = Vec::new();
        for (strategy, spec) in self.strategies.iter() {
            for (preference, stated) in self.preferences.iter() {
                let plans = self.resolve_candidates(spec, stated);
                let (plan, candidate_plans) = plans.with_context(|| {
                    format!("strategy '{strategy}' for preference '{preference}'")
                })?;
                resolved.push(Resolved {
                    strategy: strategy.into(),
                    preference: preference.into(),
                    plan,
                    candidate_plans,
                });
            }
        }
        Ok(resolved)
    }

    /// How any strategy serves any preference with the experts of this file.
    ///
    /// # Errors
    /// What the strategy says, and experts that cannot give what it needs.
    pub fn resolve_strategy(&self, strategy: &Strategy, preference: &Preference) -> Result<Plan> {
        let (plan, _) = self.resolve_candidates(strategy, preference)?;
        Ok(plan)
    }

    /// A preference whose directions are called as the experts that serve them.
    fn by_experts(&self, preference: &Preference) -> Preference {
        let name = |direction: &String| {
            let mut serving = self.experts.iter();
            let serving = serving.find(|(_, expert)| expert.serves() == Some(direction));
            serving.map_or_else(|| direction.clone(), |(name, _)| name.to_string())
        };
        let importances = preference.importances.iter();
        Preference {
            text: preference.text.clone(),
            importances: importances
                .map(|(direction, w)| (name(direction), *w))
                .collect(),
        }
    }

    /// What experts say that they serve is a direction, which no other serves.
    fn check_serving(&self) -> Result<()> {
        let dimensions = self.dimensions();
        let mut serving: Vec<(&str, &str)> = Vec::new();
        for (name, expert) in self.experts.iter() {
            let Some(direction) = expert.serves() else {
                continue;
            };
            locate(&dimensions, direction).with_context(|| format!("expert '{name}'"))?;
            let named = self.experts.get(direction).map(|_| direction);
            let other = serving.iter().find(|(served, _)| *served == direction);
            let other = other
                .map(|(_, other)| *other)
                .or(named.filter(|other| *other != name));
            if let Some(other) = other {
                anyhow::bail!("experts '{other}' and '{name}' both serve '{direction}'; one may");
            }
            serving.push((direction, name));
        }
        Ok(())
    }

    /// The same with the plans of its candidates. This is the only place that asks a strategy for its plan.
    fn resolve_candidates(
        &self,
        strategy: &Strategy,
        preference: &Preference,
    ) -> Result<(Plan, Vec<Plan>)> {
        let plan = strategy.plan(&self.by_experts(preference), &self.expert_names())?;
        if plan.recorded.is_some() && !matches!(strategy, Strategy::Recorded(_)) {
            return Err(mixing::Error::RecordedInside.into());
        }
        let needs = plan.requirements;
        let parameters = mixing::Requirements::PARAMETERS;
        for name in &plan.experts {
            match plan.merged.get(name) {
                // What is merged runs here and can tell everything.
                Some(recipe) => {
                    for source in &recipe.experts {
                        parameters.check(source, &self.expert(source).capabilities())?;
                    }
                }
                None if plan.candidates.is_empty() => {
                    needs.check(name, &self.expert(name).capabilities())?;
                }
                None => {}
            }
        }
        let candidates = plan.candidates.iter().map(|candidate| {
            self.resolve_strategy(&candidate.strategy, preference)
                .with_context(|| format!("'{}'", candidate.name))
        });
        let candidates = candidates.collect::<Result<_>>()?;
        Ok((plan, candidates))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use mixing::merging::Method;

    use super::*;

    /// What stands in backticks.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    #[test]
    fn an_expert_says_whom_it_serves() {
        let folder = tempfile::tempdir().unwrap();
        let file = pico::experiment(folder.path());
        let text = std::fs::read_to_string(&file).unwrap();
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Experiment::load(&file)
        };
        let serving = "\"warm\": Serving(serves: \"friendly\", of: Prompted(\"be kind\"))";
        let changed = text.replace("\"friendly\": Prompted(\"be kind\")", serving);
        assert_ne!(changed, text);
        let experiment = load(&changed).unwrap();
        let resolved = experiment.resolve_all().unwrap();
        assert_eq!(resolved[1].plan.experts, ["informative", "warm"]);
        assert!(experiment.unused_experts().unwrap().is_empty());
        let both = format!("{serving}, \"friendly\": Prompted(\"be kind\")");
        let error = format!(
            "{:#}",
            load(&text.replace("\"friendly\": Prompted(\"be kind\")", &both)).unwrap_err()
        );
        assert!(
            error.contains("experts 'friendly' and 'warm' both serve 'friendly'"),
            "{error}"
        );
        let error = load(&changed.replace("serves: \"friendly\"", "serves: \"warmth\""));
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.contains("expert 'warm'") && error.contains("'warmth'"),
            "{error}"
        );
        // One that nobody asks for is told.
        let idle = format!("{serving}, \"idle\": Prompted(\"be idle\")");
        let experiment = load(&text.replace("\"friendly\": Prompted(\"be kind\")", &idle)).unwrap();
        assert_eq!(experiment.unused_experts().unwrap(), ["idle"]);
    }

    #[test]
    fn every_config_of_the_book_is_read() {
        let book = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/strategies.md");
        let book = std::fs::read_to_string(book).unwrap();
        let here = Path::new("strategies.md");
        let mut seen = 0;
        // A bullet may go over several lines.
        for bullet in book.split("\n- **config**").skip(1) {
            let bullet = bullet.split("\n- ").next().unwrap();
            for example in quoted(bullet).filter(|q| q.contains('(') && !q.starts_with("mope")) {
                let strategy: Strategy = config::parse(here, example).unwrap();
                let text = config::options().to_string(&strategy).unwrap();
                assert_eq!(config::parse::<Strategy>(here, &text).unwrap(), strategy);
                seen += 1;
            }
        }
        assert!(seen > 35, "{seen}");
        let methods = book
            .lines()
            .filter(|l| l.starts_with("| `") && l.contains("(http"));
        let mut names = 0;
        for line in methods {
            config::parse::<Method>(here, quoted(line).next().unwrap()).unwrap();
            names += 1;
        }
        assert_eq!(names, 8, "all but SLERP and the factor soup have a paper");
    }
}
