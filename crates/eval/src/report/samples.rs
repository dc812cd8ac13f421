//! What the browser of responses knows, as JSON; names are short because every response repeats them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Report;
use crate::colours::COLOURS;
use crate::rows::{GenerationRow, ScoreRow};

/// Tokens that the browser holds at most: about three megabytes (ours).
const TOKENS: usize = 60_000;

#[derive(Debug, Serialize)]
pub(super) struct Data<'a> {
    strategies: &'a [String],
    /// Indices of the strategies in the order that their answers stand in.
    order: Vec<usize>,
    /// Names and texts.
    preferences: &'a [(String, String)],
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
    /// Indices of strategy, prompt and preference, and the number of the sample.
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
    /// Indices of the experts, and their weights in hundredths; gates may be below 0 or above 1.
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

/// What the browser shows of the samples: as many prompts as fit, the first ones.
pub(super) fn data<'a>(report: &Report<'a>) -> Data<'a> {
    let (strategies, experts) = (report.strategies, report.experts);
    let (preferences, samples) = (report.preferences, &report.samples);
    let mut tokens = 0;
    let mut prompts = prompts(samples);
    let fits = |prompt: &&&str| {
        let responses = samples
            .iter()
            .filter(|(r, _)| r.identity.prompt == ***prompt);
        tokens += responses.map(|(r, _)| r.tokens.len()).sum::<usize>();
        tokens <= TOKENS
    };
    // One is shown in any case.
    let shown = prompts.iter().take_while(fits).count().max(1);
    prompts.truncate(shown);
    let mut data = Data {
        strategies,
        order: order(report),
        preferences,
        prompts: Vec::new(),
        experts,
        colours: COLOURS
            .iter()
            .map(|[r, g, b]| format!("{r},{g},{b}"))
            .collect(),
        items: Vec::new(),
    };
    for (row, score) in samples {
        let i = &row.identity;
        let Some(p) = prompts.iter().position(|p| *p == i.prompt) else {
            continue;
        };
        let strategy = strategies.iter().position(|n| *n == i.strategy);
        let preference = preferences.iter().position(|(n, _)| *n == i.preference);
        let Some((s, f)) = strategy.zip(preference) else {
            continue;
        };
        if p == data.prompts.len() {
            data.prompts.push(Question {
                id: &i.prompt,
                question: &row.question,
            });
        }
        data.items.push(item([s, p, f], row, score, experts));
    }
    data
}

/// By utility, then those that the summaries don't have.
fn order(report: &Report<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = report.summaries.iter().map(|s| s.place).collect();
    order.extend(
        (0..report.strategies.len()).filter(|i| !report.summaries.iter().any(|s| s.place == *i)),
    );
    order
}

/// A response for the browser; `indices` are those of its strategy, prompt and preference.
fn item<'a>(
    indices: [usize; 3],
    row: &'a GenerationRow,
    score: &'a ScoreRow,
    experts: &[String],
) -> Item<'a> {
    let [s, p, f] = indices;
    let ran = row.experts.iter();
    Item {
        s,
        p,
        f,
        n: row.identity.sample,
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
        x: ran
            .filter_map(|e| experts.iter().position(|n| n == e))
            .collect(),
        w: row
            .weights
            .iter()
            .map(|w| (w * 100.0).round() as i32)
            .collect(),
    }
}

/// A number to so many digits after the point.
fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}
