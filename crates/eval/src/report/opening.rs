//! The opening: the question, what was found, and one table of the strategies.

use std::fmt::Write as _;

use super::Report;
use super::frames::{anchor, heading};
use super::terms::term;
use crate::colours::COLOURS;
use crate::comparison::{Distance, LEVEL, Summary};
use crate::escape::escape_html;
use crate::rounding::{decimals, number, p_value, signed};
use crate::statistics::Estimate;

/// What a column shows of a strategy: its text, and the number that it is sorted by.
type Cell = dyn Fn(&Summary) -> (String, Option<f64>);

/// Width of the drawing of an interval in a row, in pixels.
const BAR: f64 = 150.0;

/// A column: name, class of its cells, what a cell says of a strategy and what it is sorted by.
type Cells<'a> = (
    &'static str,
    &'static str,
    Box<dyn Fn(&Summary) -> (String, Option<f64>) + 'a>,
);

impl Report<'_> {
    /// Question, sentences, warnings, table.
    pub(super) fn opening(&self, out: &mut String) {
        if let Some(question) = &self.question {
            writeln!(out, "<p class=\"question\">{}</p>", escape_html(question)).ok();
        }
        if !self.findings.is_empty() {
            out.push_str("<ul class=\"findings\">");
            for finding in &self.findings {
                write!(out, "<li>{}</li>", escape_html(finding)).ok();
            }
            out.push_str("</ul>\n");
        }
        for warning in &self.warnings {
            writeln!(out, "<p class=\"warning\">{}</p>", escape_html(warning)).ok();
        }
        if !self.summaries.is_empty() {
            self.strategies_table(out);
        }
    }

    /// The strategy that differences are against.
    fn first(&self) -> Option<&str> {
        let mut differences = self.summaries.iter().filter_map(|s| s.difference.as_ref());
        Some(differences.next()?.opponent.as_str())
    }

    fn columns(&self) -> Vec<Cells<'_>> {
        let largest = |get: fn(&Summary) -> Option<f64>| {
            let values = self.summaries.iter().filter_map(get);
            decimals(values.fold(0.0, |m: f64, v| m.max(v.abs())))
        };
        let plain = move |get: fn(&Summary) -> Option<f64>| -> Box<Cell> {
            let digits = largest(get);
            Box::new(move |s| {
                (
                    get(s).map(|v| number(v, digits)).unwrap_or_default(),
                    get(s),
                )
            })
        };
        let around = |e: &Estimate, mean: String, digits: usize| {
            let ends = [e.low, e.high].map(|v| number(v, digits));
            format!("{mean} <small>({} to {})</small>", ends[0], ends[1])
        };
        let utility = move |s: &Summary| {
            let text = s.utility.map(|e| around(&e, number(e.mean, 3), 3));
            (text.unwrap_or_default(), s.utility.map(|e| e.mean))
        };
        let difference = move |s: &Summary| {
            let text = s.difference.as_ref().map(|d| {
                let e = &d.difference;
                let (mark, said) = match d.p_holm < LEVEL {
                    true => ("†", "significant"),
                    false => ("≈", "not significant"),
                };
                let p = escape_html(&p_value(d.p_holm));
                let mark = format!(
                    "{} <abbr title=\"{said} after Holm's correction ({p})\">{mark}</abbr>",
                    signed(e.mean, 3)
                );
                around(e, mark, 3)
            });
            (
                text.unwrap_or_default(),
                s.difference.as_ref().map(|d| d.difference.mean),
            )
        };
        let share = |get: fn(&Summary) -> Option<f64>| -> Box<Cell> {
            Box::new(move |s| {
                (
                    get(s)
                        .map(|v| format!("{:.0} %", v * 100.0))
                        .unwrap_or_default(),
                    get(s),
                )
            })
        };
        let digits = largest(|s| s.kl_per_response);
        let kl = move |s: &Summary| {
            let text = s.kl_per_response.map(|v| {
                let mark = match s.distance {
                    Distance::Measured => "",
                    Distance::Bound(_) => "≤ ",
                    Distance::Text => "text: ",
                };
                format!("{mark}{}", number(v, digits))
            });
            (text.unwrap_or_default(), s.kl_per_response)
        };
        let gain = move |s: &Summary| {
            let text = s.gain_per_root.map(|e| around(&e, number(e.mean, 4), 4));
            (text.unwrap_or("–".into()), s.gain_per_root.map(|e| e.mean))
        };
        let strength = |s: &Summary| {
            let text = s.strength.map(|e| number(e.mean, 2));
            (text.unwrap_or_default(), s.strength.map(|e| e.mean))
        };
        let p = |s: &Summary| {
            let p = s.difference.as_ref().map(|d| d.p_holm);
            (p.map(|p| escape_html(&p_value(p))).unwrap_or_default(), p)
        };
        let needed = |s: &Summary| {
            let n = s.difference.as_ref().and_then(|d| d.prompts_needed);
            (n.map(|n| number(n.ceil(), 0)).unwrap_or_default(), n)
        };
        vec![
            ("utility", "n", Box::new(utility)),
            ("difference", "n", Box::new(difference)),
            ("kl_per_response", "n", Box::new(kl)),
            ("gain_per_root", "n wide", Box::new(gain)),
            ("win_rate", "n wide", share(|s| s.win_rate)),
            ("ended", "n wide", share(|s| s.ended)),
            ("tokens", "n more", plain(|s| s.tokens)),
            ("kl_per_token", "n more", plain(|s| s.kl_per_token)),
            ("strength", "n more", Box::new(strength)),
            ("p_holm", "n more", Box::new(p)),
            ("prompts_needed", "n more", Box::new(needed)),
            ("responses", "n more", plain(|s| Some(s.responses as f64))),
        ]
    }

    fn strategies_table(&self, out: &mut String) {
        let title = "Strategies";
        let mut columns = self.columns();
        // A column that says nothing of any strategy is left out.
        columns.retain(|(_, _, cell)| self.summaries.iter().any(|s| cell(s).1.is_some()));
        write!(
            out,
            "<h2 id=\"{}\">{title}</h2>\n<div class=\"summary\"><input type=\"checkbox\" id=\"more\">\
             <label for=\"more\">more columns</label>\n<div class=\"table\" tabindex=\"0\"><table>\
             <caption>Strategies by utility, the highest first</caption><thead><tr>{}",
            anchor(title),
            heading("strategy", "A method that answers for a preference.", "")
        )
        .ok();
        for (name, class, _) in &columns {
            let (label, definition) = term(name).unwrap_or((name, ""));
            let label = match (*name, self.first()) {
                ("difference", Some(first)) => format!("difference to {first}"),
                _ => label.into(),
            };
            out.push_str(&heading(&label, definition, class));
            if *name == "utility" {
                out.push_str("<th class=\"bar\" aria-hidden=\"true\"></th>");
            }
        }
        out.push_str("</tr></thead><tbody>\n");
        let range = self.range();
        for (row, summary) in self.summaries.iter().enumerate() {
            let tag = match (row, summary.among_best && self.summaries.len() > 1) {
                (0, _) => " <span class=\"tag best\">best</span>",
                (_, true) => {
                    " <span class=\"tag\" title=\"No test tells it from the best.\">≈ best</span>"
                }
                _ => "",
            };
            let name = escape_html(&summary.strategy);
            write!(out, "<tr><th scope=\"row\">{name}{tag}</th>").ok();
            for (name, class, cell) in &columns {
                let (text, value) = cell(summary);
                let value = value.filter(|v| v.is_finite());
                let value = value
                    .map(|v| format!(" data-v=\"{v}\""))
                    .unwrap_or_default();
                write!(out, "<td class=\"{class}\"{value}>{text}</td>").ok();
                if *name == "utility" {
                    let bar = summary
                        .utility
                        .map(|e| bar(&e, &range, self.neutral, summary.place));
                    write!(
                        out,
                        "<td class=\"bar\" aria-hidden=\"true\">{}</td>",
                        bar.unwrap_or_default()
                    )
                    .ok();
                }
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div></div>\n<p class=\"hint\">");
        if let Some(first) = self.first() {
            write!(
                out,
                "† differs from {} at p &lt; {LEVEL}, corrected for all differences to it (Holm); ≈ does not. <b>≈ best</b>: no \
                 test tells it from the best. ",
                escape_html(first)
            )
            .ok();
        }
        out.push_str("Intervals hold 95 % of 10,000 draws of prompts; the dashed line is a response as good as the reference. Exact numbers: tables/ranking.csv, tables/quality.csv.</p>\n");
    }

    /// What the drawings of intervals reach over.
    fn range(&self) -> std::ops::Range<f64> {
        let all = self.summaries.iter().filter_map(|s| s.utility);
        let (low, high) = all.fold((self.neutral, self.neutral), |(low, high), e| {
            (low.min(e.low), high.max(e.high))
        });
        let margin = ((high - low) * 0.06).max(1e-6);
        low - margin..high + margin
    }
}

/// An interval with its mean, and a dashed line at the reference.
fn bar(e: &Estimate, range: &std::ops::Range<f64>, neutral: f64, place: usize) -> String {
    let x = |v: f64| (v - range.start) / (range.end - range.start) * BAR;
    let [r, g, b] = COLOURS[place % COLOURS.len()];
    format!(
        "<svg width=\"{BAR:.0}\" height=\"16\" viewBox=\"0 0 {BAR:.0} 16\"><path class=\"zero\" d=\"M{0:.1} 0V16\"/>\
         <path stroke=\"rgb({r},{g},{b})\" stroke-width=\"2.5\" d=\"M{1:.1} 8H{2:.1}\"/>\
         <circle cx=\"{3:.1}\" cy=\"8\" r=\"4.5\" fill=\"rgb({r},{g},{b})\"/></svg>",
        x(neutral),
        x(e.low),
        x(e.high),
        x(e.mean)
    )
}
