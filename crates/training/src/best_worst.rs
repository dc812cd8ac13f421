//! The best and the worst of many responses to each prompt, for one reward or for many preferences.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use experts::ExpertSpec;
use experts::training::rebel::Sampled;
use lm::sampling::{Draws, permutation};
use lm::source::cache_folder;
use lm::tuning::{Item, Sequence};
use mixing::strategies::Prompting;
use mixing::{BASE, Plan, Preference, Strategy};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::file::{BestWorstTraining, MorlTraining, Training};
use super::rollouts::Rollouts;
use harness::models::hashes;
use harness::progress::{self, Progress};
use harness::prompts;

/// Prompts that are sampled between two steps of the progress bar.
const PIECE: usize = 16;

/// Stored responses to a prompt.
#[derive(Serialize, Deserialize)]
struct Stored {
    tokens: Vec<u32>,
    ended: bool,
}

/// Pairs of best and worst, and their rewards in standard deviations within a prompt. Prompts whose responses all
/// have the same reward give none.
///
/// # Errors
/// Prompts, models or adapters that cannot be opened; a model or a scorer that fails.
pub fn pairs(
    training: &Training,
    recipe: &BestWorstTraining,
    model: &Path,
) -> Result<(Vec<Item>, Vec<[f64; 2]>)> {
    let limits = (recipe.max_new_tokens, recipe.temperature);
    let rollouts = Rollouts::open(training, &recipe.prompts, &recipe.reward, limits, model)?;
    let key = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": hashes(model)?,
        "weights": training.sampling_format,
        "prompts": hashes(&recipe.prompts)?,
        "samples": recipe.samples,
        "max_new_tokens": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "seed": training.seed,
    });
    let end = recipe.missing_end;
    best_and_worst(
        training,
        &rollouts,
        (recipe.samples, &recipe.candidates),
        end,
        &key,
    )
}

/// Pairs of best and worst for many preferences, each prompt asked by as many as the recipe says; otherwise as
/// [`pairs`].
///
/// # Errors
/// Prompts, models or adapters that cannot be opened; a model or a scorer that fails.
pub fn of_preferences(
    training: &Training,
    recipe: &MorlTraining,
    model: &Path,
) -> Result<(Vec<Item>, Vec<[f64; 2]>)> {
    let preferences: Vec<&Preference> = recipe.preferences.iter().map(|(_, p)| p).collect();
    let plans = preferences.iter().map(|preference| {
        let prompting = Strategy::Prompting(Prompting::default());
        prompting.plan(preference, &[BASE])
    });
    let plans: Vec<Plan> = plans.collect::<mixing::Result<_>>()?;
    let (count, seed) = (preferences.len(), training.seed.to_le_bytes());
    let asks = match recipe.asks {
        0 => count,
        n => n.min(count),
    };
    let (mut prompts, mut rewards) = (Vec::new(), Vec::new());
    for (i, asked) in prompts::load(&recipe.prompts)
        .context("prompts")?
        .into_iter()
        .enumerate()
    {
        // A walk through permutations, so that all ask equally often.
        for ask in i * asks..(i + 1) * asks {
            let round = (ask / count).to_le_bytes();
            let order = permutation(count, &[&seed, b"preferences", &round]);
            let preference = order[ask % count];
            prompts.push(plans[preference].prompt(&asked.prompt)?);
            rewards.push(
                recipe
                    .reward(preferences[preference])?
                    .open(&training.device)?,
            );
        }
    }
    let key = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": hashes(model)?,
        "weights": training.sampling_format,
        "asked": prompts,
        "samples": recipe.samples,
        "max_new_tokens": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "seed": training.seed,
    });
    let limits = (recipe.max_new_tokens, recipe.temperature);
    let rollouts = Rollouts::of(training, prompts, rewards, limits, model)?;
    let candidates = [ExpertSpec::Base];
    best_and_worst(
        training,
        &rollouts,
        (recipe.samples, &candidates),
        0.0,
        &key,
    )
}

/// The best and the worst of `samples` responses to each prompt by each candidate, `missing_end` taken off the
/// rewards of those that don't end. Responses are kept under `key`, which holds all that those of the base follow from.
fn best_and_worst(
    training: &Training,
    rollouts: &Rollouts,
    (samples, candidates): (u64, &[ExpertSpec]),
    missing_end: f64,
    key: &Value,
) -> Result<(Vec<Item>, Vec<[f64; 2]>)> {
    let prompts = rollouts.tokens()?;
    let mut by_candidate = Vec::new();
    for candidate in candidates {
        let count = prompts.len();
        by_candidate.push(responses(
            training, samples, candidate, key, rollouts, count,
        )?);
    }
    let per_candidate = samples as usize;
    let per_prompt = per_candidate * candidates.len();
    let of_prompt = |prompt: usize| {
        let rows = prompt * per_candidate..(prompt + 1) * per_candidate;
        by_candidate.iter().flat_map(move |c| &c[rows.clone()])
    };
    let responses: Vec<&Sampled> = (0..prompts.len()).flat_map(of_prompt).collect();
    let all = score(rollouts, &responses, per_prompt, missing_end)?;
    let sd = spread(&all, per_prompt).max(1e-9);
    let (mut items, mut rewards) = (Vec::new(), Vec::new());
    for (prompt, scores) in all.chunks(per_prompt).enumerate() {
        let by_score = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]);
        let best = (0..per_prompt).max_by(by_score).unwrap_or(0);
        let worst = (0..per_prompt).min_by(by_score).unwrap_or(0);
        if scores[best] <= scores[worst] {
            continue;
        }
        let sequence =
            |i: usize| Sequence::new(&prompts[prompt], &responses[prompt * per_prompt + i].tokens);
        items.push(vec![sequence(best), sequence(worst)]);
        rewards.push([scores[best] / sd, scores[worst] / sd]);
    }
    anyhow::ensure!(
        !items.is_empty(),
        "all responses to a prompt have the same reward; nothing can be learnt from them"
    );
    let gap = rewards.iter().map(|[b, w]| b - w).sum::<f64>() / rewards.len() as f64;
    progress::say(&format!(
        "pairs: {} of {} prompts, best {gap:.2} standard deviations above worst",
        items.len(),
        prompts.len()
    ));
    Ok((items, rewards))
}

/// Rewards of responses, `[prompts, per_prompt]`.
fn score(
    rollouts: &Rollouts,
    responses: &[&Sampled],
    per_prompt: usize,
    missing_end: f64,
) -> Result<Vec<f64>> {
    let mut rewards = Vec::new();
    let mut progress = Progress::new("score", "responses", responses.len() as u64);
    for (i, response) in responses.iter().enumerate() {
        let reward = rollouts.scored(i / per_prompt, response)?.1;
        rewards.push(if response.ended {
            reward
        } else {
            reward - missing_end
        });
        progress.advance(1);
    }
    progress.finish();
    Ok(rewards)
}

/// Standard deviation of rewards within a prompt.
fn spread(rewards: &[f64], per_prompt: usize) -> f64 {
    let variance = |rewards: &[f64]| {
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (rewards.len() - 1) as f64
    };
    let prompts = rewards.len() / per_prompt;
    let sum: f64 = rewards.chunks(per_prompt).map(variance).sum();
    (sum / prompts as f64).sqrt()
}

/// Samples of a candidate, `[prompts, samples]`, from the cache where they are known.
fn responses(
    training: &Training,
    samples: u64,
    candidate: &ExpertSpec,
    key: &Value,
    rollouts: &Rollouts,
    prompts: usize,
) -> Result<Vec<Sampled>> {
    let mut key = key.clone();
    if training.device != training.anywhere().device {
        // Devices round differently, and a rounding may change a draw.
        key["device"] = training.device.content_key();
    }
    match candidate {
        ExpertSpec::Base => {}
        ExpertSpec::Adapter(folder) => key["adapter"] = json!(hashes(folder)?),
        other => key["candidate"] = json!(other),
    }
    let hash: String = Sha256::digest(key.to_string())
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder: PathBuf = cache_folder()?.join("responses");
    let path = folder.join(format!("{hash}.json"));
    if path.is_file() {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let stored: Vec<Stored> = serde_json::from_str(&text)
            .with_context(|| format!("{}: damaged; remove it", path.display()))?;
        anyhow::ensure!(
            stored.len() == prompts * samples as usize,
            "{}: another number of responses than asked for; remove it",
            path.display()
        );
        let response = |s: Stored| Sampled {
            tokens: s.tokens,
            ended: s.ended,
        };
        return Ok(stored.into_iter().map(response).collect());
    }
    let expert = rollouts.candidate(candidate)?;
    let mut progress = Progress::new("sample", "prompts", prompts as u64);
    let mut all: Vec<Sampled> = Vec::new();
    let seed = training.seed.to_le_bytes();
    for start in (0..prompts).step_by(PIECE) {
        let piece = start..(start + PIECE).min(prompts);
        let asked: Vec<(usize, Draws)> = piece
            .clone()
            .flat_map(|prompt| (0..samples).map(move |sample| (prompt, sample)))
            .map(|(prompt, sample)| {
                let (p, s) = (prompt.to_le_bytes(), sample.to_le_bytes());
                (prompt, Draws::new(&[&seed, b"pool", &p, &s]))
            })
            .collect();
        all.extend(rollouts.sample(expert.clone(), &asked)?);
        progress.advance(piece.len() as u64);
    }
    progress.finish();
    let stored: Vec<Stored> = all
        .iter()
        .map(|r| Stored {
            tokens: r.tokens.clone(),
            ended: r.ended,
        })
        .collect();
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    eval::write_atomic(&path, serde_json::to_string(&stored)?.as_bytes())?;
    Ok(all)
}
