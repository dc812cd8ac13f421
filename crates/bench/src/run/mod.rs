//! A run: an experiment becomes a run folder, stage by stage.

pub mod folder;
pub mod generate;
pub mod grid;
mod jobs;
pub mod manifest;
pub mod report;
pub mod retention;
mod score;
pub mod splits;
mod validation;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use polars::prelude::DataFrame;

use crate::experiment::Experiment;
use crate::failure::usage;
use folder::RunFolder;
use generate::Generate;
use grid::Shard;
use manifest::{Manifest, Session, now};
use splits::Splits;

/// Runs what is missing and returns the ranking.
///
/// # Errors
/// Whatever a stage reports; what is done stays and the next run goes on from it.
pub fn run(experiment: &Experiment, source: &Path, out: &Path) -> Result<DataFrame> {
    let Splits {
        prompts,
        validation,
        mut warnings,
    } = Splits::load(experiment)?;
    let folder = RunFolder::open(out)?;
    let mut session = Session::start();
    let mut clock = Instant::now();
    let mut lap = |session: &mut Session, stage: &str| {
        let seconds = clock.elapsed().as_secs_f64();
        session.seconds.insert(stage.into(), seconds);
        clock = Instant::now();
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
    for (i, file) in experiment.training.iter().enumerate() {
        let hash = lm::source::sha256(file)?;
        let name = file.file_name().unwrap_or(file.as_os_str());
        let name = name.to_string_lossy().into_owned();
        inputs.insert(format!("training {i}"), [(name, hash)].into());
    }
    for file in experiment.retention.iter().flat_map(|r| r.files()) {
        let hash = lm::source::sha256(file)?;
        let name = file.file_name().unwrap_or(file.as_os_str());
        let own = inputs.entry("retention".into()).or_default();
        own.insert(name.to_string_lossy().into_owned(), hash);
    }
    for name in experiment.strategies.names() {
        let preferences = experiment.preferences.names();
        let plans = preferences.into_iter().map(|p| experiment.plan(name, p));
        if plans
            .collect::<Result<Vec<_>>>()?
            .iter()
            .any(|p| p.samples > 1)
        {
            warnings.push(format!(
                "'{name}' keeps those of its responses that score best on the rewards that it is compared \
                 by, and on the very prompts."
            ));
        }
    }
    warnings.iter().for_each(|w| eprintln!("warning: {w}"));
    let mut manifest = Manifest::new(experiment, text, beside, &prompts, inputs);
    manifest.warnings = warnings;
    if let Ok(before) = Manifest::load(out) {
        manifest.sessions = before.sessions;
    }
    manifest.sessions.extend(folder.sessions()?);
    let earlier = manifest.sessions.clone();
    let mut save = |session: &Session, generate: &Generate<'_>| {
        manifest.passes = generate.passes()?;
        manifest.normalisers = generate.normalisers.clone();
        manifest.sessions = earlier.clone();
        manifest.sessions.push(session.clone());
        manifest.save(out).map(|()| manifest.clone())
    };

    save(&session, &generate)?;
    // The manifest has them now.
    folder.clear_sessions()?;
    let rows = generate.run(&folder, &mut session)?;
    lap(&mut session, "generate");
    score::score(&generate, &prompts, &rows, &folder)?;
    lap(&mut session, "score");
    let retention = generate.retain(&folder)?;
    lap(&mut session, "retain");
    session.finished = Some(now());
    let manifest = save(&session, &generate)?;
    let (generations, scores) = report::read_rows(&folder)?;
    report::report(&manifest, &generations, &scores, retention, &folder)
}

/// Generates one of several parts and returns how many of its responses are there.
///
/// # Errors
/// A strategy that needs all responses before it can go on; whatever generating reports.
pub fn shard(experiment: &Experiment, out: &Path, shard: Shard) -> Result<usize> {
    let Splits { prompts, .. } = Splits::load(experiment)?;
    for (name, _) in experiment.strategies.iter() {
        for preference in experiment.preferences.names() {
            let plan = experiment.plan(name, preference)?;
            if !plan.candidates.is_empty() || plan.samples > 1 {
                return Err(usage(format!(
                    "--shard: strategy '{name}' chooses by rewards, for which it needs every reference; run it \
                     without --shard, in an experiment of its own if it is large"
                )));
            }
        }
    }
    let folder = RunFolder::shard(out, shard)?;
    let mut session = Session::start();
    let mut generate = Generate::open(experiment, &prompts, &[])?;
    generate.shard = Some(shard);
    let rows = generate.run(&folder, &mut session)?;
    session.finished = Some(now());
    folder.put_session(shard, &session)?;
    Ok(rows.references.len() + rows.generations.len())
}

/// Makes tables, plots and report again from the rows of a run folder.
///
/// # Errors
/// A folder that is no finished run.
pub fn rebuild(out: &Path) -> Result<DataFrame> {
    let manifest = Manifest::load(out)?;
    let folder = RunFolder::open(out)?;
    let (generations, scores) = report::read_rows(&folder)?;
    let retention = match manifest.experiment.retention {
        Some(_) => retention::written(&folder)?,
        None => None,
    };
    report::report(&manifest, &generations, &scores, retention, &folder)
}
