//! Evaluation: rewards, utility, statistics, tables, plots and the report.
//!
//! Everything here works on rows: what was said (`rows::GenerationRow`) and how it was scored
//! (`rows::ScoreRow`). A report can be made again from the rows alone.
//!
//! Features, all on by default: `tables` (data frames and their files, the report), `plots` (SVG and PNG), `http`
//! (judges behind servers). Without them rewards, utility, metrics, comparisons and statistics remain.
#![forbid(unsafe_code)]

#[cfg(any(feature = "plots", feature = "tables"))]
mod colours;
pub mod comparison;
pub mod dimension;
mod error;
mod escape;
pub mod judges;
pub mod metrics;
pub mod mixing_weights;
pub mod paper;
#[cfg(feature = "plots")]
pub mod plots;
#[cfg(feature = "tables")]
pub mod report;
pub mod rewards;
pub mod rounding;
pub mod rows;
pub mod scoring;
pub mod statistics;
pub mod study;
#[cfg(feature = "tables")]
pub mod table;
pub mod utility;

use std::path::Path;

pub use error::{Error, Result};

/// Writes a file whole or not at all: beside its place, then renamed into it.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
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
        Error::io(path)(e)
    })
}
