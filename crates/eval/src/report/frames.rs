//! A data frame as a table for people: intervals beside their number, rounded, empty columns left out.

use std::fmt::Write as _;
use std::path::Path;

use polars::prelude::*;

use super::terms::term;
use crate::escape::escape_html;
use crate::rounding::{bytes, decimals, number, p_value, seconds};
use crate::{Error, Result};

/// Rows that are shown before the reader asks for all (ours).
const FOLD: usize = 12;
/// Rows that a page holds of a table at most; files have all (ours).
const ROWS: usize = 500;
/// Cells above which a folded table is only built when it is opened (ours).
const CELLS: usize = 120;

/// A table with its heading.
#[derive(Debug)]
pub struct Table<'a> {
    /// Name of its files in `tables/`, without ending.
    pub file: &'a str,
    /// Its heading.
    pub heading: &'a str,
    /// How it is read.
    pub hint: String,
    /// Its rows.
    pub frame: &'a DataFrame,
}

impl Table<'_> {
    /// A section that folds; its id is the heading in small letters.
    pub(super) fn html(&self, out: &mut String) -> Result<()> {
        let columns = columns(self.frame)?;
        let rows = self.frame.height();
        let body = table(&columns, rows, self.heading);
        let late = rows * columns.len() > CELLS;
        let (open, close) = match late {
            true => ("<template>", "</template>"),
            false => ("", ""),
        };
        let (id, heading) = (anchor(self.heading), escape_html(self.heading));
        let (hint, file) = (escape_html(&self.hint), escape_html(self.file));
        writeln!(
            out,
            "<details class=\"section\"><summary><h2 id=\"{id}\">{heading}</h2> <span class=\"hint\">{}</span></summary>\
             <p class=\"hint\">{hint} Exact numbers: {file}.csv and {file}.parquet.</p>{open}{body}{close}</details>",
            counted(rows, "row")
        )
        .ok();
        Ok(())
    }
}

/// The id of a heading.
pub(super) fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

/// `1 row`, `2 rows`.
pub(super) fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

/// How a column's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Integer,
    Float(usize),
    P,
    Bytes,
    Seconds,
}

/// A column with its interval, if it has one.
struct Shown {
    label: String,
    definition: &'static str,
    kind: Kind,
    texts: Vec<String>,
    values: Vec<Option<f64>>,
    ends: Option<[Vec<Option<f64>>; 2]>,
}

impl Shown {
    fn write(&self, value: f64) -> String {
        match self.kind {
            Kind::Text => String::new(),
            Kind::Integer => number(value, 0),
            Kind::Float(decimals) => number(value, decimals),
            Kind::P => p_value(value)
                .trim_start_matches("p ")
                .trim_start_matches("= ")
                .into(),
            Kind::Bytes => bytes(value),
            Kind::Seconds => seconds(value),
        }
    }

    fn cell(&self, row: usize) -> String {
        if self.kind == Kind::Text {
            return format!("<td>{}</td>", escape_html(&self.texts[row]));
        }
        let Some(value) = self.values[row] else {
            return "<td class=\"n\"></td>".into();
        };
        let around = self.ends.as_ref().and_then(|[low, high]| {
            let (low, high) = low[row].zip(high[row])?;
            let ends = [low, high].map(|v| escape_html(&self.write(v)));
            Some(format!(" <small>({} to {})</small>", ends[0], ends[1]))
        });
        let text = escape_html(&self.write(value));
        format!(
            "<td class=\"n\" data-v=\"{value}\">{text}{}</td>",
            around.unwrap_or_default()
        )
    }
}

fn failed(e: PolarsError) -> Error {
    Error::table(Path::new("report"), e)
}

/// Values of a column of numbers; what is no number is missing.
fn values(column: &Column) -> Result<Vec<Option<f64>>> {
    let column = column.cast(&DataType::Float64).map_err(failed)?;
    let values = column.f64().map_err(failed)?;
    Ok(values.iter().map(|v| v.filter(|v| v.is_finite())).collect())
}

/// The columns that say something.
fn columns(frame: &DataFrame) -> Result<Vec<Shown>> {
    let names: Vec<&str> = frame
        .get_column_names()
        .iter()
        .map(|n| n.as_str())
        .collect();
    let mut out: Vec<Shown> = Vec::new();
    let end = |name: &str, suffix: &str| frame.column(&format!("{name}{suffix}")).ok();
    for (column, name) in frame.columns().iter().zip(&names) {
        let stem = name.strip_suffix("_low").or(name.strip_suffix("_high"));
        if stem.is_some_and(|stem| names.contains(&stem)) {
            continue;
        }
        let (label, definition) = match term(name) {
            Some((label, definition)) => (label.to_string(), definition),
            None => (name.replace('_', " "), ""),
        };
        let numeric = column.dtype().is_primitive_numeric();
        let shown = if numeric {
            let values = values(column)?;
            if values.iter().all(Option::is_none) {
                continue;
            }
            let largest = values
                .iter()
                .flatten()
                .fold(0.0, |m: f64, v| m.max(v.abs()));
            let kind = match *name {
                "p" | "p_holm" => Kind::P,
                name if name.ends_with("bytes") => Kind::Bytes,
                name if name.starts_with("seconds") => Kind::Seconds,
                _ if column.dtype().is_integer() => Kind::Integer,
                _ => Kind::Float(decimals(largest)),
            };
            let ends = match (end(name, "_low"), end(name, "_high")) {
                (Some(low), Some(high)) => Some([self::values(low)?, self::values(high)?]),
                _ => None,
            };
            Shown {
                label,
                definition,
                kind,
                texts: Vec::new(),
                values,
                ends,
            }
        } else {
            let texts: Vec<String> = (0..column.len())
                .map(|i| match column.get(i) {
                    Ok(AnyValue::Null) | Err(_) => String::new(),
                    Ok(value) => value.str_value().into_owned(),
                })
                .collect();
            if texts.iter().all(String::is_empty) {
                continue;
            }
            Shown {
                label,
                definition,
                kind: Kind::Text,
                texts,
                values: Vec::new(),
                ends: None,
            }
        };
        out.push(shown);
    }
    Ok(out)
}

/// A heading as a button that sorts, with a hover that defines it.
pub(super) fn heading(label: &str, definition: &str, class: &str) -> String {
    let (label, definition) = (escape_html(label), escape_html(definition));
    let title = match definition.is_empty() {
        true => String::new(),
        false => format!(" title=\"{definition}\""),
    };
    let class = match class.is_empty() {
        true => String::new(),
        false => format!(" class=\"{class}\""),
    };
    format!("<th scope=\"col\"{class}><button type=\"button\"{title}>{label}</button></th>")
}

fn table(columns: &[Shown], rows: usize, caption: &str) -> String {
    let mut out = String::new();
    let folds = rows > FOLD + 3;
    if folds {
        let shown = rows.min(ROWS);
        write!(
            out,
            "<label class=\"all\"><input type=\"checkbox\"> all {} rows</label>",
            shown
        )
        .ok();
    }
    let caption = escape_html(caption);
    write!(
        out,
        "<div class=\"table\" tabindex=\"0\"><table><caption>{caption}</caption><thead><tr>"
    )
    .ok();
    for column in columns {
        let class = if column.kind == Kind::Text { "" } else { "n" };
        out.push_str(&heading(&column.label, column.definition, class));
    }
    out.push_str("</tr></thead><tbody>");
    for row in 0..rows.min(ROWS) {
        out.push_str(if folds && row >= FOLD {
            "<tr class=\"fold\">"
        } else {
            "<tr>"
        });
        columns.iter().for_each(|c| out.push_str(&c.cell(row)));
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    if rows > ROWS {
        write!(
            out,
            "<p class=\"hint\">{} more are in the files.</p>",
            rows - ROWS
        )
        .ok();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn html(frame: &DataFrame) -> String {
        let mut out = String::new();
        let table = Table {
            file: "t",
            heading: "Some rows",
            hint: "<read>".into(),
            frame,
        };
        table.html(&mut out).unwrap();
        out
    }

    #[test]
    fn numbers_are_rounded_and_intervals_stand_beside_them() {
        let frame = df!(
            "strategy" => ["a<b", "c"],
            "utility" => [Some(0.68624), None],
            "utility_low" => [Some(-0.1), None],
            "utility_high" => [Some(0.75), None],
            "empty" => [None::<f64>, None],
            "p_holm" => [0.00001, 0.25],
            "peak_bytes" => [588_000_000u64, 2_000_000_000],
            "prompts_needed" => [120u32, 3]
        )
        .unwrap();
        let html = html(&frame);
        assert!(html.contains(
            "<td>a&lt;b</td><td class=\"n\" data-v=\"0.68624\">0.686 <small>(−0.100 to 0.750)</small></td>"
        ));
        assert!(html.contains(">&lt; 0.001</td>"), "{html}");
        assert!(
            html.contains(">588 MB</td>")
                && html.contains(">0.25</td>")
                && html.contains(">120</td>")
        );
        assert!(!html.contains("empty") && !html.contains("utility low"));
        assert!(html.contains("title=\"What a response is worth") && html.contains("&lt;read&gt;"));
        assert!(html.contains("<h2 id=\"some-rows\">Some rows</h2>") && !html.contains("fold"));
    }

    #[test]
    fn long_tables_fold_and_are_built_late() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        let html = html(&df!("x" => values).unwrap());
        assert_eq!(html.matches("<tr class=\"fold\">").count(), 200 - FOLD);
        assert!(html.contains("<template>") && html.contains("all 200 rows"));
    }
}
