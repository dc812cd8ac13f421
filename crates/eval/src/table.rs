//! Tables: data frames and their four files.
//!
//! ```
//! use mope_eval::table::markdown;
//! use polars::prelude::df;
//! let frame = df!("strategy" => ["pcm"], "utility" => [0.686_2])?;
//! assert_eq!(markdown(&frame)?, "| strategy | utility |\n| --- | --: |\n| pcm | 0.686 |\n");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::path::Path;

use polars::prelude::*;

pub use crate::escape::escape_html;
use crate::escape::{escape_latex, escape_markdown};
use crate::{Error, Result, write_atomic, write_atomic_with};

/// Bytes of a data frame as Parquet.
///
/// # Errors
/// [`Error::Table`].
pub fn parquet(name: &Path, frame: &mut DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .finish(frame)
        .map_err(|e| Error::table(name, e))?;
    rename_arrow_schema(&mut bytes);
    Ok(bytes)
}

/// polars describes its own column types under this key, and pandas cannot read lists of its string views; without it
/// every reader goes by Parquet's own types. The new name is as long, so nothing moves.
fn rename_arrow_schema(bytes: &mut [u8]) {
    const ARROW_SCHEMA: &[u8] = b"ARROW:schema";
    if let Some(at) = bytes
        .windows(ARROW_SCHEMA.len())
        .rposition(|w| w == ARROW_SCHEMA)
    {
        bytes[at..at + ARROW_SCHEMA.len()].copy_from_slice(b"polars:types");
    }
}

/// Writes data frames of the same columns into one Parquet file, each a row group, so that one at a time is in memory.
pub(crate) fn write_parquet_pieces(
    path: &Path,
    mut frames: impl Iterator<Item = Result<DataFrame>>,
) -> Result<()> {
    let Some(first) = frames.next() else {
        return Err(Error::table(path, "there is nothing to write"));
    };
    let first = first?;
    write_atomic_with(path, |file| {
        let writer = ParquetWriter::new(&mut *file).batched(first.schema());
        let mut writer = writer.map_err(io::Error::other)?;
        for frame in std::iter::once(Ok(first)).chain(frames) {
            let mut frame = frame.map_err(io::Error::other)?;
            writer
                .write_batch(frame.align_chunks())
                .map_err(io::Error::other)?;
        }
        writer.finish().map_err(io::Error::other)?;
        drop(writer);
        // The footer, its length in four bytes and PAR1 end the file.
        let mut length = [0; 4];
        file.seek(SeekFrom::End(-8))?;
        file.read_exact(&mut length)?;
        let start = -8 - i64::from(u32::from_le_bytes(length));
        let mut footer = Vec::new();
        file.seek(SeekFrom::End(start))?;
        file.read_to_end(&mut footer)?;
        rename_arrow_schema(&mut footer);
        file.seek(SeekFrom::End(start))?;
        file.write_all(&footer)
    })
}

/// What a Parquet file may hold at most. A kilobyte of it can unfold to millions of rows, so that its size says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows.
    pub rows: usize,
    /// Values of one column, those in lists counted one by one.
    pub values: usize,
}

/// Reads a Parquet file of which nothing is known.
///
/// # Errors
/// With the file's name, for a file that is missing or damaged.
pub fn read_parquet(path: &Path) -> Result<DataFrame> {
    let limits = Limits {
        rows: usize::MAX,
        values: usize::MAX,
    };
    read_parquet_within(path, limits)
}

/// Reads a Parquet file, unless its footer says that it holds more than it may.
///
/// # Errors
/// With the file's name, for a file that is missing, damaged or larger than the limits.
pub fn read_parquet_within(path: &Path, limits: Limits) -> Result<DataFrame> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(Error::table(path, "it is no regular file"));
    }
    let invalid = |e| Error::table(path, e);
    let mut reader = ParquetReader::new(file);
    let footer = reader.get_metadata().map_err(invalid)?;
    let (mut rows, mut most) = (0usize, 0usize);
    let mut values = vec![0usize; footer.row_groups.first().map_or(0, |g| g.n_columns())];
    for group in &footer.row_groups {
        rows = rows.saturating_add(group.num_rows());
        for (values, column) in values.iter_mut().zip(group.parquet_columns()) {
            let count = usize::try_from(column.num_values()).unwrap_or(usize::MAX);
            *values = values.saturating_add(count);
            most = most.max(*values);
        }
    }
    let rows = rows.max(footer.num_rows);
    for (what, count, limit) in [
        ("rows", rows, limits.rows),
        ("values in a column", most, limits.values),
    ] {
        if count > limit {
            let message = format!("{count} {what}, where at most {limit} belong");
            return Err(Error::table(path, message));
        }
    }
    reader.finish().map_err(invalid)
}

/// A cell as people read it: floats with three decimals, nothing for missing values.
fn cell(value: &AnyValue<'_>) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(v) => format!("{v:.3}"),
        AnyValue::Float32(v) => format!("{v:.3}"),
        AnyValue::String(s) => (*s).to_string(),
        AnyValue::StringOwned(s) => s.to_string(),
        other => other.to_string(),
    }
}

/// Header and rows as text.
///
/// # Errors
/// [`Error::Table`].
pub fn cells(frame: &DataFrame) -> Result<(Vec<String>, Vec<Vec<String>>)> {
    let header = frame
        .get_column_names()
        .iter()
        .map(|n| n.to_string())
        .collect();
    let mut rows = vec![Vec::new(); frame.height()];
    for column in frame.columns() {
        for (i, row) in rows.iter_mut().enumerate() {
            let value = column
                .get(i)
                .map_err(|e| Error::table(Path::new("table"), e))?;
            row.push(cell(&value));
        }
    }
    Ok((header, rows))
}

/// A table in GitHub's Markdown.
///
/// # Errors
/// [`Error::Table`].
pub fn markdown(frame: &DataFrame) -> Result<String> {
    let (header, rows) = cells(frame)?;
    let line = |row: &[String]| {
        let row: Vec<String> = row.iter().map(|s| escape_markdown(s)).collect();
        format!("| {} |\n", row.join(" | "))
    };
    let marks: Vec<&str> = frame
        .columns()
        .iter()
        .map(|c| if numeric(c) { "--:" } else { "---" })
        .collect();
    let mut out = line(&header);
    out.push_str(&format!("| {} |\n", marks.join(" | ")));
    rows.iter().for_each(|row| out.push_str(&line(row)));
    Ok(out)
}

/// Numbers stand on the right.
fn numeric(column: &Column) -> bool {
    column.dtype().is_primitive_numeric()
}

/// A table in LaTeX, for the `booktabs` package.
///
/// # Errors
/// [`Error::Table`].
pub fn latex(frame: &DataFrame) -> Result<String> {
    let (header, rows) = cells(frame)?;
    let line = |row: &[String]| {
        let row: Vec<String> = row.iter().map(|s| escape_latex(s)).collect();
        format!("{} \\\\\n", row.join(" & "))
    };
    let marks: String = frame
        .columns()
        .iter()
        .map(|c| if numeric(c) { 'r' } else { 'l' })
        .collect();
    let mut out = format!(
        "\\begin{{tabular}}{{{marks}}}\n\\toprule\n{}\\midrule\n",
        line(&header)
    );
    rows.iter().for_each(|row| out.push_str(&line(row)));
    out.push_str("\\bottomrule\n\\end{tabular}\n");
    Ok(out)
}

/// Writes `folder/name.csv`, with full precision.
///
/// # Errors
/// A file that cannot be written.
pub fn write_csv(folder: &Path, name: &str, frame: &mut DataFrame) -> Result<()> {
    let path = folder.join(format!("{name}.csv"));
    let mut csv = Vec::new();
    CsvWriter::new(&mut csv)
        .finish(frame)
        .map_err(|e| Error::table(&path, e))?;
    write_atomic(&path, &csv)
}

/// Writes `folder/name.{csv,md,tex,parquet}`. CSV and Parquet keep full precision.
///
/// # Errors
/// A file that cannot be written.
pub fn write_all(folder: &Path, name: &str, frame: &mut DataFrame) -> Result<()> {
    let path = |extension: &str| folder.join(format!("{name}.{extension}"));
    write_csv(folder, name, frame)?;
    write_atomic(&path("md"), markdown(frame)?.as_bytes())?;
    write_atomic(&path("tex"), latex(frame)?.as_bytes())?;
    write_atomic(&path("parquet"), &parquet(&path("parquet"), frame)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_text_forms() {
        let frame =
            df!("strategy" => ["a|b", "c_d"], "utility" => [Some(0.12345), None], "n" => [3, 4])
                .unwrap();
        assert_eq!(
            markdown(&frame).unwrap(),
            "| strategy | utility | n |\n| --- | --: | --: |\n| a\\|b | 0.123 | 3 |\n| c_d |  | 4 |\n"
        );
        assert_eq!(
            latex(&frame).unwrap(),
            "\\begin{tabular}{lrr}\n\\toprule\nstrategy & utility & n \\\\\n\\midrule\n\
             a|b & 0.123 & 3 \\\\\nc\\_d &  & 4 \\\\\n\\bottomrule\n\\end{tabular}\n"
        );
    }

    #[test]
    fn parquet_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut frame = df!("x" => [1.5f64, -0.1], "name" => ["é", ""]).unwrap();
        write_all(folder.path(), "t", &mut frame).unwrap();
        assert!(
            read_parquet(&folder.path().join("t.parquet"))
                .unwrap()
                .equals(&frame)
        );
        let csv = std::fs::read_to_string(folder.path().join("t.csv")).unwrap();
        assert_eq!(csv, "x,name\n1.5,é\n-0.1,\"\"\n");
        std::fs::write(folder.path().join("bad.parquet"), b"PAR1 no").unwrap();
        let error = read_parquet(&folder.path().join("bad.parquet"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("bad.parquet"), "{error}");
    }

    #[test]
    fn what_unfolds_beyond_its_limits_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.parquet");
        let lists = vec![Series::new("".into(), [7u32; 1000]); 1000];
        let mut frame = df!("x" => vec![1u32; 1000]).unwrap();
        frame
            .with_column(Column::new("lists".into(), lists))
            .unwrap();
        let bytes = parquet(&path, &mut frame).unwrap();
        assert!(bytes.len() < 100_000, "{}", bytes.len());
        write_atomic(&path, &bytes).unwrap();
        let read = |rows, values| read_parquet_within(&path, Limits { rows, values });
        assert_eq!(read(1000, 1_000_000).unwrap().height(), 1000);
        for (rows, values, message) in [
            (999, usize::MAX, "1000 rows, where at most 999 belong"),
            (
                1000,
                999_999,
                "1000000 values in a column, where at most 999999",
            ),
        ] {
            let error = read(rows, values).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("bomb"), "{error}");
        }
        assert!(read_parquet(folder.path()).is_err());
    }
}
