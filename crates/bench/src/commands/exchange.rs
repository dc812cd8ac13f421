//! `mope export RUN` and `mope import`: rows for other programs, and pairs from them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use eval::rows::{GenerationRow, Identity, ScoreRow, scores_frame};
use eval::table::parquet;
use polars::prelude::{Column, CsvWriter, DataFrame, SerWriter};
use serde_json::{Map, Value, json};

use super::Global;
use super::run::records;
use crate::cli::RowsOf;
use harness::failure::usage;
use harness::foreign::{Row, rows};
use harness::stages::report::read_rows;
use harness::store::folder::read_only;
use harness::store::manifest::Manifest;

/// A run's rows, each response with its scores.
struct Rows {
    manifest: Manifest,
    both: Vec<(GenerationRow, ScoreRow)>,
}

/// Writes rows of a run.
///
/// # Errors
/// A folder that is no run; a file that is there, or cannot be written.
pub fn export(global: &Global, run: &Path, of: RowsOf, out: &Path) -> Result<()> {
    if out.exists() {
        return Err(usage(format!("--out: {} is there already", out.display())));
    }
    let manifest = Manifest::load(run)?;
    let (generations, scores) = read_rows(&read_only(run))?;
    let mut scores: BTreeMap<Identity, ScoreRow> = scores
        .into_iter()
        .map(|score| (score.identity.clone(), score))
        .collect();
    let both = generations.into_iter().map(|row| {
        let score = scores
            .remove(&row.identity)
            .context("a response without scores")?;
        Ok((row, score))
    });
    let rows = Rows {
        manifest,
        both: both.collect::<Result<_>>()?,
    };
    let written = match of {
        RowsOf::Scores => rows.scores(out)?,
        RowsOf::Pairs => rows.pairs(out)?,
        RowsOf::LmEval => rows.lm_eval(out)?,
    };
    let path = out.display().to_string();
    global.print(json!({"path": path, "rows": written}), || {
        format!("{path}: {written} rows")
    })
}

impl Rows {
    /// All responses with their scores, in the format that the file's name ends in.
    fn scores(&self, out: &Path) -> Result<usize> {
        let scores: Vec<ScoreRow> = self.both.iter().map(|(_, score)| score.clone()).collect();
        let mut frame = scores_frame(&scores)?;
        let text = |name: &str, get: fn(&GenerationRow) -> &str| {
            let texts = self.both.iter().map(|(row, _)| get(row));
            Column::new(name.into(), texts.collect::<Vec<_>>())
        };
        frame.with_column(text("question", |row| &row.question))?;
        frame.with_column(text("response", |row| &row.response))?;
        eval::write_atomic(out, &bytes(out, &mut frame)?)?;
        Ok(frame.height())
    }

    /// For every preference and prompt the response of the highest utility beside that of the lowest.
    fn pairs(&self, out: &Path) -> Result<usize> {
        let mut answers: BTreeMap<(&str, &str), Vec<&(GenerationRow, ScoreRow)>> = BTreeMap::new();
        for pair in self
            .both
            .iter()
            .filter(|(_, score)| score.utility.is_finite())
        {
            let Identity {
                preference, prompt, ..
            } = &pair.0.identity;
            answers.entry((preference, prompt)).or_default().push(pair);
        }
        let (mut lines, mut count) = (String::new(), 0);
        for ((preference, prompt), answers) in answers {
            let by = |a: &&&(GenerationRow, ScoreRow), b: &&&(GenerationRow, ScoreRow)| {
                a.1.utility.total_cmp(&b.1.utility)
            };
            let (Some(best), Some(worst)) = (answers.iter().max_by(by), answers.iter().min_by(by))
            else {
                continue;
            };
            if best.1.utility > worst.1.utility && best.0.response != worst.0.response {
                let line = json!({
                    "prompt": best.0.question,
                    "chosen": best.0.response,
                    "rejected": worst.0.response,
                    "preference": preference,
                    "id": prompt,
                    "utilities": [best.1.utility, worst.1.utility],
                });
                lines += &format!("{line}\n");
                count += 1;
            }
        }
        eval::write_atomic(out, lines.as_bytes())?;
        Ok(count)
    }

    /// A folder for each strategy as lm-evaluation-harness writes it for a model: `results.json`, and samples by task;
    /// tasks are preferences, metrics utility and rewards.
    fn lm_eval(&self, out: &Path) -> Result<usize> {
        let experiment = &self.manifest.experiment;
        for strategy in experiment.strategies.names() {
            let folder = out.join(strategy);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            let mut results = Map::new();
            let (mut samples_of, mut higher) = (Map::new(), Map::new());
            let (mut configs, mut zeros, mut ones) = (Map::new(), Map::new(), Map::new());
            for preference in experiment.preferences.names() {
                let rows: Vec<&(GenerationRow, ScoreRow)> = self
                    .both
                    .iter()
                    .filter(|(row, _)| row.identity.strategy == strategy)
                    .filter(|(row, _)| row.identity.preference == preference)
                    .collect();
                results.insert(preference.into(), task(preference, &rows));
                let n = rows.len();
                samples_of.insert(preference.into(), json!({"original": n, "effective": n}));
                higher.insert(preference.into(), json!({"utility": true}));
                configs.insert(
                    preference.into(),
                    json!({
                        "task": preference,
                        "output_type": "generate_until",
                        "generation_kwargs": experiment.generation,
                        "num_fewshot": 0,
                    }),
                );
                zeros.insert(preference.into(), json!(0));
                ones.insert(preference.into(), json!(1));
                let lines: String = rows
                    .iter()
                    .enumerate()
                    .map(|(i, row)| sample(i, row))
                    .collect();
                let path = folder.join(format!("samples_{preference}.jsonl"));
                eval::write_atomic(&path, lines.as_bytes())?;
            }
            let document = json!({
                "results": results,
                "configs": configs,
                "versions": ones,
                "n-shot": zeros,
                "higher_is_better": higher,
                "n-samples": samples_of,
                "config": {"model": "mope", "model_args": strategy, "batch_size": experiment.batch_size},
                "git_hash": self.manifest.commit,
                "model_name": strategy,
            });
            let text = serde_json::to_string_pretty(&document)? + "\n";
            eval::write_atomic(&folder.join("results.json"), text.as_bytes())?;
        }
        Ok(self.both.len())
    }
}

/// Means of a task and their standard errors, prompts being the units.
fn task(name: &str, rows: &[&(GenerationRow, ScoreRow)]) -> Value {
    let mut metrics: BTreeMap<String, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    for (row, score) in rows {
        let rewards = score
            .dimensions
            .iter()
            .map(|(name, s)| (name.clone(), s.reward));
        for (metric, value) in rewards.chain([("utility".to_string(), score.utility)]) {
            let by_prompt = metrics.entry(metric).or_default();
            by_prompt
                .entry(&row.identity.prompt)
                .or_default()
                .push(value);
        }
    }
    let mut result = Map::from_iter([("alias".to_string(), json!(name))]);
    for (metric, by_prompt) in metrics {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let means: Vec<f64> = by_prompt.values().map(|values| mean(values)).collect();
        let (n, all) = (means.len() as f64, mean(&means));
        let squares: f64 = means.iter().map(|m| (m - all).powi(2)).sum();
        let error = (n > 1.0).then(|| (squares / (n - 1.0) / n).sqrt());
        result.insert(format!("{metric},none"), json!(all));
        // What lm-eval writes where there is none.
        let error = error.map_or(json!("N/A"), |error| json!(error));
        result.insert(format!("{metric}_stderr,none"), error);
    }
    Value::Object(result)
}

fn sample(number: usize, (row, score): &(GenerationRow, ScoreRow)) -> String {
    let line = json!({
        "doc_id": number,
        "doc": {"id": row.identity.prompt, "prompt": row.question, "sample": row.identity.sample},
        "target": "",
        "arguments": {"gen_args_0": {"arg_0": row.question}},
        "resps": [[row.response]],
        "filtered_resps": [row.response],
        "utility": score.utility,
    });
    format!("{line}\n")
}

/// A table in the format that a file's name ends in.
fn bytes(out: &Path, frame: &mut DataFrame) -> Result<Vec<u8>> {
    match out.extension().and_then(|e| e.to_str()) {
        Some("parquet") => Ok(parquet(out, frame)?),
        Some("csv") => {
            let mut csv = Vec::new();
            CsvWriter::new(&mut csv).finish(frame)?;
            Ok(csv)
        }
        Some("jsonl") => {
            let lines = records(frame)?.into_iter().map(|row| format!("{row}\n"));
            Ok(lines.collect::<String>().into_bytes())
        }
        _ => Err(usage(format!(
            "--out: {} ends in none of .parquet, .csv, .jsonl",
            out.display()
        ))),
    }
}

/// Writes preference pairs of other tools as trainings here read them: `prompt`, `chosen` and `rejected` in JSON lines.
///
/// # Errors
/// With the row, one that is no pair; a file that is there, or cannot be written.
pub fn import(global: &Global, file: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        return Err(usage(format!("--out: {} is there already", out.display())));
    }
    let rows = rows(file, &["prompt", "question", "chosen", "rejected"])?;
    let mut lines = String::new();
    for row in &rows {
        let pair = pair(row);
        let line =
            pair.map_err(|m| usage(format!("{}: row {}: {m}", file.display(), row.number)))?;
        lines += &format!("{line}\n");
    }
    if rows.is_empty() {
        return Err(usage(format!("{}: there is no pair in it", file.display())));
    }
    eval::write_atomic(out, lines.as_bytes())?;
    let (path, count) = (out.display().to_string(), rows.len());
    global.print(json!({"path": path, "pairs": count}), || {
        format!("{path}: {count} pairs")
    })
}

/// A text, or the turns of a conversation: what was asked, and the last answer.
fn said(value: &Value) -> Result<(Option<String>, String), String> {
    let Some(turns) = value.as_array() else {
        let text = value
            .as_str()
            .ok_or("an answer is a text or a list of messages")?;
        return Ok((None, text.into()));
    };
    let part =
        |turn: &Value, field: &str| turn.get(field).and_then(Value::as_str).map(String::from);
    let is = |turn: &&Value, role: &str| turn.get("role").and_then(Value::as_str) == Some(role);
    let asked: Vec<&Value> = turns.iter().filter(|turn| is(turn, "user")).collect();
    if asked.len() > 1 {
        return Err("a conversation of several questions; trainings read pairs of one".into());
    }
    let answer = turns.last().filter(|turn| is(turn, "assistant"));
    let answer = answer.and_then(|turn| part(turn, "content"));
    let answer = answer.ok_or("the last message is to be the assistant's")?;
    Ok((asked.first().and_then(|turn| part(turn, "content")), answer))
}

/// A row as a pair.
fn pair(row: &Row) -> Result<Value, String> {
    let column = |name: &str| {
        row.cells
            .get(name)
            .ok_or_else(|| format!("there is no `{name}`"))
    };
    let (asked, chosen) = said(column("chosen")?)?;
    let (also, rejected) = said(column("rejected")?)?;
    let stated = row
        .cells
        .get("prompt")
        .or_else(|| row.cells.get("question"));
    let prompt = match stated {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(turns)) => match turns.as_slice() {
            [turn] => turn
                .get("content")
                .and_then(Value::as_str)
                .map(String::from),
            _ => return Err("a prompt of several messages; trainings read pairs of one".into()),
        },
        _ => None,
    };
    if asked.is_some() && also.is_some() && asked != also {
        return Err("the two conversations ask different things".into());
    }
    let prompt = prompt.or(asked).or(also).ok_or("there is no `prompt`")?;
    if chosen == rejected {
        return Err("both answers are the same".into());
    }
    Ok(json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(row: Value) -> Result<Value, String> {
        let cells = row.as_object().unwrap().clone();
        pair(&Row { number: 1, cells })
    }

    #[test]
    fn pairs_of_several_layouts() {
        let expected = json!({"prompt": "Why?", "chosen": "So.", "rejected": "No."});
        let said = |text: &str| json!([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]);
        for row in [
            json!({"prompt": "Why?", "chosen": "So.", "rejected": "No."}),
            json!({"question": "Why?", "chosen": "So.", "rejected": "No."}),
            json!({"chosen": said("So."), "rejected": said("No.")}),
            json!({"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant",
                "content": "So."}], "rejected": [{"role": "assistant", "content": "No."}]}),
        ] {
            assert_eq!(read(row).unwrap(), expected);
        }
        let other =
            json!([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "x"}]);
        let long = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]);
        for (row, message) in [
            (
                json!({"chosen": "So.", "rejected": "No."}),
                "there is no `prompt`",
            ),
            (
                json!({"prompt": "Why?", "chosen": "So."}),
                "there is no `rejected`",
            ),
            (
                json!({"prompt": "Why?", "chosen": "a", "rejected": "a"}),
                "both answers are the same",
            ),
            (
                json!({"chosen": said("So."), "rejected": other}),
                "ask different things",
            ),
            (
                json!({"prompt": "c", "chosen": long, "rejected": "x"}),
                "several questions",
            ),
            (
                json!({"prompt": "c", "chosen": 3, "rejected": "x"}),
                "a text or a list",
            ),
        ] {
            let error = read(row).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
