//! What raters' answers come down to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use polars::prelude::*;

use super::agreement::krippendorff;
use super::{Answer, Answers, Key};
use crate::comparison::interval;
use crate::statistics::permutation::p_value;
use crate::statistics::{Bootstrap, Estimate, ranking};
use crate::{Error, Result};

/// What raters' answers come down to.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// One row a pair of strategies: answers for the first, for the second and for neither (`wins`, `losses`, `ties`),
    /// pairs of responses that most raters gave to either (`pairs_won`, `pairs_lost`), and `p` that these are as likely one
    /// way as the other.
    pub pairs: DataFrame,
    /// One row a strategy: Bradley-Terry `strength` with its interval over prompts, and `answers`.
    pub strengths: DataFrame,
    /// Krippendorff's α of the answers; `None` where nobody answered what another did.
    pub alpha: Option<f64>,
    /// Raters.
    pub raters: usize,
}

/// Two strategies that met, seen from the first.
#[derive(Default)]
struct Met {
    /// Answers for it, for the other and for neither.
    answers: [usize; 3],
    /// Pairs of responses that most raters gave to it and to the other.
    pairs: [usize; 2],
    /// Pairs won less pairs lost, by prompt.
    votes: Vec<f64>,
}

impl Analysis {
    /// Analyses answers that [`super::read_answers`] has checked.
    ///
    /// # Errors
    /// [`Error::NoAnswers`], [`Error::UnknownStrategy`].
    pub fn of(key: &Key, answers: &[Answers]) -> Result<Self> {
        let n = key.strategies.len();
        let index = |name: &String| {
            let index = key.strategies.iter().position(|s| s == name);
            index.ok_or_else(|| Error::UnknownStrategy { name: name.clone() })
        };
        // Answers by pair, 0 for the left one, 1 for the right one, 2 for neither.
        let mut units: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (id, answer) in answers.iter().flat_map(|a| &a.answers) {
            let value = match answer {
                Answer::Left => 0,
                Answer::Right => 1,
                Answer::Tie => 2,
            };
            units.entry(*id).or_default().push(value);
        }
        if units.is_empty() {
            return Err(Error::NoAnswers);
        }
        let prompts: BTreeSet<&str> = units
            .keys()
            .map(|id| key.pairs[id].prompt.as_str())
            .collect();
        let prompts: Vec<&str> = prompts.into_iter().collect();
        let mut met: BTreeMap<(usize, usize), Met> = BTreeMap::new();
        let mut wins = vec![vec![0.0; n * n]; prompts.len()];
        let mut shown = vec![0u32; n];
        for (id, values) in &units {
            let origin = &key.pairs[id];
            let (left, right) = (index(&origin.left)?, index(&origin.right)?);
            let prompt = prompts.iter().position(|p| *p == origin.prompt);
            let prompt = prompt.unwrap_or(0);
            let wins = &mut wins[prompt];
            let (first, second) = (left.min(right), left.max(right));
            let met = met.entry((first, second)).or_insert_with(|| Met {
                votes: vec![0.0; prompts.len()],
                ..Met::default()
            });
            let of = |side: usize| values.iter().filter(|v| **v == side).count();
            let lead = (of(0) as i64 - of(1) as i64) * if left == first { 1 } else { -1 };
            met.pairs[0] += usize::from(lead > 0);
            met.pairs[1] += usize::from(lead < 0);
            met.votes[prompt] += lead.signum() as f64;
            for value in values {
                let winner = [Some(left), Some(right), None][*value];
                let count = &mut met.answers;
                match winner {
                    None => {
                        count[2] += 1;
                        wins[left * n + right] += 0.5;
                        wins[right * n + left] += 0.5;
                    }
                    Some(winner) => {
                        count[usize::from(winner != first)] += 1;
                        wins[winner * n + left + right - winner] += 1.0;
                    }
                }
                shown[left] += 1;
                shown[right] += 1;
            }
        }
        let bootstrap = Bootstrap::new(prompts.len());
        let strengths: Vec<Option<Estimate>> = ranking::estimate(&bootstrap, &wins, n)
            .into_iter()
            .map(Some)
            .collect();
        let mut columns = vec![Column::new("strategy".into(), &key.strategies)];
        columns.extend(interval("strength", &strengths));
        columns.push(Column::new("answers".into(), shown));
        let strengths = DataFrame::new_infer_height(columns);
        let name = |get: fn(&(usize, usize)) -> usize| -> Vec<&str> {
            met.keys()
                .map(|k| key.strategies[get(k)].as_str())
                .collect()
        };
        let count = |get: &dyn Fn(&Met) -> usize| -> Vec<u32> {
            met.values().map(|met| get(met) as u32).collect()
        };
        let p: Vec<f64> = met.values().map(|met| p_value(&met.votes)).collect();
        let pairs = DataFrame::new_infer_height(vec![
            Column::new("strategy".into(), name(|k| k.0)),
            Column::new("opponent".into(), name(|k| k.1)),
            Column::new("wins".into(), count(&|met| met.answers[0])),
            Column::new("losses".into(), count(&|met| met.answers[1])),
            Column::new("ties".into(), count(&|met| met.answers[2])),
            Column::new("pairs_won".into(), count(&|met| met.pairs[0])),
            Column::new("pairs_lost".into(), count(&|met| met.pairs[1])),
            Column::new("p".into(), p),
        ]);
        let failed = |e| Error::table(Path::new("study"), e);
        Ok(Self {
            pairs: pairs.map_err(failed)?,
            strengths: strengths.map_err(failed)?,
            alpha: krippendorff(&units.into_values().collect::<Vec<_>>()),
            raters: answers.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::study::Origin;

    /// Raters' answers to pairs of two strategies, each on a prompt of its own: whether the first wins, by pair and rater.
    fn analysed(pairs: &[Vec<bool>]) -> Analysis {
        let origin = |prompt: u32| Origin {
            left: "a".into(),
            right: "b".into(),
            preference: "p".into(),
            prompt: prompt.to_string(),
            sample: 0,
        };
        let key = Key {
            study: "s".into(),
            strategies: vec!["a".into(), "b".into()],
            pairs: (0..pairs.len() as u32).map(|i| (i, origin(i))).collect(),
        };
        let answer = |first: bool| if first { Answer::Left } else { Answer::Right };
        let answers = (0..pairs[0].len()).map(|rater| Answers {
            study: "s".into(),
            rater: rater.to_string(),
            answers: (0..)
                .zip(pairs)
                .map(|(id, all)| (id, answer(all[rater])))
                .collect(),
        });
        Analysis::of(&key, &answers.collect::<Vec<_>>()).unwrap()
    }

    fn number(analysis: &Analysis, column: &str) -> f64 {
        let column = analysis.pairs.column(column).unwrap();
        column
            .cast(&DataType::Float64)
            .unwrap()
            .f64()
            .unwrap()
            .get(0)
            .unwrap()
    }

    #[test]
    fn raters_of_one_pair_are_not_as_many_pairs() {
        // 10 pairs, 20 raters of one mind, 6 : 4. Answer by answer p was 0.006.
        let pairs: Vec<Vec<bool>> = (0..10).map(|i| vec![i < 6; 20]).collect();
        let analysis = analysed(&pairs);
        assert_eq!(
            (number(&analysis, "wins"), number(&analysis, "pairs_won")),
            (120.0, 6.0)
        );
        // Twice the tail of a binomial with 10 pairs: 772/1024.
        assert!((number(&analysis, "p") - 772.0 / 1024.0).abs() < 1e-12);
        let strength = |column: &str| {
            let column = analysis.strengths.column(column).unwrap().f64().unwrap();
            column.get(0).unwrap()
        };
        assert!(strength("strength") > 0.0 && strength("strength_low") < 0.0);
        let sure: Vec<Vec<bool>> = (0..10).map(|_| vec![true; 2]).collect();
        assert!((number(&analysed(&sure), "p") - 2.0 / 1024.0).abs() < 1e-12);
    }

    /// Two strategies that are equally good, and pairs on which raters agree: rejected as often as the level says.
    #[test]
    fn the_test_rejects_as_often_as_its_level_says() {
        // Knuth's generator.
        let mut state = 5u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let mut rejected = 0;
        for _ in 0..400 {
            let mut votes = Vec::new();
            for _ in 0..40 {
                // Beta(½, ½): raters of a pair lean the same way.
                let p = (std::f64::consts::FRAC_PI_2 * uniform()).sin().powi(2);
                let first = (0..5).filter(|_| uniform() < p).count();
                votes.push(if first > 2 { 1.0 } else { -1.0 });
            }
            rejected += usize::from(p_value(&votes) < 0.05);
        }
        assert!(rejected < 32, "{rejected} of 400");
    }
}
