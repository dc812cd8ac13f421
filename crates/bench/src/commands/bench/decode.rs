//! `mope bench decode`: how fast a mixture of adapters decodes, mixing and sampling included.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use eval::plots::{Curve, CurvePlot, save};
use experts::ExpertPool;
use lm::chat::Prompt;
use lm::sampling::{Draws, Sampling};
use lm::{DeviceSpec, Format, LanguageModel};
use mixing::strategies::{self, DeRa, Divergence, Fixed, Mato, Mod, PackLlm, Space};
use mixing::{BASE, Generation, Generator, Plan, Preference, Request, Strategy};
use pcm::{Output, Pcm, PcmConfig};
use polars::prelude::{Column, DataFrame};
use serde::Serialize;

use super::bandwidth::read_bytes_per_s;
use super::{PASSAGE, excerpt, experts_of, median};
use crate::cli::DecodeArgs;
use harness::config::renamed;
use harness::failure::usage;
use harness::models::Models;

/// What `--strategy` knows; a PCM is a fresh one of shape `tiny`, perhaps one that reads statistics of the experts.
const STRATEGIES: [&str; 10] = [
    "fixed",
    "fixed_log",
    "mod_forward",
    "dera",
    "mato",
    "pack_llm",
    "pcm",
    "pcm_statistics",
    "gates",
    "gates_statistics",
];

/// One measurement; the median of the repetitions.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Measured {
    device: String,
    format: String,
    strategy: String,
    experts: usize,
    sequences: usize,
    prompt_tokens: usize,
    /// Steps of all sequences together, mixing and sampling included.
    decode_steps_per_s: f64,
    /// Prompt tokens of all lanes.
    prefill_tokens_per_s: f64,
    /// Largest resident memory of the process so far.
    peak_bytes: u64,
    /// Format that the steps read; 0 where the device does not say.
    weight_bytes_per_s: f64,
    /// What all threads read from memory without computing, in the same run.
    read_bytes_per_s: f64,
}

/// Every combination of what the arguments list.
///
/// # Errors
/// An unknown strategy; what a model or an adapter reports.
pub(super) fn measure(
    args: &DecodeArgs,
    device: &DeviceSpec,
    formats: &[Format],
    seed: u64,
) -> Result<Vec<Measured>> {
    let read_bytes_per_s = read_bytes_per_s();
    let mut rows = Vec::new();
    for &format in formats {
        let mut models = Models::on(device, format)?;
        let model = models.open(&args.workload.model())?;
        for strategy in &args.strategy {
            for &experts in &args.experts {
                for &sequences in &args.workload.sequences {
                    let setting = Setting {
                        device,
                        format,
                        strategy,
                        experts,
                        sequences,
                        read_bytes_per_s,
                    };
                    let row = setting.measure(&model, args, seed)?;
                    eprintln!(
                        "{format:?} {strategy} {experts} experts × {sequences}: {:.1} steps/s, prefill {:.0} tokens/s",
                        row.decode_steps_per_s, row.prefill_tokens_per_s
                    );
                    rows.push(row);
                }
            }
        }
    }
    Ok(rows)
}

/// One combination of what the arguments list.
struct Setting<'a> {
    device: &'a DeviceSpec,
    format: Format,
    strategy: &'a str,
    experts: usize,
    sequences: usize,
    read_bytes_per_s: f64,
}

impl Setting<'_> {
    /// How the strategy mixes experts of equal importance.
    fn plan(&self, model: &LanguageModel, names: &[String], seed: u64) -> Result<Plan> {
        let preference = Preference {
            text: "all of it".into(),
            importances: names.iter().map(|n| (n.clone(), 1.0)).collect(),
        };
        let known: Vec<&str> = names.iter().map(String::as_str).chain([BASE]).collect();
        let pcm = |output| -> Result<Plan> {
            let config = PcmConfig {
                output,
                statistics: self.strategy.ends_with("_statistics"),
                ..PcmConfig::tiny(&known[..names.len()], model.config().hidden_size)
            };
            let strategy = strategies::Pcm {
                model: Default::default(),
                choice: Default::default(),
                hold: 1,
                space: None,
                strength: 1.0,
            };
            Ok(strategy.plan_with(Pcm::new(&config, seed)?, &preference, 0)?)
        };
        let log = Space::Log;
        let strategy = match (self.strategy, names.len()) {
            (_, 1) => Strategy::Fixed(Fixed::default()),
            ("fixed", _) => Strategy::Fixed(Fixed::default()),
            ("fixed_log", _) => Strategy::Fixed(Fixed {
                weights: None,
                space: log,
            }),
            ("mod_forward", _) => Strategy::Mod(Mod {
                divergence: Divergence::ForwardKl,
                ..Mod::default()
            }),
            ("dera", _) => Strategy::DeRa(DeRa::default()),
            ("mato", _) => Strategy::Mato(Mato::default()),
            ("pack_llm", _) => Strategy::PackLlm(PackLlm::default()),
            ("pack", _) => {
                renamed("--strategy ", "pack", "pack_llm");
                Strategy::PackLlm(PackLlm::default())
            }
            ("pcm" | "pcm_statistics", _) => return pcm(Output::Probabilities),
            ("gates" | "gates_statistics", _) => return pcm(Output::Gates { limit: 2.0 }),
            (other, _) => {
                let known = STRATEGIES.join(", ");
                return Err(usage(format!("--strategy {other}: known are {known}")));
            }
        };
        Ok(strategy.plan(&preference, &known)?)
    }

    fn measure(
        &self,
        model: &Arc<LanguageModel>,
        args: &DecodeArgs,
        seed: u64,
    ) -> Result<Measured> {
        let names: Vec<String> = (0..self.experts).map(|i| format!("expert{i:02}")).collect();
        let ran = self.plan(model, &names, seed)?.experts;
        let mut experts = experts_of(model, ran.len(), &args.adapters, args.workload.rank, 0)?;
        for (expert, name) in experts.iter_mut().zip(&ran) {
            expert.name.clone_from(name);
            if name == BASE {
                expert.adapter = None;
            }
        }
        let pool = ExpertPool::new(experts)?;
        let ids = model.tokenizer.encode(PASSAGE, false)?;
        let prompts: Vec<Prompt> = (0..self.sequences)
            .map(|i| {
                let tokens = excerpt(&ids, i, args.workload.prompt_tokens);
                Ok(Prompt::Raw(model.tokenizer.decode(&tokens)?))
            })
            .collect::<Result<_>>()?;
        let lengths: Vec<usize> = prompts
            .iter()
            .map(|p| Ok(model.prompt_tokens(p)?.len()))
            .collect::<Result<_>>()?;
        let prompt_tokens: usize = lengths.iter().sum();
        let settings = Generation {
            max_new_tokens: args.workload.new_tokens,
            sampling: Sampling {
                temperature: 0.7,
                ..Sampling::GREEDY
            },
            ..Generation::default()
        };
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        for repetition in 0..args.workload.repeat.max(1) {
            let requests: Vec<Request> = (0..self.sequences)
                .map(|i| Request {
                    prompt: prompts[i].clone(),
                    draws: Draws::new(&[&seed.to_le_bytes(), &(repetition + i).to_le_bytes()]),
                })
                .collect();
            let plan = self.plan(model, &names, seed)?;
            let mut generator = Generator::new(&pool, plan, &[])?;
            let mut times: Vec<Duration> = Vec::new();
            let start = Instant::now();
            generator.generate(requests, self.sequences, &settings, |i, _| {
                if i + 1 == self.sequences {
                    times.push(start.elapsed());
                }
            })?;
            let (first, last) = (times[0], times.last().copied().context("a step")?);
            prefill.push((prompt_tokens * ran.len()) as f64 / first.as_secs_f64());
            decode.push((times.len() - 1) as f64 / (last - first).as_secs_f64());
        }
        let decode_steps_per_s = median(decode);
        Ok(Measured {
            device: self.device.to_string(),
            format: format!("{:?}", self.format),
            strategy: self.strategy.into(),
            experts: self.experts,
            sequences: self.sequences,
            prompt_tokens: prompt_tokens / self.sequences,
            decode_steps_per_s,
            prefill_tokens_per_s: median(prefill),
            peak_bytes: kernels::memory::peak_bytes(),
            weight_bytes_per_s: decode_steps_per_s * model.engine.bytes().unwrap_or(0) as f64,
            read_bytes_per_s: self.read_bytes_per_s,
        })
    }
}

pub(super) fn frame(rows: &[Measured]) -> Result<DataFrame> {
    let text = |name: &str, get: fn(&Measured) -> &str| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let count = |name: &str, get: fn(&Measured) -> u64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let number = |name: &str, get: fn(&Measured) -> f64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    Ok(DataFrame::new_infer_height(vec![
        text("device", |r| &r.device),
        text("format", |r| &r.format),
        text("strategy", |r| &r.strategy),
        count("experts", |r| r.experts as u64),
        count("sequences", |r| r.sequences as u64),
        count("prompt_tokens", |r| r.prompt_tokens as u64),
        number("decode_steps_per_s", |r| r.decode_steps_per_s),
        number("prefill_tokens_per_s", |r| r.prefill_tokens_per_s),
        count("peak_bytes", |r| r.peak_bytes),
        number("weight_bytes_per_s", |r| r.weight_bytes_per_s),
        number("read_bytes_per_s", |r| r.read_bytes_per_s),
    ])?)
}

/// Writes a plot of lane-tokens per second over lanes.
///
/// # Errors
/// A folder that cannot be written.
pub(super) fn plot(rows: &[Measured], out: &Path) -> Result<()> {
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        let name = format!("{} {} experts", row.format, row.experts);
        let lanes = (row.experts * row.sequences) as f64;
        let point = (lanes, row.decode_steps_per_s * lanes);
        match curves.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, _, points)) => points.push(point),
            None => curves.push((name, curves.len(), vec![point])),
        }
    }
    let plot = CurvePlot {
        title: "Decoding, mixing and sampling included".into(),
        x: "lanes (experts × sequences)".into(),
        y: "lane-tokens per second".into(),
        curves,
    };
    save(out, "bench", &plot)?;
    Ok(())
}
