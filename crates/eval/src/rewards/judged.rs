//! No score: what a dimension has that only judges or people tell.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;

use super::{Definition, Reward, Scorer};
use crate::{Error, Result};

pub(super) struct Judged;

impl Definition for Judged {
    /// Never: there is nothing to open.
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Err(Error::OnlyJudged)
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn with_models(&self, _: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Judged
    }
}
