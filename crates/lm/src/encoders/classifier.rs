//! Texts to labels: an encoder with a head, as transformers' `…ForSequenceClassification`.

use std::path::Path;

use burn::tensor::Tensor;

use super::config::Family;
use super::layers::{Activation, LayerNorm, Linear};
use super::{Encoder, OTHER_HEADS, Text, first};
use crate::{DeviceSpec, Error, Result};

/// A classifier of texts, or of pairs of texts.
#[derive(Debug)]
pub struct TextClassifier {
    encoder: Encoder,
    head: Head,
}

/// From a text's state to the logits.
#[derive(Debug)]
struct Head {
    /// The mean of the states is read, not the first token's.
    mean: bool,
    dense: Linear,
    activation: Activation,
    norm: Option<LayerNorm>,
    output: Linear,
}

impl TextClassifier {
    /// Opens a folder as transformers saves it.
    ///
    /// # Errors
    /// Another family by its name, a model without a head for labels, files that are missing or damaged, a device that
    /// this build lacks.
    pub fn open(folder: &Path, device: &DeviceSpec) -> Result<Self> {
        let (encoder, weights) = Encoder::open(folder, device, None)?;
        let c = &encoder.config;
        let (hidden, labels) = (c.hidden_size, c.labels.len());
        let (mut mean, mut norm, mut bias) = (false, None, true);
        let (dense, activation, output) = match &c.family {
            Family::Bert => ("bert.pooler.dense", Activation::Tanh, "classifier"),
            Family::Roberta => ("classifier.dense", Activation::Tanh, "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier", Activation::Relu, "classifier"),
            Family::Deberta(shape) => ("pooler.dense", shape.pooler, "classifier"),
            Family::ModernBert(shape) => {
                (mean, bias) = (shape.classifier_mean, shape.classifier_bias);
                norm = Some(weights.norm("head.norm", hidden, shape.norm_bias, c.eps)?);
                ("head.dense", shape.classifier_activation, "classifier")
            }
        };
        if !weights.has(&format!("{output}.weight")) {
            return Err(Error::NoClassifier {
                folder: folder.into(),
            });
        }
        let head = Head {
            mean,
            dense: weights.linear(dense, [hidden, hidden], bias)?,
            activation,
            norm,
            output: weights.linear(output, [labels, hidden], true)?,
        };
        weights.finish(&OTHER_HEADS)?;
        Ok(Self { encoder, head })
    }

    /// Names of the labels, in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.encoder.config.labels
    }

    /// Whether each label is a question of its own, or all are one choice.
    pub fn is_multi_label(&self) -> bool {
        self.encoder.config.several_labels || self.labels().len() == 1
    }

    /// The logits of each text, `[texts][labels]`.
    ///
    /// # Errors
    /// A text that the tokenizer refuses; [`Error::NoNumbers`].
    pub fn logits(&self, texts: &[Text<'_>]) -> Result<Vec<Vec<f32>>> {
        self.encoder.read(texts, |states, lengths| {
            let head = &self.head;
            let pooled: Tensor<2> = match head.mean {
                true => self.encoder.mean(states, lengths),
                false => first(states),
            };
            let mut x = head.activation.forward(head.dense.forward(pooled));
            if let Some(norm) = &head.norm {
                x = norm.forward(x);
            }
            head.output.forward(x)
        })
    }

    /// Log-odds of a label in each text: its logit where it is a question of its own, else against all others together,
    /// `z_l − ln Σ_{k ≠ l} exp z_k`.
    ///
    /// # Errors
    /// Those of [`Self::logits`].
    ///
    /// # Panics
    /// When there is no label of this number.
    pub fn log_odds(&self, texts: &[Text<'_>], label: usize) -> Result<Vec<f64>> {
        let logits = self.logits(texts)?;
        let of = |row: &Vec<f32>| {
            let logit = f64::from(row[label]);
            if self.is_multi_label() {
                return logit;
            }
            let others = row.iter().enumerate().filter(|(k, _)| *k != label);
            let others: Vec<f64> = others.map(|(_, z)| f64::from(*z)).collect();
            let most = others.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = others.iter().map(|z| (z - most).exp()).sum();
            logit - most - sum.ln()
        };
        Ok(logits.iter().map(of).collect())
    }
}
