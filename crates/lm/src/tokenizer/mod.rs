//! Text to token ids and back, by Hugging Face's `tokenizers`.
//!
//! ```
//! use mope_lm::Tokenizer;
//! use mope_lm::load::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! let tokenizer = Tokenizer::load(&checkpoint)?;
//! let ids = tokenizer.encode("the cat", false)?;
//! assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
//! # Ok::<(), mope_lm::Error>(())
//! ```

mod guard;
mod special;

use std::path::Path;
use std::sync::Arc;

use special::Special;

use crate::chat::Message;
use crate::load::Checkpoint;
use crate::{Error, Result};

/// A model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: Arc<Special>,
}

/// What every tokenizer must be able to encode before it is used: letters of several scripts, digits, spaces, line
/// ends, controls, marks that combine, and what lies outside of the first plane.
const PROBE: &str = "The quick brown fox's 1,234.5 jumps\r\n\tover  the lazy dog!? \
                     ÀÉîõü ﬁ ﷺ ½ e\u{301} Привет αβγ 你好，世界 안녕 مرحبا नमस्ते ▁Ġ \u{0}\u{7f}\u{feff} 👩\u{200d}💻 😀";

fn refused(e: impl std::fmt::Display) -> Error {
    Error::Tokenizer(e.to_string())
}

impl Tokenizer {
    /// The tokenizer that came with a checkpoint: inside the GGUF file, or `tokenizer.json`.
    ///
    /// # Errors
    /// Missing or damaged vocabulary or merges, or a kind that is not supported.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        if let Some(header) = &checkpoint.gguf {
            let json = crate::load::gguf_tokenizer::tokenizer_json(&checkpoint.path, header)?;
            let bytes = serde_json::to_vec(&json).map_err(refused)?;
            return Self::parse(&checkpoint.path, &bytes);
        }
        if crate::shape::is_shape(&checkpoint.path) {
            let json = crate::shape::tokenizer(checkpoint.config.vocab_size);
            return Self::build(json).map_err(|e| Error::format(&checkpoint.path, e.to_string()));
        }
        let path = checkpoint.path.join("tokenizer.json");
        let text = crate::load::read_text(&path)?;
        Self::parse(&path, text.as_bytes())
    }

    /// The `tokenizer.json` of an encoder's folder. Texts are cut at `longest` tokens, special ones included; of a pair
    /// the longer text is.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub(crate) fn of_encoder(folder: &Path, longest: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let text = crate::load::read_text(&path)?;
        let mut tokenizer = Self::parse(&path, text.as_bytes())?;
        let truncation = tokenizers::TruncationParams {
            max_length: longest,
            ..Default::default()
        };
        let set = tokenizer.inner.with_truncation(Some(truncation));
        set.map_err(refused)?;
        Ok(tokenizer)
    }

    /// Token ids of a text or a pair, with the special tokens around them, and of each whether it is of the second
    /// text (1) or not (0).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses a text.
    pub(crate) fn encode_pair(
        &self,
        (text, pair): (&str, Option<&str>),
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let encoding = guard::caught(|| match pair {
            Some(pair) => self.inner.encode_fast((text, pair), true),
            None => self.inner.encode_fast(text, true),
        });
        let encoding = encoding.map_err(Error::Tokenizer)?.map_err(refused)?;
        Ok((
            encoding.get_ids().to_vec(),
            encoding.get_type_ids().to_vec(),
        ))
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        // The library panics on some files that are not JSON, so that is found out first.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut json: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::format(path, format!("not JSON: {e}")))?;
        // Dropout makes another encoding at each call; it is for training tokenizers' models.
        if let Some(dropout) = json.pointer_mut("/model/dropout") {
            *dropout = serde_json::Value::Null;
        }
        guard::bounded(&json)
            .map_err(|e| Error::format(path, format!("not a usable tokenizer: {e}")))?;
        let built = guard::caught(|| Self::build(json));
        let built = built.unwrap_or_else(|e| Err(Error::Tokenizer(e)));
        built.map_err(|e| Error::format(path, format!("not a usable tokenizer: {e}")))
    }

    fn build(json: serde_json::Value) -> Result<Self> {
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(json).map_err(refused)?;
        // A file may ask for padding or truncation; here neither must ever happen silently.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
        let special = Arc::new(Special::of(&inner)?);
        let tokenizer = Self { inner, special };
        for text in ["", "a", PROBE] {
            for add_special in [false, true] {
                // A text that it refuses is told when somebody has one.
                if let Ok(ids) = tokenizer.inner.encode_fast(text, add_special) {
                    drop(tokenizer.inner.decode(ids.get_ids(), true));
                }
            }
        }
        Ok(tokenizer)
    }

    /// Token ids of `text`. Special tokens written in the text are recognised; `add_special` also
    /// adds those that the model wants around a plain text (such as BOS). For what a message or a response says there
    /// is [`Self::encode_text`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guard::caught(|| self.inner.encode_fast(text, add_special));
        let encoding = encoding.map_err(Error::Tokenizer)?.map_err(refused)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of what somebody said: special tokens written in it are text like any other, and none are added.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses the text.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        match self.special_in(text)? {
            0 => self.encode(text, false),
            _ => self.special.encode(&self.inner, text),
        }
    }

    /// How many special tokens are written in a text, as in "<|im_end|>".
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the normaliser refuses the text.
    pub fn special_in(&self, text: &str) -> Result<usize> {
        guard::caught(|| self.special.count(&self.inner, text)).map_err(Error::Tokenizer)?
    }

    /// Token ids of the text that `render` makes of messages, where special tokens written in the messages are text.
    ///
    /// # Errors
    /// Those of `render`; [`Error::Tokenizer`] when the tokenizer refuses the text.
    pub(crate) fn encode_rendered(
        &self,
        messages: &[Message],
        render: impl FnOnce(&[Message]) -> Result<String>,
    ) -> Result<Vec<u32>> {
        for message in messages {
            if self.special_in(&message.content)? > 0 {
                return self.special.encode_rendered(&self.inner, messages, render);
            }
        }
        self.encode(&render(messages)?, false)
    }

    /// Text of token ids, without special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = guard::caught(|| self.inner.decode(ids, true));
        text.map_err(Error::Tokenizer)?.map_err(refused)
    }

    /// The vocabulary's entry for an id, as stored (byte-level pieces in their stand-in letters).
    pub fn piece(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a token by its entry.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.inner.token_to_id(piece)
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text that each token adds to the ones before it; pieces of a character that is not
    /// complete yet are empty, and the last of them carries it.
    ///
    /// # Errors
    /// Those of [`Self::decode`].
    pub fn increments(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.stream();
        ids.iter().map(|&id| stream.push(id)).collect()
    }

    /// Decodes token by token.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream {
            tokenizer: self,
            ids: vec![],
            start: 0,
            printed: 0,
        }
    }

    /// The whole tokenizer as the content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(refused)
    }
}

/// Turns tokens into text as they come.
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Where decoding starts again: a token's text may depend on the one before it.
    start: usize,
    /// Bytes of the text from `start` on that have been handed out.
    printed: usize,
}

impl TokenStream<'_> {
    /// The text that `id` completes, empty while a character is unfinished.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.start..])?;
        if text.ends_with('\u{fffd}') || text.len() <= self.printed {
            return Ok(String::new());
        }
        let new = text.get(self.printed..).unwrap_or_default().to_string();
        if self.ids.len() - self.start > 8 {
            // Only the last token stays as context, so that a long text costs no more than a short one.
            self.start = self.ids.len() - 1;
            self.printed = self.tokenizer.decode(&self.ids[self.start..])?.len();
        } else {
            self.printed = text.len();
        }
        Ok(new)
    }
}
