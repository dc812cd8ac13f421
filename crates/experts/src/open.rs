//! An expert opened as a config names it.

use std::path::PathBuf;
use std::sync::Arc;

use lm::LanguageModel;

use crate::{Error, Expert, ExpertSpec, Result};

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
            None => Err(lm::Error::OpenedTwice(model.into())),
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
        folder: impl Into<PathBuf>,
        base: &Arc<LanguageModel>,
    ) -> Result<Self> {
        let no_model = |_: &str| Ok(base.clone());
        Self::open(name, &ExpertSpec::Adapter(folder.into()), base, no_model)
    }
}
