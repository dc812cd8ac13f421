//! What turns text into the hidden states that reward models read. Models over one base share it: the weights are in
//! memory once, and a text that several of them score is read once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lm::chat::{ChatTemplate, Prompt};
use lm::load::Checkpoint;
use lm::tuning::{LoraParameters, Sequence, TuningDecoder};
use lm::{DeviceSpec, Format, Tokenizer};

use crate::{Error, Result};

/// Texts whose states are kept for the next model: several times what is scored together (ours), some megabytes.
const KEPT: usize = 1024;

/// What a reader is of: the model's path, and where it runs.
type Key = (PathBuf, DeviceSpec);

/// Readers in use.
static OPEN: Mutex<Vec<(Key, Weak<Reader>)>> = Mutex::new(Vec::new());

/// A decoder that reads prompts with their responses.
pub(super) struct Reader {
    pub(super) decoder: TuningDecoder,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    end: u32,
    /// What the decoder alone made of texts, by their tokens.
    read: Mutex<HashMap<Vec<u32>, Vec<f32>>>,
}

impl Reader {
    /// The reader over a model on a device, the one in use where there is one.
    ///
    /// # Errors
    /// A device that this build lacks; a model that cannot be read, or that names no token that ends a response.
    pub(super) fn shared(model: &Path, device: &DeviceSpec) -> Result<Arc<Self>> {
        let key = (model.to_path_buf(), device.clone());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, reader)| reader.strong_count() > 0);
        let in_use = open.iter().find(|(other, _)| *other == key);
        if let Some(reader) = in_use.and_then(|(_, reader)| reader.upgrade()) {
            return Ok(reader);
        }
        let reader = Arc::new(Self::open(model, device)?);
        open.push((key, Arc::downgrade(&reader)));
        Ok(reader)
    }

    fn open(model: &Path, device: &DeviceSpec) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let end = checkpoint.end_tokens().first().copied();
        let end = end.ok_or_else(|| Error::NoEndToken {
            model: model.into(),
        })?;
        let format = match device.offers(Format::Bf16) {
            Ok(()) => Format::Bf16,
            Err(_) => Format::F32,
        };
        Ok(Self {
            decoder: TuningDecoder::load(&checkpoint, device, format)?,
            tokenizer: Tokenizer::load(&checkpoint)?,
            chat: ChatTemplate::load(&checkpoint),
            end,
            read: Mutex::default(),
        })
    }

    /// Prompt, response and end token; the end token's own state is read, so one more follows.
    ///
    /// # Errors
    /// Text that the tokenizer or the chat template refuses.
    pub(super) fn sequence(&self, prompt: &Prompt, response: &str) -> Result<Sequence> {
        let mut tokens = lm::prompt_tokens(&self.tokenizer, self.chat.as_ref(), prompt)?;
        let from = tokens.len();
        tokens.extend(self.tokenizer.encode_text(response)?);
        tokens.extend([self.end, self.end]);
        let limit = self.decoder.config().context_length;
        if tokens.len() > limit {
            // The end matters: the beginning of an over-long conversation is dropped.
            tokens.drain(..tokens.len() - limit);
        }
        let from = from.min(tokens.len() - 1).max(1);
        Ok(Sequence { tokens, from })
    }

    /// State of each sequence's end, `[sequences][hidden]`.
    ///
    /// # Errors
    /// Sequences that the decoder refuses.
    pub(super) fn hidden(
        &self,
        lora: Option<&LoraParameters>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        if lora.is_some() {
            return Ok(self.decoder.hidden(lora, sequences)?);
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |s: &&Sequence| !read.contains_key(&s.tokens);
        let missing: Vec<Sequence> = sequences.iter().filter(fresh).cloned().collect();
        let states = self.decoder.hidden(None, &missing)?;
        if read.len() + missing.len() > KEPT {
            read.retain(|tokens, _| sequences.iter().any(|s| &s.tokens == tokens));
        }
        read.extend(missing.into_iter().map(|s| s.tokens).zip(states));
        let states = sequences.iter().map(|s| read[&s.tokens].clone());
        Ok(states.collect())
    }
}
