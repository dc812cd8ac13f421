//! An expert that is ready to run.

use std::sync::Arc;

use lm::chat::Prompt;
use lm::{Adapter, LanguageModel};

use crate::{Error, ExpertSpec, Result};

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
        let mut expert = Self {
            name: name.into(),
            model: base.clone(),
            adapter: None,
            instruction: None,
            top_k: None,
        };
        let mut full = Some(full);
        let mut once = |model: &str| match full.take() {
            Some(full) => full(model),
            None => Err(lm::Error::Argument(format!("{model} is opened twice"))),
        };
        let opened = spec.kind().open(&mut expert, &mut once);
        opened.map_err(|source| Error::Expert {
            expert: name.into(),
            source,
        })?;
        Ok(expert)
    }

    /// The base with an adapter, in a folder as PEFT saves it.
    ///
    /// # Errors
    /// [`Error::Expert`] for an adapter that is missing, damaged or made for another base.
    pub fn adapter(
        name: &str,
        folder: impl Into<std::path::PathBuf>,
        base: &Arc<LanguageModel>,
    ) -> Result<Self> {
        let no_model = |_: &str| Ok(base.clone());
        Self::open(name, &ExpertSpec::Adapter(folder.into()), base, no_model)
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
