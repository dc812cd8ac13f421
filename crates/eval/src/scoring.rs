//! Scores of responses: their rewards in every dimension, and their utility for a preference against the
//! reference responses to the same prompts. Runs and trainings share it.
//!
//! The scorer `s_k` of dimension `k` gives a response `y` to a prompt `x` a raw score. A normaliser brings the score to
//! standard deviations of the base's responses, and a stated direction `d` of the dimension gives it a sign: `+` for
//! the high end, `−` for the low one. The utility combines the stated directions by their shares, which sum to 1
//! ([`Utility`]):
//!
//! ```text
//! r_k(x, y) = (s_k(x, y) − mean_k) / sd_k
//! r_d(x, y) = ±r_k(x, y)
//! u(x, y)   = Σ_d share_d σ(r_d(x, y) − r_d(x, y_ref))      Bradley-Terry
//!           = Σ_d share_d r_d(x, y)                         mean
//! ```
//!
//! ```
//! use mope_eval::dimension::Dimension;
//! use mope_eval::rewards::Scorer;
//! use mope_eval::scoring::ResponseScorer;
//! use mope_eval::utility::Utility;
//! use lm::chat::Prompt;
//!
//! let style = Dimension {
//!     scorer: Scorer::Style,
//!     high: "friendly".into(),
//!     low: "reserved".into(),
//!     normaliser: None,
//! };
//! let mut scorer = ResponseScorer::open([("style", &style)], Utility::BradleyTerry)?;
//! let prompt = Prompt::Raw("Why is the sky blue?".into());
//! scorer.set_reference("sky", &prompt, "Blue light is scattered most.")?;
//! let rewards = scorer.reward(&prompt, "Great question, thank you! Blue light is scattered most.")?;
//! let reference = &scorer.reference("sky")?.normalised;
//! let utility = scorer.utility([("friendly", 1.0)], &rewards.normalised, reference)?;
//! assert!(utility > 0.5);
//! # Ok::<(), mope_eval::Error>(())
//! ```

use std::collections::BTreeMap;
use std::sync::OnceLock;

use lm::DeviceSpec;
use lm::chat::Prompt;

use crate::dimension::{Dimension, Normalisation, Source};
use crate::metrics::repetition;
use crate::rewards::{Normaliser, Reward, Scorer};
use crate::rows::{DimensionScore, GenerationRow, ScoreRow};
use crate::utility::{Stated, Utility};
use crate::{Error, Result};

/// A dimension with its reward opened.
struct OpenDimension {
    name: String,
    low: String,
    high: String,
    reward: Box<dyn Reward>,
    /// Empty until it is measured.
    normaliser: OnceLock<Normaliser>,
    measured: bool,
}

/// What responses normalisers are for.
#[derive(Clone, Copy)]
enum Responses {
    /// Those of a training, to which no references belong.
    Training,
    /// Those of a run, of at most so many tokens.
    Run(usize),
}

/// The normaliser of a dimension; `None`: measured on the references.
fn normaliser(
    dimension: &Dimension,
    reward: &dyn Reward,
    responses: Responses,
) -> Result<Option<Normaliser>> {
    let stored = || reward.normaliser().ok_or(Error::NoNormaliser);
    let other_length = match (reward.measured_at(), responses) {
        (Some(measured), Responses::Run(tokens)) if measured != tokens => {
            Some(Error::OtherLength { measured, tokens })
        }
        _ => None,
    };
    match (dimension.normaliser, responses) {
        (Some(Normalisation::Given(given)), _) => Ok(Some(given)),
        (Some(Normalisation::By(Source::Measured)), Responses::Run(_)) => Ok(None),
        (Some(Normalisation::By(Source::Measured)), Responses::Training) => Err(Error::NotARun),
        (Some(Normalisation::By(Source::Stored)), _) => match other_length {
            Some(error) => Err(error),
            None => stored().map(Some),
        },
        (None, Responses::Training) => stored().map(Some),
        (None, Responses::Run(_)) if other_length.is_some() => Ok(None),
        (None, Responses::Run(_)) => Ok(reward.normaliser()),
    }
}

/// Responses that are scored together: enough to fill the batches of a reward model (ours).
pub const TOGETHER: usize = 64;

/// Rewards of a response: one value for each dimension, in the order in which the scorer was given them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewards {
    /// In the scorers' own units.
    pub raw: Vec<f64>,
    /// In standard deviations of the base's responses, growing towards the high ends.
    pub normalised: Vec<f64>,
}

/// Scores responses in every dimension, and computes their utility for preferences.
pub struct ResponseScorer {
    dimensions: Vec<OpenDimension>,
    /// Directions of dimensions without a scorer.
    judged: Vec<String>,
    utility: Utility,
    /// Raw rewards by the prompt's id.
    references: BTreeMap<String, Vec<f64>>,
}

impl ResponseScorer {
    /// Opens the rewards of the dimensions, with normalisers that are given or stored; there are no references yet.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a reward that cannot be opened, or that has no normaliser.
    pub fn open<'a, N: Into<String>>(
        dimensions: impl IntoIterator<Item = (N, &'a Dimension)>,
        utility: Utility,
    ) -> Result<Self> {
        Self::open_on(dimensions, utility, &DeviceSpec::default())
    }

    /// The same, reward models running on a device.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_on<'a, N: Into<String>>(
        dimensions: impl IntoIterator<Item = (N, &'a Dimension)>,
        utility: Utility,
        device: &DeviceSpec,
    ) -> Result<Self> {
        Self::open_for(dimensions, utility, Responses::Training, device)
    }

    /// The same on a device for a run of responses of at most `tokens` tokens: what is not given, nor stored for this length, is
    /// measured on the references, which are all set before anything else is scored.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a reward that cannot be opened, or a stored normaliser of another length.
    pub fn of_run<'a, N: Into<String>>(
        dimensions: impl IntoIterator<Item = (N, &'a Dimension)>,
        utility: Utility,
        tokens: usize,
        device: &DeviceSpec,
    ) -> Result<Self> {
        Self::open_for(dimensions, utility, Responses::Run(tokens), device)
    }

    fn open_for<'a, N: Into<String>>(
        dimensions: impl IntoIterator<Item = (N, &'a Dimension)>,
        utility: Utility,
        responses: Responses,
        device: &DeviceSpec,
    ) -> Result<Self> {
        let open = |(name, dimension): (N, &Dimension)| {
            let name = name.into();
            let opened = dimension.scorer.open_on(device).and_then(|reward| {
                let known = normaliser(dimension, reward.as_ref(), responses)?;
                Ok((reward, known))
            });
            let (reward, known) = opened.map_err(|e| in_dimension(&name, e))?;
            Ok(OpenDimension {
                name,
                low: dimension.low.clone(),
                high: dimension.high.clone(),
                measured: known.is_none(),
                normaliser: known.map_or_else(OnceLock::new, OnceLock::from),
                reward,
            })
        };
        let in_run = matches!(responses, Responses::Run(_));
        let is_judged = |(_, d): &(N, &Dimension)| in_run && d.scorer == Scorer::Judged;
        let (judged, scored): (Vec<_>, Vec<_>) = dimensions.into_iter().partition(is_judged);
        let judged = judged
            .iter()
            .flat_map(|(_, d)| [d.low.clone(), d.high.clone()]);
        Ok(Self {
            judged: judged.collect(),
            dimensions: scored.into_iter().map(open).collect::<Result<_>>()?,
            utility,
            references: BTreeMap::new(),
        })
    }

    /// Names of the dimensions, in the order of all rewards.
    pub fn dimensions(&self) -> impl ExactSizeIterator<Item = &str> {
        self.dimensions.iter().map(|d| d.name.as_str())
    }

    /// Whether a normaliser is still to be measured on the references.
    pub fn measures(&self) -> bool {
        self.dimensions.iter().any(|d| d.normaliser.get().is_none())
    }

    /// The normaliser of each dimension, by its name.
    ///
    /// # Errors
    /// [`Error::NothingToMeasure`] for one that is measured, while there are no references.
    pub fn normalisers(&self) -> Result<BTreeMap<String, Normaliser>> {
        let named = self.dimensions.iter().enumerate();
        named
            .map(|(k, d)| Ok((d.name.clone(), self.normaliser(k)?)))
            .collect()
    }

    /// Dimensions that are measured and in which all references score alike: a reward there is in the scorer's own unit.
    pub fn without_spread(&self) -> Vec<&str> {
        let alike = |k: usize| {
            let mut scores = self.references.values().map(|raw| raw[k]);
            let first = scores.next();
            first.is_some_and(|first| scores.all(|score| score == first))
        };
        let named = self.dimensions.iter().enumerate();
        let named = named.filter(|(k, d)| d.measured && alike(*k));
        named.map(|(_, d)| d.name.as_str()).collect()
    }

    /// Mean and standard deviation of the references' scores where nothing else is known; 1 where they don't differ.
    fn normaliser(&self, dimension: usize) -> Result<Normaliser> {
        let known = &self.dimensions[dimension].normaliser;
        if let Some(known) = known.get() {
            return Ok(*known);
        }
        let scores: Vec<f64> = self.references.values().map(|raw| raw[dimension]).collect();
        if scores.is_empty() {
            let name = &self.dimensions[dimension].name;
            return Err(in_dimension(name, Error::NothingToMeasure));
        }
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        let sd = (squares / (n - 1.0).max(1.0)).sqrt();
        let sd = if sd > 0.0 { sd } else { 1.0 };
        Ok(*known.get_or_init(|| Normaliser { mean, sd }))
    }

    /// Scores of responses in every dimension, in the scorers' own units, `[items][dimensions]`.
    fn raw(&self, items: &[(&Prompt, &str)]) -> Result<Vec<Vec<f64>>> {
        let mut all = vec![Vec::new(); items.len()];
        for dimension in &self.dimensions {
            let scores = dimension.reward.score_all(items);
            let scores = scores.map_err(|e| in_dimension(&dimension.name, e))?;
            all.iter_mut()
                .zip(scores)
                .for_each(|(raw, score)| raw.push(score));
        }
        Ok(all)
    }

    fn normalised(&self, raw: Vec<f64>) -> Result<Rewards> {
        let normalised = raw.iter().enumerate();
        let normalised = normalised.map(|(k, score)| Ok(self.normaliser(k)?.apply(*score)));
        Ok(Rewards {
            normalised: normalised.collect::<Result<_>>()?,
            raw,
        })
    }

    /// Rewards of responses, each to its prompt.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a reward model that fails, or a normaliser without references to measure it on.
    pub fn rewards(&self, items: &[(&Prompt, &str)]) -> Result<Vec<Rewards>> {
        let raw = self.raw(items)?.into_iter();
        raw.map(|raw| self.normalised(raw)).collect()
    }

    /// Rewards of one response.
    ///
    /// # Errors
    /// Those of [`Self::rewards`].
    pub fn reward(&self, prompt: &Prompt, response: &str) -> Result<Rewards> {
        Ok(self.rewards(&[(prompt, response)])?.swap_remove(0))
    }

    /// Scores the reference response to the prompt called `id` and keeps its rewards. A normaliser that is measured is
    /// so when it is first used, on the references that there are then.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a reward model that fails.
    pub fn set_reference(&mut self, id: &str, prompt: &Prompt, response: &str) -> Result<()> {
        self.set_references(&[(id, prompt, response)])
    }

    /// The same for several prompts; faster than one by one where a model scores.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a reward model that fails.
    pub fn set_references(&mut self, references: &[(&str, &Prompt, &str)]) -> Result<()> {
        for some in references.chunks(TOGETHER) {
            let items: Vec<(&Prompt, &str)> = some.iter().map(|(_, p, text)| (*p, *text)).collect();
            for ((id, ..), raw) in some.iter().zip(self.raw(&items)?) {
                self.references.insert((*id).into(), raw);
            }
        }
        Ok(())
    }

    /// Rewards of the reference response to the prompt called `id`.
    ///
    /// # Errors
    /// [`Error::NoReference`] before [`Self::set_reference`].
    pub fn reference(&self, id: &str) -> Result<Rewards> {
        let raw = self.references.get(id);
        let raw = raw.ok_or_else(|| Error::NoReference { prompt: id.into() })?;
        self.normalised(raw.clone())
    }

    /// Utility of a response for these shares of the directions, beside a reference response.
    ///
    /// - shares: stated directions, summing to 1; each is an end of a dimension
    /// - rewards, reference: normalised, `[dimensions]`
    ///
    /// # Errors
    /// [`Error::UnknownDirection`], and [`Error::RewardCount`] for other than one reward for each dimension.
    pub fn utility<N: AsRef<str>>(
        &self,
        shares: impl IntoIterator<Item = (N, f64)>,
        rewards: &[f64],
        reference: &[f64],
    ) -> Result<f64> {
        Ok(self.utility_and_shares(shares, rewards, reference)?.0)
    }

    /// [`Self::utility`], and the share of each dimension, `[dimensions]`: positive for its high end, negative for
    /// its low one, 0 where it is not stated.
    ///
    /// # Errors
    /// Those of [`Self::utility`].
    pub fn utility_and_shares<N: AsRef<str>>(
        &self,
        shares: impl IntoIterator<Item = (N, f64)>,
        rewards: &[f64],
        reference: &[f64],
    ) -> Result<(f64, Vec<f64>)> {
        let expected = self.dimensions.len();
        for values in [rewards, reference] {
            if values.len() != expected {
                let got = values.len();
                return Err(Error::RewardCount { got, expected });
            }
        }
        let mut signed = vec![0.0; expected];
        let mut stated = Vec::new();
        let shares: Vec<(N, f64)> = shares.into_iter().collect();
        let is_judged = |(direction, _): &&(N, f64)| {
            let direction = direction.as_ref();
            self.judged.iter().any(|judged| judged == direction)
        };
        let judged: f64 = shares
            .iter()
            .filter(is_judged)
            .map(|(_, share)| share)
            .sum();
        let scored = shares.iter().filter(|share| !is_judged(share));
        if judged > 0.0 && scored.clone().next().is_none() {
            let directions = shares.iter().map(|(d, _)| d.as_ref().to_string());
            return Err(Error::NothingScored {
                directions: directions.collect(),
            });
        }
        for (direction, share) in scored {
            // What is judged takes no part; what is scored sums to 1 again.
            let share = if judged > 0.0 {
                share / (1.0 - judged)
            } else {
                *share
            };
            let (dimension, sign) = self.locate(direction.as_ref())?;
            signed[dimension] += sign * share;
            stated.push(Stated {
                share,
                reward: sign * rewards[dimension],
                reference: sign * reference[dimension],
            });
        }
        Ok((self.utility.of(&stated), signed))
    }

    /// The row of a response's scores, for a preference that gives each direction a share. A reference to the
    /// response's prompt must be set.
    ///
    /// # Errors
    /// [`Error::NoReference`], and those of [`Self::utility`].
    pub fn score_row<N: AsRef<str>>(
        &self,
        response: &GenerationRow,
        shares: impl IntoIterator<Item = (N, f64)>,
        rewards: &Rewards,
    ) -> Result<ScoreRow> {
        let reference = &self.reference(&response.identity.prompt)?.normalised;
        let (utility, shares) = self.utility_and_shares(shares, &rewards.normalised, reference)?;
        let scores = self.dimensions().enumerate().map(|(k, name)| {
            let score = DimensionScore {
                raw: rewards.raw[k],
                reward: rewards.normalised[k],
                reference: reference[k],
                stated: shares[k],
            };
            (name.to_string(), score)
        });
        let sum = |values: &[f32]| -> Option<f64> {
            let measured = values.len() == response.tokens.len();
            measured.then(|| values.iter().map(|v| f64::from(*v)).sum())
        };
        Ok(ScoreRow {
            identity: response.identity.clone(),
            utility,
            tokens: response.tokens.len() as u32,
            ended: response.ended,
            repetition: repetition(&response.tokens),
            kl: sum(&response.kl),
            base_nll: sum(&response.base_log_probs).map(|v| -v),
            dimensions: scores.collect(),
        })
    }

    /// Index of the dimension that has the direction, and 1 for its high end or −1 for its low one.
    fn locate(&self, direction: &str) -> Result<(usize, f64)> {
        for (k, dimension) in self.dimensions.iter().enumerate() {
            if dimension.high == direction {
                return Ok((k, 1.0));
            }
            if dimension.low == direction {
                return Ok((k, -1.0));
            }
        }
        let ends = self.dimensions.iter().flat_map(|d| [&d.low, &d.high]);
        Err(Error::UnknownDirection {
            direction: direction.into(),
            known: ends.cloned().collect(),
        })
    }
}

fn in_dimension(name: &str, error: Error) -> Error {
    Error::Dimension {
        name: name.into(),
        error: Box::new(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::rows::Identity;

    fn dimension(scorer: Scorer, low: &str, high: &str, normaliser: (f64, f64)) -> Dimension {
        let (mean, sd) = normaliser;
        Dimension {
            scorer,
            high: high.into(),
            low: low.into(),
            normaliser: Some(Normalisation::Given(Normaliser { mean, sd })),
        }
    }

    /// `ln(1 + content words)` less its mean, and a grade that is 0 for both texts below.
    fn scorer(utility: Utility) -> ResponseScorer {
        let words = dimension(Scorer::Informativeness, "short", "long", (1.0, 0.5));
        let grade = dimension(Scorer::Readability, "plain", "learned", (2.0, 4.0));
        // Not in the order of the alphabet: rewards stand in the given order.
        ResponseScorer::open([("words", &words), ("grade", &grade)], utility).unwrap()
    }

    fn generation() -> GenerationRow {
        GenerationRow {
            identity: Identity {
                strategy: "s".into(),
                preference: "p".into(),
                prompt: "1".into(),
                sample: 0,
            },
            question: "?".into(),
            response: "cats dogs fish".into(),
            tokens: vec![5, 6, 7, 0],
            pieces: vec![String::new(); 4],
            log_probs: vec![-0.5; 4],
            kl: vec![0.25; 4],
            base_log_probs: vec![],
            experts: vec!["base".into()],
            weights: vec![1.0; 4],
            ended: true,
        }
    }

    #[test]
    fn rewards_and_utility_are_the_formulas() {
        let prompt = Prompt::Raw("?".into());
        let mut scorer = scorer(Utility::BradleyTerry);
        assert_eq!(scorer.dimensions().collect::<Vec<_>>(), ["words", "grade"]);
        scorer.set_reference("1", &prompt, "cats").unwrap();
        let rewards = scorer.reward(&prompt, "cats dogs fish").unwrap();
        assert_eq!(rewards.raw, [3f64.ln_1p(), 0.0]);
        assert_eq!(rewards.normalised, [(3f64.ln_1p() - 1.0) / 0.5, -0.5]);
        let reference = scorer.reference("1").unwrap().clone();
        assert_eq!(reference.normalised, [(1f64.ln_1p() - 1.0) / 0.5, -0.5]);
        // ln 4 − ln 2 in halves, against the wish for short texts, and no difference in grade.
        let shares = [("short", 0.75), ("learned", 0.25)];
        let (utility, signed) = scorer
            .utility_and_shares(shares, &rewards.normalised, &reference.normalised)
            .unwrap();
        let beats = 1.0 / (1.0 + (2.0 * 2f64.ln()).exp());
        assert!((utility - (0.75 * beats + 0.25 * 0.5)).abs() < 1e-12);
        assert_eq!(signed, [-0.75, 0.25]);
        let mean = self::scorer(Utility::Mean);
        let utility = mean.utility(shares, &rewards.normalised, &reference.normalised);
        let expected = -0.75 * rewards.normalised[0] + 0.25 * -0.5;
        assert_eq!(utility.unwrap(), expected);
    }

    #[test]
    fn rows_hold_all_of_a_response() {
        let prompt = Prompt::Raw("?".into());
        let mut scorer = scorer(Utility::Mean);
        let response = generation();
        let rewards = scorer.reward(&prompt, &response.response).unwrap();
        let shares = [("short", 1.0)];
        let error = scorer.score_row(&response, shares, &rewards).unwrap_err();
        assert_eq!(error.to_string(), "no reference for prompt '1'");
        scorer.set_reference("1", &prompt, "cats").unwrap();
        let row = scorer.score_row(&response, shares, &rewards).unwrap();
        assert_eq!((row.tokens, row.ended, row.kl), (4, true, Some(1.0)));
        assert_eq!(row.base_nll, None);
        assert_eq!(row.utility, -rewards.normalised[0]);
        let stated: Vec<(&str, f64)> = row
            .dimensions
            .iter()
            .map(|(name, score)| (name.as_str(), score.stated))
            .collect();
        assert_eq!(stated, [("grade", 0.0), ("words", -1.0)]);
        assert_eq!(row.dimensions["words"].raw, 3f64.ln_1p());
        assert_eq!(
            row.dimensions["words"].reference,
            (1f64.ln_1p() - 1.0) / 0.5
        );
    }

    #[test]
    fn several_responses_score_as_each_alone() {
        let prompts = ["a", "b"].map(|text| Prompt::Raw(text.into()));
        let texts = ["Thank you for bees.", ""];
        let items: Vec<(&Prompt, &str)> = prompts.iter().zip(texts).collect();
        let scorer = scorer(Utility::Mean);
        let together = scorer.rewards(&items).unwrap();
        for ((prompt, text), rewards) in items.into_iter().zip(together) {
            assert_eq!(scorer.reward(prompt, text).unwrap(), rewards);
        }
        assert!(scorer.rewards(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_known_of_this_length_is_measured_on_the_references() {
        let prompt = Prompt::Raw("?".into());
        let words = |normaliser| Dimension {
            normaliser,
            ..dimension(Scorer::Informativeness, "short", "long", (0.0, 1.0))
        };
        let open = |normaliser, tokens| {
            let dimension = [("words", &words(normaliser))];
            ResponseScorer::of_run(dimension, Utility::Mean, tokens, &DeviceSpec::Cpu)
        };
        let by = |source| Some(Normalisation::By(source));
        // The stored ones are of 128 tokens.
        let stored = open(None, 128).unwrap();
        assert!(!stored.measures());
        let same = open(by(Source::Stored), 128).unwrap();
        assert_eq!(stored.normalisers().unwrap(), same.normalisers().unwrap());
        let error = open(by(Source::Stored), 64).err().unwrap().to_string();
        assert!(
            error.contains("of at most 128 tokens, these have 64"),
            "{error}"
        );
        for mut scorer in [
            open(None, 64).unwrap(),
            open(by(Source::Measured), 128).unwrap(),
        ] {
            assert!(scorer.measures());
            let error = scorer.reward(&prompt, "cats").unwrap_err().to_string();
            assert!(
                error.starts_with("dimension 'words': the normaliser is measured"),
                "{error}"
            );
            let texts = [
                ("1", &prompt, "cats"),
                ("2", &prompt, "cats dogs fish"),
                ("3", &prompt, ""),
            ];
            scorer.set_references(&texts).unwrap();
            let scores = [1f64.ln_1p(), 3f64.ln_1p(), 0.0];
            let mean = scores.iter().sum::<f64>() / 3.0;
            let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / 2.0;
            let normaliser = scorer.normalisers().unwrap()["words"];
            assert!((normaliser.mean - mean).abs() < 1e-12);
            assert!((normaliser.sd - variance.sqrt()).abs() < 1e-12);
            let reward = scorer.reward(&prompt, "").unwrap().normalised[0];
            assert!((reward + mean / variance.sqrt()).abs() < 1e-12);
            assert_eq!(scorer.reference("3").unwrap().normalised, [reward]);
            assert!(scorer.without_spread().is_empty());
        }
        let mut alike = open(None, 64).unwrap();
        alike
            .set_references(&[("1", &prompt, "cats"), ("2", &prompt, "dogs")])
            .unwrap();
        assert_eq!(alike.without_spread(), ["words"]);
        assert_eq!(alike.normalisers().unwrap()["words"].sd, 1.0);
        // A training has nothing to measure on.
        let measured = words(by(Source::Measured));
        let error = ResponseScorer::open([("words", &measured)], Utility::Mean).err();
        assert!(error.unwrap().to_string().contains("is for runs"));
    }

    #[test]
    fn a_direction_without_a_scorer_takes_no_part() {
        let words = dimension(Scorer::Informativeness, "short", "long", (1.0, 0.5));
        let wit = dimension(Scorer::Judged, "dull", "witty", (0.0, 1.0));
        let open = || [("words", &words), ("wit", &wit)];
        let scorer = ResponseScorer::of_run(open(), Utility::Mean, 64, &DeviceSpec::Cpu).unwrap();
        assert_eq!(scorer.dimensions().collect::<Vec<_>>(), ["words"]);
        let shares = [("long", 0.25), ("witty", 0.75)];
        assert_eq!(scorer.utility(shares, &[0.5], &[0.0]).unwrap(), 0.5);
        let error = scorer.utility([("dull", 1.0)], &[0.5], &[0.0]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("only directions without a scorer (dull)")
        );
        // A training has no judges.
        let error = ResponseScorer::open(open(), Utility::Mean).err().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("dimension 'wit': it has no scorer")
        );
    }

    #[test]
    fn mistakes_are_named() {
        let scorer = scorer(Utility::Mean);
        let utility = |direction: &str, rewards: &[f64]| {
            let utility = scorer.utility([(direction, 1.0)], rewards, &[0.0; 2]);
            utility.unwrap_err().to_string()
        };
        assert_eq!(
            utility("warm", &[0.0; 2]),
            "no dimension has the direction 'warm'; they have: short, long, plain, learned"
        );
        assert_eq!(
            utility("short", &[0.0; 3]),
            "3 rewards of a response, not one for each of 2 dimensions"
        );
        let missing = dimension(Scorer::Model("nowhere".into()), "low", "high", (0.0, 1.0));
        let opened = ResponseScorer::open([("warmth", &missing)], Utility::Mean);
        let error = opened.err().unwrap().to_string();
        assert!(error.starts_with("dimension 'warmth': nowhere"), "{error}");
    }
}
