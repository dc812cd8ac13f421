//! `mope bench`: how fast mixtures decode, how fast adapters and PCMs train, and what number formats cost.

mod accuracy;
mod bandwidth;
mod decode;
mod records;
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use eval::table::{markdown, write_all};
use experts::Expert;
use lm::adapter::{Adapter, LowRank, Target};
use lm::sampling::Draws;
use lm::{DecoderConfig, Format, LanguageModel};
use polars::prelude::DataFrame;
use serde::Serialize;
use serde_json::json;

use super::Global;
use crate::cli::{BenchCommand, FORMATS};
use harness::models::resolve_adapter;

/// What prompts are cut from; one is as long as the others.
const PASSAGE: &str = include_str!("passage.txt");

/// Measures, prints the table, and writes it where the arguments say.
///
/// # Errors
/// A device, a model or an adapter that cannot be opened; a folder that cannot be written.
pub fn bench(global: &Global, command: BenchCommand, formats: &[Format]) -> Result<()> {
    let device = global.device.clone().unwrap_or_default();
    let seed = global.seed.unwrap_or(0);
    let formats = match formats {
        [] => &FORMATS,
        formats => formats,
    };
    match command {
        BenchCommand::Decode(args) => {
            let rows = decode::measure(&args, &device, formats, seed)?;
            let out = args.workload.out.as_deref();
            print(global, "bench", &rows, decode::frame(&rows)?, out)?;
            out.map_or(Ok(()), |out| decode::plot(&rows, out))
        }
        BenchCommand::Train(args) => {
            let rows = training::measure(&args, &device, formats, seed)?;
            let frame = training::frame(&rows)?;
            print(global, "training", &rows, frame, args.out.as_deref())
        }
        BenchCommand::Records(args) => {
            let rows = records::measure(&args, &device, seed)?;
            let (frame, out) = (records::frame(&rows)?, args.workload.out.as_deref());
            print(global, "records", &rows, frame, out)
        }
        BenchCommand::Accuracy(args) => {
            let rows = accuracy::measure(&args, formats, seed)?;
            let frame = accuracy::frame(&rows)?;
            print(global, "accuracy", &rows, frame, args.out.as_deref())
        }
    }
}

/// Writes a table into a folder and prints it.
fn print(
    global: &Global,
    name: &str,
    rows: &impl Serialize,
    mut frame: DataFrame,
    out: Option<&Path>,
) -> Result<()> {
    if let Some(out) = out {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        write_all(out, name, &mut frame)?;
    }
    global.print(json!(rows), || markdown(&frame).unwrap_or_default())
}

/// Experts over one model, called `expert00` and so on: the adapters that are named, in turn, or random ones.
fn experts_of(
    model: &Arc<LanguageModel>,
    count: usize,
    adapters: &[PathBuf],
    rank: usize,
    seed: u64,
) -> Result<Vec<Expert>> {
    let named: Vec<Arc<Adapter>> = adapters
        .iter()
        .map(|folder| {
            let folder = resolve_adapter(folder)?;
            Ok(Arc::new(Adapter::load(&folder, model.config())?))
        })
        .collect::<Result<_>>()?;
    let adapter = |i: usize| match named.len() {
        0 => Arc::new(random_adapter(model.config(), rank, seed + i as u64)),
        n => named[i % n].clone(),
    };
    let expert = |i: usize| Expert {
        name: format!("expert{i:02}"),
        model: model.clone(),
        adapter: Some(adapter(i)),
        instruction: None,
        top_k: None,
    };
    Ok((0..count).map(expert).collect())
}

/// A low-rank adapter on q, v, o and down, small enough to leave the model what it is.
fn random_adapter(config: &DecoderConfig, rank: usize, seed: u64) -> Adapter {
    let mut draws = Draws::new(&[b"bench adapter", &seed.to_le_bytes()]);
    let mut count = 0;
    let mut numbers = |n: usize| -> Vec<f32> {
        count += n;
        (count - n..count)
            .map(|i| (draws.uniform(i) as f32 - 0.5) * 0.02)
            .collect()
    };
    let mut adapter = Adapter::default();
    for layer in 0..config.layers {
        for target in [Target::Query, Target::Value, Target::Output, Target::Down] {
            let (inputs, outputs) = target.size(config);
            let (a, b) = (numbers(inputs * rank), numbers(rank * outputs));
            adapter
                .pairs
                .insert((layer, target), LowRank { rank, a, b });
        }
    }
    adapter
}

/// Token ids of a text of `length` tokens, another one for each number: common beginnings would be read only once.
fn excerpt(passage: &[u32], number: usize, length: usize) -> Vec<u32> {
    let tokens = passage.iter().copied().cycle().skip(number * 11);
    tokens.take(length).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
