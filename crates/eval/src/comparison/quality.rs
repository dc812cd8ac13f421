//! How diverse and how long a strategy's responses are, apart from their utility.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::Comparison;
use super::tables::{frame, interval};
use crate::Result;
use crate::metrics::{bleu, distinct};
use crate::rows::GenerationRow;
use crate::statistics::Estimate;

impl Comparison<'_> {
    /// `quality`: how far a strategy's responses are from the base, how long, how repetitive, how diverse.
    ///
    /// # Errors
    /// [`crate::Error::Table`].
    pub fn quality_table(&self, generations: &[GenerationRow]) -> Result<DataFrame> {
        let names = &self.strategies;
        let of_all = |f: &dyn Fn(&str) -> Option<Estimate>| -> Vec<Option<Estimate>> {
            names.iter().map(|s| f(s)).collect()
        };
        let mut columns = vec![Column::new("strategy".into(), names)];
        columns.extend(interval("kl_per_token", &of_all(&|s| self.kl(s))));
        let mean = |get: fn(&crate::rows::ScoreRow) -> Option<f64>| -> Vec<Option<f64>> {
            names
                .iter()
                .map(|s| Some(self.estimate(s, get)?.mean))
                .collect()
        };
        let kl = names.iter().map(|s| Some(self.kl_per_response(s)?.mean));
        let kl: Vec<Option<f64>> = kl.collect();
        columns.push(Column::new("kl_per_response".into(), kl));
        let perplexity = |s: &String| {
            let nll = self.ratio(s, |r| Some((r.base_nll?, f64::from(r.tokens))))?;
            Some(nll.mean.exp()).filter(|p| p.is_finite())
        };
        let perplexity: Vec<Option<f64>> = names.iter().map(perplexity).collect();
        columns.push(Column::new("base_perplexity".into(), perplexity));
        columns.push(Column::new("worst_dimension".into(), mean(Self::worst)));
        let tokens = mean(|r| Some(f64::from(r.tokens)));
        columns.push(Column::new("tokens".into(), tokens));
        let ended = of_all(&|s| self.estimate(s, |r| Some(f64::from(u8::from(r.ended)))));
        columns.extend(interval("ended", &ended));
        // No Bradley-Terry utility is 0 but of what crosses a bound.
        let lost = mean(|r| Some(f64::from(u8::from(r.utility == 0.0))));
        columns.push(Column::new("lost".into(), lost));
        let repetition = mean(|r| Some(r.repetition));
        columns.push(Column::new("repetition".into(), repetition));
        let texts = |s: &String| -> Vec<&str> {
            let rows = generations.iter().filter(|g| g.identity.strategy == *s);
            rows.map(|g| g.response.as_str()).collect()
        };
        for n in [1, 2] {
            let values: Vec<Option<f64>> = names.iter().map(|s| distinct(&texts(s), n)).collect();
            columns.push(Column::new(format!("distinct_{n}").into(), values));
        }
        let self_bleu: Vec<Option<f64>> = names.iter().map(|s| self_bleu(s, generations)).collect();
        columns.push(Column::new("self_bleu".into(), self_bleu));
        frame("quality", columns)
    }
}

/// Self-BLEU of responses to different prompts for the same preference (and sample), averaged over these.
fn self_bleu(strategy: &str, generations: &[GenerationRow]) -> Option<f64> {
    let mut sets: BTreeMap<(&str, u32), Vec<Vec<String>>> = BTreeMap::new();
    for row in generations {
        let i = &row.identity;
        if i.strategy == strategy {
            let set = sets.entry((&i.preference, i.sample)).or_default();
            set.push(bleu::tokens(&row.response));
        }
    }
    let values = sets.values().map(|set| bleu::of_each_other(set));
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
