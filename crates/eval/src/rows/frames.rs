//! Rows as data frames, and back.

use std::mem::take;
use std::path::Path;

use polars::prelude::*;

use super::{DimensionScore, GenerationRow, Identity, SCORES, ScoreRow};
use crate::{Error, Result};

fn invalid(e: PolarsError) -> Error {
    Error::table(Path::new("rows"), e)
}

fn identity_columns<'a>(rows: impl Iterator<Item = &'a Identity> + Clone) -> Vec<Column> {
    let text = |name: &str, get: fn(&Identity) -> &str| {
        Column::new(name.into(), rows.clone().map(get).collect::<Vec<_>>())
    };
    vec![
        text("strategy", |i| &i.strategy),
        text("preference", |i| &i.preference),
        text("prompt", |i| &i.prompt),
        Column::new(
            "sample".into(),
            rows.clone().map(|i| i.sample).collect::<Vec<_>>(),
        ),
    ]
}

fn list(name: &str, rows: &[GenerationRow], get: impl Fn(&GenerationRow) -> Series) -> Column {
    Column::new(name.into(), rows.iter().map(get).collect::<Vec<Series>>())
}

/// Responses as a data frame.
///
/// # Errors
/// [`Error::Table`].
pub fn generations_frame(rows: &[GenerationRow]) -> Result<DataFrame> {
    let mut columns = identity_columns(rows.iter().map(|r| &r.identity));
    let text = |name: &str, get: fn(&GenerationRow) -> &str| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    columns.push(text("question", |r| &r.question));
    columns.push(text("response", |r| &r.response));
    columns.push(list("tokens", rows, |r| Series::new("".into(), &r.tokens)));
    columns.push(list("pieces", rows, |r| Series::new("".into(), &r.pieces)));
    columns.push(list("log_probs", rows, |r| {
        Series::new("".into(), &r.log_probs)
    }));
    columns.push(list("kl", rows, |r| Series::new("".into(), &r.kl)));
    columns.push(list("base_log_probs", rows, |r| {
        Series::new("".into(), &r.base_log_probs)
    }));
    columns.push(list("experts", rows, |r| {
        Series::new("".into(), &r.experts)
    }));
    columns.push(list("weights", rows, |r| {
        Series::new("".into(), &r.weights)
    }));
    columns.push(Column::new(
        "ended".into(),
        rows.iter().map(|r| r.ended).collect::<Vec<_>>(),
    ));
    DataFrame::new(rows.len(), columns).map_err(invalid)
}

/// Reads one column of a frame, all values present.
struct Reader<'a> {
    frame: &'a DataFrame,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn column(&self, name: &str) -> Result<&'a Series> {
        let column = self
            .frame
            .column(name)
            .map_err(|e| Error::table(self.path, e))?;
        if column.null_count() > 0 {
            return Err(Error::table(
                self.path,
                format!("column '{name}' has missing values"),
            ));
        }
        Ok(column.as_materialized_series())
    }

    fn text(&self, name: &str) -> Result<Vec<String>> {
        let column = self
            .column(name)?
            .str()
            .map_err(|e| Error::table(self.path, e))?;
        Ok(column.iter().flatten().map(String::from).collect())
    }

    fn bools(&self, name: &str) -> Result<Vec<bool>> {
        let column = self
            .column(name)?
            .bool()
            .map_err(|e| Error::table(self.path, e))?;
        Ok(column.iter().flatten().collect())
    }

    fn counts(&self, name: &str) -> Result<Vec<u32>> {
        let column = self
            .column(name)?
            .u32()
            .map_err(|e| Error::table(self.path, e))?;
        Ok(column.iter().flatten().collect())
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let column = self
            .column(name)?
            .f64()
            .map_err(|e| Error::table(self.path, e))?;
        Ok(column.iter().flatten().collect())
    }

    fn optional(&self, name: &str) -> Result<Vec<Option<f64>>> {
        let column = self.frame.column(name);
        let column = column.map_err(|e| Error::table(self.path, e))?;
        let numbers = column.f64().map_err(|e| Error::table(self.path, e))?;
        Ok(numbers.iter().collect())
    }

    fn lists<T>(
        &self,
        name: &str,
        read: impl Fn(&Series) -> PolarsResult<Vec<T>>,
    ) -> Result<Vec<Vec<T>>> {
        let lists = self
            .column(name)?
            .list()
            .map_err(|e| Error::table(self.path, e))?;
        (0..lists.len())
            .map(|i| lists.get_as_series(i).map_or(Ok(vec![]), |s| read(&s)))
            .collect::<PolarsResult<_>>()
            .map_err(|e| Error::table(self.path, e))
    }

    fn identities(&self) -> Result<Vec<Identity>> {
        let text = [
            self.text("strategy")?,
            self.text("preference")?,
            self.text("prompt")?,
        ];
        let [strategies, preferences, prompts] = text;
        let names = strategies.into_iter().zip(preferences).zip(prompts);
        Ok(names
            .zip(self.counts("sample")?)
            .map(|(((strategy, preference), prompt), sample)| Identity {
                strategy,
                preference,
                prompt,
                sample,
            })
            .collect())
    }
}

fn texts(series: &Series) -> PolarsResult<Vec<String>> {
    Ok(series.str()?.iter().flatten().map(String::from).collect())
}

fn floats(series: &Series) -> PolarsResult<Vec<f32>> {
    Ok(series.f32()?.iter().flatten().collect())
}

/// Reads responses back; `path` names the file in errors.
///
/// # Errors
/// A frame with other columns; a row whose lists have other lengths than its tokens.
pub fn generations(path: &Path, frame: &DataFrame) -> Result<Vec<GenerationRow>> {
    let r = Reader { frame, path };
    let (mut questions, mut responses) = (r.text("question")?, r.text("response")?);
    let mut tokens = r.lists("tokens", |s| Ok(s.u32()?.iter().flatten().collect()))?;
    let (mut pieces, mut experts) = (r.lists("pieces", texts)?, r.lists("experts", texts)?);
    let (mut kl, mut base) = (r.lists("kl", floats)?, r.lists("base_log_probs", floats)?);
    let mut log_probs = r.lists("log_probs", floats)?;
    let mut weights = r.lists("weights", floats)?;
    let ended = r.bools("ended")?;
    let rows = r
        .identities()?
        .into_iter()
        .enumerate()
        .map(|(i, identity)| {
            let row = GenerationRow {
                identity,
                question: take(&mut questions[i]),
                response: take(&mut responses[i]),
                tokens: take(&mut tokens[i]),
                pieces: take(&mut pieces[i]),
                log_probs: take(&mut log_probs[i]),
                kl: take(&mut kl[i]),
                base_log_probs: take(&mut base[i]),
                experts: take(&mut experts[i]),
                weights: take(&mut weights[i]),
                ended: ended[i],
            };
            let checked = row.validate();
            checked.map_err(|e| Error::table(path, format!("row {}: {e}", i + 1)))?;
            Ok(row)
        });
    rows.collect()
}

/// Scores as a data frame: identity, `utility`, `tokens`, `ended`, `repetition`, `kl`, `base_nll`, and for each dimension
/// `raw_…`, `reward_…`, `reference_…`, `stated_…`.
///
/// # Errors
/// [`Error::Table`].
pub fn scores_frame(rows: &[ScoreRow]) -> Result<DataFrame> {
    let mut columns = identity_columns(rows.iter().map(|r| &r.identity));
    let number = |name: &str, get: fn(&ScoreRow) -> Option<f64>| {
        Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
    };
    columns.push(number("utility", |r| Some(r.utility)));
    columns.push(Column::new(
        "tokens".into(),
        rows.iter().map(|r| r.tokens).collect::<Vec<_>>(),
    ));
    columns.push(Column::new(
        "ended".into(),
        rows.iter().map(|r| r.ended).collect::<Vec<_>>(),
    ));
    columns.push(number("repetition", |r| Some(r.repetition)));
    columns.push(number("kl", |r| r.kl));
    columns.push(number("base_nll", |r| r.base_nll));
    let dimensions = rows
        .first()
        .map(|r| r.dimensions.keys().cloned().collect::<Vec<_>>());
    for dimension in dimensions.unwrap_or_default() {
        for (i, kind) in SCORES.iter().enumerate() {
            let get = |r: &ScoreRow| {
                let s = r.dimensions.get(&dimension)?;
                Some([s.raw, s.reward, s.reference, s.stated][i])
            };
            let values: Vec<Option<f64>> = rows.iter().map(get).collect();
            columns.push(Column::new(format!("{kind}_{dimension}").into(), values));
        }
    }
    DataFrame::new(rows.len(), columns).map_err(invalid)
}

/// Reads scores back; `path` names the file in errors.
///
/// # Errors
/// A frame with other columns.
pub fn scores(path: &Path, frame: &DataFrame) -> Result<Vec<ScoreRow>> {
    let r = Reader { frame, path };
    let (utility, tokens, ended) = (
        r.numbers("utility")?,
        r.counts("tokens")?,
        r.bools("ended")?,
    );
    let (repetition, kl, base_nll) = (
        r.numbers("repetition")?,
        r.optional("kl")?,
        r.optional("base_nll")?,
    );
    let names = frame.get_column_names();
    let mut dimensions = Vec::new();
    for name in names.iter().filter_map(|n| n.strip_prefix("raw_")) {
        let columns = SCORES.map(|kind| r.numbers(&format!("{kind}_{name}")));
        dimensions.push((
            name.to_string(),
            columns.into_iter().collect::<Result<Vec<_>>>()?,
        ));
    }
    let identities = r.identities()?.into_iter().enumerate();
    Ok(identities
        .map(|(i, identity)| ScoreRow {
            identity,
            utility: utility[i],
            tokens: tokens[i],
            ended: ended[i],
            repetition: repetition[i],
            kl: kl[i],
            base_nll: base_nll[i],
            dimensions: dimensions
                .iter()
                .map(|(name, c)| {
                    let [raw, reward, reference, stated] = [0, 1, 2, 3].map(|k| c[k][i]);
                    (
                        name.clone(),
                        DimensionScore {
                            raw,
                            reward,
                            reference,
                            stated,
                        },
                    )
                })
                .collect(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn identity(sample: u32) -> Identity {
        Identity {
            strategy: "uniform".into(),
            preference: "p".into(),
            prompt: "sky".into(),
            sample,
        }
    }

    #[test]
    fn rows_survive_their_frames() {
        let row = |sample, tokens: Vec<u32>| GenerationRow {
            identity: identity(sample),
            question: "Why?".into(),
            response: "Because.".into(),
            pieces: tokens.iter().map(|t| format!("<{t}>")).collect(),
            log_probs: tokens.iter().map(|t| -(*t as f32)).collect(),
            kl: vec![0.25; tokens.len()],
            base_log_probs: vec![-2.0; tokens.len()],
            experts: vec!["a".into(), "b".into()],
            weights: vec![0.5; tokens.len() * 2],
            tokens,
            ended: sample == 0,
        };
        let rows = vec![row(0, vec![3, 1]), row(1, vec![]), row(2, vec![7])];
        let frame = generations_frame(&rows).unwrap();
        assert_eq!(generations(Path::new("x"), &frame).unwrap(), rows);

        type Change = fn(&mut GenerationRow);
        let lists: [(Change, &str); 5] = [
            (|r| r.pieces.truncate(1), "pieces has 1 values, not 2"),
            (|r| r.log_probs.clear(), "log_probs has 0 values, not 2"),
            (|r| r.kl.push(0.0), "kl has 3 values, not 2"),
            (|r| r.base_log_probs.truncate(1), "base_log_probs has 1"),
            (|r| r.weights.truncate(2), "weights has 2 values, not 4"),
        ];
        for (change, message) in lists {
            let mut changed = rows.clone();
            change(&mut changed[0]);
            let frame = generations_frame(&changed).unwrap();
            let error = generations(Path::new("x"), &frame).unwrap_err().to_string();
            assert!(
                error.contains(message) && error.contains("x: row 1"),
                "{error}"
            );
        }

        let score = DimensionScore {
            raw: 9.0,
            reward: 0.25,
            reference: -0.5,
            stated: -0.5,
        };
        let rows = vec![ScoreRow {
            identity: identity(0),
            utility: 0.75,
            tokens: 4,
            ended: true,
            repetition: 0.125,
            kl: Some(0.5),
            base_nll: None,
            dimensions: [("style".to_string(), score)].into(),
        }];
        let frame = scores_frame(&rows).unwrap();
        assert_eq!(scores(Path::new("x"), &frame).unwrap(), rows);
        let error = generations(Path::new("x.parquet"), &frame)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("x.parquet") && error.contains("question"),
            "{error}"
        );
    }
}
