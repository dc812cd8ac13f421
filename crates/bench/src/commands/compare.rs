//! `mope compare`: the same strategies in several runs, paired.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use eval::comparison::Comparison;
use eval::rewards::Normaliser;
use eval::rows::{GenerationRow, Identity, ScoreRow};
use eval::statistics::Estimate;
use eval::table::{markdown, write_all};
use polars::prelude::{Column, DataFrame};
use serde_json::{Value, json};

use super::Global;
use super::run::records;
use harness::failure::usage;
use harness::stages::report::read_rows;
use harness::store::folder::read_only;
use harness::store::manifest::Manifest;

struct Run {
    name: String,
    manifest: Manifest,
    generations: Vec<GenerationRow>,
    scores: Vec<ScoreRow>,
}

/// Compares runs; the first is what differences refer to.
///
/// # Errors
/// Fewer than two runs, a folder that is no run, no strategy that all have.
pub fn compare(global: &Global, folders: &[PathBuf], out: Option<&Path>) -> Result<()> {
    if folders.len() < 2 {
        return Err(usage("compare needs at least two run folders"));
    }
    let names = names(folders);
    let runs: Vec<Run> = folders
        .iter()
        .zip(names)
        .map(|(folder, name)| {
            // First of all, as it tells whether this is a run folder.
            let manifest = Manifest::load(folder)?;
            let (generations, scores) = read_rows(&read_only(folder))?;
            Ok(Run {
                name,
                manifest,
                generations,
                scores,
            })
        })
        .collect::<Result<_>>()?;
    same_normalisers(&runs)?;
    let mut table = table(&runs)?;
    let differing = differing(&runs)?;
    if let Some(out) = out {
        std::fs::create_dir_all(out)?;
        write_all(out, "comparison", &mut table)?;
        let text = serde_json::to_string_pretty(&differing)? + "\n";
        eval::write_atomic(&out.join("differing.json"), text.as_bytes())?;
    }
    let document = json!({"comparison": records(&table)?, "differing": differing});
    let text = markdown(&table)?;
    global.print(document, || {
        let mut said = text;
        match differing.is_empty() {
            true => said.push_str("\nThe runs were made from the same.\n"),
            false => said.push_str("\nThe runs differ in:\n"),
        }
        for (field, values) in &differing {
            said.push_str(&format!("- {field}\n"));
            for (run, value) in runs.iter().zip(values) {
                said.push_str(&format!("    {}: {}\n", run.name, short(value)));
            }
        }
        said
    })
}

/// Rewards are compared in standard deviations: in the same ones.
///
/// # Errors
/// A dimension that two runs normalise differently: a mistake of usage.
fn same_normalisers(runs: &[Run]) -> Result<()> {
    let first = &runs[0];
    for run in &runs[1..] {
        for (dimension, normaliser) in &run.manifest.normalisers {
            let other = first.manifest.normalisers.get(dimension);
            if let Some(other) = other.filter(|other| *other != normaliser) {
                let said = |n: &Normaliser| format!("(mean: {}, sd: {})", n.mean, n.sd);
                return Err(usage(format!(
                    "dimension '{dimension}' is normalised by {} in {} and by {} in {}, so that rewards and utility are \
                     not on one scale; give both experiments the same normaliser, and run them again: only scores are \
                     made anew",
                    said(other),
                    first.name,
                    said(normaliser),
                    run.name
                )));
            }
        }
    }
    Ok(())
}

/// The shortest ends of the paths that tell the folders apart.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = folders
        .iter()
        .map(|f| {
            f.components()
                .map(|c| c.as_os_str().to_string_lossy().into_owned())
                .collect()
        })
        .collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let mut names = Vec::new();
    for length in 1..=longest {
        let end = |p: &Vec<String>| p[p.len().saturating_sub(length)..].join("/");
        names = parts.iter().map(end).collect();
        if names.iter().collect::<BTreeSet<_>>().len() == names.len() {
            return names;
        }
    }
    // The same folder twice.
    names
        .iter()
        .zip(1..)
        .map(|(name, i)| format!("{name} ({i})"))
        .collect()
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// One row a strategy and run.
fn table(runs: &[Run]) -> Result<DataFrame> {
    let first = &runs[0];
    let strategies = first.manifest.experiment.strategies.names();
    let common: Vec<&str> = strategies
        .into_iter()
        .filter(|s| {
            runs.iter()
                .all(|r| r.manifest.experiment.strategies.names().contains(s))
        })
        .collect();
    ensure!(
        !common.is_empty(),
        "there is no strategy that all of the runs have"
    );
    let order: Vec<String> = runs.iter().map(|r| r.name.clone()).collect();
    let mut text: [Vec<String>; 2] = Default::default();
    let mut estimates: [Vec<Option<Estimate>>; 2] = Default::default();
    let mut numbers: [Vec<Option<f64>>; 4] = Default::default();
    for strategy in common {
        // Each run takes the place of a strategy.
        let rows = runs.iter().flat_map(|run| {
            let scores = run
                .scores
                .iter()
                .filter(|s| s.identity.strategy == strategy);
            scores.map(|s| {
                let mut row = s.clone();
                row.identity.strategy.clone_from(&run.name);
                row
            })
        });
        let rows: Vec<ScoreRow> = rows.collect();
        let distances = runs.iter().filter_map(|run| {
            let distance = run.manifest.experiment.distances().remove(strategy)?;
            Some((run.name.clone(), distance))
        });
        let comparison = Comparison::new(&rows, &order)?.with_distances(distances.collect());
        for run in runs {
            text[0].push(strategy.into());
            text[1].push(run.name.clone());
            let to_first = comparison.to_first(&run.name);
            estimates[0].push(comparison.utility(&run.name));
            estimates[1].push(to_first.map(|d| d.difference));
            let figures = [
                to_first.map(|d| d.p),
                comparison.kl_per_response(&run.name).map(|e| e.mean),
                comparison
                    .estimate(&run.name, |r| Some(f64::from(r.tokens)))
                    .map(|e| e.mean),
                same(first, run, strategy),
            ];
            numbers.iter_mut().zip(figures).for_each(|(n, v)| n.push(v));
        }
    }
    let mut columns = vec![
        Column::new("strategy".into(), &text[0]),
        Column::new("run".into(), &text[1]),
    ];
    columns.extend(eval::comparison::interval("utility", &estimates[0]));
    columns.extend(eval::comparison::interval("difference", &estimates[1]));
    let names = ["p", "kl", "tokens", "same_responses"];
    let rest = names.iter().zip(&numbers);
    columns.extend(rest.map(|(name, values)| Column::new((*name).into(), values)));
    Ok(DataFrame::new_infer_height(columns)?)
}

/// Share of a strategy's responses whose tokens are those of the first run, among those that both have.
fn same(first: &Run, run: &Run, strategy: &str) -> Option<f64> {
    let tokens = |run: &Run| -> HashMap<Identity, Vec<u32>> {
        let rows = run
            .generations
            .iter()
            .filter(|g| g.identity.strategy == strategy);
        rows.map(|g| (g.identity.clone(), g.tokens.clone()))
            .collect()
    };
    let first = tokens(first);
    let both: Vec<bool> = tokens(run)
        .iter()
        .filter_map(|(identity, tokens)| Some(first.get(identity)? == tokens))
        .collect();
    let equal = both.iter().filter(|same| **same).count();
    (!both.is_empty()).then(|| equal as f64 / both.len() as f64)
}

/// Fields of the manifests that are not the same in all runs, with their values. Paths don't count: what
/// lies there does, by its hash.
fn differing(runs: &[Run]) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut flat: Vec<BTreeMap<String, Value>> = Vec::new();
    for run in runs {
        let m = &run.manifest;
        let mut fields = BTreeMap::new();
        flatten(
            "",
            &json!({"experiment": m.experiment, "inputs": m.inputs, "normalisers": m.normalisers}),
            &mut fields,
        );
        for path in ["prompts", "validation", "training"] {
            let field = format!("experiment.{path}");
            fields.retain(|name, _| *name != field && !name.starts_with(&format!("{field}.")));
        }
        fields.remove("experiment.name");
        fields.retain(|name, value| !looks_like_path(name, value));
        flatten("crates", &json!(m.crates), &mut fields);
        let machines: BTreeSet<&String> = m.sessions.iter().map(|s| &s.machine).collect();
        fields.insert("machine".into(), json!(machines));
        fields.insert("version".into(), json!(m.version));
        fields.insert("commit".into(), json!(m.commit));
        flat.push(fields);
    }
    let names: BTreeSet<&String> = flat.iter().flat_map(|f| f.keys()).collect();
    let mut out = BTreeMap::new();
    for name in names {
        let values: Vec<Value> = flat
            .iter()
            .map(|f| f.get(name).cloned().unwrap_or(Value::Null))
            .collect();
        if values.iter().any(|v| *v != values[0]) {
            out.insert(name.clone(), values);
        }
    }
    Ok(out)
}

/// Adapters, models and PCMs are compared by the hashes of their files.
fn looks_like_path(name: &str, value: &Value) -> bool {
    let field = name.starts_with("experiment.experts.")
        || name.starts_with("experiment.strategies.")
        || name == "experiment.model";
    field && value.as_str().is_some_and(|v| v.contains('/'))
}

fn flatten(name: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let inner = match name {
                    "" => field.clone(),
                    name => format!("{name}.{field}"),
                };
                flatten(&inner, value, out);
            }
        }
        value => {
            out.insert(name.into(), value.clone());
        }
    }
}
