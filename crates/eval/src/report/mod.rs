//! The report: one HTML file that needs no other and no network.
//!
//! ```
//! use mope_eval::report::Report;
//! let report = Report {
//!     title: "quickstart",
//!     facts: &[("model".into(), "SmolLM2-135M-Instruct".into())],
//!     warnings: vec![],
//!     tables: vec![],
//!     plots: vec![],
//!     strategies: &[],
//!     preferences: &[],
//!     experts: &[],
//!     samples: vec![],
//!     config: "(name: \"quickstart\")",
//!     manifest: "{}",
//! };
//! assert!(report.html()?.starts_with("<!doctype html>"));
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod samples;

use std::fmt::Write as _;

use polars::prelude::DataFrame;

use crate::Result;
use crate::escape::escape_html;
use crate::rows::{GenerationRow, ScoreRow};
use crate::table::html;

/// What a report shows, in this order.
#[derive(Debug)]
pub struct Report<'a> {
    /// Name of the experiment.
    pub title: &'a str,
    /// What was compared, as pairs of a term and its explanation.
    pub facts: &'a [(String, String)],
    /// What a reader must know before believing the tables.
    pub warnings: Vec<String>,
    /// Tables with a heading and a sentence on how to read them; the plots follow the first.
    pub tables: Vec<(&'a str, String, &'a DataFrame)>,
    /// Plots as SVG, with what they show.
    pub plots: Vec<(String, String)>,
    /// Strategies in the order of the browser.
    pub strategies: &'a [String],
    /// Preferences in the order of the browser.
    pub preferences: &'a [String],
    /// Every expert of the responses, in the order of colours.
    pub experts: &'a [String],
    /// Responses with their scores; the browser shows as many prompts as fit into a file of a few
    /// megabytes, the first ones.
    pub samples: Vec<(&'a GenerationRow, &'a ScoreRow)>,
    /// The experiment as text.
    pub config: &'a str,
    /// What the run was made from, as JSON.
    pub manifest: &'a str,
}

impl Report<'_> {
    /// The report as an HTML document.
    ///
    /// # Errors
    /// [`crate::Error::Table`].
    pub fn html(&self) -> Result<String> {
        let title = escape_html(self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>{}</style></head><body>\n<h1>{title}</h1>\n<nav>",
            include_str!("report.css")
        );
        let tables = self.tables.iter().map(|t| t.0);
        for name in tables.chain(["Plots", "Responses", "Experiment"]) {
            write!(out, "<a href=\"#{}\">{name}</a>", anchor(name)).ok();
        }
        out.push_str("</nav>\n<dl>");
        for (term, text) in self.facts {
            let (term, text) = (escape_html(term), escape_html(text));
            write!(out, "<dt>{term}</dt><dd>{text}</dd>").ok();
        }
        out.push_str("</dl>\n");
        for warning in &self.warnings {
            let warning = escape_html(warning);
            writeln!(out, "<p class=\"warning\">{warning}</p>").ok();
        }
        let (first, others) = self.tables.split_at(self.tables.len().min(1));
        out.push_str(&write_tables(first)?);
        out.push_str("<h2 id=\"plots\">Plots</h2>\n<div class=\"plots\">\n");
        for (caption, svg) in &self.plots {
            let caption = escape_html(caption);
            let width = width(svg);
            let wide = if width > WIDE { " class=\"wide\"" } else { "" };
            writeln!(
                out,
                "<figure{wide} style=\"--width:{width}px\">{svg}<figcaption>{caption}</figcaption></figure>"
            )
            .ok();
        }
        out.push_str("</div>\n");
        out.push_str(&write_tables(others)?);
        self.browser(&mut out);
        let (config, manifest) = (escape_html(self.config), escape_html(self.manifest));
        writeln!(
            out,
            "<h2 id=\"experiment\">Experiment</h2>\n<pre>{config}</pre>\n\
             <details><summary>manifest.json</summary><pre>{manifest}</pre></details>\n\
             <script>{}</script>\n</body></html>",
            include_str!("report.js")
        )
        .ok();
        Ok(out)
    }

    fn browser(&self, out: &mut String) {
        let data = samples::data(
            self.strategies,
            self.preferences,
            self.experts,
            &self.samples,
        );
        let (shown, all) = (data.prompts.len(), samples::prompts(&self.samples).len());
        let part = match shown < all {
            true => format!(" The first {shown} of {all} prompts; all are in generations/."),
            false => String::new(),
        };
        // Nothing in a text may end the script element.
        let json = serde_json::to_string(&data).unwrap_or_default();
        let json = json.replace('<', "\\u003c");
        writeln!(
            out,
            "<h2 id=\"responses\">Responses</h2>\n<p class=\"hint\">Each token has the colour of the \
             expert with the largest weight, stronger for a larger weight; hover or tap for weights, \
             log-probability and divergence from the base in nats.{part}</p>\n\
             <noscript>The browser of responses needs JavaScript; tables/responses.csv has all of them.\
             </noscript>\n<div class=\"controls\"></div>\n<p class=\"question\"></p>\n\
             <div class=\"cards\"></div>\n<output class=\"reading\"></output>\n\
             <script type=\"application/json\" id=\"samples\">{json}</script>"
        )
        .ok();
    }
}

/// Plots wider than this, in pixels, have a row to themselves, or their text would be too small.
const WIDE: u32 = 700;

/// Width that an SVG says it has.
fn width(svg: &str) -> u32 {
    let value = svg
        .split("width=\"")
        .nth(1)
        .and_then(|s| s.split('"').next());
    value.and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

fn write_tables(tables: &[(&str, String, &DataFrame)]) -> Result<String> {
    let mut out = String::new();
    for (heading, hint, frame) in tables {
        let (id, heading, hint) = (anchor(heading), escape_html(heading), escape_html(hint));
        let table = html(frame)?;
        writeln!(
            out,
            "<h2 id=\"{id}\">{heading}</h2><p class=\"hint\">{hint}</p><div class=\"table\">{table}</div>"
        )
        .ok();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::Identity;

    #[test]
    fn texts_are_escaped_wherever_they_stand() {
        let identity = Identity {
            strategy: "fixed".into(),
            preference: "p".into(),
            prompt: "1".into(),
            sample: 0,
        };
        let row = GenerationRow {
            identity: identity.clone(),
            question: "a </script><b>?".into(),
            response: "x<y".into(),
            tokens: vec![1, 2],
            pieces: vec!["x".into(), "<y".into()],
            log_probs: vec![-0.5, -1.0],
            kl: vec![0.5, 0.25],
            base_log_probs: vec![-1.0, -2.0],
            experts: vec!["one".into(), "two".into()],
            weights: vec![0.75, 0.25, -0.5, 1.5],
            ended: true,
        };
        let score = ScoreRow {
            identity,
            utility: 0.5,
            tokens: 2,
            ended: true,
            repetition: 0.0,
            kl: None,
            base_nll: None,
            dimensions: Default::default(),
        };
        let report = Report {
            title: "t & t",
            facts: &[("seed".into(), "1".into())],
            warnings: vec!["1 < 2".into()],
            tables: vec![],
            plots: vec![],
            strategies: &["fixed".to_string()],
            preferences: &["p".to_string()],
            experts: &["one".to_string(), "two".to_string()],
            samples: vec![(&row, &score)],
            config: "(name: \"<\")",
            manifest: "{}",
        };
        let html = report.html().unwrap();
        assert!(html.contains("<title>t &amp; t</title>") && html.contains("1 &lt; 2"));
        assert!(html.contains("a \\u003c/script>\\u003cb>?"));
        assert!(html.contains("\"w\":[75,25,-50,150]") && html.contains("\"g\":[0.5,0.25]"));
        assert!(!html.contains("src=") && !html.contains("http"));
    }
}
