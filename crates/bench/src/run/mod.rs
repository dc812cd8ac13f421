//! A run: an experiment becomes a run folder, stage by stage.

pub mod folder;
pub mod generate;
mod jobs;
pub mod manifest;
pub mod report;
mod score;
mod validation;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use polars::prelude::DataFrame;

use crate::experiment::Experiment;
use crate::prompts;
use folder::RunFolder;
use generate::Generate;
use manifest::{Manifest, Session, now};

/// Runs what is missing and returns the ranking.
///
/// # Errors
/// Whatever a stage reports; what is done stays and the next run goes on from it.
pub fn run(experiment: &Experiment, source: &Path, out: &Path) -> Result<DataFrame> {
    let prompts = prompts::load(&experiment.prompts)?;
    let folder = RunFolder::open(out)?;
    let mut session = Session::start();
    let mut clock = Instant::now();
    let mut lap = |session: &mut Session, stage: &str| {
        let seconds = clock.elapsed().as_secs_f64();
        session.seconds.insert(stage.into(), seconds);
        clock = Instant::now();
    };

    let validation = match &experiment.validation {
        Some(file) => prompts::separate(file, &prompts)?,
        None => Vec::new(),
    };
    let mut generate = Generate::open(experiment, &prompts, &validation)?;
    lap(&mut session, "open");
    let text = std::fs::read_to_string(source)?;
    let beside = source.parent().unwrap_or(Path::new("."));
    let mut inputs = generate.inputs.clone();
    let hash = lm::source::sha256(&experiment.prompts)?;
    inputs.insert("prompts".into(), [("prompts".to_string(), hash)].into());
    if let Some(file) = &experiment.validation {
        let hash = lm::source::sha256(file)?;
        inputs.insert("validation".into(), [("prompts".to_string(), hash)].into());
    }
    let mut manifest = Manifest::new(experiment, text, beside, &prompts, inputs);
    manifest.passes = generate.passes()?;
    if let Ok(before) = Manifest::load(out) {
        manifest.sessions = before.sessions;
    }
    let earlier = manifest.sessions.clone();
    let mut save = |session: &Session| {
        manifest.sessions = earlier.clone();
        manifest.sessions.push(session.clone());
        manifest.save(out).map(|()| manifest.clone())
    };

    save(&session)?;
    let rows = generate.run(&folder, &mut session)?;
    lap(&mut session, "generate");
    score::score(experiment, &prompts, &rows, &folder)?;
    lap(&mut session, "score");
    session.finished = Some(now());
    let manifest = save(&session)?;
    let (generations, scores) = report::read_rows(&folder)?;
    report::report(&manifest, &generations, &scores, &folder)
}

/// Makes tables, plots and report again from the rows of a run folder.
///
/// # Errors
/// A folder that is no finished run.
pub fn rebuild(out: &Path) -> Result<DataFrame> {
    let manifest = Manifest::load(out)?;
    let folder = RunFolder::open(out)?;
    let (generations, scores) = report::read_rows(&folder)?;
    report::report(&manifest, &generations, &scores, &folder)
}
