//! A classifier of responses: the base and the experts answer, scorers say which answers to a prompt are at which
//! end of each dimension, and a fit of seconds learns to tell from their beginnings.
//!
//! What takes long is the answering: the answers of each are kept in `responses/`, and a killed training goes on
//! with the next one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use eval::rewards::Reward;
use experts::classifier::{ClassifierCard, Telling, Told};
use experts::training::classifier::{Embeddings, Labelled, fit};
use experts::{Expert, ExpertPool, ExpertSpec};
use lm::DeviceSpec;
use lm::sampling::Draws;
use mixing::{BASE, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::file::{ClassifierTraining, Training};
use super::rollouts::sample;
use crate::cli::TrainArgs;
use crate::failure::usage;
use crate::models::Models;
use crate::progress::Progress;
use crate::prompts::{self, NamedPrompt};

/// Prompts that are answered between two steps of the progress bar.
const PIECE: usize = 32;

/// A kept response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer {
    prompt: String,
    response: String,
    tokens: Vec<u32>,
}

pub fn train(
    args: &TrainArgs,
    training: &Training,
    recipe: &ClassifierTraining,
    out: &Path,
    inputs: &Value,
) -> Result<(Value, String)> {
    let prompts = prompts::load(&recipe.prompts)?;
    let mut models = Models::on(&DeviceSpec::Cpu, training.sampling_weights)?;
    let base = models.open(&training.model)?;
    let mut who = vec![models.expert(BASE, &ExpertSpec::Base, &base)?];
    for (name, spec) in recipe.experts.iter() {
        who.push(models.expert(name, spec, &base)?);
    }
    // Their tokens are the base's, or they are refused by name.
    ExpertPool::new(who.clone())?;
    let known = json!([
        env!("CARGO_PKG_VERSION"),
        inputs,
        training.sampling_weights,
        training.seed,
        recipe.experts,
        recipe.samples,
        recipe.max_new_tokens,
        recipe.temperature.to_string(),
    ]);
    let key = lm::source::hex(&Sha256::digest(known.to_string().as_bytes())[..6]);
    let folder = out.join("responses");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let each = prompts.len() as u64 * recipe.samples;
    let mut progress = Progress::new("answer", "responses", each * who.len() as u64);
    let (mut answers, mut fresh) = (Vec::new(), 0);
    for expert in &who {
        let path = folder.join(format!("{}.{key}.jsonl", expert.name));
        if let Some(found) = kept(&path, each as usize)? {
            progress.skip(each);
            answers.push(found);
            continue;
        }
        if args.stop_after.is_some_and(|n| fresh == n as u64) {
            progress.finish();
            let done = answers.len();
            let document = json!({"training": training.name, "finished": false, "done": done});
            let text = format!("interrupted after the answers of {done}; the same command goes on");
            return Ok((document, text));
        }
        progress.message(expert.name.clone());
        let made = answer(training, recipe, expert, &prompts, &mut progress)?;
        let lines: Vec<String> = made
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        eval::write_atomic(&path, (lines.join("\n") + "\n").as_bytes())?;
        answers.push(made);
        fresh += 1;
    }
    progress.finish();
    eprintln!("classifier: scoring and fitting");
    let labelled = label(recipe, &prompts, &answers)?;
    let vocab = base.config().vocab_size;
    let embeddings = Embeddings {
        vocab,
        width: base.config().hidden_size,
        of: &|token, out| {
            // Tokens come from this model; one from elsewhere would read as nothing.
            if base.engine.embedding(token, out).is_err() {
                out.fill(0.0);
            }
        },
    };
    let told = recipe.dimensions.iter().map(|(name, dimension)| Told {
        name: name.into(),
        low: dimension.low.clone(),
        high: dimension.high.clone(),
        held_out: Telling::default(),
    });
    let card = ClassifierCard {
        base: training.model.clone(),
        window: recipe.settings.window,
        dimensions: told.collect(),
    };
    let fitted = fit(
        card,
        &labelled,
        &embeddings,
        &recipe.settings,
        training.seed,
    )?;
    let written: PathBuf = out.join("classifier");
    fitted.save(&written)?;
    let manifest = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "training": training,
        "inputs": inputs,
        "dimensions": fitted.card().dimensions,
    });
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    eval::write_atomic(&out.join("manifest.json"), text.as_bytes())?;
    let document = json!({
        "training": training.name,
        "finished": true,
        "done": who.len(),
        "classifier": written.display().to_string(),
        "dimensions": fitted.card().dimensions,
    });
    let lines = fitted.card().dimensions.iter().map(|d| {
        let t = &d.held_out;
        format!(
            "{}: {:.1} % of {} held-out responses told right, {:.1} % of their beginnings, loss {:.3}",
            d.name,
            100.0 * t.accuracy,
            t.responses,
            100.0 * t.beginnings,
            t.loss
        )
    });
    let lines: Vec<String> = lines.collect();
    let text = format!("{}\nclassifier: {}", lines.join("\n"), written.display());
    Ok((document, text))
}

/// Answers that an earlier process kept.
fn kept(path: &Path, expected: usize) -> Result<Option<Vec<Answer>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let found: Vec<Answer> = super::data::lines(path)?;
    if found.len() != expected {
        return Err(usage(format!(
            "{}: {} responses, not {expected}; remove it",
            path.display(),
            found.len()
        )));
    }
    Ok(Some(found))
}

/// One of them answers every prompt, `[prompts, samples]`.
fn answer(
    training: &Training,
    recipe: &ClassifierTraining,
    expert: &Expert,
    prompts: &[NamedPrompt],
    progress: &mut Progress,
) -> Result<Vec<Answer>> {
    let seed = training.seed.to_le_bytes();
    let mut all = Vec::new();
    for piece in prompts.chunks(PIECE) {
        let asked = piece
            .iter()
            .flat_map(|p| (0..recipe.samples).map(move |s| (p, s)));
        let asked: Vec<(&NamedPrompt, u64)> = asked.collect();
        let requests = asked.iter().map(|(p, sample)| Request {
            prompt: p.prompt.clone(),
            draws: Draws::new(&[
                &seed,
                b"answer",
                expert.name.as_bytes(),
                p.id.as_bytes(),
                &sample.to_le_bytes(),
            ]),
        });
        let limits = (recipe.max_new_tokens, recipe.temperature);
        let made = sample(expert.clone(), requests.collect(), limits)?;
        for ((prompt, _), made) in asked.iter().zip(made) {
            let text = match made.tokens.split_last() {
                Some((_, rest)) if made.ended => rest,
                _ => made.tokens.as_slice(),
            };
            all.push(Answer {
                prompt: prompt.id.clone(),
                response: expert.model.tokenizer.decode(text)?,
                tokens: made.tokens,
            });
        }
        progress.advance(asked.len() as u64);
    }
    Ok(all)
}

/// Which answers are at which end: those above and below most others to the same prompt.
fn label(
    recipe: &ClassifierTraining,
    prompts: &[NamedPrompt],
    answers: &[Vec<Answer>],
) -> Result<Vec<Labelled>> {
    let samples = recipe.samples as usize;
    let scorers: Vec<Box<dyn Reward>> = recipe
        .dimensions
        .iter()
        .map(|(_, d)| Ok(d.scorer.open()?))
        .collect::<Result<_>>()?;
    let mut all = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let own = answers
            .iter()
            .flat_map(|a| &a[number * samples..(number + 1) * samples]);
        let own: Vec<&Answer> = own.collect();
        let first = all.len();
        all.extend(own.iter().map(|answer| Labelled {
            prompt: number,
            tokens: answer.tokens.clone(),
            labels: Vec::new(),
        }));
        for scorer in &scorers {
            let items: Vec<_> = own
                .iter()
                .map(|a| (&prompt.prompt, a.response.as_str()))
                .collect();
            let scores = scorer.score_all(&items)?;
            let labels = ends(&scores, recipe.share);
            for (labelled, label) in all[first..].iter_mut().zip(labels) {
                labelled.labels.push(label);
            }
        }
    }
    Ok(all)
}

/// The high and the low end of scores; neither where the two meet.
fn ends(scores: &[f64], share: f64) -> Vec<Option<bool>> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = ((scores.len() as f64 * share).floor() as usize).max(1);
    let (low, high) = (sorted[count - 1], sorted[scores.len() - count]);
    let end = |score: &f64| match (*score >= high, *score <= low) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    };
    scores.iter().map(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_what_most_others_are_not() {
        let (high, low) = (Some(true), Some(false));
        assert_eq!(
            ends(&[3.0, 1.0, 7.0, 5.0, 9.0, 4.0, 2.0], 0.35),
            [None, low, high, None, high, None, low]
        );
        // Equal ones share an end, and where the ends meet there is none.
        assert_eq!(ends(&[1.0, 1.0, 1.0, 2.0], 0.25), [low, low, low, high]);
        assert_eq!(ends(&[1.0, 1.0, 1.0], 0.34), [None, None, None]);
        assert_eq!(ends(&[1.0, 2.0], 0.35), [low, high]);
    }
}
