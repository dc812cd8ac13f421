//! `mope train`: carries out the trainings of a file and says what they came to.

use std::path::Path;

use anyhow::Result;
use harness::memory::Memory;
use serde_json::{Value, json};
use training::{Outcome, Product, TrainOptions, Training, trainings};

use super::Global;
use crate::cli::TrainArgs;

/// Trains, once or for each of the settings' combinations.
///
/// # Errors
/// Those of [`Training::load`] and [`training::train`].
pub fn train(global: &Global, args: &TrainArgs) -> Result<()> {
    let mut training = Training::load(&args.file)?;
    if let Some(device) = &global.device {
        training.device = device.clone();
    }
    let default = || Path::new("runs/train").join(&training.name);
    let out = args.out.clone().unwrap_or_else(default);
    let (mut documents, mut texts) = (Vec::new(), Vec::new());
    for (name, file) in trainings(&training, &args.set)? {
        if args.dry_run {
            let (document, text) = planned(&file)?;
            documents.push(document);
            texts.push(text);
            continue;
        }
        let options = TrainOptions {
            source: args.file.clone(),
            out: match name.as_str() {
                "" => out.clone(),
                name => out.join(name),
            },
            stop_after: args.stop_after,
        };
        let outcome = training::train(&file.seeded(global.seed), &options)?;
        let (document, text) = shown(&outcome);
        documents.push(document);
        texts.push(text);
    }
    let document = match documents.len() {
        1 => documents.swap_remove(0),
        _ => json!({"trainings": documents}),
    };
    global.print(document, || texts.join("\n"))
}

/// What a training would take, as JSON and as text.
///
/// # Errors
/// One that does not fit.
fn planned(file: &Training) -> Result<(Value, String)> {
    let mut document = json!({"training": file.name, "model": file.model});
    let Some(memory) = training::memory::of(file)? else {
        let text = format!(
            "{}: memory is known once {} is fetched",
            file.name, file.model
        );
        return Ok((document, text));
    };
    let remedy = "take format: Bf16, a smaller minibatch, or sampling_format: Q8";
    memory.fits(&format!("training '{}'", file.name), remedy)?;
    document["memory"] = memory_of(&memory);
    Ok((document, format!("{}: {}", file.name, memory.shown())))
}

/// Parts of memory and what there is, as JSON.
pub(super) fn memory_of(memory: &Memory) -> Value {
    let parts = memory.parts.iter().cloned();
    let parts: serde_json::Map<String, Value> =
        parts.map(|(name, bytes)| (name, bytes.into())).collect();
    json!({"bytes": memory.total(), "available": memory.available, "parts": parts})
}

/// What a training came to, as JSON and as text.
fn shown(outcome: &Outcome) -> (Value, String) {
    let Outcome {
        training,
        finished,
        done,
        product,
    } = outcome;
    let state = if *finished { "trained" } else { "interrupted" };
    let mut document = json!({"training": training, "finished": finished, "done": done});
    let text = match product {
        Product::Adapter { folder, last } => {
            document["adapter"] = json!(folder.display().to_string());
            document["last"] = json!(last);
            format!("{state} after {done} rounds; adapter: {}", folder.display())
        }
        Product::Pcm { folder, last } => {
            document["pcm"] = json!(folder.display().to_string());
            document["last"] = json!(last);
            format!("{state} after {done} iterations; PCM: {}", folder.display())
        }
        Product::Reward { folder, held_out } => {
            document["reward"] = json!(folder.display().to_string());
            document["held_out"] = json!(held_out);
            format!(
                "{}: {:.1} % of {} held-out pairs in the right order (longer first: {:.1} %), loss {:.3}, \
                 calibration error {:.3}",
                folder.display(),
                100.0 * held_out.accuracy,
                held_out.pairs,
                100.0 * held_out.longer,
                held_out.loss,
                held_out.calibration_error
            )
        }
        Product::Classifier { folder, dimensions } => {
            document["classifier"] = json!(folder.display().to_string());
            document["dimensions"] = json!(dimensions);
            let lines = dimensions.iter().map(|dimension| {
                let figures = &dimension.held_out;
                format!(
                    "{}: {:.1} % of {} held-out responses told right, {:.1} % of their beginnings, loss {:.3}\n",
                    dimension.name,
                    100.0 * figures.accuracy,
                    figures.responses,
                    100.0 * figures.beginnings,
                    figures.loss
                )
            });
            let lines: String = lines.collect();
            format!("{lines}classifier: {}", folder.display())
        }
        Product::Responses => {
            format!("interrupted after the answers of {done}; the same command goes on")
        }
    };
    (document, text)
}
