//! A run: an experiment becomes a run folder, stage by stage.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::run::{rebuild, run};
//!
//! let folder = tempfile::tempdir()?;
//! let file = pico::experiment(folder.path());
//! let experiment = Experiment::load(&file)?;
//! let out = folder.path().join("run");
//! let ranking = run(&experiment, &file, &out)?;
//! assert_eq!(ranking.height(), experiment.strategies.names().len());
//! assert!(out.join("report.html").is_file());
//! // Tables follow from the rows.
//! assert!(rebuild(&out)?.equals_missing(&ranking));
//! # anyhow::Ok(())
//! ```

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use eval::scoring::ResponseScorer;
use polars::prelude::DataFrame;

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::models::Pools;
use crate::plan::RunPlan;
use crate::progress::say;
use crate::stages::generate::generate;
use crate::stages::report::report;
use crate::stages::retain::{self, retain, written};
use crate::stages::score::score;
use crate::stages::scorer::open_scorer;
use crate::stages::validate::validate;
use crate::store::folder::RunFolder;
use crate::store::manifest::{Manifest, Session, now};
use crate::store::preregistration::{self, Registered, register};
use crate::store::rows::read_rows;
use crate::store::shard::Shard;

/// Runs what is missing and returns the ranking.
///
/// # Errors
/// Whatever a stage reports; what is done stays and the next run goes on from it.
pub fn run(experiment: &Experiment, source: &Path, out: &Path) -> Result<DataFrame> {
    run_registered(experiment, source, out, None)
}

/// The same, registered in a file before anything is generated ([`register`]).
///
/// # Errors
/// Those of [`run`]; a file that registers another run, and a run that was begun without.
pub fn run_registered(
    experiment: &Experiment,
    source: &Path,
    out: &Path,
    registration: Option<&Path>,
) -> Result<DataFrame> {
    let (session, clock) = (Session::start(), Instant::now());
    check_retention(experiment)?;
    let mut pools = Pools::open(experiment)?;
    let mut plan = RunPlan::resolve(experiment, &mut pools)?;
    let warnings = plan.warnings.iter();
    warnings.for_each(|w| say(&format!("warning: {w}")));
    // A run that is refused leaves no folder.
    let mut scorer = open_scorer(experiment)?;
    let text = lm::load::read_text(source)?;
    let registered = match registration {
        Some(file) => {
            check_unregistered(out)?;
            Some(register(&plan, file)?)
        }
        None => None,
    };
    let folder = RunFolder::open(out)?;
    let mut record = Record::open(session, clock, &plan, (source, text), &folder, registered)?;

    let choices = validate(&plan, &pools, &folder, &mut record.session)?;
    plan.choose(&choices)?;
    let rows = generate(
        &plan,
        &pools,
        &mut scorer,
        &folder,
        &mut record.session,
        None,
    )?;
    record.lap("generate");
    score(&plan, &mut scorer, &rows, &folder)?;
    record.lap("score");
    let retention = retain(&plan, &pools, &folder)?;
    record.lap("retain");
    let manifest = record.finish(&plan, &scorer, &folder)?;
    let (generations, scores) = read_rows(&folder)?;
    report(&manifest, &generations, &scores, retention, &folder)
}

/// Generates one of several parts and returns how many of its responses are there.
///
/// # Errors
/// A strategy that needs all responses before it can go on; whatever generating reports.
pub fn shard(experiment: &Experiment, out: &Path, shard: Shard) -> Result<usize> {
    let mut pools = Pools::open(experiment)?;
    let plan = RunPlan::resolve(experiment, &mut pools)?;
    for entry in &plan.entries {
        if !entry.plan.candidates.is_empty() || entry.plan.samples > 1 {
            return Err(usage(format!(
                "--shard: strategy '{}' chooses by rewards, for which it needs every reference; run it \
                 without --shard, in an experiment of its own if it is large",
                entry.strategy
            )));
        }
    }
    let mut scorer = open_scorer(experiment)?;
    let folder = RunFolder::shard(out, shard)?;
    let mut session = Session::start();
    let rows = generate(
        &plan,
        &pools,
        &mut scorer,
        &folder,
        &mut session,
        Some(shard),
    )?;
    session.finished = Some(now());
    folder.put_session(shard, &session)?;
    Ok(rows.references.len() + rows.generations.len())
}

/// Refuses a run folder that was begun without a registration: what is seen cannot be registered any more.
fn check_unregistered(out: &Path) -> Result<()> {
    match Manifest::load(out) {
        Ok(manifest) if manifest.preregistration.is_none() => Err(usage(format!(
            "{} was begun without a registration, so it is too late for one; register a run in a new folder (--out)",
            out.display()
        ))),
        _ => Ok(()),
    }
}

/// What is read at the end is looked at before anything is made.
fn check_retention(experiment: &Experiment) -> Result<()> {
    experiment.retention.iter().try_for_each(retain::check)
}

/// Refuses a folder that another experiment made: its rows would be moved away and its tables written over.
///
/// # Errors
/// The name of the other experiment, and what to do: a mistake of usage.
pub fn check_folder(experiment: &Experiment, out: &Path) -> Result<()> {
    match Manifest::load(out) {
        Ok(manifest) if manifest.experiment.name != experiment.name => {
            let (out, other) = (out.display(), &manifest.experiment.name);
            Err(usage(format!(
                "{out} holds a run of experiment '{other}', not '{}'; choose another folder with --out, or add \
                 --replace to give this one up (rows are moved to superseded/)",
                experiment.name
            )))
        }
        _ => Ok(()),
    }
}

/// Makes tables, plots and report again from the rows of a run folder.
///
/// # Errors
/// A folder that is no finished run.
pub fn rebuild(out: &Path) -> Result<DataFrame> {
    let manifest = Manifest::load(out)?;
    let folder = RunFolder::open(out)?;
    let (generations, scores) = read_rows(&folder)?;
    let retention = match manifest.experiment.retention {
        Some(_) => written(&folder, manifest.experiment.strategies.names().len())?,
        None => None,
    };
    report(&manifest, &generations, &scores, retention, &folder)
}

/// What the manifest says of a run while it goes on.
struct Record {
    /// Without this session.
    manifest: Manifest,
    session: Session,
    /// When the stage began.
    clock: Instant,
}

impl Record {
    /// Writes the manifest before the first stage, with the sessions before this one and those of shards.
    fn open(
        mut session: Session,
        clock: Instant,
        plan: &RunPlan<'_>,
        (source, text): (&Path, String),
        folder: &RunFolder,
        registered: Option<Registered>,
    ) -> Result<Self> {
        let opening = clock.elapsed().as_secs_f64();
        session.seconds.insert("open".into(), opening);
        let beside = source.parent().unwrap_or(Path::new("."));
        let mut manifest = Manifest::new(plan, text, beside);
        manifest.preregistration = registered;
        if let Ok(before) = Manifest::load(folder.root()) {
            manifest.sessions = before.sessions;
            if manifest.preregistration.is_none() {
                manifest.preregistration = before.preregistration;
            }
        }
        let prompts = lm::source::sha256(&plan.experiment.prompts)?;
        match preregistration::open(&prompts, folder.root()) {
            Ok(openings) => manifest.openings = openings,
            Err(error) => say(&format!(
                "warning: openings of the prompts are not counted: {error:#}"
            )),
        }
        manifest.sessions.extend(folder.sessions()?);
        let record = Self {
            manifest,
            session,
            clock: Instant::now(),
        };
        record.save(folder)?;
        // The manifest has them now.
        folder.clear_sessions()?;
        Ok(record)
    }

    /// A stage is over.
    fn lap(&mut self, stage: &str) {
        let seconds = self.clock.elapsed().as_secs_f64();
        self.session.seconds.insert(stage.into(), seconds);
        self.clock = Instant::now();
    }

    fn save(&self, folder: &RunFolder) -> Result<Manifest> {
        let mut manifest = self.manifest.clone();
        manifest.sessions.push(self.session.clone());
        manifest.save(folder.root())?;
        Ok(manifest)
    }

    /// Writes the manifest after the last stage but the report.
    fn finish(
        mut self,
        plan: &RunPlan<'_>,
        scorer: &ResponseScorer,
        folder: &RunFolder,
    ) -> Result<Manifest> {
        self.session.finished = Some(now());
        self.manifest.passes = plan.passes();
        self.manifest.normalisers = scorer.normalisers()?;
        for dimension in scorer.without_spread() {
            let warning = format!(
                "dimension '{dimension}': all reference responses score alike, so rewards are not in standard deviations \
                 but in the scorer's unit."
            );
            say(&format!("warning: {warning}"));
            self.manifest.warnings.push(warning);
        }
        self.manifest.rows = folder.row_hashes()?;
        self.save(folder)
    }
}
