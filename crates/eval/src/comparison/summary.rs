//! What a run found: one row a strategy, the best first, and the sentences that the rows come down to.

use super::{Comparison, Difference, Distance, LEVEL};
use crate::rounding::{list, number, p_value};
use crate::statistics::Estimate;

/// One strategy, as people compare it.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Its name.
    pub strategy: String,
    /// Its index in the order of the config: its colour and mark.
    pub place: usize,
    /// Mean utility.
    pub utility: Option<Estimate>,
    /// It is the best, or no test tells it from the best.
    pub among_best: bool,
    /// Difference in utility to the first strategy of the config.
    pub difference: Option<Difference>,
    /// Divergence from the base per response, in nats.
    pub kl_per_response: Option<f64>,
    /// What that divergence is.
    pub distance: Distance,
    /// Utility gained over the base per square root of the divergence; `None` where no strategy is the base.
    pub gain_per_root: Option<Estimate>,
    /// Mean win rate over all others.
    pub win_rate: Option<f64>,
    /// Share of responses that end by themselves.
    pub ended: Option<f64>,
    /// Mean length in tokens.
    pub tokens: Option<f64>,
    /// Divergence from the base per token, in nats.
    pub kl_per_token: Option<f64>,
    /// Bradley-Terry log-strength.
    pub strength: Option<Estimate>,
    /// Number of responses.
    pub responses: usize,
}

impl Comparison<'_> {
    /// The difference of two strategies, whichever stands first in the config; `None` of one to itself.
    pub fn between(&self, strategy: &str, opponent: &str) -> Option<Difference> {
        let of = |a: &str, b: &str| {
            let mut all = self.differences.iter();
            all.find(|d| d.strategy == a && d.opponent == b)
        };
        if let Some(difference) = of(strategy, opponent) {
            return Some(difference.clone());
        }
        let turned = of(opponent, strategy)?;
        let e = turned.difference;
        Some(Difference {
            strategy: strategy.into(),
            opponent: opponent.into(),
            difference: Estimate {
                mean: -e.mean,
                low: -e.high,
                high: -e.low,
                count: e.count,
            },
            ..turned.clone()
        })
    }

    fn mean_utility(&self, strategy: &str) -> Option<f64> {
        let rows = self.rows.get(strategy)?.iter();
        let values: Vec<f64> = rows
            .map(|(_, r)| r.utility)
            .filter(|u| u.is_finite())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Indices of the strategies, the highest utility first; those without one last.
    pub fn by_utility(&self) -> Vec<usize> {
        let means: Vec<f64> = self
            .strategies
            .iter()
            .map(|s| self.mean_utility(s).unwrap_or(f64::NEG_INFINITY))
            .collect();
        let mut order: Vec<usize> = (0..means.len()).collect();
        order.sort_by(|a, b| means[*b].total_cmp(&means[*a]));
        order
    }

    /// One row a strategy, in the order of [`Self::by_utility`].
    pub fn summaries(&self) -> Vec<Summary> {
        let order = self.by_utility();
        let Some(best) = order.first().map(|&i| self.strategies[i].as_str()) else {
            return Vec::new();
        };
        let mean = |s: &str, get: fn(&crate::rows::ScoreRow) -> Option<f64>| {
            let rows = self.rows.get(s).into_iter().flatten();
            let values = rows.filter_map(|(_, r)| get(r));
            let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let row = |place: usize| {
            let strategy = &self.strategies[place];
            let to_best = self.between(strategy, best);
            Summary {
                place,
                utility: self.utility(strategy).and_then(Estimate::finite),
                among_best: strategy == best || to_best.is_some_and(|d| d.p_holm >= LEVEL),
                difference: self.to_first(strategy).cloned(),
                kl_per_response: self.kl_per_response(strategy).map(|e| e.mean),
                distance: self.distance(strategy),
                gain_per_root: self.gain_per_root(strategy),
                win_rate: self.win_rate(strategy),
                ended: mean(strategy, |r| Some(f64::from(u8::from(r.ended)))),
                tokens: mean(strategy, |r| Some(f64::from(r.tokens))),
                kl_per_token: self.kl(strategy).map(|e| e.mean).filter(|v| v.is_finite()),
                strength: Some(self.strengths[place]).filter(|_| self.has_utility(strategy)),
                responses: self.rows[strategy.as_str()].len(),
                strategy: strategy.clone(),
            }
        };
        order.into_iter().map(row).collect()
    }

    /// One comparison in a sentence, and how sure it is.
    fn sentence(&self, d: &Difference) -> String {
        let e = d.difference;
        let (way, low, high) = match e.mean < 0.0 {
            true => ("behind", -e.high, -e.low),
            false => ("ahead of", e.low, e.high),
        };
        let sure = match d.p_holm < LEVEL {
            true => format!(", {} after Holm's correction.", p_value(d.p_holm)),
            false => format!(
                "; not significant after Holm's correction ({}): {} prompts.",
                p_value(d.p_holm),
                self.prompts.len()
            ),
        };
        format!(
            "{} is {way} {} by {} ({} to {}){sure}",
            d.strategy,
            d.opponent,
            number(e.mean.abs(), 3),
            number(low, 3),
            number(high, 3)
        )
    }

    /// What the run found, in sentences: the best, how far it is from the first strategy of the config and from the
    /// next one, and what the others are to the first.
    pub fn findings(&self) -> Vec<String> {
        let rows = self.summaries();
        let Some((best, utility)) = rows.first().and_then(|r| Some((r, r.utility?))) else {
            return vec!["No response has a utility.".into()];
        };
        let level = format!(
            "{} ({} to {})",
            number(utility.mean, 3),
            number(utility.low, 3),
            number(utility.high, 3)
        );
        if rows.len() == 1 {
            return vec![format!("{} has a utility of {level}.", best.strategy)];
        }
        let equal: Vec<&str> = rows[1..]
            .iter()
            .filter(|r| r.among_best)
            .map(|r| r.strategy.as_str())
            .collect();
        let equal = match equal.len() {
            0 => "Every other strategy is significantly below it.".to_string(),
            n if n == rows.len() - 1 => "No other strategy is significantly below it.".into(),
            1 => format!("Only {} is not significantly below it.", equal[0]),
            n if n > 4 => format!("{n} others are not significantly below it."),
            _ => format!("{} are not significantly below it.", list(&equal)),
        };
        let mut out = vec![format!(
            "{} has the highest utility, {level}. {equal}",
            best.strategy
        )];
        let first = &self.strategies[0];
        let against = [first, &rows[1].strategy];
        for (i, opponent) in against.iter().enumerate() {
            let again = against[..i].contains(opponent);
            let difference = self.between(&best.strategy, opponent).filter(|_| !again);
            out.extend(difference.map(|d| self.sentence(&d)));
        }
        out.extend(self.others(first, &best.strategy));
        out.extend(self.too_few());
        out
    }

    /// What the strategies that no other sentence compares with the first are to it.
    fn others(&self, first: &str, best: &str) -> Option<String> {
        let others = self.strategies.iter().filter(|s| *s != first && *s != best);
        let others: Vec<Difference> = others.filter_map(|s| self.between(s, first)).collect();
        let of = |ahead: bool| -> Vec<&str> {
            let sure = others.iter().filter(|d| d.p_holm < LEVEL);
            let names = sure.filter(|d| (d.difference.mean > 0.0) == ahead);
            names.map(|d| d.strategy.as_str()).collect()
        };
        let (ahead, behind) = (of(true), of(false));
        let open = others.len() - ahead.len() - behind.len();
        let verb = |names: &[&str]| if names.len() == 1 { "is" } else { "are" };
        let mut parts = Vec::new();
        if !ahead.is_empty() {
            parts.push(format!(
                "{} {} significantly ahead",
                list(&ahead),
                verb(&ahead)
            ));
        }
        if !behind.is_empty() {
            parts.push(format!(
                "{} {} significantly behind",
                list(&behind),
                verb(&behind)
            ));
        }
        match (open, parts.is_empty()) {
            (0, true) => return None,
            (0, false) => {}
            (1, true) => parts.push("the other strategy does not differ significantly".into()),
            (n, true) => parts.push(format!(
                "the other {n} strategies do not differ significantly"
            )),
            (1, false) => parts.push("one does not differ significantly".into()),
            (n, false) => parts.push(format!("{n} do not differ significantly")),
        }
        Some(format!("Against {first}: {}.", parts.join("; ")))
    }

    /// That no difference to the first strategy can be significant, where prompts are too few for the number of
    /// strategies: the permutation test of n prompts has p ≥ 2/2ⁿ, before the correction.
    fn too_few(&self) -> Option<String> {
        let (prompts, pairs) = (self.prompts.len(), self.strategies.len() - 1);
        let to_first = match pairs {
            1 => "one difference".to_string(),
            n => format!("{n} differences"),
        };
        (pairs > 0 && self.least_p() >= LEVEL).then(|| {
            let needed = (2.0 * pairs as f64 / LEVEL).log2().floor() + 1.0;
            format!(
                "With {prompts} prompts and {to_first} to {} none can be significant; it takes at least {needed:.0} prompts.",
                self.strategies[0]
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::{Identity, ScoreRow};

    fn rows(
        strategy: &str,
        prompts: usize,
        utility: impl Fn(usize) -> f64,
        kl: f64,
    ) -> Vec<ScoreRow> {
        let row = |prompt: usize| ScoreRow {
            identity: Identity {
                strategy: strategy.into(),
                preference: "p".into(),
                prompt: prompt.to_string(),
                sample: 0,
            },
            utility: utility(prompt),
            tokens: 10,
            ended: prompt.is_multiple_of(2),
            repetition: 0.0,
            kl: Some(kl),
            base_nll: None,
            dimensions: Default::default(),
        };
        (0..prompts).map(row).collect()
    }

    fn noise(prompt: usize) -> f64 {
        0.01 * (prompt % 3) as f64
    }

    #[test]
    fn the_best_comes_first_whatever_wins() {
        // 'often' wins two of three prompts, and has the lower utility.
        let mut all = rows("base", 3, |_| 0.5, 0.0);
        all.extend(rows("often", 3, |p| if p == 0 { 0.1 } else { 0.6 }, 4.0));
        all.extend(rows("pcm", 3, |_| 0.55, 4.0));
        let names = ["base", "often", "pcm"].map(String::from);
        let comparison = Comparison::new(&all, &names).unwrap();
        assert_eq!(comparison.by_utility(), [2, 0, 1]);
        let rows = comparison.summaries();
        assert_eq!((rows[0].strategy.as_str(), rows[0].place), ("pcm", 2));
        // A gain of 0.05 over √4.
        assert!((rows[0].gain_per_root.unwrap().mean - 0.025).abs() < 1e-12);
        assert_eq!(
            (rows[1].gain_per_root, rows[1].difference.as_ref()),
            (None, None)
        );
        assert_eq!(rows[0].ended, Some(2.0 / 3.0));
        let turned = comparison.between("base", "pcm").unwrap().difference;
        assert!((turned.mean + 0.05).abs() < 1e-12 && turned.low <= turned.high);
        let said = comparison.findings();
        assert_eq!(
            said[0],
            "pcm has the highest utility, 0.550 (0.550 to 0.550). No other strategy is significantly below it."
        );
        assert!(
            said[1].starts_with("pcm is ahead of base by 0.050 (0.050 to 0.050); not significant")
        );
        assert!(said[1].ends_with(": 3 prompts."), "{}", said[1]);
        assert_eq!(
            said[2],
            "Against base: the other strategy does not differ significantly."
        );
        // 2/2^7 × 2 pairs with the first is 0.031.
        assert_eq!(
            said[3],
            "With 3 prompts and 2 differences to base none can be significant; it takes at least 7 prompts."
        );
    }

    #[test]
    fn what_is_sure_is_said_so() {
        let mut all = rows("pcm", 20, |p| 0.7 + noise(p), 1.0);
        all.extend(rows("base", 20, |p| 0.5 + noise(p + 1), 0.0));
        all.extend(rows("equal", 20, |p| 0.699 + noise(p + 2), 1.0));
        let names = ["pcm", "base", "equal"].map(String::from);
        let comparison = Comparison::new(&all, &names).unwrap();
        let said = comparison.findings();
        assert!(
            said[0].ends_with("Only equal is not significantly below it."),
            "{said:?}"
        );
        assert!(said[1].contains("ahead of equal") && said[1].contains("not significant"));
        assert_eq!(
            said[2],
            "Against pcm: base is significantly behind; one does not differ significantly."
        );
        assert_eq!(said.len(), 3);
        let rows = comparison.summaries();
        assert_eq!(
            rows.iter().map(|r| r.among_best).collect::<Vec<_>>(),
            [true, true, false]
        );
    }

    #[test]
    fn one_strategy_and_none_that_is_scored() {
        let names = ["pcm".to_string()];
        let all = rows("pcm", 2, |_| 0.5, 1.0);
        let said = Comparison::new(&all, &names).unwrap().findings();
        assert_eq!(said, ["pcm has a utility of 0.500 (0.500 to 0.500)."]);
        let all = rows("pcm", 2, |_| f64::NAN, 1.0);
        let said = Comparison::new(&all, &names).unwrap().findings();
        assert_eq!(said, ["No response has a utility."]);
    }
}
