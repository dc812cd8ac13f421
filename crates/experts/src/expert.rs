//! One expert: how configs name it, and how it is opened.

use std::path::PathBuf;
use std::sync::Arc;

use lm::chat::Prompt;
use lm::{Adapter, LanguageModel};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How a config names an expert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpertSpec {
    /// The base model as it is.
    Base,
    /// The base with an instruction in its system message.
    Prompted(String),
    /// The base with a PEFT folder.
    Adapter(PathBuf),
    /// A model of its own, by registered name or path.
    Full(String),
    /// Another expert of which only the likeliest tokens are seen, as a remote interface shows it.
    Limited {
        /// How many tokens.
        top_k: usize,
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

impl ExpertSpec {
    /// What an expert of this kind can tell.
    ///
    /// ```
    /// use experts::ExpertSpec;
    /// let limited = ExpertSpec::Limited { top_k: 20, of: Box::new(ExpertSpec::Base) };
    /// assert_eq!(limited.capabilities().top_k, Some(20));
    /// assert!(!limited.capabilities().prompt && ExpertSpec::Base.capabilities().prompt);
    /// ```
    pub fn capabilities(&self) -> Capabilities {
        match self {
            Self::Base | Self::Adapter(_) | Self::Full(_) => Capabilities {
                top_k: None,
                prompt: true,
                parameters: true,
            },
            // An instruction is not in the parameters.
            Self::Prompted(_) => Capabilities {
                top_k: None,
                prompt: true,
                parameters: false,
            },
            Self::Limited { top_k, .. } => Capabilities {
                top_k: Some(*top_k),
                prompt: false,
                parameters: false,
            },
        }
    }

    /// The expert itself, whatever is seen of it.
    pub fn inner(&self) -> &Self {
        match self {
            Self::Limited { of, .. } => of.inner(),
            Self::Base | Self::Prompted(_) | Self::Adapter(_) | Self::Full(_) => self,
        }
    }

    /// The expert itself, to change it.
    pub fn inner_mut(&mut self) -> &mut Self {
        match self {
            Self::Limited { of, .. } => of.inner_mut(),
            Self::Base | Self::Prompted(_) | Self::Adapter(_) | Self::Full(_) => self,
        }
    }
}

/// An expert that is ready to run.
#[derive(Debug, Clone)]
pub struct Expert {
    /// The name that weights and tables use.
    pub name: String,
    /// Its model, shared where several experts have the same base.
    pub model: Arc<LanguageModel>,
    /// Low-rank change of the model.
    pub adapter: Option<Arc<Adapter>>,
    /// Instruction in the system message.
    pub instruction: Option<String>,
    /// Only this many of the likeliest tokens are seen, renormalised.
    pub top_k: Option<usize>,
}

impl Expert {
    /// Opens `spec` over `base`. `full` opens the model of [`ExpertSpec::Full`] by name or path.
    ///
    /// # Errors
    /// [`Error::Expert`] with the expert's name.
    pub fn open(
        name: &str,
        spec: &ExpertSpec,
        base: &Arc<LanguageModel>,
        full: impl FnOnce(&str) -> lm::Result<Arc<LanguageModel>>,
    ) -> Result<Self> {
        let failed = |source| Error::Expert {
            expert: name.into(),
            source,
        };
        let mut expert = Self {
            name: name.into(),
            model: base.clone(),
            adapter: None,
            instruction: None,
            top_k: spec.capabilities().top_k,
        };
        match spec.inner() {
            ExpertSpec::Limited { .. } => {}
            ExpertSpec::Base => {}
            ExpertSpec::Prompted(instruction) => expert.instruction = Some(instruction.clone()),
            ExpertSpec::Adapter(folder) => {
                let adapter = Adapter::load(folder, base.config()).map_err(failed)?;
                expert.adapter = Some(Arc::new(adapter));
            }
            ExpertSpec::Full(model) => expert.model = full(model).map_err(failed)?,
        }
        Ok(expert)
    }

    /// Token ids that this expert reads for a prompt.
    ///
    /// # Errors
    /// [`Error::Expert`] when the prompt or the instruction does not fit the model's template.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = || match &self.instruction {
            Some(instruction) => self.model.prompt_tokens(&prompt.instructed(instruction)?),
            None => self.model.prompt_tokens(prompt),
        };
        tokens().map_err(|source| Error::Expert {
            expert: self.name.clone(),
            source,
        })
    }
}
