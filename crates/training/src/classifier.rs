//! A classifier of responses: the base and the experts answer, scorers say which answers to a prompt are at which
//! end of each dimension, and a fit of seconds learns to tell from their beginnings.
//!
//! What takes long is the answering: the answers of each expert are kept in `responses/`, and an interrupted training
//! resumes with the next expert.

use std::path::Path;

use anyhow::{Context, Result};
use eval::rewards::Reward;
use experts::classifier::{Classifier, ClassifierCard, Telling, Told};
use experts::training::classifier::{Embeddings, Labelled, fit};
use experts::{Expert, ExpertPool, ExpertSpec};
use lm::LanguageModel;
use lm::sampling::Draws;
use mixing::{BASE, Request};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::file::{ClassifierTraining, Training};
use super::rollouts::sample;
use super::{Job, Outcome, Product, data, results};
use harness::failure::usage;
use harness::models::Models;
use harness::progress::{self, Progress};
use harness::prompts::{self, NamedPrompt};

/// Prompts that are answered between two steps of the progress bar.
const PIECE: usize = 32;

/// A kept response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer {
    prompt: String,
    response: String,
    tokens: Vec<u32>,
}

/// Answers, scores and fits; or answers as far as this process is to.
///
/// # Errors
/// Prompts, models or scorers that cannot be opened; a dimension of which one end is missing.
pub(super) fn train(job: &Job<'_>, recipe: &ClassifierTraining) -> Result<Outcome> {
    let training = job.training;
    let prompts = prompts::load(&recipe.prompts).context("prompts")?;
    let mut models = Models::on(&training.device, training.sampling_format)?;
    let base = models.open(&training.model)?;
    let mut experts = vec![models.expert(BASE, &ExpertSpec::Base, &base)?];
    for (name, spec) in recipe.experts.iter() {
        experts.push(models.expert(name, spec, &base)?);
    }
    // Their tokens are the base's, or they are refused by name.
    ExpertPool::new(experts.clone())?;
    let answers = answers(job, recipe, &experts, &prompts)?;
    let done = answers.len() as u64;
    if answers.len() < experts.len() {
        return Ok(job.outcome(false, done, Product::Responses));
    }
    progress::say("classifier: scoring and fitting");
    let labelled = label(training, recipe, &prompts, &answers)?;
    let classifier = fitted(training, recipe, &base, &labelled)?;
    let folder = job.out().join("classifier");
    classifier.save(&folder)?;
    let dimensions = classifier.card().dimensions.clone();
    results::write_manifest(
        job.out(),
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "training": training,
            "inputs": job.inputs,
            "dimensions": dimensions,
        }),
    )?;
    let product = Product::Classifier { folder, dimensions };
    Ok(job.outcome(true, done, product))
}

/// What all experts answer to all prompts, `[experts][prompts, samples]`, from `responses/` where it is kept; fewer
/// experts where this process stops before.
fn answers(
    job: &Job<'_>,
    recipe: &ClassifierTraining,
    experts: &[Expert],
    prompts: &[NamedPrompt],
) -> Result<Vec<Vec<Answer>>> {
    let training = job.training;
    let mut known = json!([
        env!("CARGO_PKG_VERSION"),
        job.inputs,
        training.sampling_format,
        training.seed,
        recipe.experts,
        recipe.samples,
        recipe.max_new_tokens,
        recipe.temperature.to_string(),
    ]);
    if let (true, Some(known)) = (
        training.device != training.anywhere().device,
        known.as_array_mut(),
    ) {
        known.push(training.device.content_key());
    }
    let key = lm::source::hex(&Sha256::digest(known.to_string().as_bytes())[..6]);
    let folder = job.out().join("responses");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let expected = prompts.len() as u64 * recipe.samples;
    let total = expected * experts.len() as u64;
    let mut progress = Progress::new("answer", "responses", total);
    let (mut answers, mut fresh) = (Vec::new(), 0);
    for expert in experts {
        let path = folder.join(format!("{}.{key}.jsonl", expert.name));
        if let Some(stored) = kept(&path, expected as usize)? {
            progress.skip(expected);
            answers.push(stored);
            continue;
        }
        if job.options.stop_after == Some(fresh) {
            break;
        }
        progress.message(expert.name.clone());
        let given = answer(training, recipe, expert, prompts, &mut progress)?;
        let lines: Vec<String> = given
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        eval::write_atomic(&path, (lines.join("\n") + "\n").as_bytes())?;
        answers.push(given);
        fresh += 1;
    }
    progress.finish();
    Ok(answers)
}

/// The classifier of labelled answers, over the base's embeddings.
fn fitted(
    training: &Training,
    recipe: &ClassifierTraining,
    base: &LanguageModel,
    labelled: &[Labelled],
) -> Result<Classifier> {
    let embeddings = Embeddings {
        vocab: base.config().vocab_size,
        width: base.config().hidden_size,
        of: &|token, out| {
            // Tokens come from this model; one from elsewhere would read as nothing.
            if base.engine.embedding(token, out).is_err() {
                out.fill(0.0);
            }
        },
    };
    let dimensions = recipe.dimensions.iter().map(|(name, dimension)| Told {
        name: name.into(),
        low: dimension.low.clone(),
        high: dimension.high.clone(),
        held_out: Telling::default(),
    });
    let card = ClassifierCard {
        base: training.model.clone(),
        window: recipe.settings.window,
        dimensions: dimensions.collect(),
    };
    let (settings, seed) = (&recipe.settings, training.seed);
    Ok(fit(card, labelled, &embeddings, settings, seed)?)
}

/// Answers that an earlier process kept.
fn kept(path: &Path, expected: usize) -> Result<Option<Vec<Answer>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let stored: Vec<Answer> = data::lines(path)?;
    if stored.len() != expected {
        return Err(usage(format!(
            "{}: {} responses, not {expected}; remove it",
            path.display(),
            stored.len()
        )));
    }
    Ok(Some(stored))
}

/// What one expert answers to every prompt, `[prompts, samples]`.
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
        let responses = sample(expert.clone(), requests.collect(), limits)?;
        for ((prompt, _), response) in asked.iter().zip(responses) {
            let text = match response.tokens.split_last() {
                Some((_, rest)) if response.ended => rest,
                _ => response.tokens.as_slice(),
            };
            all.push(Answer {
                prompt: prompt.id.clone(),
                response: expert.model.tokenizer.decode(text)?,
                tokens: response.tokens,
            });
        }
        progress.advance(asked.len() as u64);
    }
    Ok(all)
}

/// Which answers are at which end: those above and below most others to the same prompt.
fn label(
    training: &Training,
    recipe: &ClassifierTraining,
    prompts: &[NamedPrompt],
    answers: &[Vec<Answer>],
) -> Result<Vec<Labelled>> {
    let samples = recipe.samples as usize;
    let scorers: Vec<Box<dyn Reward>> = recipe
        .dimensions
        .iter()
        .map(|(_, d)| Ok(d.scorer.open_on(&training.device)?))
        .collect::<Result<_>>()?;
    let mut all = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let to_prompt: Vec<&Answer> = answers
            .iter()
            .flat_map(|a| &a[number * samples..(number + 1) * samples])
            .collect();
        let first = all.len();
        all.extend(to_prompt.iter().map(|answer| Labelled {
            prompt: number,
            tokens: answer.tokens.clone(),
            labels: Vec::new(),
        }));
        for scorer in &scorers {
            let items: Vec<_> = to_prompt
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
