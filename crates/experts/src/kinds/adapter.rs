//! The base with a low-rank adapter, in a folder as PEFT saves it, perhaps on the hub.

use std::path::Path;
use std::sync::Arc;

use lm::Adapter;
use lm::source::hub::{self, Wanted};

use super::{Capabilities, Files, Kind, OpenModel};
use crate::Expert;

/// The adapter's folder.
pub(super) struct Folder<'a>(pub &'a Path);

impl Kind for Folder<'_> {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }

    fn open(&self, expert: &mut Expert, _: &mut OpenModel<'_>) -> lm::Result<()> {
        let folder = hub::folder(self.0, Wanted::Adapter, &mut |_, _, _| {})?;
        let adapter = Adapter::load(&folder, expert.model.config())?;
        expert.adapter = Some(Arc::new(adapter));
        Ok(())
    }

    fn files(&self) -> Option<Files> {
        Some(Files::Adapter(self.0.into()))
    }
}
