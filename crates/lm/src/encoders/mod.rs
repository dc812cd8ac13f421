//! Encoders: texts to vectors ([`SentenceEncoder`]) and to labels ([`TextClassifier`]), through burn on any device.
//!
//! BERT, RoBERTa, XLM-RoBERTa, DistilBERT, DeBERTa-v2 and v3, and ModernBERT, from folders as transformers and
//! sentence-transformers save them. Texts are read as these libraries read them: special tokens that are written in a
//! text are special.
//!
//! ```
//! use mope_lm::DeviceSpec;
//! use mope_lm::encoders::SentenceEncoder;
//!
//! let folder = "tests/fixtures/encoders/bert_sentences".as_ref();
//! let encoder = SentenceEncoder::open(folder, &DeviceSpec::Cpu)?;
//! let vectors = encoder.embed(&["a cat", "the cat sat"])?;
//! // This one ends in a module that gives every vector a length of 1.
//! let length: f32 = vectors[0].iter().map(|v| v * v).sum();
//! assert!((length - 1.0).abs() < 1e-5);
//! # Ok::<(), mope_lm::Error>(())
//! ```

mod classifier;
mod config;
mod layers;
mod modern_bert;
mod post_norm;
mod relative;
mod sentence;
mod weights;

use std::path::Path;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

pub use classifier::TextClassifier;
pub use sentence::{SentenceEncoder, cosine};

use crate::{DeviceSpec, Error, Result, Tokenizer};
use config::{Config, Family};
use modern_bert::ModernBert;
use post_norm::PostNorm;
use weights::Weights;

/// Tokens that are read together, padding included (ours): attention needs their number times the longest text's.
const TOGETHER: usize = 4096;

/// Token ids of a text or a pair, and of each token whether it is of the second text.
type Tokens = (Vec<u32>, Vec<u32>);

/// A text, or a pair of texts that is read as one.
pub type Text<'a> = (&'a str, Option<&'a str>);

/// Texts of about the same length on a device.
struct Batch {
    /// Lanes, and tokens of the longest.
    shape: [usize; 2],
    /// `[lanes · time]`.
    ids: Tensor<1, Int>,
    /// The same: 0, and 1 in the second text of a pair.
    types: Tensor<1, Int>,
    /// True at padding, `[lanes, 1, 1, time]`.
    hidden: Tensor<4, Bool>,
    /// Tokens of each lane.
    lengths: Vec<usize>,
}

/// The blocks of one of the families.
#[derive(Debug)]
enum Body {
    PostNorm(Box<PostNorm>),
    ModernBert(Box<ModernBert>),
}

/// An encoder without what reads its hidden states.
#[derive(Debug)]
struct Encoder {
    config: Config,
    body: Body,
    tokenizer: Tokenizer,
    device: Device,
}

/// Names of tensors of other heads, by their starts; a model for one task may be saved with another's.
const OTHER_HEADS: [&str; 10] = [
    "cls.",
    "lm_head.",
    "vocab_",
    "lm_predictions.",
    "mask_predictions.",
    "qa_outputs.",
    "decoder.",
    "pooler.",
    "bert.pooler.",
    "roberta.pooler.",
];

impl Encoder {
    /// Opens a folder, texts being cut at `longest` tokens, by default where the tokenizer's config says so, and at the
    /// latest where positions end; gives the tensors back for what reads the states.
    fn open(folder: &Path, device: &DeviceSpec, longest: Option<usize>) -> Result<(Self, Weights)> {
        let mut config = Config::read(folder)?;
        let device = device.open()?;
        let weights = Weights::open(folder, &device)?;
        let (bare, prefix) = match config.family {
            Family::Bert => ("embeddings.word_embeddings.weight", "bert."),
            Family::Roberta => ("embeddings.word_embeddings.weight", "roberta."),
            Family::DistilBert => ("embeddings.word_embeddings.weight", "distilbert."),
            Family::Deberta(_) => ("embeddings.word_embeddings.weight", "deberta."),
            Family::ModernBert(_) => ("embeddings.tok_embeddings.weight", "model."),
        };
        // A model that was saved without a head has bare names.
        let prefix = if weights.has(bare) { "" } else { prefix };
        let body = match &config.family {
            Family::ModernBert(shape) => Body::ModernBert(Box::new(ModernBert::read(
                &config, shape, &weights, prefix,
            )?)),
            _ => Body::PostNorm(Box::new(PostNorm::read(&config, &weights, prefix)?)),
        };
        let longest = longest.map_or_else(|| model_max_length(folder), |n| Ok(Some(n)))?;
        let longest = longest.unwrap_or(usize::MAX);
        config.context_length = config.context_length.min(longest);
        let tokenizer = Tokenizer::of_encoder(folder, config.context_length)?;
        let encoder = Self {
            config,
            body,
            tokenizer,
            device,
        };
        Ok((encoder, weights))
    }

    /// What `read` makes of each text's hidden states, in the order of the texts. It gets states
    /// `[lanes, time, hidden]` and the tokens of each lane, and returns `[lanes, outputs]`.
    fn read(
        &self,
        texts: &[Text<'_>],
        read: impl Fn(Tensor<3>, &[usize]) -> Tensor<2>,
    ) -> Result<Vec<Vec<f32>>> {
        let tokens = texts.iter().map(|text| self.tokenizer.encode_pair(*text));
        let tokens: Vec<Tokens> = tokens.collect::<Result<_>>()?;
        let limit = self.config.vocab_size;
        for (ids, _) in &tokens {
            if ids.is_empty() {
                return Err(Error::EmptyPrompt);
            }
            if let Some(&id) = ids.iter().find(|id| **id as usize >= limit) {
                return Err(Error::Token {
                    id,
                    vocab_size: limit,
                });
            }
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tokens[i].0.len()));
        let mut outputs = vec![Vec::new(); texts.len()];
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            // The longest comes first, so that it sets the width.
            let lanes = (TOGETHER / tokens[longest].0.len()).max(1);
            let (together, behind) = rest.split_at(lanes.min(rest.len()));
            rest = behind;
            let batch = self.batch(&together.iter().map(|&i| &tokens[i]).collect::<Vec<_>>());
            let states = match &self.body {
                Body::PostNorm(body) => body.forward(&batch),
                Body::ModernBert(body) => body.forward(&batch),
            };
            let rows = read(states, &batch.lengths);
            let width = rows.dims()[1];
            let rows = crate::to_host(rows)?;
            for (&text, row) in together.iter().zip(rows.chunks(width)) {
                outputs[text] = row.to_vec();
            }
        }
        match outputs
            .iter()
            .position(|row| row.iter().any(|v| !v.is_finite()))
        {
            Some(lane) => Err(Error::NoNumbers { lane }),
            None => Ok(outputs),
        }
    }

    fn batch(&self, texts: &[&Tokens]) -> Batch {
        let lengths: Vec<usize> = texts.iter().map(|(ids, _)| ids.len()).collect();
        let time = lengths.iter().copied().max().unwrap_or(0);
        let shape = [texts.len(), time];
        let lay = |of: fn(&Tokens) -> &Vec<u32>| -> Tensor<1, Int> {
            let mut all = vec![0i32; texts.len() * time];
            for (row, text) in all.chunks_mut(time.max(1)).zip(texts) {
                let values = of(text).iter().map(|&v| v as i32);
                row.iter_mut().zip(values).for_each(|(to, v)| *to = v);
            }
            Tensor::from_data(all.as_slice(), &self.device)
        };
        let largest = self.config.types.saturating_sub(1) as i32;
        let padding = lengths.iter().flat_map(|&n| (0..time).map(move |t| t >= n));
        let padding = TensorData::new(padding.collect::<Vec<bool>>(), [shape[0], 1, 1, time]);
        Batch {
            shape,
            ids: lay(|text| &text.0),
            // RoBERTa's table has one row.
            types: lay(|text| &text.1).clamp_max(largest),
            hidden: Tensor::from_data(padding, &self.device),
            lengths,
        }
    }

    /// 1 at each lane's tokens and 0 at padding, `[lanes, time, 1]`.
    fn mask(&self, lengths: &[usize], time: usize) -> Tensor<3> {
        let of = |&n: &usize| (0..time).map(move |t| f32::from(u8::from(t < n)));
        let mask = lengths.iter().flat_map(of).collect::<Vec<f32>>();
        Tensor::from_data(
            TensorData::new(mask, [lengths.len(), time, 1]),
            &self.device,
        )
    }

    /// Mean of each lane's states, `[lanes, hidden]`.
    fn mean(&self, states: Tensor<3>, lengths: &[usize]) -> Tensor<2> {
        let [lanes, time, hidden] = states.dims();
        let mask = self.mask(lengths, time);
        let sum = (states * mask.clone()).sum_dim(1);
        (sum / mask.sum_dim(1)).reshape([lanes, hidden])
    }
}

/// Where `tokenizer_config.json` has texts cut; transformers writes a number beyond all bounds for nowhere.
fn model_max_length(folder: &Path) -> Result<Option<usize>> {
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config: serde_json::Value = crate::load::hf::read_json(&path)?;
    let longest = config
        .get("model_max_length")
        .and_then(serde_json::Value::as_f64);
    Ok(longest
        .filter(|n| (1.0..1e9).contains(n))
        .map(|n| n as usize))
}

/// The state of each lane's first token, `[lanes, hidden]`.
fn first(states: Tensor<3>) -> Tensor<2> {
    let [lanes, _, hidden] = states.dims();
    states.narrow(1, 0, 1).reshape([lanes, hidden])
}
