//! The strategies, one file each. The enum is the registry: a new strategy is a new file, its `mod` and `use` lines and
//! its lines in [`Strategy`]. All else that is to be known of it, its file says as a `Method`.

mod base;
mod best_of_n;
mod best_on_validation;
mod best_single;
mod best_weights;
mod canned;
mod cliper;
mod dera;
mod dexperts;
mod empty;
mod few_shot;
mod fixed;
mod mato;
mod merge;
mod model_arithmetic;
mod multi_objective;
mod oracle;
mod pack_llm;
mod pcm;
mod prompting;
mod recorded;
mod single;
mod top_k;
mod uniform;
mod with_merged;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use base::Base;
pub use best_of_n::BestOfN;
pub use best_on_validation::BestOnValidation;
pub use best_single::BestSingle;
pub use best_weights::BestWeights;
pub use canned::Canned;
pub use cliper::Cliper;
pub use dera::DeRa;
pub use dexperts::DExperts;
pub use empty::Empty;
pub use few_shot::{Example, FewShot};
pub use fixed::{Fixed, Space};
pub use mato::Mato;
pub use merge::Merge;
pub use model_arithmetic::{ModelArithmetic, Operand, Term};
pub use multi_objective::{Divergence, Mod};
pub use oracle::Oracle;
pub use pack_llm::PackLlm;
pub use pcm::{Choice, Pcm, statistics};
pub use prompting::Prompting;
pub use recorded::Recorded;
pub use single::Single;
pub use top_k::TopK;
pub use uniform::Uniform;
pub use with_merged::WithMerged;

use crate::registry::registry;
use crate::{Plan, Preference, Result};

registry! {
    /// A way to serve a preference, as configs name it.
    ///
    /// Words of an earlier version are read, and written, so that what was made with them is found again: `Best`, `Pack`
    /// and `Over`.
    pub enum Strategy: Method, instances (context: &InstanceContext<'_>) (context) -> Instance {
        /// The base model, preference ignored.
        Base,
        /// Texts that ignore the question, against measures that a fool can please.
        Canned,
        /// No answer.
        Empty,
        /// One expert, always the same.
        Single,
        /// The expert that is best on a validation set.
        BestSingle,
        /// The constant weights that are best on a validation set.
        BestWeights,
        /// The strategy that is best on a validation set.
        #[serde(rename(serialize = "Best"), alias = "Best")]
        BestOnValidation,
        /// The base model with the preference in its prompt.
        Prompting,
        /// The base model with examples of the preference in its prompt.
        FewShot,
        /// The preference's experts with equal weights.
        Uniform,
        /// The preference's experts with constant weights.
        Fixed,
        /// Multi-objective decoding.
        Mod,
        /// Decoding-time realignment: between base and experts, and beyond.
        DeRa,
        /// Experts against anti-experts; proxy tuning.
        DExperts,
        /// Signed sums, unions and intersections of experts.
        ModelArithmetic,
        /// Weights that boost the objective that lags.
        Mato,
        /// Weights by how well each expert predicts the prompt.
        #[serde(rename(serialize = "Pack"), alias = "Pack")]
        PackLlm,
        /// Weights by the Preference Control Model, at every token.
        Pcm,
        /// A model guided by a classifier.
        Cliper,
        /// One expert merged out of several, before decoding.
        Merge,
        /// Another strategy over merged experts.
        #[serde(rename(serialize = "Over"), alias = "Over")]
        WithMerged,
        /// Responses that were made elsewhere.
        Recorded,
        /// The best of several responses of another strategy.
        BestOfN,
        /// The constant weights that are best for each prompt, by the rewards that judge them.
        Oracle,
        /// Another strategy over experts of which only the likeliest tokens are seen.
        TopK,
    }
}

/// What a strategy's file says of it.
pub(crate) trait Method {
    /// How it serves `preference` with the experts that are there, `base` among them.
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan>;

    /// The strategies in it and the folders that it names. There is no default: what is not listed here would neither
    /// be found from other folders nor count among the inputs of a run.
    fn parts(&mut self) -> Parts<'_>;

    /// All weight on one expert gives exactly that expert, bit for bit. Where it says so, tests hold it to that.
    fn reproduces_single_expert(&self) -> bool;

    /// The same strategy with constant weights by expert. Default: `None`, it takes none.
    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        let _ = weights;
        None
    }

    /// The same strategy at a strength, where it steers. Default: `None`, it does not.
    fn at_strength(&self, strength: f64) -> Option<Strategy> {
        let _ = strength;
        None
    }

    /// Instances for tests, one of each kind of arithmetic.
    fn instances(context: &InstanceContext<'_>) -> Vec<Instance<Self>>
    where
        Self: Sized;
}

/// What is in a strategy.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    /// Other strategies.
    pub strategies: Vec<&'a mut Strategy>,
    /// Trained models.
    pub models: Vec<TrainedModel<'a>>,
}

impl<'a> Parts<'a> {
    /// Nothing: neither another strategy nor a folder.
    pub fn none() -> Self {
        Self::default()
    }

    /// Other strategies and no folder of its own.
    pub fn strategies(strategies: impl IntoIterator<Item = &'a mut Strategy>) -> Self {
        Self {
            strategies: strategies.into_iter().collect(),
            ..Self::default()
        }
    }

    /// The folder of one trained model, and what tells whether it can be opened.
    pub fn model(folder: &'a mut PathBuf, try_open: fn(&Path) -> Result<()>) -> Self {
        Self {
            models: vec![TrainedModel { folder, try_open }],
            ..Self::default()
        }
    }
}

/// A trained model or a file that a strategy uses.
pub(crate) struct TrainedModel<'a> {
    folder: &'a mut PathBuf,
    try_open: fn(&Path) -> Result<()>,
}

/// Names and folders that [`Strategy::instances`] are made with.
#[derive(Debug, Clone, Copy)]
pub struct InstanceContext<'a> {
    /// Experts that the preference asks for, in the order of their names.
    pub directions: &'a [&'a str],
    /// One more expert, to contrast them with.
    pub other: &'a str,
    /// Folder of a classifier that knows the directions.
    pub classifier: &'a Path,
    /// Folder of a PCM that knows the directions.
    pub pcm: &'a Path,
}

/// A strategy for tests, and what they may expect of it.
#[derive(Debug, Clone)]
pub struct Instance<S = Strategy> {
    /// The strategy.
    pub strategy: S,
    /// Its key in `scripts/fixtures/strategies.py`, which says what it makes of some distributions; `None` where that
    /// has none.
    pub reference: Option<&'static str>,
    /// It multiplies distributions: a token that an expert with weight rules out is out.
    pub multiplies: bool,
}

impl<S> Instance<S> {
    /// One that the script does not know and that does not multiply.
    pub(crate) fn new(strategy: S) -> Self {
        Self {
            strategy,
            reference: None,
            multiplies: false,
        }
    }

    /// It stands in the script under `key`.
    pub(crate) fn reference(self, key: &'static str) -> Self {
        Self {
            reference: Some(key),
            ..self
        }
    }

    /// It multiplies distributions.
    pub(crate) fn multiplies(self) -> Self {
        Self {
            multiplies: true,
            ..self
        }
    }

    fn map<T>(self, change: impl FnOnce(S) -> T) -> Instance<T> {
        Instance {
            strategy: change(self.strategy),
            reference: self.reference,
            multiplies: self.multiplies,
        }
    }
}

impl Strategy {
    /// How this strategy serves `preference` with the experts that are there.
    ///
    /// # Errors
    /// Parameters that make no sense, or that don't fit the preference or the experts; a trained model whose
    /// configuration cannot be read.
    ///
    /// ```
    /// use mope_mixing::strategies::Uniform;
    /// use mope_mixing::{Preference, Strategy};
    /// let importances = [("concise".to_string(), 2.0), ("friendly".to_string(), 1.0)].into();
    /// let preference = Preference { text: "be brief".into(), importances };
    /// let uniform = Strategy::Uniform(Uniform::default());
    /// let plan = uniform.plan(&preference, &["base", "concise", "friendly", "rude"])?;
    /// assert_eq!(plan.experts, ["concise", "friendly"]);
    /// # Ok::<(), mope_mixing::Error>(())
    /// ```
    pub fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        self.variant().plan(preference, experts)
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        for model in self.models_mut() {
            *model = folder.join(&*model);
        }
    }

    /// The trained models that it or strategies in it use.
    fn trained_models(&mut self) -> Vec<TrainedModel<'_>> {
        let Parts {
            strategies,
            mut models,
        } = self.variant_mut().parts();
        for strategy in strategies {
            models.extend(strategy.trained_models());
        }
        models
    }

    /// What it or strategies in it read beside experts: folders of trained models (PCMs, classifiers), files of
    /// recorded responses.
    pub fn models(&self) -> Vec<PathBuf> {
        let mut copy = self.clone();
        let folders = copy.models_mut().into_iter();
        folders.map(std::mem::take).collect()
    }

    /// These folders in the same order, to change them.
    pub fn models_mut(&mut self) -> Vec<&mut PathBuf> {
        let models = self.trained_models().into_iter();
        models.map(|model| model.folder).collect()
    }

    /// Opens each of these models once, to find out now what would come up while decoding.
    ///
    /// # Errors
    /// A model that cannot be opened.
    pub fn try_models(&self) -> Result<()> {
        let mut copy = self.clone();
        let mut models = copy.trained_models().into_iter();
        models.try_for_each(|model| (model.try_open)(model.folder))
    }

    /// The strategies in it, not those in them.
    pub fn children_mut(&mut self) -> Vec<&mut Strategy> {
        self.variant_mut().parts().strategies
    }

    /// The same strategy with constant weights by expert; `None` where it takes none.
    pub fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Self> {
        self.variant().weighted(weights)
    }

    /// The same strategy at another strength: λ of `DeRa`, `strength` of `DExperts`, `Pcm` and `Cliper`, n of `BestOfN`,
    /// what is inside of `BestWeights`, `TopK` and `WithMerged`; `None` where it has none, or not this one.
    ///
    /// ```
    /// use mope_mixing::Strategy;
    /// use mope_mixing::strategies::{BestOfN, DeRa, Uniform};
    /// let far = Strategy::DeRa(DeRa::default()).at_strength(3.0);
    /// assert!(matches!(far, Some(Strategy::DeRa(dera)) if dera.lambda == 3.0));
    /// assert_eq!(Strategy::Uniform(Uniform::default()).at_strength(3.0), None);
    /// assert_eq!(Strategy::BestOfN(BestOfN::default()).at_strength(2.5), None);
    /// ```
    pub fn at_strength(&self, strength: f64) -> Option<Self> {
        self.variant().at_strength(strength)
    }

    /// It answers with fixed texts.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Canned(_) | Self::Empty(_))
    }

    /// Responses from which the one that is kept is chosen by utility, all drawn from one distribution: n of `BestOfN`,
    /// else 1.
    pub fn chosen_from(&self) -> usize {
        match self {
            Self::BestOfN(best) => best.n.saturating_mul(best.of.chosen_from()),
            _ => 1,
        }
    }

    /// All weight on one expert gives exactly that expert.
    pub fn reproduces_single_expert(&self) -> bool {
        self.variant().reproduces_single_expert()
    }
}
