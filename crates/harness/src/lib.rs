//! An experiment as a library: from the file that a researcher writes to a folder of tables, plots and a report.
//!
//! - [`experiment::Experiment`] is the file. [`plan::RunPlan`] says once what it comes to: which strategy serves which
//!   preference with which experts, in which batches.
//! - [`run::run`] carries the plan out, one of the [`stages`] after the other, in a [run folder](store::folder) that an
//!   interrupted run resumes from.
//! - [`sweep`] makes several experiments of one.
//!
//! Nothing here prints, before a call of [`progress::show`]. Mistakes in files are [`failure::Usage`] in
//! the chain of an error; everything else is a failure.

#![forbid(unsafe_code)]

pub mod check;
pub mod config;
pub mod experiment;
pub mod failure;
pub mod foreign;
pub mod memory;
pub mod models;
pub mod plan;
pub mod probe;
pub mod progress;
pub mod prompts;
pub mod recorded;
pub mod run;
pub mod splits;
pub mod stages;
pub mod store;
pub mod sweep;
pub mod terminal;
pub mod trained;
