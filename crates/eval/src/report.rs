//! The report: one HTML file that needs no other.

use std::fmt::Write as _;

use polars::prelude::DataFrame;

use crate::Result;
use crate::plots::colour;
use crate::rows::{GenerationRow, ScoreRow};
use crate::table::{escape_html, html};

/// What a report shows, in this order.
#[derive(Debug)]
pub struct Report<'a> {
    /// Name of the experiment.
    pub title: &'a str,
    /// What was compared, as pairs of a term and its explanation.
    pub facts: &'a [(String, String)],
    /// Tables with a heading and a sentence on how to read them; the plots follow the first.
    pub tables: Vec<(&'a str, String, &'a DataFrame)>,
    /// Plots as SVG, with what they show.
    pub plots: Vec<(String, String)>,
    /// Responses with their scores.
    pub samples: Vec<(&'a GenerationRow, &'a ScoreRow)>,
    /// The resolved experiment as text.
    pub config: &'a str,
}

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:#666}dd{margin:0}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}figcaption,.hint{color:#555;font-size:13px}
details{border:1px solid #ddd;border-radius:6px;padding:.5rem .8rem;margin:.6rem 0}
summary{cursor:pointer}.response{white-space:pre-wrap;margin:.5rem 0}
.response span{border-radius:2px;padding:1px 0}
.who{font-weight:600}.legend span{padding:1px 6px;border-radius:3px;margin-right:.5rem}
pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:12.5px}
";

impl Report<'_> {
    /// The report as an HTML document.
    ///
    /// # Errors
    /// What polars reports of a table.
    pub fn html(&self) -> Result<String> {
        let title = escape_html(self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
             <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<dl>"
        );
        for (term, text) in self.facts {
            let (term, text) = (escape_html(term), escape_html(text));
            write!(out, "<dt>{term}</dt><dd>{text}</dd>").ok();
        }
        out.push_str("</dl>\n");
        let (first, others) = self.tables.split_at(self.tables.len().min(1));
        out.push_str(&tables(first)?);
        for (caption, svg) in &self.plots {
            let caption = escape_html(caption);
            writeln!(
                out,
                "<figure>{svg}<figcaption>{caption}</figcaption></figure>"
            )
            .ok();
        }
        out.push_str(&tables(others)?);
        out.push_str(
            "<h2>Responses</h2>\n<p class=\"hint\">Each token has the colour of the expert with the \
             largest weight, stronger for a larger weight; hover for weights and log-probability.</p>\n",
        );
        let mut question = "";
        for (row, score) in &self.samples {
            if question != row.question {
                question = &row.question;
                writeln!(out, "<h3>{}</h3>", escape_html(question)).ok();
            }
            out.push_str(&response(row, score));
        }
        let config = escape_html(self.config);
        writeln!(
            out,
            "<h2>Experiment</h2>\n<pre>{config}</pre>\n</body></html>"
        )
        .ok();
        Ok(out)
    }
}

fn tables(tables: &[(&str, String, &DataFrame)]) -> Result<String> {
    let mut out = String::new();
    for (heading, hint, frame) in tables {
        let (heading, hint) = (escape_html(heading), escape_html(hint));
        let table = html(frame)?;
        writeln!(out, "<h2>{heading}</h2><p class=\"hint\">{hint}</p>{table}").ok();
    }
    Ok(out)
}

/// Index of the largest weight.
fn leader(weights: &[f32]) -> usize {
    let better = |best: usize, i: usize| if weights[i] > weights[best] { i } else { best };
    (0..weights.len()).fold(0, better)
}

fn background(expert: usize, weight: f32) -> String {
    let c = colour(expert);
    let strength = 0.10 + 0.35 * f64::from(weight);
    format!("rgba({},{},{},{strength:.2})", c.0, c.1, c.2)
}

fn response(row: &GenerationRow, score: &ScoreRow) -> String {
    let i = &row.identity;
    let experts = row.experts.len().max(1);
    let mut out = format!(
        "<details open><summary><span class=\"who\">{}</span> for {} · utility {:.3}",
        escape_html(&i.strategy),
        escape_html(&i.preference),
        score.utility
    );
    for (dimension, s) in &score.dimensions {
        write!(out, " · {} {:+.2}", escape_html(dimension), s.reward).ok();
    }
    out.push_str("</summary><div class=\"response\">");
    for (t, piece) in row.pieces.iter().enumerate() {
        let weights = row.weights.get(t * experts..(t + 1) * experts);
        let weights = weights.unwrap_or_default();
        let named = row.experts.iter().zip(weights);
        let mut hint: Vec<String> = named.map(|(n, w)| format!("{n} {w:.3}")).collect();
        if let Some(log_prob) = row.log_probs.get(t) {
            hint.push(format!("log p {log_prob:.2}"));
        }
        let lead = leader(weights);
        write!(
            out,
            "<span style=\"background:{}\" title=\"{}\">{}</span>",
            background(lead, weights.get(lead).copied().unwrap_or(1.0)),
            escape_html(&hint.join(", ")),
            escape_html(piece)
        )
        .ok();
    }
    out.push_str("</div><div class=\"legend hint\">");
    for (expert, name) in row.experts.iter().enumerate() {
        let (colour, name) = (background(expert, 1.0), escape_html(name));
        write!(out, "<span style=\"background:{colour}\">{name}</span>").ok();
    }
    let end = if row.ended {
        "ended"
    } else {
        "cut at the limit"
    };
    writeln!(out, "{} tokens, {end}</div></details>", row.tokens.len()).ok();
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::Identity;

    #[test]
    fn tokens_are_escaped_and_coloured_by_the_leading_expert() {
        let identity = Identity {
            strategy: "fixed".into(),
            preference: "p".into(),
            prompt: "1".into(),
            sample: 0,
        };
        let row = GenerationRow {
            identity: identity.clone(),
            question: "a <b>?".into(),
            response: "x<y".into(),
            tokens: vec![1, 2],
            pieces: vec!["x".into(), "<y".into()],
            log_probs: vec![-0.5, -1.0],
            experts: vec!["one".into(), "two".into()],
            weights: vec![0.75, 0.25, 0.0, 1.0],
            ended: true,
        };
        let score = ScoreRow {
            identity,
            utility: 0.5,
            tokens: 2,
            ended: true,
            dimensions: Default::default(),
        };
        let report = Report {
            title: "t & t",
            facts: &[("seed".into(), "1".into())],
            tables: vec![],
            plots: vec![],
            samples: vec![(&row, &score)],
            config: "(name: \"<\")",
        };
        let html = report.html().unwrap();
        assert!(html.contains("<title>t &amp; t</title>"));
        assert!(html.contains("<h3>a &lt;b&gt;?</h3>"));
        let first =
            "background:rgba(0,114,178,0.36)\" title=\"one 0.750, two 0.250, log p -0.50\">x<";
        let second =
            "background:rgba(230,159,0,0.45)\" title=\"one 0.000, two 1.000, log p -1.00\">&lt;y<";
        assert!(html.contains(first) && html.contains(second), "{html}");
        assert!(!html.contains("src=") && !html.contains("href="));
    }
}
