//! `mope run`, `mope report`, `mope check`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::table::markdown;
use polars::prelude::{AnyValue, DataFrame};
use serde_json::{Map, Value, json};

use super::Global;
use super::train::memory_of;
use crate::cli::RunArgs;
use harness::check::Checked;
use harness::experiment::Experiment;
use harness::failure::usage;
use harness::probe::Probe;
use harness::run;
use harness::splits::Splits;
use harness::sweep::grid;
use harness::terminal::printable;

fn load(global: &Global, file: &Path) -> Result<Experiment> {
    let mut experiment = Experiment::load(file)?;
    experiment.seed = global.seed.unwrap_or(experiment.seed);
    experiment.format = global.format.unwrap_or(experiment.format);
    if let Some(device) = &global.device {
        experiment.device = device.clone();
    }
    Ok(experiment)
}

pub fn run(global: &Global, args: &RunArgs) -> Result<()> {
    let mut experiment = load(global, &args.file)?;
    if let Some(path) = &args.prompts {
        experiment.prompts = path.clone();
    }
    let default = || Path::new("runs").join(&experiment.name);
    let out: PathBuf = args.out.clone().unwrap_or_else(default);
    let mut documents = Vec::new();
    let mut said = String::new();
    let runs = grid(&experiment, &args.set)?;
    let folder = |name: &str| match name {
        "" => out.clone(),
        name => out.join(name),
    };
    if args.preregister.is_some() && runs.len() > 1 {
        return Err(usage(
            "--preregister: one run at a time; give --set one value each",
        ));
    }
    if !args.replace {
        let mut all = runs.iter();
        all.try_for_each(|(name, experiment)| run::check_folder(experiment, &folder(name)))?;
    }
    for (name, experiment) in runs {
        let out = folder(&name);
        if let Some(shard) = args.shard {
            let made = run::shard(&experiment, &out, shard)?;
            documents.push(json!({"run": out.display().to_string(), "responses": made}));
            said.push_str(&format!("{}: {made} responses are there\n", out.display()));
            continue;
        }
        let registration = args.preregister.as_deref();
        let ranking = run::run_registered(&experiment, &args.file, &out, registration)?;
        let (document, text) = shown(&out, &ranking)?;
        documents.push(document);
        said.push_str(&text);
    }
    let document = match documents.len() {
        1 => documents.swap_remove(0),
        _ => json!({"runs": documents}),
    };
    global.print(document, || said)
}

pub fn report(global: &Global, dir: &Path) -> Result<()> {
    let ranking = run::rebuild(dir)?;
    let (document, text) = shown(dir, &ranking)?;
    global.print(document, || text)
}

/// A finished run as JSON and as text.
fn shown(out: &Path, ranking: &DataFrame) -> Result<(Value, String)> {
    let report = out.join("report.html");
    let table = markdown(ranking)?;
    // Without divergence there are rewards and no ranking.
    let name = match ranking.column("rank").is_ok() {
        true => "ranking",
        false => "rewards",
    };
    let mut document = json!({
        "run": out.display().to_string(),
        "report": report.display().to_string(),
    });
    document[name] = json!(records(ranking)?);
    Ok((document, format!("{table}\nreport: {}\n", report.display())))
}

/// Rows of a table as JSON objects.
pub(super) fn records(frame: &DataFrame) -> Result<Vec<Value>> {
    let mut rows = vec![Map::new(); frame.height()];
    for column in frame.columns() {
        for (i, row) in rows.iter_mut().enumerate() {
            let value = match column.get(i)? {
                AnyValue::Null => Value::Null,
                AnyValue::Float64(v) => json!(v),
                AnyValue::UInt32(v) => json!(v),
                AnyValue::String(v) => json!(v),
                other => json!(other.to_string()),
            };
            row.insert(column.name().to_string(), value);
        }
    }
    Ok(rows.into_iter().map(Value::Object).collect())
}

/// What an expert does, in words.
fn probed(probe: &Probe) -> String {
    let name = &probe.expert;
    match probe.changes() {
        false => format!("probe: expert '{name}' changes nothing: its first token is the base's"),
        true => format!(
            "probe: expert '{name}': KL {:.4} nats from the base, a probability by up to {:.4}, another first token for \
             {:.0} % of prompts",
            probe.kl,
            probe.change,
            100.0 * probe.other_token
        ),
    }
}

pub fn check(global: &Global, file: &Path, probe: bool) -> Result<()> {
    let experiment = load(global, file)?;
    let Checked {
        splits,
        fetched,
        memory,
    } = harness::check::check(&experiment)?;
    let probes = match probe {
        true => harness::probe::probe(&experiment, &splits)?,
        false => Vec::new(),
    };
    let Splits {
        prompts, warnings, ..
    } = splits;
    warnings
        .iter()
        .for_each(|w| eprintln!("warning: {}", printable(w)));
    let (strategies, preferences) = (
        experiment.strategies.names(),
        experiment.preferences.names(),
    );
    let (samples, tokens) = (
        experiment.samples as usize,
        experiment.generation.max_new_tokens,
    );
    let counts = [strategies.len(), preferences.len(), samples];
    let responses = counts
        .into_iter()
        .fold(prompts.len(), usize::saturating_mul);
    let limit = responses.saturating_mul(tokens);
    let document = json!({
        "name": experiment.name,
        "model": experiment.model,
        "experts": experiment.expert_names(),
        "strategies": strategies,
        "preferences": preferences,
        "prompts": prompts.len(),
        "responses": responses,
        "max_tokens": limit,
        "would_fetch": fetched,
        "memory": memory.as_ref().map(memory_of),
        "probes": probes,
    });
    global.print(document, || {
        let fetched = fetched.iter().map(|what| format!("\nwould fetch: {what}"));
        let mut rest: String = fetched.collect();
        if let Some(memory) = &memory {
            rest.push_str(&format!("\n{}", memory.shown()));
        }
        for probe in &probes {
            rest.push_str(&format!("\n{}", probed(probe)));
        }
        format!(
            "{}: {} prompts × {} samples × {} strategies × {} preferences = {responses} responses, \
             at most {limit} tokens\nmodel: {}\nexperts: {}{rest}",
            experiment.name,
            prompts.len(),
            experiment.samples,
            strategies.len(),
            preferences.len(),
            experiment.model,
            experiment.expert_names().join(", ")
        )
    })
}
