//! The stages of a run, one file each: [`run`](crate::run) calls validate, generate, score, retain and
//! report in this order. They share the [`scorer`].
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::models::Pools;
//! use mope_harness::plan::RunPlan;
//! use mope_harness::stages::generate::generate;
//! use mope_harness::stages::retain::retain;
//! use mope_harness::stages::score::score;
//! use mope_harness::stages::scorer::open_scorer;
//! use mope_harness::stages::validate::validate;
//! use mope_harness::store::{folder::RunFolder, manifest::Session};
//!
//! let here = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(here.path()))?;
//! let mut pools = Pools::open(&experiment)?;
//! let mut plan = RunPlan::resolve(&experiment, &mut pools)?;
//! let folder = RunFolder::open(&here.path().join("run"))?;
//! let (mut session, mut scorer) = (Session::start(), open_scorer(&experiment)?);
//! let choices = validate(&plan, &pools, &folder, &mut session)?;
//! plan.choose(&choices)?;
//! let rows = generate(&plan, &pools, &mut scorer, &folder, &mut session, None)?;
//! score(&plan, &mut scorer, &rows, &folder)?;
//! // This experiment checks no retention.
//! assert!(retain(&plan, &pools, &folder)?.is_none());
//! // Two strategies answer two prompts.
//! assert_eq!((rows.references.len(), rows.generations.len()), (2, 4));
//! # anyhow::Ok(())
//! ```

mod bounds;
pub mod generate;
mod reading;
pub mod report;
pub mod retain;
pub mod score;
pub mod scorer;
mod texts;
pub mod validate;
