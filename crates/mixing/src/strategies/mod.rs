//! The strategies, one file each. The enum is the registry: a new strategy is a new file, a `mod`
//! line and a variant.

mod base;
mod best;
mod best_of_n;
mod best_single;
mod best_weights;
mod cliper;
mod dera;
mod dexperts;
mod few_shot;
mod fixed;
mod mato;
mod merge;
mod model_arithmetic;
mod multi_objective;
mod oracle;
mod over;
mod pack;
mod pcm;
mod prompting;
mod single;
mod top_k;
mod uniform;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use base::Base;
pub use best::Best;
pub use best_of_n::BestOfN;
pub use best_single::BestSingle;
pub use best_weights::BestWeights;
pub use cliper::Cliper;
pub use dera::DeRa;
pub use dexperts::DExperts;
pub use few_shot::{Example, FewShot};
pub use fixed::{Fixed, Space};
pub use mato::Mato;
pub use merge::Merge;
pub use model_arithmetic::{ModelArithmetic, Operand, Term};
pub use multi_objective::{Divergence, Mod};
pub use oracle::Oracle;
pub use over::Over;
pub use pack::Pack;
pub use pcm::{Choice, Pcm, statistics};
pub use prompting::Prompting;
pub use single::Single;
pub use top_k::TopK;
pub use uniform::Uniform;

use crate::{Needs, Plan, Preference, Result};

/// A way to serve a preference, as configs name it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Strategy {
    /// The base model, preference ignored.
    Base(Base),
    /// One expert, always the same.
    Single(Single),
    /// The expert that is best on a validation set.
    BestSingle(BestSingle),
    /// The constant weights that are best on a validation set.
    BestWeights(BestWeights),
    /// The strategy that is best on a validation set.
    Best(Best),
    /// The base model with the preference in its prompt.
    Prompting(Prompting),
    /// The base model with examples of the preference in its prompt.
    FewShot(FewShot),
    /// The preference's experts with equal weights.
    Uniform(Uniform),
    /// The preference's experts with constant weights.
    Fixed(Fixed),
    /// Multi-objective decoding.
    Mod(Mod),
    /// Decoding-time realignment: between base and experts, and beyond.
    DeRa(DeRa),
    /// Experts against anti-experts; proxy tuning.
    DExperts(DExperts),
    /// Signed sums, unions and intersections of experts.
    ModelArithmetic(ModelArithmetic),
    /// Weights that boost the objective that lags.
    Mato(Mato),
    /// Weights by how well each expert predicts the prompt.
    Pack(Pack),
    /// Weights by the Preference Control Model, at every token.
    Pcm(Pcm),
    /// A model guided by a classifier.
    Cliper(Cliper),
    /// One expert merged out of several, before decoding.
    Merge(Merge),
    /// Another strategy over merged experts.
    Over(Over),
    /// The best of several responses of another strategy.
    BestOfN(BestOfN),
    /// The constant weights that are best for each prompt, by the rewards that judge them.
    Oracle(Oracle),
    /// Another strategy over experts of which only the likeliest tokens are seen.
    TopK(TopK),
}

/// What every strategy has.
pub(crate) trait Method {
    /// How it serves `preference` with the experts that are there.
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan>;

    /// What it needs of each expert that it runs.
    fn needs(&self) -> Needs;

    /// All weight on one expert gives exactly that expert.
    fn one_hot(&self) -> bool;
}

impl Strategy {
    fn method(&self) -> &dyn Method {
        match self {
            Self::Base(s) => s,
            Self::Single(s) => s,
            Self::BestSingle(s) => s,
            Self::BestWeights(s) => s,
            Self::Best(s) => s,
            Self::Prompting(s) => s,
            Self::FewShot(s) => s,
            Self::Uniform(s) => s,
            Self::Fixed(s) => s,
            Self::Mod(s) => s,
            Self::DeRa(s) => s,
            Self::DExperts(s) => s,
            Self::ModelArithmetic(s) => s,
            Self::Mato(s) => s,
            Self::Pack(s) => s,
            Self::Pcm(s) => s,
            Self::Cliper(s) => s,
            Self::Merge(s) => s,
            Self::Over(s) => s,
            Self::BestOfN(s) => s,
            Self::Oracle(s) => s,
            Self::TopK(s) => s,
        }
    }

    /// How this strategy serves `preference` with the experts that are there.
    ///
    /// # Errors
    /// Parameters that make no sense, or that don't fit the preference or the experts.
    pub fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        self.method().plan(preference, experts)
    }

    /// Takes the paths that it names as relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        for model in self.models_mut() {
            *model = folder.join(&*model);
        }
    }

    /// The strategies in it.
    fn parts(&self) -> Vec<&Strategy> {
        match self {
            Self::TopK(TopK { of, .. })
            | Self::BestOfN(BestOfN { of, .. })
            | Self::Over(Over { of, .. })
            | Self::BestWeights(BestWeights { of, .. }) => vec![of],
            Self::Best(Best { of }) => of.iter().map(|(_, s)| s).collect(),
            _ => Vec::new(),
        }
    }

    /// Folders of the trained models (PCMs, classifiers) that it or strategies in it use.
    pub fn models(&self) -> Vec<&Path> {
        match self {
            Self::Pcm(Pcm { model, .. }) | Self::Cliper(Cliper { model, .. }) => vec![model],
            other => other.parts().into_iter().flat_map(Self::models).collect(),
        }
    }

    /// The same, to change them.
    pub fn models_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Pcm(Pcm { model, .. }) | Self::Cliper(Cliper { model, .. }) => vec![model],
            Self::TopK(TopK { of, .. })
            | Self::BestOfN(BestOfN { of, .. })
            | Self::Over(Over { of, .. })
            | Self::BestWeights(BestWeights { of, .. }) => of.models_mut(),
            Self::Best(Best { of }) => of.iter_mut().flat_map(|(_, s)| s.models_mut()).collect(),
            _ => Vec::new(),
        }
    }

    /// Opens each of these models once, to find out now what would come up while decoding.
    ///
    /// # Errors
    /// A model that cannot be opened.
    pub fn try_models(&self) -> Result<()> {
        match self {
            Self::Pcm(s) => drop(::pcm::Pcm::load(&s.model)?),
            Self::Cliper(s) => drop(experts::classifier::Classifier::load(&s.model)?),
            other => other.parts().into_iter().try_for_each(Self::try_models)?,
        }
        Ok(())
    }

    /// The same strategy with constant weights by expert; `None` where it takes none.
    pub fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Self> {
        let weights = Some(weights);
        match self.clone() {
            Self::Fixed(s) => Some(Self::Fixed(Fixed { weights, ..s })),
            Self::Mod(s) => Some(Self::Mod(Mod { weights, ..s })),
            Self::DeRa(s) => Some(Self::DeRa(DeRa { weights, ..s })),
            Self::Merge(s) => Some(Self::Merge(Merge { weights, ..s })),
            _ => None,
        }
    }

    /// What it needs of each expert that it runs.
    pub fn needs(&self) -> Needs {
        self.method().needs()
    }

    /// All weight on one expert gives exactly that expert.
    pub fn one_hot(&self) -> bool {
        self.method().one_hot()
    }
}
