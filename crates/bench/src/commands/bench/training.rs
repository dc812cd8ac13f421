//! `mope bench train`: how fast a LoRA step is.

use std::time::Instant;

use anyhow::Result;
use lm::load::Checkpoint;
use lm::objectives;
use lm::tuning::{AdamW, AdamWConfig, AdamWState, Item, LoraConfig, LoraParameters};
use lm::tuning::{Sequence, TuningDecoder};
use lm::{DeviceSpec, Format, Tokenizer};
use polars::prelude::{Column, DataFrame};
use serde::Serialize;

use super::{PASSAGE, excerpt, median};
use crate::cli::Workload;
use harness::models::resolve;
use kernels::memory::peak_bytes;

/// One measurement; the median of the repetitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MeasuredTraining {
    device: String,
    format: String,
    sequences: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// Forward, backward and optimiser, prompt tokens included.
    train_tokens_per_s: f64,
    /// Log-probabilities alone.
    score_tokens_per_s: f64,
    /// Largest resident memory of the process so far.
    peak_bytes: u64,
}

/// Times steps and scoring on a device in `F32` and `Bf16`, as far as the formats name them.
///
/// # Errors
/// A device that this build lacks, a format that the device lacks, a model that cannot be opened.
pub(super) fn measure(
    args: &Workload,
    device: &DeviceSpec,
    formats: &[Format],
    seed: u64,
) -> Result<Vec<MeasuredTraining>> {
    let path = resolve(&args.model())?;
    let checkpoint = Checkpoint::open(&path)?;
    let ids = Tokenizer::load(&checkpoint)?.encode(PASSAGE, false)?;
    let mut rows = Vec::new();
    let trained = |format: &&Format| matches!(format, Format::F32 | Format::Bf16);
    for &format in formats.iter().filter(trained) {
        let decoder = TuningDecoder::load(&checkpoint, device, format)?;
        let config = LoraConfig {
            rank: args.rank,
            ..LoraConfig::default()
        };
        for &sequences in &args.sequences {
            let mut lora = LoraParameters::new(&config, decoder.config(), seed)?;
            let mut adam = AdamW::new(AdamWConfig::default(), AdamWState::default());
            let items: Vec<Item> = (0..sequences)
                .map(|i| {
                    let tokens = excerpt(&ids, i, args.prompt_tokens + args.new_tokens);
                    let from = args.prompt_tokens;
                    vec![Sequence { tokens, from }]
                })
                .collect();
            let flat: Vec<Sequence> = items.iter().flatten().cloned().collect();
            let tokens = flat.iter().map(|s| s.tokens.len()).sum::<usize>() as f64;
            let (mut train, mut score) = (Vec::new(), Vec::new());
            for _ in 0..args.repeat.max(1) {
                let start = Instant::now();
                let step = decoder.gradient(&lora, &items, &|_, l| objectives::nll(&l[0]))?;
                adam.step(&mut lora.values, &step.values, 1e-4);
                train.push(tokens / start.elapsed().as_secs_f64());
                let start = Instant::now();
                decoder.log_probs(Some(&lora), &flat)?;
                score.push(tokens / start.elapsed().as_secs_f64());
            }
            let row = MeasuredTraining {
                device: device.to_string(),
                format: format!("{format:?}"),
                sequences,
                prompt_tokens: args.prompt_tokens,
                new_tokens: args.new_tokens,
                train_tokens_per_s: median(train),
                score_tokens_per_s: median(score),
                peak_bytes: peak_bytes(),
            };
            eprintln!(
                "{device} {format:?} LoRA step of {sequences} sequences: {:.0} tokens/s, scoring {:.0}",
                row.train_tokens_per_s, row.score_tokens_per_s
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

pub(super) fn frame(rows: &[MeasuredTraining]) -> Result<DataFrame> {
    let count = |name: &str, get: fn(&MeasuredTraining) -> u64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let number = |name: &str, get: fn(&MeasuredTraining) -> f64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let text = |name: &str, get: fn(&MeasuredTraining) -> &str| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    Ok(DataFrame::new_infer_height(vec![
        text("device", |r| &r.device),
        text("format", |r| &r.format),
        count("sequences", |r| r.sequences as u64),
        count("prompt_tokens", |r| r.prompt_tokens as u64),
        count("new_tokens", |r| r.new_tokens as u64),
        number("train_tokens_per_s", |r| r.train_tokens_per_s),
        number("score_tokens_per_s", |r| r.score_tokens_per_s),
        count("peak_bytes", |r| r.peak_bytes),
    ])?)
}
