//! The kinds of experts, one file each. A new kind is a new file, its `mod` line, and in this file a variant of
//! [`ExpertSpec`] and its place in the three matches that know all of them.

mod adapter;
mod base;
mod full;
mod limited;
mod prompted;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lm::LanguageModel;
use lm::source::hub::{located, located_folder};
use serde::{Deserialize, Serialize};

use crate::Expert;

/// How a config names an expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpertSpec {
    /// The base model as it is.
    Base,
    /// The base with an instruction in its system message.
    Prompted(String),
    /// The base with a PEFT folder.
    /// After [`Self::resolve`] it may be the hub's, `hf://owner/name`.
    Adapter(PathBuf),
    /// A model of its own, by registered name, path or id of the hub.
    Full(String),
    /// Another expert of which only the likeliest tokens are seen, as a remote interface shows it.
    Limited {
        /// How many tokens.
        top_k: usize,
        /// The expert.
        of: Box<ExpertSpec>,
    },
    /// Another expert, with the direction that it serves where that is not its name.
    Serving {
        /// The direction.
        serves: String,
        /// The expert.
        of: Box<ExpertSpec>,
    },
}

/// What an expert can tell a strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It names this many of the likeliest tokens; `None`: the full distribution.
    pub top_k: Option<usize>,
    /// Log-probabilities of a given text.
    pub prompt: bool,
    /// Its parameters, to be merged with those of others.
    pub parameters: bool,
}

impl Capabilities {
    /// All that a model at hand can tell.
    pub const ALL: Self = Self {
        top_k: None,
        prompt: true,
        parameters: true,
    };
}

/// Opens the model of [`ExpertSpec::Full`] by name or path.
pub(crate) type OpenModel<'a> = dyn FnMut(&str) -> lm::Result<Arc<LanguageModel>> + 'a;

/// What the file of a kind says of it.
pub(crate) trait Kind {
    /// What an expert of this kind can tell.
    fn capabilities(&self) -> Capabilities;

    /// Makes an expert of this kind out of one that is the base so far.
    ///
    /// # Errors
    /// Files that are missing, damaged or made for another base.
    fn open(&self, expert: &mut Expert, model: &mut OpenModel<'_>) -> lm::Result<()>;

    /// The files that it reads, which count among the inputs of a run.
    fn files(&self) -> Option<Files>;
}

/// Files that an expert reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// The folder of an adapter, or its id on the hub.
    Adapter(PathBuf),
    /// A model, by registered name, path or id of the hub.
    Model(String),
}

/// Goes on with the expert inside another one; what is none of those ends it.
macro_rules! inside {
    ($spec:expr, $onward:ident) => {
        match $spec {
            Self::Serving { of, .. } => of.$onward(),
            Self::Limited { of, .. } => of.$onward(),
            Self::Base | Self::Prompted(_) | Self::Adapter(_) | Self::Full(_) => $spec,
        }
    };
}

impl ExpertSpec {
    pub(crate) fn kind(&self) -> Box<dyn Kind + '_> {
        match self {
            Self::Base => Box::new(base::Base),
            Self::Prompted(instruction) => Box::new(prompted::Prompted(instruction)),
            Self::Adapter(folder) => Box::new(adapter::Folder(folder)),
            Self::Full(model) => Box::new(full::Full(model)),
            Self::Limited { top_k, of } => Box::new(limited::Limited { top_k: *top_k, of }),
            Self::Serving { of, .. } => of.kind(),
        }
    }

    /// What an expert of this kind can tell.
    ///
    /// ```
    /// use mope_experts::ExpertSpec;
    /// let limited = ExpertSpec::Limited { top_k: 20, of: Box::new(ExpertSpec::Base) };
    /// assert_eq!(limited.capabilities().top_k, Some(20));
    /// assert!(!limited.capabilities().prompt && ExpertSpec::Base.capabilities().prompt);
    /// ```
    pub fn capabilities(&self) -> Capabilities {
        self.kind().capabilities()
    }

    /// The files that it reads; `None` where it is made of the base alone.
    pub fn files(&self) -> Option<Files> {
        self.kind().files()
    }

    /// Takes the paths that it names as relative to `folder`. A model is a path where one is there, else a name; both
    /// models and adapters may be ids of the hub ([`lm::source::hub::located`]).
    pub fn resolve(&mut self, folder: &Path) {
        match self {
            Self::Adapter(path) => *path = located_folder(folder, path),
            Self::Full(model) => *model = located(folder, model),
            Self::Serving { of, .. } => of.resolve(folder),
            Self::Limited { of, .. } => of.resolve(folder),
            Self::Base | Self::Prompted(_) => {}
        }
    }

    /// The direction that it says it serves.
    pub fn serves(&self) -> Option<&str> {
        match self {
            Self::Serving { serves, .. } => Some(serves),
            _ => None,
        }
    }

    /// The expert itself, whatever is seen of it.
    pub fn inner(&self) -> &Self {
        inside!(self, inner)
    }

    /// The expert itself, to change it.
    pub fn inner_mut(&mut self) -> &mut Self {
        inside!(self, inner_mut)
    }
}
