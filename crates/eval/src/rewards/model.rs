//! A trained reward: a linear head on a decoder's last hidden state, fitted to pairs by Bradley and Terry's
//! model, `P(chosen beats rejected) = σ(r(chosen) − r(rejected))` with `r(x, y) = w · h(x, y)`, where `h` is
//! the normed hidden state of the token that ends the response. Optionally with an adapter below the head.
//!
//! A folder holds `reward.json` (base, normaliser, held-out figures), `head.safetensors`, and perhaps
//! `adapter/` as PEFT saves it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lm::chat::Prompt;
use lm::load::mapped::all_finite;
use lm::objectives::bradley_terry;
use lm::sampling::permutation;
use lm::save::Precision;
use lm::source::Registry;
use lm::tuning::{
    AdamW, AdamWConfig, AdamWState, Item, LoraConfig, LoraParameters, Loss, Optimisation, Sequence,
};
use lm::{Adapter, DeviceSpec};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::reader::Reader;
use super::{Definition, Normaliser, Reward, Scorer};
use crate::error::{above_zero, from_zero_on};
use crate::{Error, Result, write_atomic};

/// Two responses to a prompt, the first preferred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreferencePair {
    /// What was asked.
    pub prompt: String,
    /// The better response.
    pub chosen: String,
    /// The response that it was preferred to.
    pub rejected: String,
}

/// Settings of a fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModelConfig {
    /// Share of the pairs that is kept for measuring. Default 0.2 (ours).
    pub held_out: f64,
    /// Weight of the squared head in the mean loss, features standardised. Default 0.01 (ours).
    pub ridge: f64,
    /// Full-batch steps of the head. Default 400 (ours, not tuned).
    pub steps: u64,
    /// An adapter below the head; `None` trains the head alone (default).
    pub lora: Option<LoraConfig>,
    /// Passes over the pairs with the adapter. Default 2 (ours).
    pub epochs: u64,
    /// Pairs of a step with the adapter. Default 16 (ours).
    pub minibatch: usize,
    /// Steps with the adapter.
    pub optimisation: Optimisation,
}

impl Default for RewardModelConfig {
    fn default() -> Self {
        Self {
            held_out: 0.2,
            ridge: 0.01,
            steps: 400,
            lora: None,
            epochs: 2,
            minibatch: 16,
            optimisation: Optimisation::default(),
        }
    }
}

impl RewardModelConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`], and [`Error::Lm`] for the settings of adapter and steps.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(Error::Parameter {
                name: "held_out",
                value: self.held_out,
                expected: "in [0, 1)",
            });
        }
        from_zero_on("ridge", self.ridge)?;
        for (name, count) in [("steps", self.steps), ("minibatch", self.minibatch as u64)] {
            above_zero(name, count as f64)?;
        }
        if let Some(lora) = &self.lora {
            lora.validate()?;
        }
        Ok(self.optimisation.validate()?)
    }
}

/// How well a reward model orders pairs that it was not fitted to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Number of pairs.
    pub pairs: usize,
    /// Share in the right order, ties half.
    pub accuracy: f64,
    /// Mean loss in nats; ln 2 is a coin.
    pub loss: f64,
    /// Expected calibration error over ten bins of the predicted probability.
    pub calibration_error: f64,
    /// Share of pairs whose chosen response is the longer one: what length alone would get.
    pub longer: f64,
}

/// What a folder's `reward.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Base model by registered name or path.
    pub base: String,
    /// Brings scores to mean 0 and standard deviation 1 on the pairs' responses.
    pub normaliser: Normaliser,
    /// Figures on pairs that were kept for measuring.
    pub held_out: HeldOut,
}

/// The folder of a trained reward.
pub(super) struct Folder<'a>(pub(super) &'a Path);

impl Definition for Folder<'_> {
    fn open(&self, device: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(RewardModel::load(self.0, device)?))
    }

    fn validate(&self) -> Result<()> {
        let card = self.0.join("reward.json");
        if card.is_file() {
            return Ok(());
        }
        Err(Error::NoRewardModel { card })
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Model(change(self.0))
    }
}

/// A trained reward, ready to score.
pub struct RewardModel {
    reader: Arc<Reader>,
    lora: Option<LoraParameters>,
    head: Vec<f32>,
    card: Card,
}

/// Inner product in double precision.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

impl RewardModel {
    /// Fits a reward model over a base model to pairs, on a device.
    ///
    /// # Errors
    /// A base that cannot be read, settings that make no sense, or too few pairs.
    pub fn fit(
        base: &str,
        pairs: &[PreferencePair],
        config: &RewardModelConfig,
        device: &DeviceSpec,
        seed: u64,
        mut progress: impl FnMut(&str),
    ) -> Result<Self> {
        config.validate()?;
        let reader = Reader::shared(&resolve(base)?, device)?;
        let sequences = |pair: &PreferencePair| -> Result<Item> {
            let prompt = Prompt::Chat(vec![lm::chat::Message::user(&pair.prompt)]);
            let chosen = reader.sequence(&prompt, &pair.chosen)?;
            Ok(vec![chosen, reader.sequence(&prompt, &pair.rejected)?])
        };
        let items: Vec<Item> = pairs.iter().map(sequences).collect::<Result<_>>()?;
        let order = permutation(items.len(), &[&seed.to_le_bytes(), b"held out"]);
        let kept = (items.len() as f64 * config.held_out).round() as usize;
        if items.len() < kept + 2 {
            let pairs = items.len();
            return Err(Error::TooFewPairs { pairs });
        }
        let (test, train) = order.split_at(kept);
        let pick = |indices: &[usize]| -> Vec<Item> {
            indices.iter().map(|&i| items[i].clone()).collect()
        };
        let (test, train) = (pick(test), pick(train));
        progress("reading hidden states");
        let hidden = |items: &[Item], lora: Option<&LoraParameters>| {
            let flat: Vec<Sequence> = items.iter().flatten().cloned().collect();
            reader.hidden(lora, &flat)
        };
        let mut head = logistic(&hidden(&train, None)?, config);
        let mut lora = None;
        if let Some(shape) = &config.lora {
            progress("training the adapter");
            let mut parameters = LoraParameters::new(shape, reader.decoder.config(), seed)?;
            tune(&reader, &mut parameters, &mut head, &train, config, seed)?;
            lora = Some(parameters);
        }
        progress("measuring");
        let scores = |items: &[Item]| -> Result<Vec<f64>> {
            let hidden = hidden(items, lora.as_ref())?;
            Ok(hidden.iter().map(|h| dot(h, &head)).collect())
        };
        let all = scores(&train)?;
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / all.len() as f64;
        let longer = |item: &Item| f64::from(u8::from(item[0].scored() > item[1].scored()));
        let mut held_out = measure(&scores(&test)?);
        if !(mean.is_finite() && variance.is_finite() && held_out.loss.is_finite()) {
            return Err(Error::FitNotFinite);
        }
        held_out.longer = test.iter().map(longer).sum::<f64>() / test.len().max(1) as f64;
        let card = Card {
            base: base.into(),
            normaliser: Normaliser {
                mean,
                sd: variance.sqrt().max(1e-9),
            },
            held_out,
        };
        Ok(Self {
            reader,
            lora,
            head,
            card,
        })
    }

    /// What is known of it.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Writes the folder, which is made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let failed = |path: &Path, e: &dyn std::fmt::Display| Error::reward_model(path, e);
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        let path = folder.join("head.safetensors");
        let bytes: Vec<u8> = self.head.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![self.head.len()], &bytes);
        let view = view.map_err(|e| failed(&path, &e))?;
        let file = safetensors::serialize([("weight", view)], None);
        write_atomic(&path, &file.map_err(|e| failed(&path, &e))?)?;
        if let Some(lora) = &self.lora {
            let adapter = folder.join("adapter");
            if adapter.exists() {
                std::fs::remove_dir_all(&adapter).map_err(|e| failed(&adapter, &e))?;
            }
            let (config, base) = (self.reader.decoder.config(), Some(self.card.base.as_str()));
            lora.adapter()
                .save(&adapter, config, base, Precision::F16)?;
        }
        let path = folder.join("reward.json");
        let text = serde_json::to_string_pretty(&self.card).map_err(|e| failed(&path, &e))?;
        write_atomic(&path, (text + "\n").as_bytes())
    }

    /// Opens a folder that [`Self::save`] wrote, on a device.
    ///
    /// # Errors
    /// Missing or damaged files, or a base that cannot be read.
    pub fn load(folder: &Path, device: &DeviceSpec) -> Result<Self> {
        let path = folder.join("reward.json");
        let failed = |path: &Path, e: &dyn std::fmt::Display| Error::reward_model(path, e);
        let text = lm::load::read_text(&path)?;
        let card: Card = serde_json::from_str(&text).map_err(|e| failed(&path, &e))?;
        let normaliser = card.normaliser.validate();
        normaliser.map_err(|e| failed(&path, &e))?;
        let reader = Reader::shared(&resolve(&card.base)?, device)?;
        let config = reader.decoder.config();
        let path = folder.join("head.safetensors");
        let bytes = lm::load::read_bytes(&path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(&path, &e))?;
        let head = file.tensor("weight").map_err(|e| failed(&path, &e))?;
        if head.dtype() != Dtype::F32 || head.shape() != [config.hidden_size] {
            let message = format!(
                "the head is {:?} in {:?}, the base asks for [{}] in F32",
                head.shape(),
                head.dtype(),
                config.hidden_size
            );
            return Err(failed(&path, &message));
        }
        let parts = head.data().chunks_exact(4);
        let numbers = parts.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let head: Vec<f32> = numbers.collect();
        all_finite(&path, "weight", &[head.len()], &head)?;
        let adapter = folder.join("adapter");
        let mut lora = None;
        if adapter.is_dir() {
            let adapter = Adapter::load(&adapter, config)?;
            let shape = LoraParameters::shape_of(&adapter)?;
            lora = Some(LoraParameters::from_adapter(&adapter, &shape, config)?);
        }
        Ok(Self {
            reader,
            lora,
            head,
            card,
        })
    }
}

impl Reward for RewardModel {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        Ok(self.score_all(&[(prompt, response)])?[0])
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let sequence =
            |(prompt, response): &(&Prompt, &str)| self.reader.sequence(prompt, response);
        let sequences: Vec<Sequence> = items.iter().map(sequence).collect::<Result<_>>()?;
        let hidden = self.reader.hidden(self.lora.as_ref(), &sequences)?;
        let scores: Vec<f64> = hidden.iter().map(|h| dot(h, &self.head)).collect();
        match scores.iter().position(|s| !s.is_finite()) {
            None => Ok(scores),
            Some(i) => Err(Error::ScoreNotFinite {
                base: self.card.base.clone(),
                response: items[i].1.chars().take(80).collect(),
                score: scores[i],
            }),
        }
    }

    fn normaliser(&self) -> Option<Normaliser> {
        Some(self.card.normaliser)
    }
}

/// The path of a base model, by its registered name or path.
fn resolve(base: &str) -> Result<PathBuf> {
    Ok(Registry::load()?.resolve(base, &mut |_, _, _| ())?)
}

/// The head for hidden states of pairs, `[chosen, rejected, chosen, ..]`: full-batch steps on standardised
/// differences.
fn logistic(hidden: &[Vec<f32>], config: &RewardModelConfig) -> Vec<f32> {
    let width = hidden.first().map_or(0, Vec::len);
    let n = hidden.len() as f64;
    let mut sd = vec![0.0f64; width];
    for (i, sd) in sd.iter_mut().enumerate() {
        let mean = hidden.iter().map(|h| f64::from(h[i])).sum::<f64>() / n;
        let squares = hidden.iter().map(|h| (f64::from(h[i]) - mean).powi(2));
        *sd = (squares.sum::<f64>() / n).sqrt().max(1e-6);
    }
    let difference = |pair: &[Vec<f32>]| -> Vec<f32> {
        let parts = pair[0].iter().zip(&pair[1]).zip(&sd);
        parts.map(|((a, b), s)| (a - b) / *s as f32).collect()
    };
    let differences: Vec<Vec<f32>> = hidden.chunks(2).map(difference).collect();
    let count = differences.len() as f64;
    let mut head = vec![0.0f32; width];
    let mut adam = AdamW::new(AdamWConfig::default(), AdamWState::default());
    for step in 0..config.steps {
        let mut gradient: Vec<f32> = head
            .iter()
            .map(|w| (2.0 * config.ridge) as f32 * w)
            .collect();
        for difference in &differences {
            let slope = bradley_terry(dot(difference, &head), 0.0).1 / count;
            let sums = gradient.iter_mut().zip(difference);
            sums.for_each(|(g, d)| *g += slope as f32 * d);
        }
        let left = 1.0 - step as f64 / config.steps as f64;
        adam.step(&mut head, &gradient, 0.03 * left);
    }
    let scaled = head.iter().zip(&sd).map(|(w, s)| w / *s as f32);
    scaled.collect()
}

/// Trains adapter and head together.
fn tune(
    reader: &Reader,
    lora: &mut LoraParameters,
    head: &mut [f32],
    items: &[Item],
    config: &RewardModelConfig,
    seed: u64,
) -> Result<()> {
    let optimisation = &config.optimisation;
    let mut adam = AdamW::new(optimisation.adamw, AdamWState::default());
    let steps = config.epochs * items.len().div_ceil(config.minibatch) as u64;
    for epoch in 0..config.epochs {
        let parts: [&[u8]; 3] = [&seed.to_le_bytes(), b"epoch", &epoch.to_le_bytes()];
        for chosen in permutation(items.len(), &parts).chunks(config.minibatch) {
            let batch: Vec<Item> = chosen.iter().map(|&i| items[i].clone()).collect();
            let loss = |_: usize, hidden: &[Vec<f32>]| {
                let (value, slope) = bradley_terry(dot(&hidden[0], head), dot(&hidden[1], head));
                let row = |s: f64| head.iter().map(|w| s as f32 * w).collect();
                Loss {
                    value,
                    gradient: vec![row(slope), row(-slope)],
                }
            };
            let mut gradient = reader.decoder.hidden_gradient(lora, &batch, &loss)?;
            let scale = 1.0 / batch.len() as f32;
            gradient.values.iter_mut().for_each(|g| *g *= scale);
            optimisation.clip(&mut gradient.values);
            let rate = optimisation.rate(adam.state.step, steps);
            adam.step(&mut lora.values, &gradient.values, rate);
        }
    }
    // The head is fitted again to what the adapter now makes of the text.
    let flat: Vec<Sequence> = items.iter().flatten().cloned().collect();
    let hidden = reader.hidden(Some(lora), &flat)?;
    head.copy_from_slice(&logistic(&hidden, config));
    Ok(())
}

/// Figures for scores of pairs, `[chosen, rejected, ..]`.
fn measure(scores: &[f64]) -> HeldOut {
    let margins: Vec<f64> = scores.chunks(2).map(|p| p[0] - p[1]).collect();
    let n = margins.len().max(1) as f64;
    let right = |m: &f64| match m.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Equal) => 0.5,
        _ => 0.0,
    };
    // Each pair is seen from both sides: the probability that the first of two wins, and whether it did.
    let mut bins = vec![(0.0, 0.0, 0.0); 10];
    for margin in &margins {
        for (margin, won) in [(*margin, 1.0), (-margin, 0.0)] {
            let p = 1.0 / (1.0 + (-margin).exp());
            let bin = &mut bins[((p * 10.0) as usize).min(9)];
            *bin = (bin.0 + 1.0, bin.1 + p, bin.2 + won);
        }
    }
    let gaps = bins.iter().filter(|b| b.0 > 0.0).map(|b| (b.1 - b.2).abs());
    HeldOut {
        pairs: margins.len(),
        accuracy: margins.iter().map(right).sum::<f64>() / n,
        loss: margins
            .iter()
            .map(|m| bradley_terry(*m, 0.0).0)
            .sum::<f64>()
            / n,
        calibration_error: gaps.sum::<f64>() / (2.0 * n),
        longer: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_finds_the_direction_that_decides() {
        let hidden: Vec<Vec<f32>> = (0..200)
            .map(|i| {
                let noise = ((i * 37 % 101) as f32 / 50.0) - 1.0;
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                vec![noise, 0.2 * sign + 0.1 * noise, 1.0]
            })
            .collect();
        let head = logistic(&hidden, &RewardModelConfig::default());
        let scores: Vec<f64> = hidden.iter().map(|h| dot(h, &head)).collect();
        let measured = measure(&scores);
        assert!(measured.accuracy > 0.95, "{measured:?}");
        assert!(
            measured.loss < 0.3 && measured.calibration_error < 0.2,
            "{measured:?}"
        );
    }

    #[test]
    fn figures_by_hand() {
        let measured = measure(&[1.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
        assert_eq!((measured.pairs, measured.accuracy), (3, 0.5));
        let loss = |m: f64| (1.0 + (-m).exp()).ln();
        let expected = (loss(1.0) + loss(0.0) + loss(-2.0)) / 3.0;
        assert!((measured.loss - expected).abs() < 1e-12);
    }
}
