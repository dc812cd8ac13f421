//! Decoders that score a conversation instead of going on with it: transformers' `…ForSequenceClassification`, as reward
//! models of the hub are saved.
//!
//! The head `score.weight` reads the last hidden state of the last token that is not the padding token,
//!
//! ```text
//! s(x, y) = W_score · h_T,      T = max { t : token_t ≠ padding }
//! ```
//!
//! ```
//! use mope_lm::chat::{Message, Prompt};
//! use mope_lm::scored::ScoredModel;
//! use mope_lm::{DeviceSpec, Format};
//!
//! let folder = "tests/fixtures/pico/scored_llama".as_ref();
//! let model = ScoredModel::open(folder, &DeviceSpec::Cpu, Format::F32)?;
//! let prompt = Prompt::Chat(vec![Message::user("why?")]);
//! let scores = model.scores(&[(&prompt, "so it is"), (&prompt, "no")])?;
//! assert_eq!((scores.len(), scores[0].len()), (2, model.labels().len()));
//! # Ok::<(), mope_lm::Error>(())
//! ```

use std::path::Path;

use serde_json::{Map, Value};

use crate::chat::{ChatTemplate, Message, Prompt, Role};
use crate::engine::Engine;
use crate::load::Checkpoint;
use crate::load::hf::read_json;
use crate::{DeviceSpec, Error, Format, Result, Tokenizer};

/// Tokens that are read together (ours): enough to keep the processor busy, in some megabytes.
const TOGETHER: usize = 4096;

/// A decoder with a head of scores.
#[derive(Debug)]
pub struct ScoredModel {
    engine: Engine,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    padding: Option<u32>,
    labels: Vec<String>,
}

/// What `config.json` says of the head.
struct Head {
    padding: Option<u32>,
    labels: Vec<String>,
}

impl Head {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let config: Map<String, Value> = read_json(&path)?;
        let padding = config.get("pad_token_id").and_then(Value::as_u64);
        let named = config.get("id2label").and_then(Value::as_object);
        let count = match named {
            Some(named) => named.len(),
            None => config
                .get("num_labels")
                .and_then(Value::as_u64)
                .unwrap_or(2) as usize,
        };
        if !(1..=1 << 16).contains(&count) {
            return Err(Error::format(&path, format!("{count} labels")));
        }
        let label = |i: usize| {
            let name = named.and_then(|names| names.get(&i.to_string())?.as_str());
            name.map_or_else(|| format!("LABEL_{i}"), String::from)
        };
        Ok(Self {
            padding: padding.and_then(|id| u32::try_from(id).ok()),
            labels: (0..count).map(label).collect(),
        })
    }
}

impl ScoredModel {
    /// Opens a folder as transformers saves it: LLaMA, Mistral, Qwen2, Qwen3, and all else that decodes here.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`Tokenizer::load`] and [`Engine::load`]; a model without `score.weight`.
    pub fn open(folder: &Path, device: &DeviceSpec, format: Format) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let named = checkpoint
            .tensors()
            .iter()
            .any(|(name, _)| *name == "score.weight");
        if !named {
            return Err(Error::NoScores {
                folder: folder.into(),
            });
        }
        let Head { padding, labels } = Head::read(folder)?;
        let checkpoint = checkpoint.with_scores(labels.len());
        Ok(Self {
            tokenizer: Tokenizer::load(&checkpoint)?,
            chat: ChatTemplate::load(&checkpoint),
            engine: Engine::load(&checkpoint, device, format)?,
            padding,
            labels,
        })
    }

    /// Whether a folder's `config.json` asks for such a head.
    pub fn is_scored(folder: &Path) -> bool {
        let config: Option<Map<String, Value>> = read_json(&folder.join("config.json")).ok();
        let class = config.and_then(|c| c.get("architectures")?.get(0)?.as_str().map(String::from));
        let decoder = [
            "Llama", "Mistral", "Qwen", "Gemma", "Phi", "Olmo", "Granite",
        ];
        class.is_some_and(|class| {
            class.ends_with("ForSequenceClassification")
                && decoder.iter().any(|family| class.starts_with(family))
        })
    }

    /// Names of the scores, in their order.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Token ids of a prompt with its response, by the model's chat template; the start of what is longer than the
    /// context is dropped. A raw prompt and its response are one text.
    ///
    /// # Errors
    /// A text that the template or the tokenizer refuses.
    pub fn tokens(&self, prompt: &Prompt, response: &str) -> Result<Vec<u32>> {
        let mut tokens = match (prompt, &self.chat) {
            (Prompt::Raw(text), _) => self.tokenizer.encode(&format!("{text}{response}"), true)?,
            (Prompt::Chat(messages), Some(chat)) => {
                let mut messages = messages.clone();
                messages.push(Message {
                    role: Role::Assistant,
                    content: response.into(),
                });
                let render = |messages: &[Message]| chat.render(messages, false);
                self.tokenizer.encode_rendered(&messages, render)?
            }
            (Prompt::Chat(_), None) => {
                let message = "the model has none; a reward model is asked in its own template";
                return Err(Error::ChatTemplate(message.into()));
            }
        };
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let limit = self.engine.config().context_length;
        tokens.drain(..tokens.len().saturating_sub(limit));
        Ok(tokens)
    }

    /// The scores of responses, each to its prompt, `[responses][labels]`.
    ///
    /// # Errors
    /// Those of [`Self::tokens`] and [`Self::scores_of_tokens`].
    pub fn scores(&self, items: &[(&Prompt, &str)]) -> Result<Vec<Vec<f32>>> {
        let tokens = items.iter().map(|(prompt, text)| self.tokens(prompt, text));
        self.scores_of_tokens(&tokens.collect::<Result<Vec<_>>>()?)
    }

    /// The scores of sequences, `[sequences][labels]`. Those of about the same length are read together; what stands
    /// beside a sequence changes its scores on no device but by rounding.
    ///
    /// # Errors
    /// An empty sequence, a token outside of the vocabulary, [`Error::NoNumbers`] by the sequence's number.
    pub fn scores_of_tokens(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        if sequences.iter().any(Vec::is_empty) {
            return Err(Error::EmptyLane);
        }
        let read: Vec<&[u32]> = sequences
            .iter()
            .map(|tokens| self.until_last(tokens))
            .collect();
        let mut order: Vec<usize> = (0..read.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(read[i].len()));
        let mut scores = vec![Vec::new(); read.len()];
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let time = read[longest].len();
            let lanes = (TOGETHER / time).clamp(1, rest.len());
            let (together, behind) = rest.split_at(lanes);
            rest = behind;
            let tokens: Vec<&[u32]> = together.iter().map(|&i| read[i]).collect();
            let mut cache = self.engine.cache(lanes, time);
            let mut outputs = vec![0.0; lanes * self.labels.len()];
            let done = self
                .engine
                .next_logits(&tokens, &mut cache, None, &mut outputs);
            done.map_err(|e| by_sequence(e, together))?;
            for (&sequence, row) in together.iter().zip(outputs.chunks(self.labels.len())) {
                if row.iter().any(|v| !v.is_finite()) {
                    return Err(Error::NoNumbers { lane: sequence });
                }
                scores[sequence] = row.to_vec();
            }
        }
        Ok(scores)
    }

    /// A sequence up to the token whose state is read: as in transformers the last that is not the padding token, the
    /// first where all are.
    fn until_last<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let last = tokens
            .iter()
            .rposition(|token| Some(*token) != self.padding);
        &tokens[..=last.unwrap_or(0)]
    }
}

/// An error with the number of the sequence in place of the lane's.
fn by_sequence(error: Error, lanes: &[usize]) -> Error {
    match error {
        Error::NoNumbers { lane } => Error::NoNumbers {
            lane: lanes.get(lane).copied().unwrap_or(lane),
        },
        other => other,
    }
}
