//! An expert that is ready to run.

use std::sync::Arc;

use lm::chat::Prompt;
use lm::{Adapter, LanguageModel};

use crate::{Error, Result};

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
