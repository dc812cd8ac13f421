//! The training file: what a user writes, read from RON and checked before anything is loaded.

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::dimension::{Dimension, Dimensions, locate};
use eval::rewards::{Penalties, RewardModelConfig, ShapedReward, Term};
use eval::utility::Utility;
use experts::ExpertSpec;
use experts::training::classifier::ClassifierConfig;
use experts::training::offline::OfflineConfig;
use experts::training::rebel::RebelConfig;
use lm::Weights;
use lm::save::Precision;
use lm::tuning::LoraConfig;
use mixing::{BASE, Named, Preference};
use pcm::{Algorithm, Credit, Output, PcmConfig, PreferenceInput, TrainerConfig};
use serde::{Deserialize, Serialize};

use crate::config::{self, model_path, plain, resolve_expert};
use crate::failure::usage;

/// One training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Names its folder, `runs/train/<name>`.
    pub name: String,
    /// All randomness follows from it. Default 0 (ours).
    #[serde(default)]
    pub seed: u64,
    /// Base model, by registered name or path (relative to this file).
    pub model: String,
    /// Number format of gradients' products, `F32` or `Bf16`. Default `F32`.
    #[serde(default)]
    pub weights: Weights,
    /// Number format of the model that samples. Default `Bf16` (near the policy that is trained).
    #[serde(default = "bf16")]
    pub sampling_weights: Weights,
    /// Shape of the adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Adapter to start from, a PEFT folder of the same shape; else a fresh one.
    #[serde(default)]
    pub start: Option<PathBuf>,
    /// What the written adapter's update is multiplied with. Default 1. Where a training moved the right way but
    /// not far enough, a larger one, chosen on validation prompts, goes further at no cost.
    #[serde(default = "whole")]
    pub strength: f32,
    /// Number format of the adapter that is written. Default `F16` (ours: half the size, three digits).
    #[serde(default = "f16")]
    pub precision: Precision,
    /// What is done.
    pub recipe: Recipe,
}

fn bf16() -> Weights {
    Weights::Bf16
}

fn whole() -> f32 {
    1.0
}

fn f16() -> Precision {
    Precision::F16
}

/// The recipes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Recipe {
    /// Supervised fine-tuning on JSON lines with `prompt` and `response`.
    Sft(OfflineTraining),
    /// Direct preference optimisation on JSON lines with `prompt`, `chosen` and `rejected`.
    Dpo(OfflineTraining),
    /// REBEL on the model's own responses, iteration after iteration.
    Rebel(RebelTraining),
    /// REBEL's regression on the best and the worst of many responses of the base to each prompt.
    BestWorst(BestWorstTraining),
    /// The same for one policy that serves all preferences and reads each in its prompt (MORL in arXiv 2310.11564).
    Morl(MorlTraining),
    /// A Bradley-Terry reward model on JSON lines with `prompt`, `chosen` and `rejected`.
    Reward(RewardTraining),
    /// A classifier of responses that guides a model ([`mixing::strategies::Cliper`]).
    Classifier(ClassifierTraining),
    /// A Preference Control Model over trained experts.
    Pcm(PcmTraining),
}

/// A training on given responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfflineTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
    /// Chosen and rejected change places, so that one file of pairs serves both directions. For pairs only. Default
    /// false.
    #[serde(default)]
    pub swap: bool,
    /// How.
    #[serde(default)]
    pub settings: OfflineConfig,
}

/// A training on the model's own responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebelTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is rewarded.
    pub reward: ShapedReward,
    /// How.
    #[serde(default)]
    pub settings: RebelConfig,
}

/// A training on the best and the worst of the base's responses. They are kept in the cache, so that trainings
/// that differ only in the reward share them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestWorstTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is rewarded; differences are divided by their standard deviation over the responses to a prompt.
    pub reward: ShapedReward,
    /// Who writes the responses: `Base`, `Prompted(…)` or `Adapter(…)`; the adapter is always trained on the prompt
    /// alone. Where the base hardly ever goes a direction, a base that is told to, or an adapter that does too much,
    /// shows it. Default `[Base]`.
    #[serde(default = "base")]
    pub candidates: Vec<ExpertSpec>,
    /// Responses to each prompt by each of them. Default 8 (ours).
    #[serde(default = "eight")]
    pub samples: u64,
    /// Longest response in tokens. Default 96 (ours).
    #[serde(default = "ninety_six")]
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7.
    #[serde(default = "temperature")]
    pub temperature: f32,
    /// Taken off the reward of a response that does not end within `max_new_tokens`. Default 0.
    #[serde(default)]
    pub missing_end: f64,
    /// How.
    #[serde(default)]
    pub settings: OfflineConfig,
}

fn base() -> Vec<ExpertSpec> {
    vec![ExpertSpec::Base]
}

fn eight() -> u64 {
    8
}

fn ninety_six() -> usize {
    96
}

fn temperature() -> f32 {
    0.7
}

/// A training of one policy on the mean utility of many preferences, each asked for in the prompt as
/// [`mixing::strategies::Prompting`] does. Responses are kept in the cache, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MorlTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is measured, and what the two directions of each dimension are called.
    pub dimensions: Named<Dimension>,
    /// Whom the policy serves. A response is worth the mean of its normalised rewards, weighted by importance and
    /// signed by direction, less the penalties.
    pub preferences: Named<Preference>,
    /// Preferences that ask each prompt, in turn. Default 0: all of them.
    #[serde(default)]
    pub asks: usize,
    /// Standard deviations beyond which a reward pays no more. Default 2.5 (ours).
    #[serde(default = "cap")]
    pub cap: f64,
    /// What is taken off.
    #[serde(default)]
    pub penalties: Penalties,
    /// Responses to each prompt and preference. Default 8 (ours).
    #[serde(default = "eight")]
    pub samples: u64,
    /// Longest response in tokens. Default 96 (ours).
    #[serde(default = "ninety_six")]
    pub max_new_tokens: usize,
    /// Temperature of the policy, in sampling and in every log-probability. Default 0.7.
    #[serde(default = "temperature")]
    pub temperature: f32,
    /// How.
    #[serde(default)]
    pub settings: OfflineConfig,
}

fn cap() -> f64 {
    2.5
}

impl MorlTraining {
    /// What a response is worth to one of the preferences.
    ///
    /// # Errors
    /// A preference that states no direction, or one that no dimension has.
    pub fn reward(&self, preference: &Preference) -> Result<ShapedReward> {
        let owned = self.dimensions.iter();
        let dimensions: Dimensions = owned.map(|(n, d)| (n.to_string(), d.clone())).collect();
        let mut terms = Vec::new();
        for (direction, share) in preference.shares()? {
            let (name, sign) = locate(&dimensions, &direction)?;
            let dimension = &dimensions[name];
            terms.push(Term {
                scorer: dimension.scorer.clone(),
                weight: sign * share,
                cap: self.cap,
                normaliser: dimension.normaliser,
            });
        }
        let penalties = self.penalties;
        Ok(ShapedReward { terms, penalties })
    }

    fn validate(&self) -> Result<(), String> {
        if self.preferences.is_empty() {
            return Err("preferences: at least one is needed".into());
        }
        for (name, preference) in self.preferences.iter() {
            let wrong = |e: &dyn std::fmt::Display| format!("preference '{name}': {e}");
            if preference.text.trim().is_empty() {
                return Err(wrong(&"it has no text, and the policy reads nothing else"));
            }
            let reward = self.reward(preference).map_err(|e| wrong(&e))?;
            reward.validate().map_err(|e| wrong(&e))?;
        }
        sampled(self.samples, self.max_new_tokens, self.temperature)?;
        self.settings.validate()
    }
}

/// Checks how many responses are sampled, and how.
fn sampled(samples: u64, max_new_tokens: usize, temperature: f32) -> Result<(), String> {
    if samples < 2 || max_new_tokens == 0 || !(temperature > 0.0 && temperature.is_finite()) {
        return Err("samples: at least 2; max_new_tokens: at least 1; temperature: above 0".into());
    }
    Ok(())
}

/// A reward model fitted to pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardTraining {
    /// JSON lines, relative to this file.
    pub data: PathBuf,
    /// How.
    #[serde(default)]
    pub settings: RewardModelConfig,
}

/// A classifier fitted to responses of the base and of experts, which scorers put in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is told apart; the responses to a prompt that score highest and lowest are the two ends.
    pub dimensions: Named<Dimension>,
    /// Who answers beside the base, so that both ends are there; over the base's tokens.
    #[serde(default)]
    pub experts: Named<ExpertSpec>,
    /// Responses of each of them to each prompt. Default 1 (ours).
    #[serde(default = "once")]
    pub samples: u64,
    /// Longest response in tokens. Default 64 (ours).
    #[serde(default = "sixty_four")]
    pub max_new_tokens: usize,
    /// Temperature of the responses. Default 0.7.
    #[serde(default = "temperature")]
    pub temperature: f32,
    /// Share of the responses to a prompt that is taken for each end; the rest is left out. Default 0.35 (ours).
    #[serde(default = "third")]
    pub share: f64,
    /// How.
    #[serde(default)]
    pub settings: ClassifierConfig,
}

fn once() -> u64 {
    1
}

fn sixty_four() -> usize {
    64
}

fn third() -> f64 {
    0.35
}

impl ClassifierTraining {
    fn validate(&self) -> Result<(), String> {
        if self.dimensions.is_empty() {
            return Err("dimensions: at least one is needed".into());
        }
        let mut seen = Vec::new();
        for (name, dimension) in self.dimensions.iter() {
            for end in [&dimension.low, &dimension.high] {
                if seen.contains(&end) {
                    return Err(format!(
                        "dimension '{name}': the direction '{end}' is named twice"
                    ));
                }
                seen.push(end);
            }
        }
        if self.experts.get(BASE).is_some() {
            return Err(format!(
                "expert '{BASE}' is the base model itself, which answers anyway; leave it out"
            ));
        }
        self.experts
            .names()
            .iter()
            .try_for_each(|name| plain("expert", name).map_err(|e| e.to_string()))?;
        let all = self.samples * (1 + self.experts.names().len() as u64);
        let positive = self.temperature > 0.0 && self.temperature.is_finite();
        if all < 2 || self.max_new_tokens == 0 || !positive {
            return Err(
                "samples and experts: at least 2 responses to a prompt; max_new_tokens: at least 1; \
                 temperature: above 0"
                    .into(),
            );
        }
        if !(self.share > 0.0 && self.share <= 0.5) {
            return Err(format!(
                "share is {}, not above 0 and at most 0.5",
                self.share
            ));
        }
        self.settings
            .validate()
            .map_err(|e| format!("settings: {e}"))
    }
}

/// A training of the Preference Control Model on responses of its own mixtures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcmTraining {
    /// Prompt set, relative to this file.
    pub prompts: PathBuf,
    /// What is measured, and what the two directions of each dimension are called.
    pub dimensions: Named<Dimension>,
    /// Experts by the direction that they serve.
    pub experts: Named<ExpertSpec>,
    /// Wordings by direction, a JSON file of `{direction: {"train": [..]}}`, relative to this file.
    pub texts: PathBuf,
    /// Whose wishes it learns to serve. Default `Enumerated` (paper).
    #[serde(default)]
    pub preferences: Preferences,
    /// How rewards become one number. Default `BradleyTerry` (paper).
    #[serde(default)]
    pub utility: Utility,
    /// Shape of the PCM.
    #[serde(default)]
    pub shape: Shape,
    /// Decoder that it begins as instead, by registered name or path (relative to this file), with the base's
    /// vocabulary (paper: a LLaMA of 160M). Default: fresh weights of that shape.
    #[serde(default)]
    pub pretrained: Option<String>,
    /// How it reads preference, context and statistics.
    #[serde(default)]
    pub input: PcmInput,
    /// Folders of rollouts of earlier trainings over the same experts, relative to this file, to learn from, too; with
    /// `replay`, and with enough of them no iterations are needed. `{seed}` in a name stands for the training's seed.
    /// What a response is worth is worked out again from its recorded rewards. Default: none.
    #[serde(default)]
    pub records: Vec<PathBuf>,
    /// What its outputs do. Default `Probabilities` (paper).
    #[serde(default)]
    pub output: Output,
    /// How.
    #[serde(default)]
    pub settings: PcmSettings,
}

/// Presets of a PCM's shape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// [`PcmConfig::tiny`] (default).
    #[default]
    Tiny,
    /// [`PcmConfig::small`].
    Small,
    /// [`PcmConfig::llama160m`].
    Llama160m,
}

impl Shape {
    /// The config over experts and embeddings of a width.
    pub fn config(self, experts: &[&str], embedding: usize) -> PcmConfig {
        match self {
            Self::Tiny => PcmConfig::tiny(experts, embedding),
            Self::Small => PcmConfig::small(experts, embedding),
            Self::Llama160m => PcmConfig::llama160m(experts, embedding),
        }
    }
}

/// What a PCM reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PcmInput {
    /// How it learns what somebody prefers. Default `Both` (ours).
    pub preference: PreferenceInput,
    /// It reads the context. Default true (paper).
    pub context: bool,
    /// It reads statistics of the experts. Default false (paper).
    pub statistics: bool,
}

impl Default for PcmInput {
    fn default() -> Self {
        Self {
            preference: PreferenceInput::Both,
            context: true,
            statistics: false,
        }
    }
}

/// Whose wishes a PCM learns to serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Preferences {
    /// One end of every dimension, all alike (paper).
    #[default]
    Enumerated,
    /// Any number of dimensions, either end, importances from a Dirichlet distribution (as in PARM,
    /// arXiv 2505.06274): n dimensions need not 2ⁿ combinations.
    Dirichlet {
        /// Concentration; 1 is uniform over the simplex.
        alpha: f64,
    },
}

/// Settings of a PCM's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PcmSettings {
    /// Iterations of sampling and fitting. Default 40 (ours).
    pub iterations: u64,
    /// Preferences of an iteration. Default 8 (ours: the paper's eight).
    pub preferences: usize,
    /// Prompts for each of them, two responses each. Default 4 (ours).
    pub prompts: usize,
    /// Longest response in tokens. Default 64 (ours).
    pub max_new_tokens: usize,
    /// Temperature of every expert. Default 0.7 (REBEL's code: 0.5 to 0.7).
    pub temperature: f32,
    /// Every fit goes over all that was recorded so far, records that were given included, and departs from a fresh
    /// PCM; default false: it goes over what this iteration sampled and departs from there (paper). A whole
    /// response's utility says little about each token: what one iteration says is mostly noise.
    pub replay: bool,
    /// What a response loses in utility for each nat per token that the mixture is away from the base. Default 0
    /// (paper).
    pub kl: f64,
    /// Likeliest tokens of each step that are recorded where experts are multiplied. Default 32 (ours: at
    /// temperature 0.7 all others together hold about 1 % of the mass).
    pub keep: usize,
    /// Tokens after which a response is scored on its way, for credit by segments; 0: only the whole is. Default 0
    /// (paper).
    pub segment: usize,
    /// How rollouts are fitted.
    pub fit: TrainerConfig,
}

impl Default for PcmSettings {
    fn default() -> Self {
        Self {
            iterations: 40,
            preferences: 8,
            prompts: 4,
            max_new_tokens: 64,
            temperature: 0.7,
            replay: false,
            kl: 0.0,
            keep: 32,
            segment: 0,
            fit: TrainerConfig::default(),
        }
    }
}

impl PcmTraining {
    /// Steps of the whole training.
    pub fn total_steps(&self) -> u64 {
        let s = &self.settings;
        let pairs = s.preferences * s.prompts;
        let steps = s.fit.epochs * pairs.div_ceil(s.fit.minibatch) as u64;
        // A replay has a schedule of its own, as long as its records ask for.
        if s.replay { 0 } else { s.iterations * steps }
    }

    fn validate(&self) -> Result<(), String> {
        let s = &self.settings;
        if !self.records.is_empty() && !s.replay {
            return Err("records are read where settings have replay: true".into());
        }
        if s.replay && !matches!(s.fit.algorithm, Algorithm::Rebel { .. }) {
            return Err(
                "settings: replay is for REBEL; PPO needs samples of the PCM itself".into(),
            );
        }
        let iterations = s.iterations as usize + self.records.len();
        let counts = [
            ("iterations", iterations),
            ("preferences", s.preferences),
            ("prompts", s.prompts),
            ("max_new_tokens", s.max_new_tokens),
            ("keep", s.keep),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(format!("settings: {name} is 0"));
        }
        if !(s.temperature > 0.0 && s.temperature.is_finite()) {
            return Err("settings: temperature is a number above 0".into());
        }
        if !(s.kl >= 0.0 && s.kl.is_finite()) {
            return Err(format!("settings: kl is {}, not a number from 0 on", s.kl));
        }
        self.output.validate().map_err(|e| format!("output: {e}"))?;
        if self.output.reads_base() && (s.fit.entropy > 0.0 || s.fit.uniform > 0.0) {
            return Err(
                "settings: fit: entropy and uniform are for weights that sum to 1, not for Gates"
                    .into(),
            );
        }
        if self.settings.fit.kl > 0.0 && !self.output.reads_base() {
            return Err(
                "settings: fit: kl is worked out where the base takes part, with Gates; elsewhere settings: kl takes it \
                 from the utility"
                    .into(),
            );
        }
        if matches!(s.fit.credit, Credit::Segments { .. }) && s.segment == 0 && s.iterations > 0 {
            return Err(
                "settings: segment is 0; credit by segments needs responses that are scored on their way".into(),
            );
        }
        if let Preferences::Dirichlet { alpha } = self.preferences
            && !(alpha > 0.0 && alpha.is_finite())
        {
            return Err(format!(
                "preferences: alpha is {alpha}, not a number above 0"
            ));
        }
        for (name, dimension) in self.dimensions.iter() {
            for direction in [&dimension.low, &dimension.high] {
                if self.experts.get(direction).is_none() {
                    return Err(format!(
                        "dimension '{name}': there is no expert '{direction}'; experts have the names of \
                         the directions that they serve"
                    ));
                }
            }
        }
        s.fit.validate().map_err(|e| format!("settings: fit: {e}"))
    }
}

impl Training {
    /// Reads and checks a training file.
    ///
    /// # Errors
    /// With file, line and column where the text is wrong, with the name where the content is.
    pub fn load(path: &Path) -> Result<Self> {
        let mut training: Self = config::load(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        training.model = model_path(folder, &training.model);
        if let Some(start) = &mut training.start {
            *start = folder.join(&*start);
        }
        match &mut training.recipe {
            Recipe::Sft(t) | Recipe::Dpo(t) => t.data = folder.join(&t.data),
            Recipe::Reward(t) => t.data = folder.join(&t.data),
            Recipe::Rebel(t) => {
                t.prompts = folder.join(&t.prompts);
                t.reward.resolve(folder);
            }
            Recipe::BestWorst(t) => {
                t.prompts = folder.join(&t.prompts);
                t.reward.resolve(folder);
                for candidate in &mut t.candidates {
                    resolve_expert(folder, candidate);
                }
            }
            Recipe::Classifier(t) => {
                t.prompts = folder.join(&t.prompts);
                for (_, expert) in t.experts.iter_mut() {
                    resolve_expert(folder, expert);
                }
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
            Recipe::Morl(t) => {
                t.prompts = folder.join(&t.prompts);
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
            Recipe::Pcm(t) => {
                t.prompts = folder.join(&t.prompts);
                t.texts = folder.join(&t.texts);
                t.pretrained = t.pretrained.as_ref().map(|m| model_path(folder, m));
                t.records.iter_mut().for_each(|r| *r = folder.join(&*r));
                for (_, expert) in t.experts.iter_mut() {
                    resolve_expert(folder, expert);
                }
                for (_, dimension) in t.dimensions.iter_mut() {
                    dimension.scorer.resolve(folder);
                }
            }
        }
        let wrong = |e: String| usage(format!("{}: {e}", path.display()));
        training.validate().map_err(wrong)?;
        Ok(training)
    }

    /// Takes another seed, and what is named after it.
    pub fn seeded(mut self, seed: Option<u64>) -> Self {
        self.seed = seed.unwrap_or(self.seed);
        if let Recipe::Pcm(t) = &mut self.recipe {
            for folder in &mut t.records {
                let name = folder.to_string_lossy();
                *folder = name.replace("{seed}", &self.seed.to_string()).into();
            }
        }
        self
    }

    /// Checks what the file says.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        plain("name", &self.name).map_err(|e| e.to_string())?;
        if !matches!(self.weights, Weights::F32 | Weights::Bf16) {
            return Err(format!(
                "weights: {:?}: F32 or Bf16 in training",
                self.weights
            ));
        }
        self.lora.validate().map_err(|e| format!("lora: {e}"))?;
        if !(self.strength > 0.0 && self.strength.is_finite()) {
            return Err(format!(
                "strength is {}, not a number above 0",
                self.strength
            ));
        }
        let settings = match &self.recipe {
            Recipe::Sft(t) if t.swap => Err("swap is for pairs".into()),
            Recipe::Sft(t) | Recipe::Dpo(t) => t.settings.validate(),
            Recipe::Rebel(t) => {
                t.reward.validate().map_err(|e| format!("reward: {e}"))?;
                t.settings.validate()
            }
            Recipe::BestWorst(t) => {
                t.reward.validate().map_err(|e| format!("reward: {e}"))?;
                sampled(t.samples, t.max_new_tokens, t.temperature)?;
                if !(t.missing_end >= 0.0 && t.missing_end.is_finite()) {
                    let given = t.missing_end;
                    return Err(format!("missing_end is {given}, not a number from 0 on"));
                }
                let own =
                    |c: &ExpertSpec| !matches!(c, ExpertSpec::Full(_) | ExpertSpec::Limited { .. });
                if t.candidates.is_empty() || !t.candidates.iter().all(own) {
                    return Err(
                        "candidates: one or more of Base, Prompted(…) and Adapter(…)".into(),
                    );
                }
                t.settings.validate()
            }
            Recipe::Morl(t) => return t.validate(),
            Recipe::Classifier(t) => return t.validate(),
            Recipe::Reward(t) => t.settings.validate(),
            Recipe::Pcm(t) => return t.validate(),
        };
        settings.map_err(|e| format!("settings: {e}"))
    }
}
