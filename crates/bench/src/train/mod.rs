//! `mope train`: a training file becomes an adapter, curves and samples.

mod adapter;
mod best_worst;
mod classifier;
mod data;
pub(crate) mod file;
mod mixture;
mod rollouts;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use eval::plots::{CurvePlot, save};
use eval::rewards::{PreferencePair, RewardModel, Scorer};
use eval::table::write_all;
use experts::ExpertSpec;
use experts::training::Checkpoint;
use lm::tuning::AdamWState;
use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cli::TrainArgs;
use crate::commands::Global;
use crate::failure::usage;
use crate::models::{hashes, resolve};
use crate::run::folder::{lock, parquet_files};
use crate::run::grid::trainings;
use crate::run::manifest::{Session, commit, now};

use file::{Recipe, RewardTraining, Training};

/// What a checkpoint keeps besides the optimiser.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Standing {
    /// The training with all defaults, to see that it is the same one.
    training: Value,
    /// Iterations or steps made.
    done: u64,
    /// All of them are.
    #[serde(default)]
    finished: bool,
    /// Weight of the KL.
    beta: f64,
    /// One object of numbers per iteration or step.
    metrics: Vec<Map<String, Value>>,
    /// The last iteration's responses, as Markdown.
    samples: String,
    /// Processes that worked on it.
    sessions: Vec<Session>,
}

pub fn train(global: &Global, args: &TrainArgs) -> Result<()> {
    let training = Training::load(&args.file)?;
    let default = || Path::new("runs/train").join(&training.name);
    let out: PathBuf = args.out.clone().unwrap_or_else(default);
    let (mut documents, mut said) = (Vec::new(), Vec::new());
    for (name, training) in trainings(&training, &args.set)? {
        let out = match name.as_str() {
            "" => out.clone(),
            name => out.join(name),
        };
        let (document, text) = train_one(args, &training.seeded(global.seed), &out)?;
        documents.push(document);
        said.push(text);
    }
    let document = match documents.len() {
        1 => documents.swap_remove(0),
        _ => json!({"trainings": documents}),
    };
    global.print(document, || said.join("\n"))
}

/// One training into its folder; what is to be said of it, as JSON and as text.
fn train_one(args: &TrainArgs, training: &Training, out: &Path) -> Result<(Value, String)> {
    let _lock = lock(out)?;
    let path = resolve(&training.model)?;
    let inputs = inputs(training, &path)?;
    match &training.recipe {
        Recipe::Pcm(t) => mixture::train(args, training, t, out, &inputs),
        Recipe::Reward(t) => reward(training, t, out, &inputs),
        Recipe::Classifier(t) => classifier::train(args, training, t, out, &inputs),
        _ => adapter::train(args, training, &path, out, &inputs),
    }
}

/// A reward model: minutes at most, so it is fitted in one go.
fn reward(
    training: &Training,
    recipe: &RewardTraining,
    out: &Path,
    inputs: &Value,
) -> Result<(Value, String)> {
    let pairs: Vec<PreferencePair> = data::lines(&recipe.data)?;
    let say = |stage: &str| eprintln!("reward: {stage}");
    let (config, seed) = (&recipe.settings, training.seed);
    let model = RewardModel::fit(&training.model, &pairs, config, seed, say)?;
    let folder = out.join("reward");
    model.save(&folder)?;
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "training": training,
        "inputs": inputs,
        "held_out": model.card().held_out,
    });
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    eval::write_atomic(&out.join("manifest.json"), text.as_bytes())?;
    let held_out = &model.card().held_out;
    let document = json!({
        "training": training.name,
        "reward": folder.display().to_string(),
        "held_out": held_out,
    });
    let text = format!(
        "{}: {:.1} % of {} held-out pairs in the right order (longer first: {:.1} %), loss {:.3}, \
         calibration error {:.3}",
        folder.display(),
        100.0 * held_out.accuracy,
        held_out.pairs,
        100.0 * held_out.longer,
        held_out.loss,
        held_out.calibration_error
    );
    Ok((document, text))
}

/// SHA-256 of everything that the training reads.
fn inputs(training: &Training, model: &Path) -> Result<Value> {
    let (data, texts) = match &training.recipe {
        Recipe::Sft(t) | Recipe::Dpo(t) => (&t.data, None),
        Recipe::Reward(t) => (&t.data, None),
        Recipe::Rebel(t) => (&t.prompts, None),
        Recipe::BestWorst(t) => (&t.prompts, None),
        Recipe::Morl(t) => (&t.prompts, None),
        Recipe::Classifier(t) => (&t.prompts, None),
        Recipe::Pcm(t) => (&t.prompts, Some(&t.texts)),
    };
    for file in [Some(data), texts].into_iter().flatten() {
        if !file.is_file() {
            let message = format!("{}: there is no such file", file.display());
            return Err(usage(message));
        }
    }
    let start = training.start.as_deref().map(hashes).transpose()?;
    let texts = texts.map(|t| hashes(t)).transpose()?;
    let mut records = Vec::new();
    let mut experts = Map::new();
    let mut pretrained = None;
    if let Recipe::BestWorst(t) = &training.recipe {
        for (i, candidate) in t.candidates.iter().enumerate() {
            if let ExpertSpec::Adapter(folder) = candidate {
                experts.insert(format!("candidate {i}"), json!(hashes(folder)?));
            }
        }
    }
    if let Recipe::Pcm(t) = &training.recipe {
        let named = t.pretrained.as_deref();
        pretrained = named.map(|m| hashes(&resolve(m)?)).transpose()?;
        for folder in &t.records {
            let files = parquet_files(folder).map_err(|e| usage(format!("records: {e:#}")))?;
            let files = files.iter().map(|f| lm::source::sha256(f));
            records.push(files.collect::<lm::Result<Vec<String>>>()?);
        }
    }
    let named = match &training.recipe {
        Recipe::Pcm(t) => Some(&t.experts),
        Recipe::Classifier(t) => Some(&t.experts),
        _ => None,
    };
    for (name, expert) in named.iter().flat_map(|n| n.iter()) {
        if let ExpertSpec::Adapter(folder) = expert.inner() {
            experts.insert(name.to_string(), json!(hashes(folder)?));
        }
    }
    let models = training
        .recipe
        .scorers()
        .into_iter()
        .flat_map(Scorer::models);
    let rewards: Vec<Value> = models
        .map(|m| Ok(json!(hashes(&m)?)))
        .collect::<Result<_>>()?;
    Ok(json!({
        "model": hashes(model)?,
        "data": hashes(data)?,
        "start": start,
        "texts": texts,
        "experts": experts,
        "records": records,
        "pretrained": pretrained,
        "rewards": rewards,
    }))
}

impl Standing {
    /// A round is done.
    fn note(&mut self, round: &impl Serialize) -> Result<()> {
        if let Value::Object(numbers) = serde_json::to_value(round)? {
            self.metrics.push(numbers);
        }
        self.done += 1;
        Ok(())
    }

    /// The session is over.
    fn close(&mut self, began: Instant) {
        if let Some(session) = self.sessions.last_mut() {
            session.finished = Some(now());
            let seconds = began.elapsed().as_secs_f64();
            session.seconds.insert("train".into(), seconds);
        }
    }
}

/// From a checkpoint's numbers if there is one, which must be of the same training.
fn resume(
    file: &Path,
    known: Value,
    beta: f64,
    values: &mut Vec<f32>,
) -> Result<(AdamWState, Standing)> {
    let found: Option<Checkpoint<Standing>> = Checkpoint::load(file)?;
    let (adam, mut standing) = match found {
        Some(found) => {
            if found.progress.training != known || found.values.len() != values.len() {
                return Err(usage(format!(
                    "{} belongs to a training with other settings or inputs; choose another folder \
                     with --out, or remove it to start anew",
                    file.display()
                )));
            }
            *values = found.values;
            (found.adam, found.progress)
        }
        None => {
            let fresh = Standing {
                training: known,
                beta,
                ..Standing::default()
            };
            (AdamWState::default(), fresh)
        }
    };
    standing.sessions.push(Session::start());
    Ok((adam, standing))
}

/// Metrics, curves, samples and manifest.
fn write(
    training: &Training,
    out: &Path,
    standing: &Standing,
    file: &Path,
    inputs: &Value,
) -> Result<()> {
    let mut frame = frame(&standing.metrics)?;
    write_all(out, "metrics", &mut frame)?;
    let plots = out.join("plots");
    std::fs::create_dir_all(&plots).with_context(|| plots.display().to_string())?;
    for (name, columns, y) in CURVES {
        let curves = columns.iter().enumerate().filter_map(|(i, column)| {
            Some((column.to_string(), i, curve(&standing.metrics, column)?))
        });
        let curves: Vec<_> = curves.collect();
        if curves.is_empty() {
            continue;
        }
        let plot = CurvePlot {
            title: format!("{}: {name}", training.name),
            x: "iteration".into(),
            y: y.into(),
            curves,
        };
        save(&plots, name, &plot)?;
    }
    if !standing.samples.is_empty() {
        eval::write_atomic(&out.join("samples.md"), standing.samples.as_bytes())?;
    }
    let source = std::fs::read_to_string(file).unwrap_or_default();
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(file.parent().unwrap_or(Path::new("."))),
        "training": training,
        "source": source,
        "inputs": inputs,
        "sessions": standing.sessions,
    });
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    Ok(eval::write_atomic(
        &out.join("manifest.json"),
        text.as_bytes(),
    )?)
}

/// Curves of a training: file name, columns, and what they are in.
const CURVES: [(&str, &[&str], &str); 9] = [
    ("utility", &["utility"], "utility"),
    ("entropy", &["entropy"], "nats"),
    ("divergence", &["kl", "divergence"], "nats per token"),
    (
        "reward",
        &["reward", "reward_sd"],
        "standard deviations of the base",
    ),
    ("kl", &["kl"], "nats per token"),
    ("length", &["length"], "tokens"),
    ("gradient", &["gradient"], "length before clipping"),
    ("residual", &["residual", "floor"], "nats"),
    ("loss", &["loss"], "loss"),
];

fn curve(metrics: &[Map<String, Value>], column: &str) -> Option<Vec<(f64, f64)>> {
    let points = metrics.iter().enumerate();
    points
        .map(|(i, row)| Some((i as f64, row.get(column)?.as_f64()?)))
        .collect()
}

fn frame(metrics: &[Map<String, Value>]) -> Result<DataFrame> {
    let names: Vec<&String> = metrics
        .first()
        .map(|m| m.keys().collect())
        .unwrap_or_default();
    let columns = names.into_iter().map(|name| {
        let values: Vec<f64> = metrics
            .iter()
            .map(|row| row.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN))
            .collect();
        Column::new(name.as_str().into(), values)
    });
    Ok(DataFrame::new_infer_height(columns.collect())?)
}
