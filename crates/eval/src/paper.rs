//! Tables to print: few columns, `mean ± half the interval`, the best in bold, a mark for what differs.
//!
//! ```
//! use mope_eval::paper::{Better, Paper};
//! use mope_eval::statistics::Estimate;
//! let utility = |mean| Some(Estimate { mean, low: mean - 0.01, high: mean + 0.01, count: 64 });
//! let table = Paper {
//!     columns: vec![("utility".into(), 3, Better::Higher)],
//!     rows: vec![
//!         ("uniform".into(), false, vec![utility(0.589)]),
//!         ("pcm".into(), true, vec![utility(0.686)]),
//!     ],
//!     note: "† differs from 'uniform'.".into(),
//! };
//! assert!(table.markdown().contains("| pcm† | **0.686** ± 0.010 |"));
//! ```

use std::fmt::Write as _;
use std::path::Path;

use crate::escape::{escape_latex, escape_markdown};
use crate::statistics::Estimate;
use crate::{Result, write_atomic};

/// What is good in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
    /// Neither is better.
    Neither,
}

/// A table with a row of estimates for each name.
#[derive(Debug, Clone)]
pub struct Paper {
    /// Heading of each column after the names, decimals, and what is good in it.
    pub columns: Vec<(String, usize, Better)>,
    /// Name, whether it differs significantly, and its estimates.
    pub rows: Vec<(String, bool, Vec<Option<Estimate>>)>,
    /// What the table shows and what the mark means.
    pub note: String,
}

impl Paper {
    /// Index of the best row of a column: of equal ones none.
    fn best(&self, column: usize) -> Option<usize> {
        let sign = match self.columns[column].2 {
            Better::Higher => 1.0,
            Better::Lower => -1.0,
            Better::Neither => return None,
        };
        let value = |row: usize| Some(self.rows[row].2[column]?.mean * sign);
        let known = (0..self.rows.len()).filter(|&r| value(r).is_some());
        let best = known.max_by(|&a, &b| {
            let of = |r| value(r).unwrap_or(f64::NEG_INFINITY);
            of(a).total_cmp(&of(b))
        })?;
        let equal = (0..self.rows.len()).filter(|&r| value(r) == value(best));
        (equal.count() == 1).then_some(best)
    }

    fn cells(&self, plus_minus: &str, bold: impl Fn(String) -> String) -> Vec<Vec<String>> {
        let best: Vec<Option<usize>> = (0..self.columns.len()).map(|c| self.best(c)).collect();
        let cell = |row: usize, column: usize| {
            let Some(e) = self.rows[row].2[column] else {
                return String::new();
            };
            let digits = self.columns[column].1;
            let mean = format!("{:.digits$}", e.mean);
            let mean = match best[column] == Some(row) {
                true => bold(mean),
                false => mean,
            };
            match e.high > e.low {
                true => format!("{mean}{plus_minus}{:.digits$}", (e.high - e.low) / 2.0),
                false => mean,
            }
        };
        let row = |r| (0..self.columns.len()).map(|c| cell(r, c)).collect();
        (0..self.rows.len()).map(row).collect()
    }

    /// For LaTeX's `booktabs`.
    pub fn latex(&self) -> String {
        let cells = self.cells(" $\\pm$ ", |mean| format!("\\textbf{{{mean}}}"));
        // Cells are numbers: a hyphen there is a minus sign.
        let cells = cells.into_iter().map(|row| {
            let row = row.iter().map(|cell| cell.replace('-', "$-$"));
            row.collect::<Vec<String>>()
        });
        let marks = "r".repeat(self.columns.len());
        let heading = self.columns.iter().map(|(name, ..)| escape_latex(name));
        let heading: Vec<String> = heading.collect();
        let mut out = format!(
            "% {}\n\\begin{{tabular}}{{l{marks}}}\n\\toprule\n & {} \\\\\n\\midrule\n",
            self.note.replace('\n', " "),
            heading.join(" & ")
        );
        for ((name, differs, _), cells) in self.rows.iter().zip(cells) {
            let mark = if *differs { "$^{\\dagger}$" } else { "" };
            let name = escape_latex(name);
            writeln!(out, "{name}{mark} & {} \\\\", cells.join(" & ")).ok();
        }
        out.push_str("\\bottomrule\n\\end{tabular}\n");
        out
    }

    /// In GitHub's Markdown, the note below.
    pub fn markdown(&self) -> String {
        let cells = self.cells(" ± ", |mean| format!("**{mean}**"));
        let heading = self.columns.iter().map(|(name, ..)| escape_markdown(name));
        let heading: Vec<String> = heading.collect();
        let mut out = format!("| | {} |\n| --- |", heading.join(" | "));
        out.push_str(&" --: |".repeat(self.columns.len()));
        out.push('\n');
        for ((name, differs, _), cells) in self.rows.iter().zip(cells) {
            let mark = if *differs { "†" } else { "" };
            let name = escape_markdown(name);
            writeln!(out, "| {name}{mark} | {} |", cells.join(" | ")).ok();
        }
        writeln!(out, "\n{}", self.note).ok();
        out
    }

    /// Writes `folder/name.{md,tex}`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> Result<()> {
        let path = |extension: &str| folder.join(format!("{name}.{extension}"));
        write_atomic(&path("md"), self.markdown().as_bytes())?;
        write_atomic(&path("tex"), self.latex().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_bold_and_what_differs_is_marked() {
        let e = |mean: f64| {
            Some(Estimate {
                mean,
                low: mean - 0.1,
                high: mean + 0.1,
                count: 4,
            })
        };
        let paper = Paper {
            columns: vec![
                ("utility".into(), 2, Better::Higher),
                ("kl_1".into(), 1, Better::Lower),
            ],
            rows: vec![
                ("base".into(), false, vec![e(0.5), e(-2.0)]),
                ("a_b".into(), true, vec![e(0.75), None]),
            ],
            note: "† differs.".into(),
        };
        assert_eq!(
            paper.markdown(),
            "| | utility | kl_1 |\n| --- | --: | --: |\n| base | 0.50 ± 0.10 | **-2.0** ± 0.1 |\n\
             | a_b† | **0.75** ± 0.10 |  |\n\n† differs.\n"
        );
        let latex = paper.latex();
        assert!(latex.contains("a\\_b$^{\\dagger}$ & \\textbf{0.75} $\\pm$ 0.10 &  \\\\"));
        assert!(latex.contains("& kl\\_1 \\\\"));
        assert!(
            latex.contains("& \\textbf{$-$2.0} $\\pm$ 0.1 \\\\"),
            "{latex}"
        );
    }
}
