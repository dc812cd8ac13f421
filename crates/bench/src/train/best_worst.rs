//! The best and the worst of many responses to each prompt.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use experts::ExpertSpec;
use experts::training::rebel::Sampled;
use lm::sampling::Draws;
use lm::source::cache_folder;
use lm::tuning::{Item, Sequence};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::file::{BestWorstTraining, Training};
use super::rollouts::Rollouts;
use crate::models::hashes;
use crate::progress::Progress;

/// Prompts that are sampled between two steps of the progress bar.
const PIECE: usize = 16;

/// Stored responses to a prompt.
#[derive(Serialize, Deserialize)]
struct Stored {
    tokens: Vec<u32>,
    ended: bool,
}

/// Pairs of best and worst, and their rewards in standard deviations within a prompt. Prompts whose responses
/// are all worth the same give none.
///
/// # Errors
/// What sampling or scoring reports.
pub fn pairs(
    training: &Training,
    recipe: &BestWorstTraining,
    model: &Path,
) -> Result<(Vec<Item>, Vec<[f64; 2]>)> {
    let limits = (recipe.max_new_tokens, recipe.temperature);
    let rollouts = Rollouts::open(training, &recipe.prompts, &recipe.reward, limits, model)?;
    let prompts = rollouts.tokens()?;
    let each = recipe.samples as usize;
    let samples = each * recipe.candidates.len();
    let mut by_candidate = Vec::new();
    for candidate in &recipe.candidates {
        let own = responses(training, recipe, candidate, model, &rollouts, prompts.len())?;
        by_candidate.push(own);
    }
    let of_prompt = |prompt: usize| {
        let own = prompt * each..(prompt + 1) * each;
        by_candidate.iter().flat_map(move |c| &c[own.clone()])
    };
    let responses: Vec<&Sampled> = (0..prompts.len()).flat_map(of_prompt).collect();
    let mut all = Vec::new();
    for (i, response) in responses.iter().enumerate() {
        let reward = rollouts.scored(i / samples, response)?.1;
        all.push(match response.ended {
            true => reward,
            false => reward - recipe.missing_end,
        });
    }
    let spread = |rewards: &[f64]| {
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (rewards.len() - 1) as f64
    };
    let variance: f64 = all.chunks(samples).map(spread).sum::<f64>() / prompts.len() as f64;
    let sd = variance.sqrt().max(1e-9);
    let (mut items, mut rewards) = (Vec::new(), Vec::new());
    for (prompt, own) in all.chunks(samples).enumerate() {
        let by = |a: &usize, b: &usize| own[*a].total_cmp(&own[*b]);
        let best = (0..samples).max_by(by).unwrap_or(0);
        let worst = (0..samples).min_by(by).unwrap_or(0);
        if own[best] <= own[worst] {
            continue;
        }
        let sequence =
            |i: usize| Sequence::new(&prompts[prompt], &responses[prompt * samples + i].tokens);
        items.push(vec![sequence(best), sequence(worst)]);
        rewards.push([own[best] / sd, own[worst] / sd]);
    }
    anyhow::ensure!(
        !items.is_empty(),
        "all responses to a prompt are worth the same; nothing can be learnt from them"
    );
    let gap = rewards.iter().map(|[b, w]| b - w).sum::<f64>() / rewards.len() as f64;
    eprintln!(
        "pairs: {} of {} prompts, best {gap:.2} standard deviations above worst",
        items.len(),
        prompts.len()
    );
    Ok((items, rewards))
}

/// Samples of a candidate, `[prompts, samples]`, from the cache where they are known.
fn responses(
    training: &Training,
    recipe: &BestWorstTraining,
    candidate: &ExpertSpec,
    model: &Path,
    rollouts: &Rollouts,
    prompts: usize,
) -> Result<Vec<Sampled>> {
    let mut key = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": hashes(model)?,
        "weights": training.sampling_weights,
        "prompts": hashes(&recipe.prompts)?,
        "samples": recipe.samples,
        "max_new_tokens": recipe.max_new_tokens,
        "temperature": recipe.temperature,
        "seed": training.seed,
    });
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
            stored.len() == prompts * recipe.samples as usize,
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
            .flat_map(|prompt| (0..recipe.samples).map(move |sample| (prompt, sample)))
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
