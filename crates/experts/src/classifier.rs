//! A small classifier of responses that can rate every candidate for the next token at once:
//!
//! ```text
//! P(high | y_≤t) = σ( b + u · E(y_t) + v · mean of E over the last w tokens before y_t )
//! ```
//!
//! with a head `(u, v, b)` for each dimension over the base's frozen token embeddings `E`. As those are frozen, a
//! head is two numbers a token, `b + u · E(y)` and `v · E(y)`, and these are what is kept: rating the whole
//! vocabulary takes one mean over the last w tokens and an addition a candidate, and no embedding.
//! [`training::classifier`](crate::training::classifier) fits it.
//!
//! A folder holds `classifier.json` (dimensions, window, held-out figures) and `classifier.safetensors`.
//!
//! ```
//! use mope_experts::classifier::{Classifier, ClassifierCard, Telling, Told};
//! let tone = Told {
//!     name: "tone".into(),
//!     low: "rude".into(),
//!     high: "kind".into(),
//!     held_out: Telling::default(),
//! };
//! let card = ClassifierCard { base: "none".into(), window: 2, dimensions: vec![tone] };
//! assert_eq!(card.locate("rude"), Some((0, -1.0)));
//! // A vocabulary of three tokens.
//! let classifier = Classifier::new(card, vec![0.0, 1.0, -1.0], vec![0.5, 0.0, -0.5])?;
//! assert_eq!(classifier.token(0), [0.0, 1.0, -1.0]);
//! assert_eq!(classifier.context(0, &[1, 0]), 0.25);
//! # Ok::<(), mope_experts::Error>(())
//! ```

use std::path::Path;

use lm::load::mapped::all_finite;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a folder's `classifier.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierCard {
    /// Base model by registered name or path: whose tokens these are.
    pub base: String,
    /// Tokens before the candidate that are read.
    pub window: usize,
    /// What is told apart.
    pub dimensions: Vec<Told>,
}

/// One dimension of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Direction that a probability of 0 speaks for.
    pub low: String,
    /// Direction that a probability of 1 speaks for.
    pub high: String,
    /// Figures on responses to prompts that were kept for measuring.
    pub held_out: Telling,
}

/// How well a dimension is told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telling {
    /// Labelled responses.
    pub responses: usize,
    /// Share of them on whose side the mean logit of their tokens is.
    pub accuracy: f64,
    /// Share of their beginnings, one for each token, that are told right.
    pub beginnings: f64,
    /// Mean loss of a beginning in nats; ln 2 is a coin.
    pub loss: f64,
}

/// A classifier, ready to rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    card: ClassifierCard,
    vocab: usize,
    /// `b + u · E(y)`, `[dimensions, vocab]`.
    token: Vec<f32>,
    /// `v · E(y)`, `[dimensions, vocab]`.
    context: Vec<f32>,
}

const CARD: &str = "classifier.json";
const TABLES: &str = "classifier.safetensors";
const NAMES: [&str; 2] = ["token", "context"];

fn failed(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::Classifier {
        path: path.to_path_buf(),
        message: e.to_string(),
    }
}

impl ClassifierCard {
    /// Reads the card of a folder alone.
    ///
    /// # Errors
    /// [`Error::Classifier`]: a card that is missing or makes no sense.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CARD);
        let text = lm::load::read_text(&path)?;
        let card: Self = serde_json::from_str(&text).map_err(|e| failed(&path, &e))?;
        if card.window == 0 || card.dimensions.is_empty() {
            return Err(failed(&path, &"window and dimensions are at least 1"));
        }
        Ok(card)
    }

    /// The dimension that a direction belongs to, and 1 for its high end or −1 for its low one.
    pub fn locate(&self, direction: &str) -> Option<(usize, f32)> {
        let ends = self.dimensions.iter().enumerate();
        ends.filter_map(|(i, d)| match direction {
            name if name == d.high => Some((i, 1.0)),
            name if name == d.low => Some((i, -1.0)),
            _ => None,
        })
        .next()
    }

    /// All directions.
    pub fn directions(&self) -> Vec<&str> {
        let ends = self.dimensions.iter();
        ends.flat_map(|d| [d.low.as_str(), d.high.as_str()])
            .collect()
    }
}

impl Classifier {
    /// A classifier of its numbers, both `[dimensions, vocab]`.
    ///
    /// # Errors
    /// Another number of numbers than dimensions times a vocabulary, or one that is NaN or infinite.
    pub fn new(card: ClassifierCard, token: Vec<f32>, context: Vec<f32>) -> Result<Self> {
        let dimensions = card.dimensions.len().max(1);
        if card.window == 0
            || token.len() != context.len()
            || !token.len().is_multiple_of(dimensions)
        {
            return Err(Error::ClassifierShape {
                dimensions,
                token: token.len(),
                context: context.len(),
                window: card.window,
            });
        }
        if token.iter().chain(&context).any(|v| !v.is_finite()) {
            return Err(Error::ClassifierNotFinite);
        }
        Ok(Self {
            vocab: token.len() / dimensions,
            card,
            token,
            context,
        })
    }

    /// What is known of it.
    pub fn card(&self) -> &ClassifierCard {
        &self.card
    }

    /// Tokens that it rates.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// What each token says of a dimension by itself, a logit, `[vocab]`.
    ///
    /// # Panics
    /// When there is no such dimension.
    pub fn token(&self, dimension: usize) -> &[f32] {
        &self.token[dimension * self.vocab..(dimension + 1) * self.vocab]
    }

    /// What the tokens before say, to be added; 0 where there are none. Tokens of another vocabulary say nothing.
    ///
    /// # Panics
    /// When there is no such dimension.
    pub fn context(&self, dimension: usize, before: &[u32]) -> f32 {
        let table = &self.context[dimension * self.vocab..(dimension + 1) * self.vocab];
        let last = &before[before.len().saturating_sub(self.card.window)..];
        let said = last.iter().filter_map(|t| table.get(*t as usize));
        let sum: f64 = said.map(|v| f64::from(*v)).sum();
        (sum / last.len().max(1) as f64) as f32
    }

    /// Writes the folder, which is made.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, &e))?;
        let path = folder.join(TABLES);
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let data = [bytes(&self.token), bytes(&self.context)];
        let mut views = Vec::new();
        for (name, data) in NAMES.iter().zip(&data) {
            let shape = vec![self.card.dimensions.len(), self.vocab];
            let view = TensorView::new(Dtype::F32, shape, data);
            views.push((*name, view.map_err(|e| failed(&path, &e))?));
        }
        let file = safetensors::serialize(views, None).map_err(|e| failed(&path, &e))?;
        std::fs::write(&path, file).map_err(|e| failed(&path, &e))?;
        let path = folder.join(CARD);
        let text = serde_json::to_string_pretty(&self.card).map_err(|e| failed(&path, &e))?;
        std::fs::write(&path, text + "\n").map_err(|e| failed(&path, &e))
    }

    /// Opens a folder that [`Self::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Classifier`]: missing or damaged files; [`lm::Error::NotFinite`].
    pub fn load(folder: &Path) -> Result<Self> {
        let card = ClassifierCard::load(folder)?;
        let path = folder.join(TABLES);
        let bytes = lm::load::read_bytes(&path)?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| failed(&path, &e))?;
        let mut tables = Vec::new();
        for name in NAMES {
            let tensor = file.tensor(name).map_err(|e| failed(&path, &e))?;
            let shape = tensor.shape();
            if tensor.dtype() != Dtype::F32 || shape.len() != 2 || shape[0] != card.dimensions.len()
            {
                let (dtype, dimensions) = (tensor.dtype(), card.dimensions.len());
                return Err(failed(
                    &path,
                    &format!(
                        "'{name}' is {shape:?} in {dtype:?}, not [{dimensions}, vocabulary] in F32"
                    ),
                ));
            }
            let parts = tensor.data().chunks_exact(4);
            let numbers = parts.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let numbers: Vec<f32> = numbers.collect();
            all_finite(&path, name, shape, &numbers)?;
            tables.push(numbers);
        }
        let context = tables.pop().unwrap_or_default();
        let token = tables.pop().unwrap_or_default();
        Self::new(card, token, context).map_err(|e| failed(&path, &e))
    }
}
