//! A model of its own.

use super::{Capabilities, Files, Kind, OpenModel};
use crate::Expert;

/// Its registered name or its path.
pub(super) struct Full<'a>(pub &'a str);

impl Kind for Full<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn open(&self, expert: &mut Expert, model: &mut OpenModel<'_>) -> lm::Result<()> {
        expert.model = model(self.0)?;
        Ok(())
    }

    fn files(&self) -> Option<Files> {
        Some(Files::Model(self.0.into()))
    }
}
