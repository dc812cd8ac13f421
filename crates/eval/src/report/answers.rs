//! Three answers, chosen by rule: where the best strategy gains most, the middle case, and where it loses most.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::Report;
use crate::escape::escape_html;
use crate::rounding::{number, signed};
use crate::rows::{GenerationRow, ScoreRow};

type Sample<'a> = (&'a GenerationRow, &'a ScoreRow);

/// One case: the answer of the best strategy, the one it is compared with, and the difference in utility (or the
/// utility itself where there is no other strategy).
struct Case<'a> {
    answers: Vec<Sample<'a>>,
    gain: f64,
}

impl<'a> Report<'a> {
    /// The strategies whose answers are shown: the best one, and the first of the config or, if that is the best, the
    /// next one.
    fn compared(&self) -> Option<(&str, Option<&str>)> {
        let best = self.summaries.first()?.strategy.as_str();
        let first = self.strategies.first().map(String::as_str);
        let next = self.summaries.get(1).map(|s| s.strategy.as_str());
        Some((best, first.filter(|f| *f != best).or(next)))
    }

    /// All cases, the largest gain first; ties in the order of the responses.
    fn cases(&self, best: &str, opponent: Option<&str>) -> Vec<Case<'a>> {
        let key = |r: &'a GenerationRow| {
            let i = &r.identity;
            (i.preference.as_str(), i.prompt.as_str(), i.sample)
        };
        let of = |name: &str| -> Vec<Sample<'a>> {
            let samples = self.samples.iter().copied();
            samples
                .filter(|(r, s)| r.identity.strategy == name && s.utility.is_finite())
                .collect()
        };
        let others: HashMap<_, Sample<'a>> = opponent
            .map(|name| of(name).into_iter().map(|s| (key(s.0), s)).collect())
            .unwrap_or_default();
        let case = |sample: Sample<'a>| match opponent {
            None => Some(Case {
                answers: vec![sample],
                gain: sample.1.utility,
            }),
            Some(_) => {
                let other = *others.get(&key(sample.0))?;
                let gain = sample.1.utility - other.1.utility;
                Some(Case {
                    answers: vec![sample, other],
                    gain,
                })
            }
        };
        let mut cases: Vec<Case<'a>> = of(best).into_iter().filter_map(case).collect();
        cases.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        cases
    }

    /// The section, if there are responses to choose from.
    pub(super) fn answers(&self, out: &mut String) {
        let Some((best, opponent)) = self.compared() else {
            return;
        };
        let cases = self.cases(best, opponent);
        if cases.is_empty() {
            return;
        }
        let by = match opponent {
            Some(opponent) => format!(
                "Of {} cases, by the difference in utility of {best} to {opponent}: the largest, the median, the smallest.",
                cases.len()
            ),
            None => format!(
                "Of {} responses, by utility: the highest, the median, the lowest.",
                cases.len()
            ),
        };
        writeln!(
            out,
            "<h2 id=\"answers\">Three answers</h2>\n<p class=\"hint\">{}</p>\n<div class=\"answers\">",
            escape_html(&by)
        )
        .ok();
        let mut shown = Vec::new();
        let titles = ["best case", "median case", "worst case"];
        for (title, index) in titles.iter().zip([0, cases.len() / 2, cases.len() - 1]) {
            if shown.contains(&index) {
                continue;
            }
            shown.push(index);
            self.case(title, &cases[index], opponent.is_some(), out);
        }
        out.push_str("</div>\n");
    }

    fn case(&self, title: &str, case: &Case<'_>, compared: bool, out: &mut String) {
        let row = case.answers[0].0;
        let identity = &row.identity;
        let gain = match compared {
            true => signed(case.gain, 3),
            false => number(case.gain, 3),
        };
        let preference = escape_html(&identity.preference);
        let wish = self
            .preferences
            .iter()
            .find(|(name, _)| *name == identity.preference);
        let wish = wish.map(|(_, text)| escape_html(text)).unwrap_or_default();
        write!(
            out,
            "<article class=\"case\"><h3>{title} <span class=\"gain\">{gain}</span></h3>\
             <p class=\"hint\">prompt {}, preference <abbr title=\"{wish}\">{preference}</abbr> · <a href=\"#{}\">all answers</a></p>\
             <p class=\"asked\">{}</p>",
            escape_html(&identity.prompt),
            escape_html(&link(row)),
            escape_html(&row.question)
        )
        .ok();
        for (row, score) in &case.answers {
            let rewards = score.dimensions.iter().filter(|(_, d)| d.stated != 0.0);
            let rewards = rewards.map(|(name, d)| {
                format!(
                    " · {} {}",
                    escape_html(name),
                    signed(d.reward * d.stated.signum(), 2)
                )
            });
            let ended = if row.ended {
                ""
            } else {
                " · cut at the limit"
            };
            write!(
                out,
                "<h4>{} <span class=\"hint\">utility {}{}{ended}</span></h4><blockquote>{}</blockquote>",
                escape_html(&row.identity.strategy),
                number(score.utility, 3),
                rewards.collect::<String>(),
                escape_html(row.response.trim())
            )
            .ok();
        }
        out.push_str("</article>\n");
    }
}

/// What the browser of responses opens a case by: `response=preference/prompt/sample`, percent-encoded.
fn link(row: &GenerationRow) -> String {
    let i = &row.identity;
    let (preference, prompt) = (encode(&i.preference), encode(&i.prompt));
    format!("response={preference}/{prompt}/{}", i.sample)
}

/// Percent-encodes all but letters, digits, `-`, `_` and `.`: a part of a fragment, or a data URL.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte.into()),
            _ => {
                write!(out, "%{byte:02X}").ok();
            }
        }
    }
    out
}
