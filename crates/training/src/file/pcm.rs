//! The recipe of a Preference Control Model.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use eval::dimension::Dimension;
use eval::utility::Utility;
use experts::ExpertSpec;
use lm::parameter::{above_zero, at_least_one, from_zero_on};
use mixing::Named;
use pcm::{Algorithm, Credit, Output, PcmConfig, PreferenceInput, TrainerConfig};
use serde::{Deserialize, Serialize};

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
    /// The preferences that it learns to serve. Default `Enumerated` (paper).
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
    /// Folders of rollouts of earlier trainings over the same experts, relative to this file, to learn from as well.
    /// They need `replay`; with enough of them no iterations are needed. `{seed}` in a name stands for the training's
    /// seed. Utilities are computed anew from the recorded rewards. Default: none.
    #[serde(default)]
    pub records: Vec<PathBuf>,
    /// How its outputs combine the experts. Default `Probabilities` (paper).
    #[serde(default)]
    pub output: Output,
    /// Iterations, responses, and how rollouts are fitted.
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
    /// How it reads a preference: weights, text or both. Default `Both` (ours).
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

/// The preferences that a PCM learns to serve.
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
    /// Every fit goes over all that was recorded so far, records that were given included, and starts from a fresh
    /// PCM; default false: it goes over what this iteration sampled and continues from there (paper). A whole
    /// response's utility says little about each token: what one iteration says is mostly noise.
    pub replay: bool,
    /// Price of divergence: utility lost for each nat per token that the mixture is away from the base. Default 0
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

    pub(super) fn validate(&self) -> Result<()> {
        let s = &self.settings;
        ensure!(
            self.records.is_empty() || s.replay,
            "records are read where settings have replay: true"
        );
        s.validate(self.records.len() as u64).context("settings")?;
        self.output.validate().context("output")?;
        ensure!(
            !self.output.reads_base() || s.fit.entropy <= 0.0 && s.fit.uniform <= 0.0,
            "settings: fit: entropy and uniform are for weights that sum to 1, not for Gates"
        );
        ensure!(
            s.fit.kl <= 0.0 || self.output.reads_base(),
            "settings: fit: kl is worked out where the base takes part, with Gates; elsewhere settings: kl takes it from \
             the utility"
        );
        if let Preferences::Dirichlet { alpha } = self.preferences {
            above_zero("alpha", alpha).context("preferences")?;
        }
        for (name, dimension) in self.dimensions.iter() {
            let checked = dimension.validate();
            checked.with_context(|| format!("dimension '{name}'"))?;
            for direction in [&dimension.low, &dimension.high] {
                ensure!(
                    self.experts.get(direction).is_some(),
                    "dimension '{name}': there is no expert '{direction}'; experts have the names of the directions \
                     that they serve"
                );
            }
        }
        s.fit.validate().context("settings: fit")
    }
}

impl PcmSettings {
    /// Checks the numbers; `records` are the runs whose records are given.
    fn validate(&self, records: u64) -> Result<()> {
        ensure!(
            !self.replay || matches!(self.fit.algorithm, Algorithm::Rebel { .. }),
            "replay is for REBEL; PPO needs samples of the PCM itself"
        );
        at_least_one([
            ("iterations", self.iterations + records),
            ("preferences", self.preferences as u64),
            ("prompts", self.prompts as u64),
            ("max_new_tokens", self.max_new_tokens as u64),
            ("keep", self.keep as u64),
        ])?;
        above_zero("temperature", self.temperature)?;
        from_zero_on("kl", self.kl)?;
        ensure!(
            !matches!(self.fit.credit, Credit::Segments { .. })
                || self.segment > 0
                || self.iterations == 0,
            "segment is 0; credit by segments needs responses that are scored on their way"
        );
        Ok(())
    }
}
