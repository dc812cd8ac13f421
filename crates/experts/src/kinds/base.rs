//! The base model as it is.

use super::{Capabilities, Files, Kind, OpenModel};
use crate::Expert;

pub(super) struct Base;

impl Kind for Base {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn open(&self, _: &mut Expert, _: &mut OpenModel<'_>) -> lm::Result<()> {
        Ok(())
    }

    fn files(&self) -> Option<Files> {
        None
    }
}
