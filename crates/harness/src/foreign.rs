//! Tables that other programs wrote, row by row: CSV, Parquet, and JSON lines.
//!
//! ```
//! use mope_harness::foreign::rows;
//!
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("answers.csv");
//! std::fs::write(&file, "prompt,text,score\nsky,\"Blue, mostly.\",3\n")?;
//! let rows = rows(&file, &["prompt", "text"])?;
//! assert_eq!(rows[0].number, 1);
//! assert_eq!(rows[0].cells["text"], "Blue, mostly.");
//! // Columns that are not asked for are not read.
//! assert!(!rows[0].cells.contains_key("score"));
//! # anyhow::Ok(())
//! ```

use std::io::Cursor;
use std::path::Path;

use anyhow::Result;
use eval::table::read_parquet;
use polars::prelude::{AnyValue, CsvReadOptions, DataFrame, SerReader};
use serde_json::{Map, Number, Value};

use crate::failure::usage;

/// One row of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its number from 1, the head of a CSV file not counted; of JSON lines the number of the line.
    pub number: usize,
    /// What is in it by column; cells without a value are left out. All cells of a CSV file are texts.
    pub cells: Map<String, Value>,
}

/// Whether a file's name ends as those of tables do that are not text by lines.
pub fn is_table(path: &Path) -> bool {
    matches!(extension(path), Some("csv" | "parquet"))
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|e| e.to_str())
}

/// Reads these columns of a `.csv`, `.parquet`, `.jsonl` or `.json` file. Those that a file lacks are left out.
///
/// # Errors
/// With the file's name, for one that cannot be read; of JSON lines with the line.
pub fn rows(path: &Path, columns: &[&str]) -> Result<Vec<Row>> {
    match extension(path) {
        Some("csv") => of_frame(path, &csv(path)?, columns),
        Some("parquet") => {
            let frame = read_parquet(path).map_err(|e| usage(e.to_string()))?;
            of_frame(path, &frame, columns)
        }
        _ => of_lines(path, columns),
    }
}

fn csv(path: &Path) -> Result<DataFrame> {
    // Read as text first: in UTF-8, without a byte order mark.
    let text = lm::load::read_text(path).map_err(|e| usage(e.to_string()))?;
    let options = CsvReadOptions::default()
        .with_infer_schema_length(Some(0))
        .with_n_threads(Some(1));
    let read = options
        .into_reader_with_file_handle(Cursor::new(text))
        .finish();
    read.map_err(|e| usage(format!("{}: {e}", path.display())))
}

fn of_frame(path: &Path, frame: &DataFrame, columns: &[&str]) -> Result<Vec<Row>> {
    let row = |i| Row {
        number: i + 1,
        cells: Map::new(),
    };
    let mut rows: Vec<Row> = (0..frame.height()).map(row).collect();
    for name in columns {
        let Ok(column) = frame.column(name) else {
            continue;
        };
        for row in &mut rows {
            let cell = column.get(row.number - 1).ok().and_then(|v| json(&v));
            let Some(cell) = cell else {
                let (path, kind) = (path.display(), column.dtype());
                return Err(usage(format!(
                    "{path}: column '{name}' holds {kind}, not texts, numbers or lists of them"
                )));
            };
            if !cell.is_null() {
                row.cells.insert((*name).into(), cell);
            }
        }
    }
    Ok(rows)
}

/// A cell as JSON has it; `None` for a kind that it has not.
fn json(value: &AnyValue<'_>) -> Option<Value> {
    Some(match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(v) => Value::Bool(*v),
        AnyValue::String(v) => Value::String((*v).into()),
        AnyValue::StringOwned(v) => Value::String(v.to_string()),
        AnyValue::List(series) => series.iter().map(|v| json(&v)).collect::<Option<_>>()?,
        v if v.is_integer() => Value::Number(v.try_extract::<i64>().ok()?.into()),
        v if v.is_float() => Number::from_f64(v.try_extract::<f64>().ok()?)?.into(),
        _ => return None,
    })
}

fn of_lines(path: &Path, columns: &[&str]) -> Result<Vec<Row>> {
    let text = lm::load::read_text(path).map_err(|e| usage(e.to_string()))?;
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let row = |(number, line): (usize, &str)| {
        let read = serde_json::from_str::<Map<String, Value>>(line);
        let mut cells = read.map_err(|e| {
            let (path, column) = (path.display(), e.column());
            usage(format!(
                "{path}:{number}: column {column}: {e}; expected one object a line"
            ))
        })?;
        cells.retain(|name, cell| columns.contains(&name.as_str()) && !cell.is_null());
        Ok(Row { number, cells })
    };
    lines.map(row).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use polars::prelude::df;
    use serde_json::json;

    use super::*;

    #[test]
    fn three_formats_of_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let csv = "\u{feff}prompt,sample,text\r\nsky,0,\"a \"\"b\"\"\r\nc\"\r\nbees,1,\r\n";
        std::fs::write(path("r.csv"), csv).unwrap();
        let lines = concat!(
            "{\"prompt\": \"sky\", \"sample\": 0, \"text\": \"a \\\"b\\\"\\r\\nc\"}\n\n",
            "{\"prompt\": \"bees\", \"sample\": 1, \"text\": null}\n"
        );
        std::fs::write(path("r.jsonl"), lines).unwrap();
        let mut frame = df!(
            "prompt" => ["sky", "bees"],
            "sample" => [0i64, 1],
            "text" => [Some("a \"b\"\r\nc"), None],
        );
        let bytes = eval::table::parquet(&path("r"), frame.as_mut().unwrap()).unwrap();
        std::fs::write(path("r.parquet"), bytes).unwrap();
        for (name, sample, number) in [
            ("r.csv", json!("0"), 2),
            ("r.jsonl", json!(0), 3),
            ("r.parquet", json!(0), 2),
        ] {
            let rows = rows(&path(name), &["prompt", "sample", "text", "other"]).unwrap();
            assert_eq!(rows.len(), 2, "{name}");
            assert_eq!(rows[0].cells["sample"], sample, "{name}");
            assert_eq!(rows[0].cells["text"], "a \"b\"\r\nc", "{name}");
            assert_eq!(rows[1].number, number, "{name}");
            assert!(!rows[1].cells.contains_key("text"), "{name}: no value");
        }
    }

    #[test]
    fn mistakes_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, message) in [
            ("a.csv", "a,b\n1,2,3\n", "a.csv: "),
            ("a.parquet", "no", "a.parquet"),
            ("a.jsonl", "{}\n[1]\n", "a.jsonl:2: column"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = rows(&path, &["a"]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(rows(&folder.path().join("gone.csv"), &[]).is_err());
    }
}
