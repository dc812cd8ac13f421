//! The base with an instruction in its system message.

use super::{Capabilities, Files, Kind, OpenModel};
use crate::Expert;

/// The instruction.
pub(super) struct Prompted<'a>(pub &'a str);

impl Kind for Prompted<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // An instruction is not in the parameters.
            parameters: false,
            ..Capabilities::ALL
        }
    }

    fn open(&self, expert: &mut Expert, _: &mut OpenModel<'_>) -> lm::Result<()> {
        expert.instruction = Some(self.0.into());
        Ok(())
    }

    fn files(&self) -> Option<Files> {
        None
    }
}
