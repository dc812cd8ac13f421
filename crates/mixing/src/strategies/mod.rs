//! The strategies, one file each. The enum is the registry: a new strategy is a new file, a `mod`
//! line and a variant.

mod base;
mod best;
mod best_of_n;
mod best_single;
mod best_weights;
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
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use base::Base;
pub use best::Best;
pub use best_of_n::BestOfN;
pub use best_single::BestSingle;
pub use best_weights::BestWeights;
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
        for pcm in self.pcms_mut() {
            pcm.model = folder.join(&pcm.model);
        }
    }

    /// The PCMs that it or strategies in it use.
    pub fn pcms(&self) -> Vec<&Pcm> {
        match self {
            Self::Pcm(pcm) => vec![pcm],
            Self::TopK(TopK { of, .. })
            | Self::BestOfN(BestOfN { of, .. })
            | Self::Over(Over { of, .. })
            | Self::BestWeights(BestWeights { of, .. }) => of.pcms(),
            Self::Best(Best { of }) => of.iter().flat_map(|(_, s)| s.pcms()).collect(),
            _ => Vec::new(),
        }
    }

    /// The same, to change them.
    pub fn pcms_mut(&mut self) -> Vec<&mut Pcm> {
        match self {
            Self::Pcm(pcm) => vec![pcm],
            Self::TopK(TopK { of, .. })
            | Self::BestOfN(BestOfN { of, .. })
            | Self::Over(Over { of, .. })
            | Self::BestWeights(BestWeights { of, .. }) => of.pcms_mut(),
            Self::Best(Best { of }) => of.iter_mut().flat_map(|(_, s)| s.pcms_mut()).collect(),
            _ => Vec::new(),
        }
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
