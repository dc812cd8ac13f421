//! `mope bench records`: an epoch of a PCM's training from records, and what it would cost to run the experts again
//! instead. Both read the same contexts and responses on the same device in `F32`.

use std::time::Instant;

use anyhow::Result;
use lm::sampling::Draws;
use lm::tuning::AdamWState;
use lm::{Adapter, DeviceSpec, Format, LanguageModel};
use pcm::{Context, Pcm, PcmConfig, PcmTrainer, Rollout, TrainerConfig};
use polars::prelude::{Column, DataFrame};
use serde::Serialize;

use super::{PASSAGE, excerpt, median, random_adapter};
use crate::cli::{RecordsArgs, Workload};
use harness::models::Models;

/// One measurement; medians of the repetitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MeasuredEpoch {
    device: String,
    experts: usize,
    sequences: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// One epoch of REBEL with a PCM of shape `tiny`: forward twice, backward, optimiser.
    epoch_s: f64,
    /// The experts' distributions at every token of the responses, teacher-forced, all lanes at once.
    experts_s: f64,
    /// How many times the epoch is faster.
    ratio: f64,
}

/// Times an epoch and the experts for every number of experts and sequences that the arguments list.
///
/// # Errors
/// A model that cannot be opened, or too few tokens for the sequences that the arguments ask for.
pub(super) fn measure(
    args: &RecordsArgs,
    device: &DeviceSpec,
    seed: u64,
) -> Result<Vec<MeasuredEpoch>> {
    let mut models = Models::on(device, Format::F32)?;
    let model = models.open(&args.workload.model())?;
    let passage = model.tokenizer.encode(PASSAGE, false)?;
    let mut rows = Vec::new();
    for &experts in &args.experts {
        for &sequences in &args.workload.sequences {
            // Responses come in pairs.
            let sequences = sequences.next_multiple_of(2);
            let (epoch_s, experts_s) =
                times(&model, &passage, &args.workload, (experts, sequences), seed)?;
            let row = MeasuredEpoch {
                device: device.to_string(),
                experts,
                sequences,
                prompt_tokens: args.workload.prompt_tokens,
                new_tokens: args.workload.new_tokens,
                epoch_s,
                experts_s,
                ratio: experts_s / epoch_s,
            };
            eprintln!(
                "{experts} experts × {sequences}: epoch {epoch_s:.2} s, experts again {experts_s:.2} s, {:.0} times",
                row.ratio
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Seconds of an epoch and of the experts, medians.
fn times(
    model: &LanguageModel,
    passage: &[u32],
    workload: &Workload,
    (experts, sequences): (usize, usize),
    seed: u64,
) -> Result<(f64, f64)> {
    let (config, prompt) = (model.config(), workload.prompt_tokens);
    let adapters: Vec<Adapter> = (0..experts)
        .map(|e| random_adapter(config, workload.rank, e as u64))
        .collect();
    let adapters: Vec<Option<&Adapter>> = adapters.iter().map(Some).collect();
    let adapters = model.engine.adapters(&adapters);
    let names: Vec<String> = (0..experts).map(|e| format!("expert{e:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let shape = PcmConfig::tiny(&names, config.hidden_size);
    let texts: Vec<Vec<u32>> = (0..sequences)
        .map(|i| excerpt(passage, i, prompt + workload.new_tokens))
        .collect();
    let rollouts: Vec<Rollout> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| rollout(text, prompt, experts, i))
        .collect();
    let lanes = || (0..experts).flat_map(|_| &texts);
    let prompts: Vec<&[u32]> = lanes().map(|t| &t[..prompt]).collect();
    let responses: Vec<&[u32]> = lanes().map(|t| &t[prompt..]).collect();
    let embed = |token: u32, out: &mut [f32]| {
        if model.engine.embedding(token, out).is_err() {
            out.fill(0.0);
        }
    };
    let (mut epoch, mut again) = (Vec::new(), Vec::new());
    for _ in 0..workload.repeat.max(1) {
        let settings = TrainerConfig {
            epochs: 1,
            ..TrainerConfig::default()
        };
        let pcm = Pcm::new(&shape, seed)?;
        let mut trainer = PcmTrainer::new(pcm, settings, AdamWState::default(), 0)?;
        let start = Instant::now();
        trainer.fit(&rollouts, &embed, &[])?;
        epoch.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        model.log_probs(&prompts, &responses, Some(&adapters))?;
        again.push(start.elapsed().as_secs_f64());
    }
    Ok((median(epoch), median(again)))
}

/// A record of a text whose experts are made up.
fn rollout(text: &[u32], prompt: usize, experts: usize, number: usize) -> Rollout {
    let new = text.len() - prompt;
    let mut draws = Draws::new(&[b"bench records", &number.to_le_bytes()]);
    let mut numbers = (0..).map(|i| -0.5 - 4.0 * draws.uniform(i) as f32);
    Rollout {
        prompt: number.to_string(),
        context: Context {
            tokens: text[..prompt].to_vec(),
            shares: vec![1.0 / experts as f32; experts],
            statistics: Vec::new(),
        },
        tokens: text[prompt..].to_vec(),
        log_probs: numbers.by_ref().take(new * experts).collect(),
        behaviour: numbers.by_ref().take(new).collect(),
        utility: numbers.next().map_or(0.0, f64::from),
        temperature: 1.0,
        ..Rollout::default()
    }
}

pub(super) fn frame(rows: &[MeasuredEpoch]) -> Result<DataFrame> {
    let count = |name: &str, get: fn(&MeasuredEpoch) -> usize| {
        let all = rows.iter().map(|r| get(r) as u64);
        Column::new(name.into(), all.collect::<Vec<_>>())
    };
    let number = |name: &str, get: fn(&MeasuredEpoch) -> f64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let devices: Vec<&str> = rows.iter().map(|r| r.device.as_str()).collect();
    Ok(DataFrame::new_infer_height(vec![
        Column::new("device".into(), devices),
        count("experts", |r| r.experts),
        count("sequences", |r| r.sequences),
        count("prompt_tokens", |r| r.prompt_tokens),
        count("new_tokens", |r| r.new_tokens),
        number("epoch_s", |r| r.epoch_s),
        number("experts_s", |r| r.experts_s),
        number("ratio", |r| r.ratio),
    ])?)
}
