//! How far strategies are from the base, in one definition, and what utility that buys.
//!
//! - `KL`: divergence from the base summed over a response, in nats, mean over all responses. Of a strategy that keeps
//!   the best of n responses, what choosing adds at most stands on top: `ln n − (n − 1)/n` nats a response
//!   (arXiv 2401.01879). Of a fixed text it is `−ln p(text)` under the base, the divergence of what says nothing else.
//! - `a = Δutility / √KL`, Δ against the base: small steps of any tilt gain with the root of their divergence (arXiv
//!   2210.10760), so `a` compares directions, whatever the strengths.

use super::{Comparison, Measure};
use crate::statistics::Estimate;

/// Divergence in nats below which a strategy has not left the base.
const STILL: f64 = 1e-9;

/// What a strategy's divergence is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Distance {
    /// Measured at every token.
    #[default]
    Measured,
    /// Measured, and at most so much more, in nats a response: the best of several is kept.
    Bound(f64),
    /// That of fixed texts: `−ln p` under the base.
    Text,
}

impl Distance {
    /// Of a strategy that keeps the best of `n` responses.
    ///
    /// ```
    /// use mope_eval::comparison::Distance;
    /// let Distance::Bound(nats) = Distance::best_of(4) else { unreachable!() };
    /// assert!((nats - (4f64.ln() - 0.75)).abs() < 1e-12);
    /// assert_eq!(Distance::best_of(1), Distance::Measured);
    /// ```
    pub fn best_of(n: usize) -> Self {
        match n {
            0 | 1 => Self::Measured,
            n => Self::Bound((n as f64).ln() - (n - 1) as f64 / n as f64),
        }
    }

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Bound(_) => "bound",
            Self::Text => "text",
        }
    }

    /// What choosing adds at most, in nats a response.
    pub(crate) fn added(self) -> f64 {
        match self {
            Self::Bound(nats) => nats,
            Self::Measured | Self::Text => 0.0,
        }
    }
}

impl Comparison<'_> {
    /// What a strategy's divergence is.
    pub fn distance(&self, strategy: &str) -> Distance {
        self.distances.get(strategy).copied().unwrap_or_default()
    }

    /// Divergence from the base per response, in nats.
    pub fn kl_per_response(&self, strategy: &str) -> Option<Estimate> {
        let added = self.distance(strategy).added();
        self.estimate(strategy, |r| Some(r.kl? + added))
    }

    /// Divergence from the base per token, in nats: all of it over all tokens.
    pub fn kl(&self, strategy: &str) -> Option<Estimate> {
        let added = self.distance(strategy).added();
        self.ratio(strategy, |r| Some((r.kl? + added, f64::from(r.tokens))))
    }

    /// The strategy that never leaves the base.
    pub fn base(&self) -> Option<&String> {
        let still = |s: &&String| {
            let mut rows = self.rows[s.as_str()].iter();
            self.distance(s) == Distance::Measured
                && rows.all(|(_, r)| r.kl.is_some_and(|kl| kl.abs() < STILL))
        };
        self.strategies.iter().find(still)
    }

    /// `a`: utility gained over the base per root of the divergence, both over the same draws of prompts; `None` where no
    /// strategy is the base, and for one that has not left it.
    pub fn gain_per_root(&self, strategy: &str) -> Option<Estimate> {
        let base = self.base()?;
        let kl = self.kl_per_response(strategy).filter(|e| e.mean > STILL)?;
        // Sums by prompt: gains, pairs, divergences, responses.
        let mut cells = vec![[0.0; 4]; self.prompts.len()];
        let pairs = self.pairs(strategy, base, &Measure::Utility);
        for (cell, pairs) in cells.iter_mut().zip(&pairs) {
            cell[0] = pairs.iter().map(|(a, b)| a - b).sum();
            cell[1] = pairs.len() as f64;
        }
        let added = self.distance(strategy).added();
        for (prompt, row) in &self.rows[strategy] {
            if let Some(kl) = row.kl.filter(|kl| kl.is_finite()) {
                cells[*prompt][2] += kl + added;
                cells[*prompt][3] += 1.0;
            }
        }
        let of = |draw: &[u32]| {
            let sum = |i: usize| draw.iter().map(|&p| cells[p as usize][i]).sum::<f64>();
            let (gain, root) = (sum(0) / sum(1), (sum(2) / sum(3)).sqrt());
            Some(gain / root).filter(|a| a.is_finite())
        };
        let all: Vec<u32> = (0..self.prompts.len() as u32).collect();
        let mean = of(&all)?;
        let (low, high) = self.bootstrap.interval(of)?;
        let count = kl.count;
        Some(Estimate {
            mean,
            low,
            high,
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::{Identity, ScoreRow};

    fn row(strategy: &str, prompt: usize, utility: f64, kl: f64) -> ScoreRow {
        ScoreRow {
            identity: Identity {
                strategy: strategy.into(),
                preference: "p".into(),
                prompt: prompt.to_string(),
                sample: 0,
            },
            utility,
            tokens: 10,
            ended: true,
            repetition: 0.0,
            kl: Some(kl),
            base_nll: None,
            dimensions: Default::default(),
        }
    }

    #[test]
    fn what_choosing_adds_is_told() {
        let mut rows = Vec::new();
        for prompt in 0..4 {
            rows.push(row("base", prompt, 0.5, 0.0));
            rows.push(row("best_of_4", prompt, 0.576, 0.0));
            rows.push(row(
                "dera",
                prompt,
                0.5 + 0.03 * 2.0,
                3.0 + 2.0 * (prompt % 2) as f64,
            ));
        }
        let names = ["base", "best_of_4", "dera"].map(String::from);
        let distances = [("best_of_4".to_string(), Distance::best_of(4))];
        let comparison = Comparison::new(&rows, &names).unwrap();
        // Without the bound it looks as if it had not left the base.
        assert_eq!(comparison.gain_per_root("best_of_4"), None);
        let comparison = comparison.with_distances(distances.into());
        assert_eq!(comparison.base().unwrap(), "base");
        let bound = 4f64.ln() - 0.75;
        let kl = comparison.kl_per_response("best_of_4").unwrap();
        assert!((kl.mean - bound).abs() < 1e-12);
        assert!((comparison.kl("best_of_4").unwrap().mean - bound / 10.0).abs() < 1e-12);
        let a = comparison.gain_per_root("best_of_4").unwrap();
        assert!((a.mean - 0.076 / bound.sqrt()).abs() < 1e-12 && (a.mean - 0.095).abs() < 0.001);
        let a = comparison.gain_per_root("dera").unwrap();
        assert!((a.mean - 0.03).abs() < 1e-12);
        // Prompts differ in their divergence alone: all draws lie between 3 and 5 nats.
        assert!(a.low >= 0.06 / 5f64.sqrt() - 1e-12 && a.high <= 0.06 / 3f64.sqrt() + 1e-12);
        assert!(a.low < a.mean && a.mean < a.high);
        assert_eq!(comparison.gain_per_root("base"), None);
        #[cfg(feature = "tables")]
        {
            let ranking = comparison.ranking().unwrap();
            let place = |name: &str| {
                let names = ranking.column("strategy").unwrap().str().unwrap();
                names.iter().position(|n| n == Some(name)).unwrap()
            };
            let number = |column: &str, name: &str| {
                ranking
                    .column(column)
                    .unwrap()
                    .f64()
                    .unwrap()
                    .get(place(name))
            };
            assert_eq!(
                (number("kl", "base"), number("a", "base")),
                (Some(0.0), None)
            );
            assert_eq!(number("kl", "dera"), Some(4.0));
            let kinds = ranking.column("kl_is").unwrap().str().unwrap();
            assert_eq!(kinds.get(place("best_of_4")), Some("bound"));
        }
    }
}
