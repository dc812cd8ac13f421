//! Stage "retain": what a strategy still knows. Prose that nobody trained on, and questions with one right
//! answer among several, are read token by token, as every preference's mixture sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use eval::statistics::{Bootstrap, Estimate};
use eval::table::{parquet, read_parquet};
use lm::chat::{Message, Prompt};
use mixing::Generator;
use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::folder::RunFolder;
use super::generate::Generate;
use crate::failure::usage;
use crate::progress::Progress;

/// What a run checks that its strategies have not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Prose, passages separated by empty lines: its perplexity as a response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// JSON lines with `question`, `options` and `answer` (a place in the options, from 0): how often the right
    /// option is the likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<PathBuf>,
    /// Preferences that are read for. Default: all of the experiment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<String>,
}

impl Retention {
    /// Takes its paths as relative to a file's folder.
    pub fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.text, &mut self.questions].into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }

    /// Its files.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.text, &self.questions].into_iter().flatten()
    }
}

/// What passages answer to (ours).
const REQUEST: &str = "Write a short text.";

/// Tokens of a passage that are read at most, as in the comparisons here (ours).
const LONGEST: usize = 256;

/// Something to read.
struct Item {
    /// Passage or question, by its number.
    place: usize,
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
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|e| usage(format!("{}: {e}", path.display())))
    };
    let mut items = Vec::new();
    if let Some(path) = &retention.text {
        let text = read(path)?;
        let passages = text.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
        items.extend(passages.enumerate().map(|(place, passage)| Item {
            place,
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
        for (place, line) in lines {
            let fail = |m: String| usage(format!("{}:{}: {m}", path.display(), place + 1));
            let line: Line = serde_json::from_str(line).map_err(|e| fail(e.to_string()))?;
            if line.answer >= line.options.len() || line.options.iter().any(|o| o.trim().is_empty())
            {
                return Err(fail(
                    "answer must be the place of one of the options, from 0".into(),
                ));
            }
            items.extend(line.options.into_iter().enumerate().map(|(i, text)| Item {
                place,
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

impl Generate<'_> {
    /// Reads for every strategy and preference what has not been read, and returns the table.
    ///
    /// # Errors
    /// A file that cannot be read, a model that fails.
    pub fn retain(&self, folder: &RunFolder) -> Result<Option<DataFrame>> {
        let Some(retention) = &self.experiment.retention else {
            folder.keep_only("retention", &Default::default())?;
            return Ok(None);
        };
        let items = items(retention)?;
        let jobs = self.jobs()?;
        let wanted = |preference: &str| {
            let named = retention.preferences.iter().any(|p| p == preference);
            retention.preferences.is_empty() || named
        };
        let jobs = jobs
            .iter()
            .filter(|j| j.part == "generations" && wanted(&j.preference));
        let jobs: Vec<_> = jobs.collect();
        let mut progress = Progress::new("retain", "texts", (jobs.len() * items.len()) as u64);
        let mut files = std::collections::BTreeSet::new();
        let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
        for job in jobs {
            let plan = self.plan(job)?;
            let read: Vec<_> = items.iter().map(|i| json!([i.prompt, i.text])).collect();
            let key = json!([self.content(job, &plan), read]).to_string();
            let key = lm::source::hex(&Sha256::digest(key.as_bytes())[..6]);
            let name = format!("{}.{}.{key}.parquet", job.strategy, job.preference);
            let path = folder.path("retention").join(&name);
            let whole = |path: &std::path::Path| {
                let frame = read_parquet(path).ok();
                frame.filter(|f| f.height() == items.len())
            };
            let frame = match folder.found("retention", &name, whole)? {
                Some(frame) => {
                    progress.skip(items.len() as u64);
                    frame
                }
                None => {
                    let mut frame = self.read(job, &items, &mut progress)?;
                    eval::write_atomic(&path, &parquet(&path, &mut frame)?)?;
                    frame
                }
            };
            files.insert(name);
            sums.entry(job.strategy).or_default().add(&items, &frame)?;
        }
        progress.finish();
        folder.keep_only("retention", &files)?;
        // What intervals are over, for whoever computes them again.
        let count = |passages: bool| {
            let places = items.iter().filter(|i| i.right.is_none() == passages);
            let places: std::collections::BTreeSet<usize> = places.map(|i| i.place).collect();
            places.len()
        };
        for (name, n) in [("passages", count(true)), ("questions", count(false))] {
            let path = folder
                .path("tables")
                .join(format!("resamples_{name}.parquet"));
            eval::write_atomic(&path, &parquet(&path, &mut Bootstrap::new(n).frame()?)?)?;
        }
        let names = self.experiment.strategies.names();
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

    fn read(
        &self,
        job: &super::jobs::Job<'_>,
        items: &[Item],
        progress: &mut Progress,
    ) -> Result<DataFrame> {
        let mut plan = self.plan(job)?;
        // What is read is read once, however many responses there would be to choose from.
        plan.samples = 1;
        let pool = self.pool(job)?;
        let mut generator = Generator::new(&pool, plan, &[])?;
        let (mut log_probs, mut counts) = (Vec::new(), Vec::new());
        for items in items.chunks(self.experiment.batch_size) {
            let prompts: Vec<Prompt> = items.iter().map(|i| i.prompt.clone()).collect();
            let tokens = items.iter().map(|i| {
                let mut tokens = self.base.tokenizer.encode(&i.text, false)?;
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
        let places: Vec<u32> = items.iter().map(|i| i.place as u32).collect();
        let right: Vec<Option<bool>> = items.iter().map(|i| i.right).collect();
        Ok(DataFrame::new_infer_height(vec![
            Column::new("item".into(), places),
            Column::new("right".into(), right),
            Column::new("tokens".into(), counts),
            Column::new("log_prob".into(), log_probs),
        ])?)
    }
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
                    let own = self.passages.entry(item.place).or_default();
                    own.0 -= log_prob;
                    own.1 += f64::from(tokens.get(i).unwrap_or(0));
                }
                Some(right) => {
                    let own = best.entry(item.place).or_insert((f64::NEG_INFINITY, false));
                    if log_prob > own.0 {
                        *own = (log_prob, right);
                    }
                }
            }
        }
        for (place, (_, right)) in best {
            let own = self.questions.entry(place).or_default();
            own.0 += f64::from(u8::from(right));
            own.1 += 1.0;
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

/// The table that an earlier run wrote, if it did.
///
/// # Errors
/// A damaged file.
pub fn written(folder: &RunFolder) -> Result<Option<DataFrame>> {
    let path = folder.path("tables").join("retention.parquet");
    match path.exists() {
        true => Ok(Some(read_parquet(&path)?)),
        false => Ok(None),
    }
}
