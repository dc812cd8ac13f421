//! What raters' answers come down to.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;

use super::agreement::{binomial, krippendorff};
use super::{Answer, Answers, Key};
use crate::comparison::interval;
use crate::statistics::{Bootstrap, Estimate, ranking};
use crate::{Error, Result};

/// What raters' answers come down to.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// One row a pair of strategies: `wins`, `losses`, `ties`, `p` of the sign test.
    pub pairs: DataFrame,
    /// One row a strategy: Bradley-Terry `strength` with its interval over pairs shown, and `answers`.
    pub strengths: DataFrame,
    /// Krippendorff's α of the answers; `None` where nobody answered what another did.
    pub alpha: Option<f64>,
    /// Raters.
    pub raters: usize,
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
        let mut counts: BTreeMap<(usize, usize), [usize; 3]> = BTreeMap::new();
        let mut wins = vec![vec![0.0; n * n]; units.len()];
        let mut shown = vec![0u32; n];
        for ((id, values), wins) in units.iter().zip(&mut wins) {
            let origin = &key.pairs[id];
            let (left, right) = (index(&origin.left)?, index(&origin.right)?);
            for value in values {
                let (first, second) = (left.min(right), left.max(right));
                let winner = [Some(left), Some(right), None][*value];
                let count = counts.entry((first, second)).or_default();
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
        let bootstrap = Bootstrap::new(units.len());
        let strengths: Vec<Option<Estimate>> = ranking::estimate(&bootstrap, &wins, n)
            .into_iter()
            .map(Some)
            .collect();
        let mut columns = vec![Column::new("strategy".into(), &key.strategies)];
        columns.extend(interval("strength", &strengths));
        columns.push(Column::new("answers".into(), shown));
        let strengths = DataFrame::new_infer_height(columns);
        let name = |get: fn(&(usize, usize)) -> usize| -> Vec<&str> {
            counts
                .keys()
                .map(|k| key.strategies[get(k)].as_str())
                .collect()
        };
        let count = |i: usize| -> Vec<u32> { counts.values().map(|c| c[i] as u32).collect() };
        let p: Vec<f64> = counts.values().map(|c| binomial(c[0], c[1])).collect();
        let pairs = DataFrame::new_infer_height(vec![
            Column::new("strategy".into(), name(|k| k.0)),
            Column::new("opponent".into(), name(|k| k.1)),
            Column::new("wins".into(), count(0)),
            Column::new("losses".into(), count(1)),
            Column::new("ties".into(), count(2)),
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
