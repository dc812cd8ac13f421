//! `mope bench accuracy TEXT`: what a number format does to distributions and to what is chosen.
//!
//! Every format reads the same tokens as F32 and is compared with it at each: the text itself, in pieces of
//! [`PIECE`] tokens, and the responses that F32's mixture of experts gives greedily to the pieces' beginnings.
//! Where the likeliest tokens differ, the margin is how much likelier F32 holds its own than the other's.

use std::sync::Arc;

use anyhow::{Context, Result};
use experts::{ExpertPool, NextTokens};
use kernels::{Isa, math};
use lm::chat::Prompt;
use lm::sampling::{argmax, log_softmax};
use lm::{DeviceSpec, Format, LanguageModel};
use polars::prelude::{Column, DataFrame};
use serde::Serialize;

use super::experts_of;
use crate::cli::AccuracyArgs;
use harness::failure::usage;
use harness::models::Models;

/// Tokens of a piece of text.
const PIECE: usize = 500;
/// Tokens of a beginning that is continued.
const BEGINNING: usize = 64;
/// Tokens of a continuation.
const FOLLOWING: usize = 128;
/// Continuations: more than 5,000 tokens in all.
const CONTINUED: usize = 40;
/// Experts that are mixed where no adapters are named.
const EXPERTS: usize = 3;

/// How often two distributions agree on the likeliest token.
#[derive(Debug, Clone, Default)]
struct Agreement {
    same: usize,
    /// Where they don't, in nats.
    margins: Vec<f64>,
}

impl Agreement {
    /// Log-probabilities in F32 and in another format.
    fn compare(&mut self, exact: &[f32], other: &[f32]) {
        let (best, chosen) = (argmax(exact), argmax(other));
        match best.zip(chosen) {
            Some((best, chosen)) if best != chosen => {
                self.margins.push(f64::from(exact[best] - exact[chosen]));
            }
            Some(_) => self.same += 1,
            // No numbers in one of them: nothing agrees.
            None => self.margins.push(f64::NAN),
        }
    }

    fn tokens(&self) -> usize {
        self.same + self.margins.len()
    }

    fn share(&self) -> f64 {
        self.same as f64 / self.tokens().max(1) as f64
    }

    /// The margin that a share of the disagreements stays within.
    fn margin(&self, share: f64) -> f64 {
        let mut sorted = self.margins.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        sorted.get(index).copied().unwrap_or(0.0)
    }
}

/// One format beside F32.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Accuracy {
    format: String,
    /// Of the text, without each piece's first.
    tokens: usize,
    perplexity: f64,
    /// Mean divergence of the format from F32, `KL(F32 ‖ format)`, in nats per token.
    kl: f64,
    /// Root mean square of the differences of log-probabilities, weighted by F32's probabilities, in nats.
    log_prob_error: f64,
    /// Share of tokens at which the likeliest one is F32's.
    agreement: f64,
    /// Median and largest margin where it is not, in nats.
    median_margin: f64,
    largest_margin: f64,
    /// Tokens of the greedy mixture, and the agreement and margins at them.
    mixed_tokens: usize,
    mixed_agreement: f64,
    mixed_median_margin: f64,
    mixed_largest_margin: f64,
}

/// A number format, and what has been measured of it so far.
struct Candidate {
    format: Format,
    model: Arc<LanguageModel>,
    loss: f64,
    kl: f64,
    squares: f64,
    text: Agreement,
    mixed: Agreement,
}

/// Compares every format with `F32`.
///
/// # Errors
/// A text that is too short; what a model or an adapter reports.
pub(super) fn measure(args: &AccuracyArgs, formats: &[Format], seed: u64) -> Result<Vec<Accuracy>> {
    let device = DeviceSpec::Cpu;
    let exact = Models::on(&device, Format::F32)?.open(&args.model)?;
    let text = &args.text;
    let content = lm::load::read_text(text)?;
    let ids = exact.tokenizer.encode(&content, false)?;
    let pieces: Vec<&[u32]> = ids.chunks_exact(PIECE).collect();
    if pieces.is_empty() {
        let (path, got) = (text.display(), ids.len());
        return Err(usage(format!(
            "{path}: {got} tokens; at least {PIECE} are needed"
        )));
    }
    let mut candidates: Vec<Candidate> = formats
        .iter()
        .map(|&format| {
            let model = match format {
                Format::F32 => exact.clone(),
                _ => Models::on(&device, format)?.open(&args.model)?,
            };
            Ok(Candidate {
                format,
                model,
                loss: 0.0,
                kl: 0.0,
                squares: 0.0,
                text: Agreement::default(),
                mixed: Agreement::default(),
            })
        })
        .collect::<Result<_>>()?;
    read(&exact, &pieces, &mut candidates)?;
    follow(&exact, &pieces, &mut candidates, args, seed)?;
    let row = |c: Candidate| {
        let tokens = c.text.tokens();
        let mean = |sum: f64| sum / tokens as f64;
        Accuracy {
            format: format!("{:?}", c.format),
            tokens,
            perplexity: mean(c.loss).exp(),
            kl: mean(c.kl),
            log_prob_error: mean(c.squares).sqrt(),
            agreement: c.text.share(),
            median_margin: c.text.margin(0.5),
            largest_margin: c.text.margin(1.0),
            mixed_tokens: c.mixed.tokens(),
            mixed_agreement: c.mixed.share(),
            mixed_median_margin: c.mixed.margin(0.5),
            mixed_largest_margin: c.mixed.margin(1.0),
        }
    };
    Ok(candidates.into_iter().map(row).collect())
}

/// Reads the text with all formats.
fn read(exact: &LanguageModel, pieces: &[&[u32]], candidates: &mut [Candidate]) -> Result<()> {
    let vocab = exact.config().vocab_size;
    let mut expected = vec![0.0; PIECE * vocab];
    for piece in pieces {
        exact.engine.all_logits(&[piece], None, |_, t, logits| {
            log_softmax(logits);
            expected[t * vocab..(t + 1) * vocab].copy_from_slice(logits);
        })?;
        for candidate in candidates.iter_mut() {
            let Candidate { model, text, .. } = candidate;
            let (mut loss, mut kl, mut squares) = (0.0, 0.0, 0.0);
            model.engine.all_logits(&[piece], None, |_, t, logits| {
                let Some(&next) = piece.get(t + 1) else {
                    return;
                };
                log_softmax(logits);
                let exact = &expected[t * vocab..(t + 1) * vocab];
                loss -= f64::from(logits[next as usize]);
                kl += math::kl(Isa::best(), exact, logits);
                let pairs = exact.iter().zip(&*logits);
                squares += pairs
                    .map(|(p, q)| f64::from(p.exp()) * f64::from(p - q).powi(2))
                    .sum::<f64>();
                text.compare(exact, logits);
            })?;
            candidate.loss += loss;
            candidate.kl += kl;
            candidate.squares += squares;
        }
    }
    Ok(())
}

/// Continues beginnings with F32's mixture; the other formats read the same tokens.
fn follow(
    exact: &Arc<LanguageModel>,
    pieces: &[&[u32]],
    candidates: &mut [Candidate],
    args: &AccuracyArgs,
    seed: u64,
) -> Result<()> {
    let starts = (0..CONTINUED).map(|i| {
        let piece = pieces[i % pieces.len()];
        let at = i / pieces.len() * BEGINNING;
        &piece[at % (PIECE - BEGINNING)..][..BEGINNING]
    });
    let prompts: Vec<Prompt> = starts
        .map(|ids| Ok(Prompt::Raw(exact.tokenizer.decode(ids)?)))
        .collect::<Result<_>>()?;
    let pool = |model: &Arc<LanguageModel>| -> Result<ExpertPool> {
        Ok(ExpertPool::new(experts_of(
            model,
            EXPERTS,
            &args.adapters,
            args.rank,
            seed,
        )?)?)
    };
    let leader = pool(exact)?;
    let mut next = NextTokens::default();
    let mut state = leader.begin(&prompts, FOLLOWING, &mut next)?;
    let mut others = Vec::new();
    for candidate in candidates.iter() {
        let pool = pool(&candidate.model)?;
        let mut next = NextTokens::default();
        let state = pool.begin(&prompts, FOLLOWING, &mut next)?;
        others.push((pool, next, state));
    }
    for step in 0..FOLLOWING {
        let expected: Vec<Vec<f32>> = (0..prompts.len()).map(|s| mix(&next, s)).collect();
        for ((_, next, _), candidate) in others.iter().zip(candidates.iter_mut()) {
            for (s, expected) in expected.iter().enumerate() {
                candidate.mixed.compare(expected, &mix(next, s));
            }
        }
        if step + 1 == FOLLOWING {
            break;
        }
        let tokens: Vec<u32> = expected
            .iter()
            .map(|row| Ok(argmax(row).context("a mixture is no distribution")? as u32))
            .collect::<Result<_>>()?;
        leader.step(&mut state, &tokens, &mut next)?;
        for (pool, next, state) in &mut others {
            pool.step(state, &tokens, next)?;
        }
    }
    Ok(())
}

/// Log-probabilities of the mixture with equal weights.
fn mix(next: &NextTokens, sequence: usize) -> Vec<f32> {
    let isa = Isa::best();
    let mut out = vec![0.0; next.vocab];
    for expert in 0..next.experts {
        math::exp_add(
            isa,
            &mut out,
            1.0 / next.experts as f32,
            next.row(expert, sequence),
        );
    }
    math::ln_all(isa, &mut out);
    out
}

pub(super) fn frame(rows: &[Accuracy]) -> Result<DataFrame> {
    let count = |name: &str, get: fn(&Accuracy) -> usize| {
        Column::new(
            name.into(),
            rows.iter().map(|r| get(r) as u64).collect::<Vec<_>>(),
        )
    };
    let number = |name: &str, get: fn(&Accuracy) -> f64| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    let formats: Vec<&str> = rows.iter().map(|r| r.format.as_str()).collect();
    Ok(DataFrame::new_infer_height(vec![
        Column::new("format".into(), formats),
        count("tokens", |r| r.tokens),
        number("perplexity", |r| r.perplexity),
        number("kl", |r| r.kl),
        number("log_prob_error", |r| r.log_prob_error),
        number("agreement", |r| r.agreement),
        number("median_margin", |r| r.median_margin),
        number("largest_margin", |r| r.largest_margin),
        count("mixed_tokens", |r| r.mixed_tokens),
        number("mixed_agreement", |r| r.mixed_agreement),
        number("mixed_median_margin", |r| r.mixed_median_margin),
        number("mixed_largest_margin", |r| r.mixed_largest_margin),
    ])?)
}
