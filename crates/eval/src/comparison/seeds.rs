//! Seeds: how much of a result is the luck of a draw.
//!
//! Repetitions are measurements of the same prompts, so they stay inside the prompt's cluster: intervals and tests
//! draw prompts with all of their repetitions. How far repetitions are apart is told beside them.
//!
//! Trainings are a sample of their own: another seed would give another model. For them a second interval has both, prompts
//! and trainings being random effects: `mean ± t √(v_p + v_s)`, where `v_p` is the variance over prompts, `v_s = sd²/k` that
//! of the mean of k trainings, and t has the degrees of freedom of Welch and Satterthwaite, which are few where trainings
//! are few and differ.

use std::collections::BTreeSet;

use polars::prelude::*;

use super::tables::{frame, interval, mean_and_sd};
use super::{Comparison, Measure};
use crate::Result;
use crate::rows::ScoreRow;
use crate::statistics::{Estimate, permutation, student};

/// What is repeated where a method is trained with several seeds.
const TRAININGS: &str = "trainings";

/// One thing, several times.
struct Repeated {
    name: String,
    /// What is repeated.
    over: &'static str,
    /// A strategy, and one of its samples or all of them.
    seeds: Vec<(String, Option<u32>)>,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// Over all repetitions.
    all: Option<Estimate>,
    /// Standard deviation, smallest and largest of the means of the repetitions.
    spread: Option<[f64; 3]>,
}

impl Outcome {
    /// The interval that has trainings, `k` of them, as a random effect, too, over so many prompts.
    fn with_trainings(&self, k: usize, prompts: usize) -> Option<(f64, f64)> {
        let (all, [sd, ..]) = (self.all?, self.spread?);
        if k < 2 || prompts < 2 {
            return None;
        }
        let (n, k) = (prompts as f64, k as f64);
        let over_prompts = ((all.high - all.low) / 2.0 / student(prompts - 1)).powi(2);
        let over_trainings = sd * sd / k;
        let total = over_prompts + over_trainings;
        let parts = over_prompts.powi(2) / (n - 1.0) + over_trainings.powi(2) / (k - 1.0);
        // Never below the smaller of both but by rounding.
        let freedom = (total.powi(2) / parts + 1e-9).floor();
        let half = match total > 0.0 && freedom >= 1.0 {
            true => student(freedom as usize) * total.sqrt(),
            false => 0.0,
        };
        Some((all.mean - half, all.mean + half)).filter(|(low, _)| low.is_finite())
    }

    fn number(&self, i: usize) -> Option<f64> {
        self.spread.map(|s| s[i]).filter(|v| v.is_finite())
    }
}

impl Comparison<'_> {
    /// Strategies with several samples, and `repeats`: names for strategies that are one method, trained with
    /// several seeds.
    fn repeated(&self, repeats: &[(String, Vec<String>)]) -> Vec<Repeated> {
        let mut out = Vec::new();
        for (name, members) in repeats {
            let seeds = members.iter().map(|m| (m.clone(), None));
            out.push(Repeated {
                name: name.clone(),
                over: TRAININGS,
                seeds: seeds.collect(),
            });
        }
        for strategy in &self.strategies {
            let rows = self.rows[strategy.as_str()].iter();
            let samples: BTreeSet<u32> = rows.map(|(_, r)| r.identity.sample).collect();
            if samples.len() > 1 {
                let seeds = samples.iter().map(|s| (strategy.clone(), Some(*s)));
                out.push(Repeated {
                    name: strategy.clone(),
                    over: "samples",
                    seeds: seeds.collect(),
                });
            }
        }
        out
    }

    /// Values of all repetitions, by prompt, and what they come to.
    fn outcome(&self, repetitions: &[Vec<Vec<f64>>]) -> (Vec<Vec<f64>>, Outcome) {
        let mut together = vec![Vec::new(); self.prompts.len()];
        let mut means = Vec::new();
        for clusters in repetitions {
            let values: Vec<f64> = clusters.iter().flatten().copied().collect();
            if !values.is_empty() {
                means.push(mean_and_sd(&values).0);
            }
            together
                .iter_mut()
                .zip(clusters)
                .for_each(|(t, c)| t.extend(c));
        }
        let fold = |f: fn(f64, f64) -> f64| means.iter().copied().reduce(f);
        let spread = fold(f64::min).zip(fold(f64::max));
        let outcome = Outcome {
            all: self.bootstrap.mean(&together),
            spread: spread.and_then(|(low, high)| Some([mean_and_sd(&means).1?, low, high])),
        };
        (together, outcome)
    }

    /// `seeds`: for each strategy with several samples and each of `repeats`, utility and its difference to the
    /// first strategy over all repetitions, and the spread of their means.
    ///
    /// # Errors
    /// [`crate::Error::Table`].
    pub fn seed_table(&self, repeats: &[(String, Vec<String>)]) -> Result<DataFrame> {
        let repeated = self.repeated(repeats);
        let first = self.strategies.first().map_or("", String::as_str);
        let (mut utilities, mut differences) = (Vec::new(), Vec::new());
        let mut p: Vec<Option<f64>> = Vec::new();
        for Repeated { seeds, .. } in &repeated {
            let keep = |sample: &Option<u32>, row: &ScoreRow| {
                sample.is_none_or(|sample| row.identity.sample == sample)
            };
            let utility = seeds.iter().map(|(strategy, sample)| {
                let mut clusters = vec![Vec::new(); self.prompts.len()];
                let rows = self.rows[strategy.as_str()].iter();
                for (prompt, row) in rows.filter(|(_, row)| keep(sample, row)) {
                    clusters[*prompt].extend(Measure::Utility.of(row));
                }
                clusters
            });
            utilities.push(self.outcome(&utility.collect::<Vec<_>>()).1);
            if seeds.iter().any(|(strategy, _)| strategy == first) {
                differences.push(Outcome::default());
                p.push(None);
                continue;
            }
            let apart = seeds.iter().map(|(strategy, sample)| {
                let kept = |row: &ScoreRow| keep(sample, row);
                let pairs = self.pairs_where(strategy, first, &Measure::Utility, kept);
                let apart = |pairs: &Vec<(f64, f64)>| pairs.iter().map(|(a, b)| a - b).collect();
                pairs.iter().map(apart).collect::<Vec<Vec<f64>>>()
            });
            let (together, outcome) = self.outcome(&apart.collect::<Vec<_>>());
            let sums: Vec<f64> = together.iter().map(|d| d.iter().sum()).collect();
            p.push(Some(permutation::p_value(&sums)));
            differences.push(outcome);
        }
        let names: Vec<&str> = repeated.iter().map(|r| r.name.as_str()).collect();
        let over: Vec<&str> = repeated.iter().map(|r| r.over).collect();
        let counts: Vec<u32> = repeated.iter().map(|r| r.seeds.len() as u32).collect();
        let mut columns = vec![
            Column::new("strategy".into(), names),
            Column::new("over".into(), over),
            Column::new("seeds".into(), counts),
        ];
        let spreads = ["sd", "lowest", "highest"];
        for (name, outcomes) in [("utility", &utilities), ("difference", &differences)] {
            let all: Vec<Option<Estimate>> = outcomes.iter().map(|o| o.all).collect();
            columns.extend(interval(name, &all));
            for (i, spread) in spreads.iter().enumerate() {
                let values: Vec<Option<f64>> = outcomes.iter().map(|o| o.number(i)).collect();
                columns.push(Column::new(format!("{name}_{spread}").into(), values));
            }
            let both = outcomes.iter().zip(&repeated).map(|(outcome, repeated)| {
                let trainings = repeated.over == TRAININGS;
                let k = repeated.seeds.len();
                let both = trainings.then(|| outcome.with_trainings(k, self.prompts.len()));
                both.flatten()
            });
            let both: Vec<Option<(f64, f64)>> = both.collect();
            for (end, get) in [("low", 0), ("high", 1)] {
                let values = both.iter().map(|b| b.map(|b| [b.0, b.1][get]));
                let column = format!("{name}_trainings_{end}");
                columns.push(Column::new(column.into(), values.collect::<Vec<_>>()));
            }
        }
        columns.push(Column::new("p".into(), p));
        frame("seeds", columns)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::rows::Identity;

    fn row(strategy: &str, prompt: &str, sample: u32, utility: f64) -> ScoreRow {
        ScoreRow {
            identity: Identity {
                strategy: strategy.into(),
                preference: "p".into(),
                prompt: prompt.into(),
                sample,
            },
            utility,
            tokens: 1,
            ended: true,
            repetition: 0.0,
            kl: None,
            base_nll: None,
            dimensions: Default::default(),
        }
    }

    #[test]
    fn seeds_stay_with_their_prompt_and_their_spread_is_told() {
        let mut rows = Vec::new();
        for (strategy, plus) in [("base", 0.0), ("one", 0.2), ("two", 0.4)] {
            for (prompt, mean) in [("a", 0.1), ("b", 0.3)] {
                for sample in 0..2 {
                    let luck = 0.05 * f64::from(sample);
                    rows.push(row(strategy, prompt, sample, mean + plus + luck));
                }
            }
        }
        let names = ["base", "one", "two"].map(String::from);
        let comparison = Comparison::new(&rows, &names).unwrap();
        let both = ("both".to_string(), names[1..].to_vec());
        let table = comparison.seed_table(&[both]).unwrap();
        let number = |column: &str, row: usize| {
            let column = table.column(column).unwrap().f64().unwrap();
            column.get(row)
        };
        let near = |column: &str, row: usize, expected: f64| {
            let got = number(column, row).unwrap();
            assert!((got - expected).abs() < 1e-12, "{column} {row}: {got}");
        };
        assert_eq!(table.height(), 4);
        // Two trainings, 0.2 and 0.4 above the base on every prompt: their luck, not the prompts', is the spread.
        near("utility", 0, 0.2 + 0.025 + 0.3);
        near("utility_sd", 0, 0.2 / 2f64.sqrt());
        near("difference", 0, 0.3);
        near("difference_low", 0, 0.3);
        // Two trainings 0.2 apart on every prompt alike: all of it is theirs, 0.3 ± 12.706 · 0.1.
        near(
            "difference_trainings_low",
            0,
            0.3 - 12.706_204_736_174_7 * 0.1,
        );
        near(
            "difference_trainings_high",
            0,
            0.3 + 12.706_204_736_174_7 * 0.1,
        );
        near("difference_lowest", 0, 0.2);
        near("difference_highest", 0, 0.4);
        // Samples of a strategy: 0.05 apart, and the same as the base's where paired.
        near("utility_sd", 2, 0.05 / 2f64.sqrt());
        near("utility_low", 2, 0.325);
        near("utility_high", 2, 0.525);
        near("difference_sd", 2, 0.0);
        assert_eq!((number("difference", 1), number("p", 1)), (None, None));
        let single: Vec<ScoreRow> = rows
            .into_iter()
            .filter(|r| r.identity.sample == 0)
            .collect();
        let comparison = Comparison::new(&single, &names).unwrap();
        assert_eq!(comparison.seed_table(&[]).unwrap().height(), 0);
    }
}
