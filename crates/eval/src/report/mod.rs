//! The report: one HTML file that needs no other and no network.
//!
//! It opens with the question, what was found and one table; three answers follow, figures, a browser of all
//! responses, and the other tables folded. Texts of a run are escaped wherever they stand, and a content security
//! policy lets no script run but the report's (by its hash) and nothing load.
//!
//! ```
//! use mope_eval::report::Report;
//! let report = Report {
//!     title: "quickstart",
//!     findings: vec!["pcm has the highest utility.".into()],
//!     config: "(name: \"quickstart\")",
//!     ..Report::default()
//! };
//! assert!(report.html()?.starts_with("<!doctype html>"));
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod answers;
mod frames;
mod opening;
mod samples;
mod terms;

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::Result;
use crate::comparison::Summary;
use crate::escape::escape_html;
use crate::rows::{GenerationRow, ScoreRow};

pub use frames::Table;

/// What a report shows, in this order.
#[derive(Debug, Default)]
pub struct Report<'a> {
    /// Name of the experiment.
    pub title: &'a str,
    /// What the experiment asks.
    pub question: Option<String>,
    /// What it found, in sentences.
    pub findings: Vec<String>,
    /// What a reader must know before believing the tables.
    pub warnings: Vec<String>,
    /// One row a strategy, the best first.
    pub summaries: Vec<Summary>,
    /// Utility of a response that is as good as the reference.
    pub neutral: f64,
    /// Figures.
    pub figures: Vec<Figure>,
    /// Strategies in the order of the config.
    pub strategies: &'a [String],
    /// Names and texts of the preferences, in the order of the browser.
    pub preferences: &'a [(String, String)],
    /// Every expert of the responses, in the order of colours.
    pub experts: &'a [String],
    /// Responses with their scores; the browser shows as many prompts as fit into a file of a few
    /// megabytes, the first ones.
    pub samples: Vec<(&'a GenerationRow, &'a ScoreRow)>,
    /// The other tables.
    pub tables: Vec<Table<'a>>,
    /// What was compared, as pairs of a term and its explanation.
    pub facts: Vec<(String, String)>,
    /// The experiment as text.
    pub config: &'a str,
    /// What the run was made from, as JSON.
    pub manifest: &'a str,
}

/// A picture with what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Name of its files in `plots/`, without ending.
    pub name: String,
    /// What it shows.
    pub caption: String,
    /// The picture.
    pub svg: String,
    /// It stands open; the others fold.
    pub main: bool,
}

impl Report<'_> {
    /// The report as an HTML document.
    ///
    /// # Errors
    /// [`crate::Error::Table`].
    pub fn html(&self) -> Result<String> {
        let title = escape_html(self.title);
        let script = include_str!("report.js");
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
             style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'\">\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <title>{title}</title><style>{}</style></head><body>\n<header><h1>{title}</h1><nav>",
            base64(&Sha256::digest(script)),
            include_str!("report.css")
        );
        let parts = [
            ("answers", "Answers", !self.samples.is_empty()),
            ("figures", "Figures", !self.figures.is_empty()),
            ("responses", "Responses", true),
            ("tables", "Tables", !self.tables.is_empty()),
            ("experiment", "Experiment", true),
        ];
        for (id, name, _) in parts.iter().filter(|(.., there)| *there) {
            write!(out, "<a href=\"#{id}\">{name}</a>").ok();
        }
        out.push_str("</nav></header>\n<main>\n");
        self.opening(&mut out);
        self.answers(&mut out);
        self.pictures(&mut out);
        self.browser(&mut out);
        if !self.tables.is_empty() {
            out.push_str("<h2 id=\"tables\">Tables</h2>\n");
        }
        for table in &self.tables {
            table.html(&mut out)?;
        }
        self.experiment(&mut out);
        writeln!(out, "</main>\n<script>{script}</script>\n</body></html>").ok();
        Ok(out)
    }

    fn pictures(&self, out: &mut String) {
        if self.figures.is_empty() {
            return;
        }
        out.push_str("<h2 id=\"figures\">Figures</h2>\n<p class=\"hint\">For print: plots/, as SVG and PNG.</p>\n");
        let (main, others): (Vec<&Figure>, Vec<&Figure>) =
            self.figures.iter().partition(|f| f.main);
        let draw = |figures: &[&Figure], out: &mut String| {
            out.push_str("<div class=\"figures\">\n");
            figures.iter().for_each(|f| f.html(out));
            out.push_str("</div>\n");
        };
        draw(&main, out);
        if !others.is_empty() {
            let n = frames::counted(others.len(), "more figure");
            write!(out, "<details class=\"section\"><summary>{n}</summary>").ok();
            draw(&others, out);
            out.push_str("</details>\n");
        }
    }

    fn browser(&self, out: &mut String) {
        let data = samples::data(self);
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
             expert with the largest weight, stronger for a larger weight; hover, tap or focus for weights, \
             log-probability and divergence from the base in nats.{part}</p>\n\
             <noscript>The browser of responses needs JavaScript; tables/responses.csv has all of them.\
             </noscript>\n<div class=\"controls\"></div>\n<div class=\"asked\" aria-live=\"polite\"></div>\n\
             <div class=\"cards\"></div>\n<output class=\"reading\"></output>\n\
             <script type=\"application/json\" id=\"samples\">{json}</script>"
        )
        .ok();
    }

    fn experiment(&self, out: &mut String) {
        out.push_str("<h2 id=\"experiment\">Experiment</h2>\n<dl>");
        for (term, text) in &self.facts {
            let (term, text) = (escape_html(term), escape_html(text));
            write!(out, "<dt>{term}</dt><dd>{text}</dd>").ok();
        }
        let (config, manifest) = (escape_html(self.config), escape_html(self.manifest));
        writeln!(
            out,
            "</dl>\n<details><summary>The experiment file</summary><pre tabindex=\"0\">{config}</pre></details>\n\
             <details><summary>manifest.json</summary><pre tabindex=\"0\">{manifest}</pre></details>"
        )
        .ok();
    }
}

impl Figure {
    /// As a picture: it adds one node to the page, and no style or script of it reaches the page.
    fn html(&self, out: &mut String) {
        let (caption, name) = (escape_html(&self.caption), escape_html(&self.name));
        let width = width(&self.svg);
        let wide = if width > WIDE { " class=\"wide\"" } else { "" };
        let mut data = String::with_capacity(self.svg.len() * 5 / 4);
        for c in self.svg.chars() {
            match c {
                '%' | '#' | '<' | '>' | '"' | '&' | '\'' | '\n' => {
                    write!(data, "%{:02X}", u32::from(c)).ok();
                }
                c if c.is_ascii() => data.push(c),
                c => data.push_str(&answers::encode(c.encode_utf8(&mut [0; 4]))),
            }
        }
        writeln!(
            out,
            "<figure{wide}><div class=\"picture\" tabindex=\"0\"><img alt=\"{caption}\" style=\"--width:{width}px\" \
             src=\"data:image/svg+xml,{data}\"></div><figcaption>{caption} <span class=\"file\">{name}</span></figcaption></figure>"
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

/// Bytes in base64, padded: how a content security policy names a hash.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { digit.into() } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::comparison::Comparison;
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
        let names = ["fixed".to_string()];
        let scores = [score.clone()];
        let comparison = Comparison::new(&scores, &names).unwrap();
        let report = Report {
            title: "t & t",
            question: Some("is <i> 1?".into()),
            findings: vec!["a <b> c".into()],
            warnings: vec!["1 < 2".into()],
            summaries: comparison.summaries(),
            neutral: 0.5,
            figures: vec![Figure {
                name: "f".into(),
                caption: "a \"<caption>".into(),
                svg: "<svg width=\"9\"><text>é</text></svg>".into(),
                main: true,
            }],
            facts: vec![("seed".into(), "1".into())],
            strategies: &names,
            preferences: &[("p".to_string(), "a <wish>".to_string())],
            experts: &["one".to_string(), "two".to_string()],
            samples: vec![(&row, &score)],
            config: "(name: \"<\")",
            manifest: "{}",
            ..Report::default()
        };
        let html = report.html().unwrap();
        assert!(html.contains("<title>t &amp; t</title>") && html.contains("1 &lt; 2"));
        assert!(html.contains("a \\u003c/script>\\u003cb>?"));
        assert!(html.contains("\"w\":[75,25,-50,150]") && html.contains("\"g\":[0.5,0.25]"));
        // The answer is shown once outside of the browser, with its question.
        assert!(html.contains("<blockquote>x&lt;y</blockquote>"));
        assert!(html.contains("<p class=\"asked\">a &lt;/script&gt;&lt;b&gt;?</p>"));
        assert!(html.contains("title=\"a &lt;wish&gt;\"") && html.contains("is &lt;i&gt; 1?"));
        assert!(html.contains("alt=\"a &quot;&lt;caption&gt;\""));
        assert!(
            html.contains(
                "src=\"data:image/svg+xml,%3Csvg width=%229%22%3E%3Ctext%3E%C3%A9%3C/text"
            )
        );
        let loads = html.matches("src=").count() - html.matches("src=\"data:").count();
        assert_eq!(loads, 0);
        assert!(!html.contains("http://") && !html.contains("https://"));
    }

    #[test]
    fn hashes_are_written_as_policies_want_them() {
        assert_eq!(base64(b"Man"), "TWFu");
        assert_eq!(base64(b"light w"), "bGlnaHQgdw==");
        assert_eq!(base64(b"light wo"), "bGlnaHQgd28=");
    }
}
