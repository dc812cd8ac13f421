//! Evaluation: rewards, utility, statistics, tables, plots and the report.
//!
//! Everything here works on rows: what was said (`rows::GenerationRow`) and what it was worth
//! (`rows::ScoreRow`). A report can be made again from the rows alone.

#![forbid(unsafe_code)]

pub mod comparison;
pub mod dimension;
pub mod judges;
pub mod metrics;
pub mod plots;
pub mod report;
pub mod rewards;
pub mod rows;
pub mod statistics;

pub mod study;
pub mod table;
pub mod utility;
pub mod weights;

use std::path::{Path, PathBuf};

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From a language model behind a reward.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// A file could not be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A table could not be made, written or read.
    #[error("{path}: {message}")]
    Table {
        /// The file, or what the table is.
        path: PathBuf,
        /// What polars said.
        message: String,
    },
    /// A plot could not be drawn.
    #[error("plot {path}: {message}")]
    Plot {
        /// The file.
        path: PathBuf,
        /// What plotters said.
        message: String,
    },
    /// Rows or settings that don't fit together.
    #[error("{0}")]
    Argument(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn table(path: &Path, e: impl std::fmt::Display) -> Self {
        Self::Table {
            path: path.into(),
            message: e.to_string(),
        }
    }
}

/// Writes a file whole or not at all: beside its place, then renamed into it.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let io = |source| Error::Io {
        path: path.into(),
        source,
    };
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let beside = path.with_file_name(format!(".{name}.part"));
    let written = (|| {
        use std::io::Write;
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    written.map_err(|e| {
        // The first error is the one to report; a left-over `.part` is never read.
        drop(std::fs::remove_file(&beside));
        io(e)
    })
}
