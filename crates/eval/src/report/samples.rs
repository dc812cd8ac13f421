//! What the browser of responses knows, as JSON; names are short because every response repeats them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::plots::COLOURS;
use crate::rows::{GenerationRow, ScoreRow};

/// Tokens that the browser holds at most: about three megabytes (ours).
const TOKENS: usize = 60_000;

#[derive(Debug, Serialize)]
pub(super) struct Data<'a> {
    strategies: &'a [String],
    preferences: &'a [String],
    samples: Vec<u32>,
    pub prompts: Vec<Question<'a>>,
    experts: &'a [String],
    colours: Vec<String>,
    items: Vec<Item<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Question<'a> {
    id: &'a str,
    question: &'a str,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    /// Strategy, prompt and preference by their places, and the number of the sample.
    s: usize,
    p: usize,
    f: usize,
    n: u32,
    /// Utility, normalised reward by dimension, whether it ended.
    u: f64,
    d: BTreeMap<&'a str, f64>,
    e: bool,
    /// Pieces, log-probabilities, divergences.
    k: &'a [String],
    l: Vec<f64>,
    g: Vec<f64>,
    /// Experts by their places, and their weights in hundredths; gates may be below 0 or above 1.
    x: Vec<usize>,
    w: Vec<i32>,
}

type Samples<'a> = [(&'a GenerationRow, &'a ScoreRow)];

/// Prompts in order of appearance.
pub(super) fn prompts<'a>(samples: &Samples<'a>) -> Vec<&'a str> {
    let mut prompts: Vec<&str> = Vec::new();
    for (row, _) in samples {
        if !prompts.contains(&row.identity.prompt.as_str()) {
            prompts.push(&row.identity.prompt);
        }
    }
    prompts
}

pub(super) fn data<'a>(
    strategies: &'a [String],
    preferences: &'a [String],
    experts: &'a [String],
    samples: &Samples<'a>,
) -> Data<'a> {
    let mut tokens = 0;
    let mut prompts = prompts(samples);
    let fits = |prompt: &&&str| {
        let own = samples
            .iter()
            .filter(|(r, _)| r.identity.prompt == ***prompt);
        tokens += own.map(|(r, _)| r.tokens.len()).sum::<usize>();
        tokens <= TOKENS
    };
    // One is shown in any case.
    let shown = prompts.iter().take_while(fits).count().max(1);
    prompts.truncate(shown);
    let mut data = Data {
        strategies,
        preferences,
        samples: Vec::new(),
        prompts: Vec::new(),
        experts,
        colours: COLOURS
            .iter()
            .map(|c| format!("{},{},{}", c.0, c.1, c.2))
            .collect(),
        items: Vec::new(),
    };
    for (row, score) in samples {
        let i = &row.identity;
        let Some(p) = prompts.iter().position(|p| *p == i.prompt) else {
            continue;
        };
        let place = |all: &[String], name: &str| all.iter().position(|n| n == name);
        let places = place(strategies, &i.strategy).zip(place(preferences, &i.preference));
        let Some((s, f)) = places else { continue };
        if p == data.prompts.len() {
            data.prompts.push(Question {
                id: &i.prompt,
                question: &row.question,
            });
        }
        if !data.samples.contains(&i.sample) {
            data.samples.push(i.sample);
        }
        let own = row.experts.iter();
        let x = own.filter_map(|e| experts.iter().position(|n| n == e));
        let x = x.collect();
        data.items.push(Item {
            s,
            p,
            f,
            n: i.sample,
            u: round(score.utility, 4),
            d: score
                .dimensions
                .iter()
                .map(|(d, s)| (d.as_str(), round(s.reward, 3)))
                .collect(),
            e: row.ended,
            k: &row.pieces,
            l: row
                .log_probs
                .iter()
                .map(|v| round(f64::from(*v), 2))
                .collect(),
            g: row.kl.iter().map(|v| round(f64::from(*v), 3)).collect(),
            x,
            w: row
                .weights
                .iter()
                .map(|w| (w * 100.0).round() as i32)
                .collect(),
        });
    }
    data
}

fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
