//! `mope study`: pairs for people, and what they answered.

use std::path::Path;

use anyhow::{Context, Result};
use eval::study::{Analysis, Study, read_answers, read_key, write_key};
use eval::table::{markdown, write_all, write_csv};
use polars::prelude::{Column, DataFrame};
use serde_json::json;

use super::Global;
use super::run::records;
use crate::cli::StudyCommand;
use harness::failure::{nearest, usage};
use harness::stages::report::read_rows;
use harness::store::folder::read_only;
use harness::store::manifest::Manifest;

/// Exports or imports.
///
/// # Errors
/// A folder that is no run or no study, answers that don't belong to it.
pub fn study(global: &Global, command: &StudyCommand) -> Result<()> {
    match command {
        StudyCommand::Export {
            run,
            out,
            pairs,
            strategies,
        } => export(global, run, out, *pairs, strategies),
        StudyCommand::Import { study, answers } => {
            let key = read_key(&study.join("key.json"))
                .context("STUDY, a folder that `mope study export` wrote")?;
            let answers =
                read_answers(&key, answers).context("ANSWERS, files that the page exported")?;
            let mut analysis = Analysis::of(&key, &answers)?;
            write_all(study, "pairs_won", &mut analysis.pairs)?;
            write_all(study, "strengths", &mut analysis.strengths)?;
            let document = json!({
                "raters": analysis.raters,
                "krippendorff_alpha": analysis.alpha,
                "strengths": records(&analysis.strengths)?,
                "pairs": records(&analysis.pairs)?,
            });
            let alpha = analysis
                .alpha
                .map_or("none in common".into(), |a| format!("{a:.3}"));
            let text = format!(
                "{}\n{}\nraters: {}, Krippendorff's α: {alpha}",
                markdown(&analysis.strengths)?,
                markdown(&analysis.pairs)?,
                analysis.raters
            );
            global.print(document, || text)
        }
    }
}

fn export(global: &Global, run: &Path, out: &Path, pairs: usize, only: &[String]) -> Result<()> {
    let manifest = Manifest::load(run)?;
    let (generations, _) = read_rows(&read_only(run))?;
    let known = manifest.experiment.strategies.names();
    for name in only {
        if !known.contains(&name.as_str()) {
            let hint = nearest(name, known.iter().copied());
            return Err(usage(format!(
                "no strategy '{name}'{hint} in this run; there are: {}",
                known.join(", ")
            )));
        }
    }
    let kept = known
        .iter()
        .filter(|s| only.is_empty() || only.iter().any(|o| o == *s));
    let strategies: Vec<String> = kept.map(|s| s.to_string()).collect();
    let preferences = manifest.experiment.preferences.iter();
    let wishes = preferences
        .map(|(name, p)| (name.to_string(), p.text.clone()))
        .collect();
    let seed = global.seed.unwrap_or(0);
    let study = Study::draw(&generations, &strategies, &wishes, pairs, seed)?;
    let column = |name: &str, get: fn(&eval::study::Shown) -> &str| {
        Column::new(name.into(), study.shown.iter().map(get).collect::<Vec<_>>())
    };
    let ids: Vec<u32> = study.shown.iter().map(|s| s.id).collect();
    let mut table = DataFrame::new_infer_height(vec![
        Column::new("id".into(), ids),
        column("preference", |s| &s.preference),
        column("question", |s| &s.question),
        column("left", |s| &s.left),
        column("right", |s| &s.right),
    ])?;
    let page = study.page(&manifest.experiment.name)?;
    make_new(out)?;
    // The key first: a page whose key is lost is worth nothing.
    write_key(&study.key, &out.join("key.json"))?;
    write_csv(out, "pairs", &mut table)?;
    eval::write_atomic(&out.join("study.html"), page.as_bytes())?;
    let document = json!({
        "study": study.key.study,
        "pairs": study.shown.len(),
        "page": out.join("study.html").display().to_string(),
    });
    let text = format!(
        "{} pairs in {} (for raters) and pairs.csv; key.json says who wrote what: keep it from raters",
        study.shown.len(),
        out.join("study.html").display()
    );
    global.print(document, || text)
}

/// Makes a folder that holds nothing yet: another study's key would be lost, and with it what people answered.
fn make_new(out: &Path) -> Result<()> {
    if let Ok(mut entries) = std::fs::read_dir(out)
        && entries.next().is_some()
    {
        return Err(usage(format!(
            "{} is not empty; choose another folder with --out (a study is never overwritten: without its key, \
             answers cannot be read)",
            out.display()
        )));
    }
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())
}
