//! Another expert of which only the likeliest tokens are seen, renormalised, as a remote interface shows it.

use super::{Capabilities, ExpertSpec, Files, Kind, OpenModel};
use crate::Expert;

pub(super) struct Limited<'a> {
    /// How many tokens.
    pub top_k: usize,
    /// The expert.
    pub of: &'a ExpertSpec,
}

impl Kind for Limited<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            top_k: Some(self.top_k),
            prompt: false,
            parameters: false,
        }
    }

    fn open(&self, expert: &mut Expert, model: &mut OpenModel<'_>) -> lm::Result<()> {
        self.of.kind().open(expert, model)?;
        expert.top_k = Some(self.top_k);
        Ok(())
    }

    fn files(&self) -> Option<Files> {
        self.of.files()
    }
}
