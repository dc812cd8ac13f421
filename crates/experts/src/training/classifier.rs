//! Fits a [`Classifier`] to labelled responses: logistic regression on every beginning of every response, as in
//! FUDGE (arXiv 2104.05218), so that it can judge a response before it is finished.
//!
//! The features are the embedding of the last token and the mean embedding of those before it, each brought to mean
//! 0 and unit variance; their products with the heads are taken once a token, not once a beginning.

use std::collections::BTreeMap;

use kernels::{Isa, math};
use lm::parameter::{at_least_one, below_one, from_zero_on};
use lm::sampling::permutation;
use lm::tuning::{AdamW, AdamWConfig, AdamWState};
use serde::{Deserialize, Serialize};

use crate::classifier::{Classifier, ClassifierCard, Telling};
use crate::{Error, Result};

/// Settings of a fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassifierConfig {
    /// Tokens before the candidate that are read. Default 32 (ours).
    pub window: usize,
    /// Share of the prompts whose responses are kept for measuring. Default 0.2 (ours).
    pub held_out: f64,
    /// Weight of the squared heads in the mean loss, features standardised. Default 0.1 (ours: on a hundred prompts
    /// less than 0.03 learns the responses by heart, and a held-out loss above that of a coin).
    pub ridge: f64,
    /// Full-batch steps. Default 300 (ours).
    pub steps: u64,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self {
            window: 32,
            held_out: 0.2,
            ridge: 0.1,
            steps: 300,
        }
    }
}

impl ClassifierConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`lm::Error::Parameter`] for the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        at_least_one([("window", self.window as u64), ("steps", self.steps)])?;
        below_one("held_out", self.held_out)?;
        Ok(from_zero_on("ridge", self.ridge)?)
    }
}

/// A response and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// Number of the prompt.
    pub prompt: usize,
    /// Token ids, the end token included where there is one.
    pub tokens: Vec<u32>,
    /// For each dimension: its high end, its low end, or neither.
    pub labels: Vec<Option<bool>>,
}

/// The frozen embeddings.
pub struct Embeddings<'a> {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Width of an embedding.
    pub width: usize,
    /// Writes the embedding of a token, `[width]`.
    pub of: &'a dyn Fn(u32, &mut [f32]),
}

/// Fits a classifier; the card's held-out figures are replaced by what is measured.
///
/// # Errors
/// Settings that make no sense, labels or tokens that don't fit, a dimension of which one end is missing.
pub fn fit(
    mut card: ClassifierCard,
    responses: &[Labelled],
    embeddings: &Embeddings<'_>,
    config: &ClassifierConfig,
    seed: u64,
) -> Result<Classifier> {
    config.validate()?;
    card.window = config.window;
    let vocab = embeddings.vocab;
    if let Some(r) = responses.iter().find(|r| {
        r.labels.len() != card.dimensions.len() || r.tokens.iter().any(|t| *t as usize >= vocab)
    }) {
        return Err(Error::Labels(r.prompt));
    }
    let prompts = responses.iter().map(|r| r.prompt + 1).max().unwrap_or(0);
    let order = permutation(prompts, &[&seed.to_le_bytes(), b"held out"]);
    let kept = (prompts as f64 * config.held_out).round() as usize;
    let kept = &order[..kept.min(prompts)];
    let rows = Rows::new(responses, embeddings);
    let (mut token, mut context, mut held_out) = (Vec::new(), Vec::new(), Vec::new());
    for (dimension, told) in card.dimensions.iter().enumerate() {
        let labelled = responses.iter().filter_map(|r| {
            let label = (*r.labels.get(dimension)?)?;
            (!r.tokens.is_empty()).then_some((r, label))
        });
        let (test, train): (Vec<_>, Vec<_>) = labelled.partition(|(r, _)| kept.contains(&r.prompt));
        let highs = train.iter().filter(|(_, high)| *high).count();
        if highs == 0 || highs == train.len() {
            return Err(Error::OneEnd {
                dimension: told.name.clone(),
                high: highs,
                responses: train.len(),
            });
        }
        let head = rows.regress(&train, config);
        let mut row = vec![0.0; embeddings.width];
        for id in 0..vocab as u32 {
            (embeddings.of)(id, &mut row);
            let (alone, before) = head.of(&row);
            token.push(alone);
            context.push(before);
        }
        held_out.push(test);
    }
    let fitted = Classifier::new(card.clone(), token.clone(), context.clone())?;
    let measured = held_out.iter().enumerate();
    let measured: Vec<Telling> = measured
        .map(|(d, test)| measure(&fitted, d, test))
        .collect();
    for (told, measured) in card.dimensions.iter_mut().zip(measured) {
        told.held_out = measured;
    }
    Classifier::new(card, token, context)
}

/// How well a dimension of labelled responses is told.
fn measure(classifier: &Classifier, dimension: usize, test: &[(&Labelled, bool)]) -> Telling {
    let (mut right, mut beginnings, mut all, mut loss) = (0, 0, 0, 0.0);
    for (response, high) in test {
        let sign = if *high { 1.0 } else { -1.0 };
        let mut total = 0.0;
        for (t, token) in response.tokens.iter().enumerate() {
            let before = classifier.context(dimension, &response.tokens[..t]);
            let logit = sign * f64::from(classifier.token(dimension)[*token as usize] + before);
            total += logit;
            beginnings += usize::from(logit > 0.0);
            all += 1;
            loss += (-logit).max(0.0) + (-logit.abs()).exp().ln_1p();
        }
        right += usize::from(total > 0.0);
    }
    let tokens = all.max(1) as f64;
    Telling {
        responses: test.len(),
        accuracy: right as f64 / test.len().max(1) as f64,
        beginnings: beginnings as f64 / tokens,
        loss: loss / tokens,
    }
}

/// A head over raw embeddings: `scale · (E − mean)` for the token and for those before it.
struct Head {
    bias: f32,
    /// Token and context.
    scale: [Vec<f32>; 2],
    /// What the means come to.
    shift: [f32; 2],
}

impl Head {
    /// From parameters over standardised features.
    fn new(moments: &[Moments; 2], parameters: &[f32]) -> Self {
        let (mut scale, mut shift) = ([Vec::new(), Vec::new()], [0.0; 2]);
        let width = moments[0].mean.len();
        for (i, Moments { mean, sd }) in moments.iter().enumerate() {
            let weights = parameters[i * width..(i + 1) * width].iter().zip(sd);
            scale[i] = weights.map(|(w, sd)| (f64::from(*w) / sd) as f32).collect();
            let parts = scale[i].iter().zip(mean);
            shift[i] = parts.map(|(s, m)| f64::from(*s) * m).sum::<f64>() as f32;
        }
        let bias = parameters[2 * width];
        Self { bias, scale, shift }
    }

    fn of(&self, row: &[f32]) -> (f32, f32) {
        let [alone, before] =
            [0, 1].map(|i| math::dot(Isa::best(), row, &self.scale[i]) - self.shift[i]);
        (self.bias + alone, before)
    }
}

/// Embeddings of the tokens that occur, each once.
struct Rows {
    width: usize,
    index: BTreeMap<u32, usize>,
    /// `[tokens, width]`.
    values: Vec<f32>,
}

/// Responses as places among the [`Rows`], each with 1 for the high end or 0 for the low one.
struct Data {
    window: usize,
    responses: Vec<(Vec<usize>, f64)>,
}

/// Mean and standard deviation of each feature.
struct Moments {
    mean: Vec<f64>,
    sd: Vec<f64>,
}

impl Moments {
    fn new(width: usize, count: usize, add: impl FnOnce(&mut [f64], &mut [f64])) -> Self {
        let (mut mean, mut square) = (vec![0.0; width], vec![0.0; width]);
        add(&mut mean, &mut square);
        let count = count as f64;
        mean.iter_mut().for_each(|m| *m /= count);
        let pairs = mean.iter().zip(&square);
        let sd = pairs.map(|(m, s)| (s / count - m * m).max(0.0).sqrt().max(1e-6));
        Self {
            sd: sd.collect(),
            mean,
        }
    }
}

impl Rows {
    fn new(responses: &[Labelled], embeddings: &Embeddings<'_>) -> Self {
        let width = embeddings.width;
        let tokens = responses.iter().flat_map(|r| r.tokens.iter().copied());
        let mut index: BTreeMap<u32, usize> = tokens.map(|t| (t, 0)).collect();
        let mut values = vec![0.0; index.len() * width];
        for (i, ((token, at), row)) in index.iter_mut().zip(values.chunks_mut(width)).enumerate() {
            *at = i;
            (embeddings.of)(*token, row);
        }
        Self {
            width,
            index,
            values,
        }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// Moments of the last token and of the mean of those before, over all beginnings.
    fn moments(&self, data: &Data) -> [Moments; 2] {
        let (width, window) = (self.width, data.window);
        let add = |mean: &mut [f64], square: &mut [f64], i: usize, value: f64| {
            mean[i] += value;
            square[i] += value * value;
        };
        let all = || data.responses.iter().map(|(tokens, _)| tokens);
        let count: usize = all().map(Vec::len).sum();
        let alone = Moments::new(width, count.max(1), |mean, square| {
            for &token in all().flatten() {
                for (i, v) in self.row(token).iter().enumerate() {
                    add(mean, square, i, f64::from(*v));
                }
            }
        });
        let before = Moments::new(width, (count - all().len()).max(1), |mean, square| {
            for tokens in all() {
                let mut sum = vec![0.0f64; width];
                for t in 1..tokens.len() {
                    let leaves = t.checked_sub(window + 1).map(|old| self.row(tokens[old]));
                    for (i, v) in self.row(tokens[t - 1]).iter().enumerate() {
                        sum[i] += f64::from(*v) - leaves.map_or(0.0, |old| f64::from(old[i]));
                        add(mean, square, i, sum[i] / t.min(window) as f64);
                    }
                }
            }
        });
        [alone, before]
    }

    /// Loss in nats a beginning and its gradient in the parameters: heads of token and context over standardised
    /// features, and the bias.
    fn gradient(&self, data: &Data, moments: &[Moments; 2], parameters: &[f32]) -> (f64, Vec<f32>) {
        let (width, tokens, window) = (self.width, self.index.len(), data.window);
        let head = Head::new(moments, parameters);
        let said: Vec<(f32, f32)> = (0..tokens).map(|i| head.of(self.row(i))).collect();
        let total: usize = data.responses.iter().map(|(tokens, _)| tokens.len()).sum();
        // Slopes of the loss in what each token says, by itself and as one before.
        let mut slopes = [vec![0.0f64; tokens], vec![0.0f64; tokens]];
        let mut loss = 0.0;
        for (tokens, label) in &data.responses {
            let mut sums = vec![0.0f64; tokens.len() + 1];
            for (t, token) in tokens.iter().enumerate() {
                sums[t + 1] = sums[t] + f64::from(said[*token].1);
            }
            let mut before = vec![0.0f64; tokens.len() + 1];
            for (t, token) in tokens.iter().enumerate() {
                let (from, n) = (t - t.min(window), t.min(window).max(1) as f64);
                let logit = f64::from(said[*token].0) + (sums[t] - sums[from]) / n;
                let slope = (1.0 / (1.0 + (-logit).exp()) - label) / total as f64;
                loss += logit.max(0.0) - label * logit + (-logit.abs()).exp().ln_1p();
                slopes[0][*token] += slope;
                // One share for each of the tokens before.
                before[from] += slope / n;
                before[t] -= slope / n;
            }
            let mut running = 0.0;
            for (token, change) in tokens.iter().zip(&before) {
                running += change;
                slopes[1][*token] += running;
            }
        }
        let mut gradient = vec![0.0f32; 2 * width + 1];
        for (i, Moments { mean, sd }) in moments.iter().enumerate() {
            let mut raw = vec![0.0f32; width];
            for (token, slope) in slopes[i].iter().enumerate().filter(|(_, s)| **s != 0.0) {
                math::axpy(Isa::best(), &mut raw, *slope as f32, self.row(token));
            }
            let total_slope: f64 = slopes[i].iter().sum();
            let values = gradient[i * width..(i + 1) * width].iter_mut().zip(raw);
            for ((g, raw), (mean, sd)) in values.zip(mean.iter().zip(sd)) {
                *g = ((f64::from(raw) - total_slope * mean) / sd) as f32;
            }
        }
        gradient[2 * width] = slopes[0].iter().sum::<f64>() as f32;
        (loss / total as f64, gradient)
    }

    fn data(&self, train: &[(&Labelled, bool)], window: usize) -> Data {
        let row = |token: &u32| self.index.get(token).copied().unwrap_or(0);
        let responses = train.iter().map(|(r, high)| {
            let tokens = r.tokens.iter().map(row).collect();
            (tokens, f64::from(u8::from(*high)))
        });
        let responses = responses.collect();
        Data { window, responses }
    }

    fn regress(&self, train: &[(&Labelled, bool)], config: &ClassifierConfig) -> Head {
        let data = self.data(train, config.window);
        let moments = self.moments(&data);
        let mut parameters = vec![0.0f32; 2 * self.width + 1];
        let mut adam = AdamW::new(AdamWConfig::default(), AdamWState::default());
        for step in 0..config.steps {
            let (_, mut gradient) = self.gradient(&data, &moments, &parameters);
            // The bias is not drawn to zero.
            let heads = gradient.iter_mut().zip(&parameters).take(2 * self.width);
            heads.for_each(|(g, w)| *g += (2.0 * config.ridge) as f32 * w);
            let left = 1.0 - step as f64 / config.steps as f64;
            adam.step(&mut parameters, &gradient, 0.03 * left);
        }
        Head::new(&moments, &parameters)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::classifier::Told;

    /// Tokens 0 to 3 speak for the high end, 4 to 7 for the low one, the rest for nothing.
    fn embed(token: u32, out: &mut [f32]) {
        for (i, v) in out.iter_mut().enumerate() {
            *v = ((token as usize * 7 + i * 3) % 5) as f32 * 0.01;
        }
        out[0] += match token {
            0..4 => 1.0,
            4..8 => -1.0,
            _ => 0.0,
        };
    }

    fn card() -> ClassifierCard {
        ClassifierCard {
            base: "none".into(),
            window: 1,
            dimensions: vec![Told {
                name: "side".into(),
                low: "left".into(),
                high: "right".into(),
                held_out: Telling::default(),
            }],
        }
    }

    fn responses() -> Vec<Labelled> {
        let draws = lm::sampling::Draws::new(&[b"responses"]);
        let make = |i: usize| {
            let high = i.is_multiple_of(2);
            let from = if high { 0 } else { 4 };
            let token = |t: usize| {
                let u = draws.clone().uniform(i * 12 + t);
                match t % 3 {
                    0 => from + (u * 4.0) as u32,
                    _ => 8 + (u * 8.0) as u32,
                }
            };
            Labelled {
                prompt: i / 4,
                tokens: (0..6 + i % 7).map(token).collect(),
                labels: vec![(i % 9 != 8).then_some(high)],
            }
        };
        (0..80).map(make).collect()
    }

    #[test]
    fn it_finds_what_tells_the_ends_apart_and_keeps_it() {
        let embeddings = Embeddings {
            vocab: 16,
            width: 5,
            of: &embed,
        };
        let config = ClassifierConfig {
            window: 4,
            ridge: 1e-4,
            ..ClassifierConfig::default()
        };
        let fitted = fit(card(), &responses(), &embeddings, &config, 1).unwrap();
        let told = fitted.card().dimensions[0].held_out;
        assert_eq!((told.accuracy, fitted.card().window), (1.0, 4));
        assert!(told.responses > 8 && told.beginnings > 0.9, "{told:?}");
        assert!(told.loss < 0.3, "{told:?}");
        let token = fitted.token(0);
        assert!(token[2] > token[9] && token[9] > token[5], "{token:?}");
        // Only the last four count, and what is foreign says nothing.
        let (high, low) = (
            fitted.context(0, &[5, 0, 1, 2, 3]),
            fitted.context(0, &[4, 5]),
        );
        assert!(high > 0.0 && low < 0.0, "{high} {low}");
        assert_eq!(high, fitted.context(0, &[0, 1, 2, 3]));
        assert_eq!(fitted.context(0, &[]), 0.0);
        assert_eq!(fitted.context(0, &[99]), 0.0);
        let folder = tempfile::tempdir().unwrap();
        fitted.save(folder.path()).unwrap();
        assert_eq!(Classifier::load(folder.path()).unwrap(), fitted);
        let path = folder.path().join("classifier.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
        let error = Classifier::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("classifier.safetensors"), "{error}");
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let embeddings = Embeddings {
            vocab: 16,
            width: 5,
            of: &embed,
        };
        let all = responses();
        let rows = Rows::new(&all, &embeddings);
        let labelled = all.iter().filter_map(|r| Some((r, r.labels[0]?)));
        let data = rows.data(&labelled.collect::<Vec<_>>(), 3);
        let moments = rows.moments(&data);
        let draws = lm::sampling::Draws::new(&[b"parameters"]);
        let at: Vec<f32> = (0..11)
            .map(|i| draws.clone().uniform(i) as f32 - 0.5)
            .collect();
        let (_, gradient) = rows.gradient(&data, &moments, &at);
        for (i, slope) in gradient.iter().enumerate() {
            let loss = |by: f32| {
                let mut moved = at.clone();
                moved[i] += by;
                rows.gradient(&data, &moments, &moved).0
            };
            let measured = (loss(0.01) - loss(-0.01)) / 0.02;
            let difference = (measured - f64::from(*slope)).abs();
            assert!(difference < 1e-4, "{i}: {measured} {slope}");
        }
        assert!(gradient.iter().any(|g| g.abs() > 0.05), "{gradient:?}");
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let embeddings = Embeddings {
            vocab: 16,
            width: 5,
            of: &embed,
        };
        let error = |responses: &[Labelled], config: &ClassifierConfig| {
            let fitted = fit(card(), responses, &embeddings, config, 1);
            fitted.unwrap_err().to_string()
        };
        let config = ClassifierConfig::default();
        let mut one_sided = responses();
        for response in &mut one_sided {
            response.labels = vec![Some(true)];
        }
        assert!(error(&one_sided, &config).contains("'side'"));
        let mut foreign = responses();
        foreign[3].tokens.push(16);
        assert!(error(&foreign, &config).contains("prompt 0"));
        let none = ClassifierConfig { steps: 0, ..config };
        assert!(error(&responses(), &none).contains("at least 1"));
    }
}
