//! Evaluation: rewards, utility, statistics, tables, plots and the report.
//!
//! Everything here works on rows: what was said (`rows::GenerationRow`) and how it was scored
//! (`rows::ScoreRow`). A report can be made again from the rows alone.
//!
//! Features, all on by default: `tables` (data frames and their files, the report), `plots` (SVG and PNG), `http`
//! (judges behind servers). Without them rewards, utility, metrics, comparisons and statistics remain.
#![forbid(unsafe_code)]

pub mod bounds;
#[cfg(any(feature = "plots", feature = "tables"))]
mod colours;
pub mod comparison;
pub mod dimension;
mod error;
mod escape;
mod files;
pub mod frontier;
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

pub use error::{Error, Result};
pub use files::{is_part, open_to_write, write_atomic, write_atomic_with};
