//! A model ready for use: decoder, tokenizer and chat template.

use std::path::Path;

use crate::chat::{ChatTemplate, Prompt};
use crate::device::DeviceSpec;
use crate::engine::{Adapters, Engine};
use crate::load::Checkpoint;
use crate::sampling::log_softmax;
use crate::{DecoderConfig, Error, Format, Result, Tokenizer};

/// A loaded language model.
#[derive(Debug)]
pub struct LanguageModel {
    /// The decoder.
    pub engine: Engine,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Messages to text; `None` for a model without chat tuning.
    pub chat: Option<ChatTemplate>,
    /// Tokens that end a response.
    pub end_tokens: Vec<u32>,
}

impl LanguageModel {
    /// Opens and loads a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], [`Tokenizer::load`] and [`Engine::load`]; the cheap checks come first. A chat
    /// template that does not parse is an error where it is rendered.
    pub fn open(path: &Path, device: &DeviceSpec, format: Format) -> Result<Self> {
        Self::load(&Checkpoint::open(path)?, device, format)
    }

    /// Loads an opened checkpoint. A tokenizer may have more ids than the embedding has rows (added tokens that
    /// nobody trained); a text that holds such a token is refused when it is read.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn load(checkpoint: &Checkpoint, device: &DeviceSpec, format: Format) -> Result<Self> {
        let path = checkpoint.path();
        let tokenizer = Tokenizer::load(checkpoint)?;
        let chat = ChatTemplate::load(checkpoint);
        let vocab_size = checkpoint.config().vocab_size;
        if let Some(id) = checkpoint
            .end_tokens
            .iter()
            .find(|&&id| id as usize >= vocab_size)
        {
            return Err(Error::format(
                path,
                format!("end token {id} is outside of the vocabulary"),
            ));
        }
        let engine = Engine::load(checkpoint, device, format)?;
        Ok(Self {
            engine,
            tokenizer,
            chat,
            end_tokens: checkpoint.end_tokens.clone(),
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        self.engine.config()
    }

    /// Token ids of a prompt, as the model reads them before it answers.
    ///
    /// # Errors
    /// Those of [`prompt_tokens`].
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        prompt_tokens(&self.tokenizer, self.chat.as_ref(), prompt)
    }

    /// Log-probability in nats of every token of `responses[i]` after `prompts[i]`, one lane each
    /// (expert-major where there are adapters).
    ///
    /// # Errors
    /// Different numbers of prompts and responses, an empty prompt, [`Error::NoNumbers`], or those of
    /// [`Engine::all_logits`].
    pub fn log_probs(
        &self,
        prompts: &[&[u32]],
        responses: &[&[u32]],
        adapters: Option<&Adapters>,
    ) -> Result<Vec<Vec<f32>>> {
        if prompts.len() != responses.len() || prompts.iter().any(|p| p.is_empty()) {
            return Err(Error::NoPrompt);
        }
        let vocab_size = self.config().vocab_size;
        if let Some(&id) = responses
            .iter()
            .copied()
            .flatten()
            .find(|&&id| id as usize >= vocab_size)
        {
            return Err(Error::Token { id, vocab_size });
        }
        let joined: Vec<Vec<u32>> = prompts
            .iter()
            .zip(responses)
            // The last token's prediction is not asked for.
            .map(|(p, r)| [p, &r[..r.len().saturating_sub(1)]].concat())
            .collect();
        let lanes: Vec<&[u32]> = joined.iter().map(Vec::as_slice).collect();
        let mut out: Vec<Vec<f32>> = responses.iter().map(|r| vec![0.0; r.len()]).collect();
        let mut without = None;
        self.engine
            .all_logits(&lanes, adapters, |lane, t, logits| {
                let next = (t + 1).checked_sub(prompts[lane].len());
                if let Some(next) = next.filter(|t| *t < responses[lane].len()) {
                    if !log_softmax(logits).is_finite() {
                        without.get_or_insert(lane);
                    }
                    out[lane][next] = logits[responses[lane][next] as usize];
                }
            })?;
        match without {
            Some(lane) => Err(Error::NoNumbers { lane }),
            None => Ok(out),
        }
    }
}

/// Token ids of a prompt, the assistant's turn opened. Special tokens that are written in a message are text; in a raw
/// prompt they are special.
///
/// # Errors
/// A conversation where there is no chat template or one that refuses it, and a prompt without a single
/// token.
pub fn prompt_tokens(
    tokenizer: &Tokenizer,
    chat: Option<&ChatTemplate>,
    prompt: &Prompt,
) -> Result<Vec<u32>> {
    let ids = match (prompt, chat) {
        (Prompt::Raw(text), _) => tokenizer.encode(text, true)?,
        (Prompt::Chat(messages), Some(chat)) => {
            tokenizer.encode_rendered(messages, |messages| chat.render(messages, true))?
        }
        (Prompt::Chat(_), None) => {
            let message = "the model has none; give the prompt raw, or take a chat-tuned model";
            return Err(Error::ChatTemplate(message.into()));
        }
    };
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    Ok(ids)
}
