//! Stage "retain": what a strategy still knows. Prose that nobody trained on, and questions with one right
//! answer among several, are read token by token, as every preference's mixture sees them.
//!
//! ```
//! use mope_harness::stages::retain::written;
//! use mope_harness::store::folder::read_only;
//!
//! // A folder in which nothing was checked has no table.
//! let folder = tempfile::tempdir()?;
//! assert!(written(&read_only(folder.path()), 2)?.is_none());
//! # anyhow::Ok(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use eval::statistics::{Bootstrap, Estimate};
use eval::table::{Limits, parquet, read_parquet_within};
use lm::chat::{Message, Prompt};
use mixing::Generator;
use polars::prelude::{Column, DataFrame};
use serde::Deserialize;
use serde_json::json;

use crate::experiment::Retention;
use crate::failure::usage;
use crate::models::Pools;
use crate::plan::{Entry, RunPlan, key};
use crate::progress::Progress;
use crate::store::folder::RunFolder;

/// What passages answer to (ours).
const REQUEST: &str = "Write a short text.";

/// Tokens of a passage that are read at most, as in the comparisons here (ours).
const LONGEST: usize = 256;

/// Something to read.
struct Item {
    /// Passage or question, by its number.
    number: usize,
    prompt: Prompt,
    text: String,
    /// An option of a question, and whether it is the right one.
    right: Option<bool>,
}

#[derive(Deserialize)]
struct Line {
    question: String,
    options: Vec<String>,
    answer: usize,
}

fn items(retention: &Retention) -> Result<Vec<Item>> {
    let read = |path: &PathBuf| lm::load::read_text(path).map_err(|e| usage(e.to_string()));
    let mut items = Vec::new();
    if let Some(path) = &retention.text {
        let text = read(path)?;
        let passages = text.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
        items.extend(passages.enumerate().map(|(number, passage)| Item {
            number,
            prompt: Prompt::Chat(vec![Message::user(REQUEST)]),
            text: passage.into(),
            right: None,
        }));
    }
    if let Some(path) = &retention.questions {
        let text = read(path)?;
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty());
        for (number, line) in lines {
            let fail = |m: String| usage(format!("{}:{}: {m}", path.display(), number + 1));
            let line: Line = serde_json::from_str(line).map_err(|e| fail(e.to_string()))?;
            if line.answer >= line.options.len() || line.options.iter().any(|o| o.trim().is_empty())
            {
                return Err(fail(
                    "answer must be the place of one of the options, from 0".into(),
                ));
            }
            items.extend(line.options.into_iter().enumerate().map(|(i, text)| Item {
                number,
                prompt: Prompt::Chat(vec![Message::user(line.question.clone())]),
                text,
                right: Some(i == line.answer),
            }));
        }
    }
    if items.is_empty() {
        return Err(usage(
            "retention: there is nothing to read; name text or questions",
        ));
    }
    Ok(items)
}

/// Checks that what is to be read is there and makes sense.
///
/// # Errors
/// With file and line.
pub fn check(retention: &Retention) -> Result<()> {
    items(retention).map(|_| ())
}

/// Reads for every strategy and preference what has not been read, and returns the table; `None` where the experiment
/// checks nothing.
///
/// # Errors
/// A file that cannot be read, a model that fails.
pub fn retain(plan: &RunPlan<'_>, pools: &Pools, folder: &RunFolder) -> Result<Option<DataFrame>> {
    let Some(retention) = &plan.experiment.retention else {
        folder.keep_only("retention", &Default::default())?;
        return Ok(None);
    };
    let items = items(retention)?;
    let wanted = |preference: &String| {
        retention.preferences.is_empty() || retention.preferences.contains(preference)
    };
    // Nothing is known of the distributions behind texts that were made elsewhere, and curves are about steering.
    let compared = plan.experiment.compared();
    let texts = |e: &Entry| e.plan.text.is_some() || e.plan.recorded.is_some();
    let knows = |e: &&Entry| !texts(e) && compared.contains(&e.strategy.as_str());
    let entries = plan
        .entries
        .iter()
        .filter(|e| wanted(&e.preference) && knows(e));
    let entries: Vec<&Entry> = entries.collect();
    let mut progress = Progress::new("retain", "texts", (entries.len() * items.len()) as u64);
    let mut files = BTreeSet::new();
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    for entry in entries {
        let texts: Vec<_> = items.iter().map(|i| json!([i.prompt, i.text])).collect();
        let key = key(&json!([plan.content(entry)?, texts]));
        let name = format!("{}.{}.{key}.parquet", entry.strategy, entry.preference);
        let path = folder.path("retention").join(&name);
        let stored = |path: &Path| {
            let frame = read_parquet_within(path, within(items.len())).ok();
            frame.filter(|f| f.height() == items.len())
        };
        let frame = match folder.found("retention", &name, stored)? {
            Some(frame) => {
                progress.skip(items.len() as u64);
                frame
            }
            None => {
                let mut frame = read(plan, pools, entry, &items, &mut progress)?;
                eval::write_atomic(&path, &parquet(&path, &mut frame)?)?;
                frame
            }
        };
        files.insert(name);
        sums.entry(&entry.strategy)
            .or_default()
            .add(&items, &frame)?;
    }
    progress.finish();
    folder.keep_only("retention", &files)?;
    write_resamples(&items, folder)?;
    let names = compared.clone();
    let of = |get: &dyn Fn(&Sums) -> Option<Estimate>| -> Vec<Option<Estimate>> {
        names.iter().map(|name| get(sums.get(name)?)).collect()
    };
    let mut columns = vec![Column::new("strategy".into(), &names)];
    columns.extend(eval::comparison::interval(
        "perplexity",
        &of(&Sums::perplexity),
    ));
    columns.extend(eval::comparison::interval("accuracy", &of(&Sums::accuracy)));
    Ok(Some(DataFrame::new_infer_height(columns)?))
}

/// Writes what intervals are over, for whoever computes them again.
fn write_resamples(items: &[Item], folder: &RunFolder) -> Result<()> {
    let count = |passages: bool| {
        let counted = items.iter().filter(|i| i.right.is_none() == passages);
        let numbers: BTreeSet<usize> = counted.map(|i| i.number).collect();
        numbers.len()
    };
    for (name, n) in [("passages", count(true)), ("questions", count(false))] {
        let path = folder
            .path("tables")
            .join(format!("resamples_{name}.parquet"));
        Bootstrap::new(n).write(&path)?;
    }
    Ok(())
}

/// What a strategy gives every text, token by token.
fn read(
    plan: &RunPlan<'_>,
    pools: &Pools,
    entry: &Entry,
    items: &[Item],
    progress: &mut Progress,
) -> Result<DataFrame> {
    let experiment = plan.experiment;
    let mut served = entry.plan.clone();
    // What is read is read once, however many responses there would be to choose from.
    served.samples = 1;
    let pool = pools.pool(&served, experiment.kl)?;
    let mut generator = Generator::new(&pool, served, &[])?;
    let (mut log_probs, mut counts) = (Vec::new(), Vec::new());
    for items in items.chunks(experiment.batch_size) {
        let prompts: Vec<Prompt> = items.iter().map(|i| i.prompt.clone()).collect();
        let tokens = items.iter().map(|i| {
            let mut tokens = pools.base().tokenizer.encode(&i.text, false)?;
            tokens.truncate(LONGEST);
            Ok(tokens)
        });
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_>>()?;
        for scored in generator.score(&prompts, &tokens)? {
            log_probs.push(scored.log_probs.iter().map(|v| f64::from(*v)).sum::<f64>());
            counts.push(scored.log_probs.len() as u32);
        }
        progress.advance(items.len() as u64);
    }
    let numbers: Vec<u32> = items.iter().map(|i| i.number as u32).collect();
    let right: Vec<Option<bool>> = items.iter().map(|i| i.right).collect();
    Ok(DataFrame::new_infer_height(vec![
        Column::new("item".into(), numbers),
        Column::new("right".into(), right),
        Column::new("tokens".into(), counts),
        Column::new("log_prob".into(), log_probs),
    ])?)
}

/// A strategy's results, over preferences.
#[derive(Default)]
struct Sums {
    /// Negative log-probability and tokens, by passage.
    passages: BTreeMap<usize, (f64, f64)>,
    /// Right answers and all, by question.
    questions: BTreeMap<usize, (f64, f64)>,
}

impl Sums {
    fn add(&mut self, items: &[Item], frame: &DataFrame) -> Result<()> {
        let log_probs = frame.column("log_prob")?.f64()?;
        let tokens = frame.column("tokens")?.u32()?;
        // The likeliest option of each question; of equals the first.
        let mut best: BTreeMap<usize, (f64, bool)> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            let log_prob = log_probs.get(i).context("a log-probability is missing")?;
            match item.right {
                None => {
                    let sum = self.passages.entry(item.number).or_default();
                    sum.0 -= log_prob;
                    sum.1 += f64::from(tokens.get(i).unwrap_or(0));
                }
                Some(right) => {
                    let likeliest = best
                        .entry(item.number)
                        .or_insert((f64::NEG_INFINITY, false));
                    if log_prob > likeliest.0 {
                        *likeliest = (log_prob, right);
                    }
                }
            }
        }
        for (number, (_, right)) in best {
            let answers = self.questions.entry(number).or_default();
            answers.0 += f64::from(u8::from(right));
            answers.1 += 1.0;
        }
        Ok(())
    }

    fn ratio(parts: &BTreeMap<usize, (f64, f64)>) -> Option<Estimate> {
        let parts: Vec<(f64, f64)> = parts.values().copied().collect();
        Bootstrap::new(parts.len()).ratio(&parts)
    }

    fn perplexity(&self) -> Option<Estimate> {
        let nll = Self::ratio(&self.passages)?;
        let perplexity = Estimate {
            mean: nll.mean.exp(),
            low: nll.low.exp(),
            high: nll.high.exp(),
            count: nll.count,
        };
        perplexity.finite()
    }

    fn accuracy(&self) -> Option<Estimate> {
        Self::ratio(&self.questions)
    }
}

/// A table of so many rows, without lists.
fn within(rows: usize) -> Limits {
    Limits { rows, values: rows }
}

/// The table that an earlier run of so many strategies wrote, if it did.
///
/// # Errors
/// A damaged file.
pub fn written(folder: &RunFolder, strategies: usize) -> Result<Option<DataFrame>> {
    let path = folder.path("tables").join("retention.parquet");
    match path.exists() {
        true => Ok(Some(read_parquet_within(&path, within(strategies))?)),
        false => Ok(None),
    }
}
