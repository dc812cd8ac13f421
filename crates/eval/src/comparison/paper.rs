//! The tables that a paper prints.

use super::{Comparison, LEVEL, Measure};
use crate::paper::{Better, Paper};
use crate::rounding::{decimals, number};
use crate::statistics::Estimate;

impl Comparison<'_> {
    /// A sentence on the table, and what its intervals and marks mean.
    fn note(&self, what: &str) -> String {
        let first = self.strategies.first().map_or("", String::as_str);
        format!(
            "{what} Mean ± half the 95 % interval (bootstrap over {} prompts). † differs in utility from \
             '{first}' (permutation test, Holm over the pairs with it, p < {LEVEL}; the least p possible is {}).",
            self.prompts.len(),
            number(self.least_p(), decimals(self.least_p()))
        )
    }

    /// A strategy's name, whether it differs from the first, and its cells.
    fn row(
        &self,
        name: &str,
        cells: Vec<Option<Estimate>>,
    ) -> (String, bool, Vec<Option<Estimate>>) {
        let differs = self.to_first(name).is_some_and(|d| d.p_holm < LEVEL);
        (name.to_string(), differs, cells)
    }

    /// Utility, mean win rate, reward in every stated dimension, divergence from the base and length.
    pub fn paper(&self) -> Paper {
        let stated = |d: &&String| self.strategies.iter().any(|s| self.reward(s, d).is_some());
        let dimensions: Vec<&String> = self.dimensions.iter().filter(stated).collect();
        let mut columns = vec![
            ("utility".to_string(), 3, Better::Higher),
            ("win rate".to_string(), 3, Better::Higher),
        ];
        columns.extend(dimensions.iter().map(|d| ((*d).clone(), 2, Better::Higher)));
        columns.push(("KL/response".into(), 2, Better::Neither));
        columns.push(("tokens".into(), 1, Better::Neither));
        let rows = self.strategies.iter().map(|s| {
            let mut cells = vec![self.utility(s), self.win_rate_estimate(s)];
            cells.extend(dimensions.iter().map(|d| self.reward(s, d)));
            cells.push(self.kl_per_response(s));
            cells.push(self.estimate(s, |r| Some(f64::from(r.tokens))));
            self.row(s, cells)
        });
        Paper {
            rows: rows.collect(),
            columns,
            note: self.note("Rewards are signed so that more is better."),
        }
    }

    /// Utility for every preference and over all.
    pub fn paper_preferences(&self) -> Paper {
        let names = self.preferences.iter();
        let mut columns: Vec<_> = names.map(|p| (p.clone(), 3, Better::Higher)).collect();
        columns.push(("all".into(), 3, Better::Higher));
        let rows = self.strategies.iter().map(|s| {
            let preferences = self.preferences.iter();
            let mut cells: Vec<Option<Estimate>> =
                preferences.map(|p| self.utility_for(s, p)).collect();
            cells.push(self.utility(s));
            self.row(s, cells)
        });
        Paper {
            rows: rows.collect(),
            columns,
            note: self.note("Mean utility by preference."),
        }
    }

    /// Mean win rate over all others, with its interval.
    fn win_rate_estimate(&self, strategy: &str) -> Option<Estimate> {
        let mut clusters = vec![Vec::new(); self.prompts.len()];
        for opponent in self.strategies.iter().filter(|o| *o != strategy) {
            let pairs = self.pairs(strategy, opponent, &Measure::Utility);
            for (wins, pairs) in clusters.iter_mut().zip(pairs) {
                wins.extend(pairs.iter().map(|(a, b)| crate::statistics::win(*a, *b)));
            }
        }
        self.bootstrap.mean(&clusters)
    }
}
