//! Special tokens that are written in a text: `<|im_end|>` in a message or a response is what somebody said, not the
//! end of a turn.
//!
//! Only the tokens that the chat template wrote itself are special. A second tokenizer takes all special tokens in a
//! text for text; the template's own stand in it as marks, single characters of private use, which it knows as tokens
//! of their own. So a text is still encoded as one, with every rule that depends on where a piece stands. llama.cpp
//! (`parse_special`) and transformers (`split_special_tokens`) treat a whole text in one of the two ways; a chat needs
//! both.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Model, NormalizedString, Normalizer};

use super::{guard, refused};
use crate::chat::Message;
use crate::{Error, Result};

/// Characters of private use: those of the last plane, then those of the one before.
fn private() -> impl Iterator<Item = char> {
    ('\u{100000}'..='\u{10fffd}').chain('\u{f0000}'..='\u{ffffd}')
}

fn is_private(c: &char) -> bool {
    *c >= '\u{f0000}'
}

/// The special tokens of a tokenizer.
#[derive(Debug)]
pub(super) struct Special {
    tokens: Vec<(u32, AddedToken)>,
    /// Finds them by their order.
    search: Option<AhoCorasick>,
    /// Some of them are looked for in what the normaliser makes of a text.
    normalised: bool,
    /// Made when the first text holds one of them.
    blind: OnceLock<Arc<Blind>>,
}

/// A tokenizer that takes special tokens for text, but for marks.
#[derive(Debug)]
struct Blind {
    tokenizer: tokenizers::Tokenizer,
    /// The special token for each mark's id.
    marks: HashMap<u32, u32>,
    /// The special tokens' texts.
    texts: HashMap<u32, String>,
}

impl Special {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let added = tokenizer.get_added_tokens_decoder().into_iter();
        let mut tokens: Vec<(u32, AddedToken)> = added
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .collect();
        tokens.sort_by_key(|(id, _)| *id);
        let texts = tokens.iter().map(|(_, token)| token.content.as_str());
        let search = (!tokens.is_empty()).then(|| {
            let mut builder = AhoCorasick::builder();
            builder.match_kind(MatchKind::LeftmostLongest).build(texts)
        });
        Ok(Self {
            normalised: tokenizer.get_normalizer().is_some()
                && tokens.iter().any(|(_, token)| token.normalized),
            search: search.transpose().map_err(refused)?,
            tokens,
            blind: OnceLock::new(),
        })
    }

    /// How many of them are written in a text.
    pub(super) fn count(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<usize> {
        let Some(search) = &self.search else {
            return Ok(0);
        };
        let count = search.find_iter(text).count();
        if count > 0 || !self.normalised {
            return Ok(count);
        }
        let mut normal = NormalizedString::from(text);
        if let Some(normaliser) = tokenizer.get_normalizer() {
            normaliser.normalize(&mut normal).map_err(refused)?;
        }
        Ok(search.find_iter(normal.get()).count())
    }

    /// Token ids of a text in which nothing is special.
    pub(super) fn encode(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        let free = self.free(&[text])?;
        self.blind(tokenizer, &free)?.encode(text)
    }

    /// Token ids of what `render` makes of messages, in whose contents nothing is special.
    pub(super) fn encode_rendered(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        messages: &[Message],
        render: impl FnOnce(&[Message]) -> Result<String>,
    ) -> Result<Vec<u32>> {
        let contents: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
        let free = self.free(&contents)?;
        let (marks, stands) = free.split_at(self.tokens.len());
        let replaced = |text: &str, by: &[char]| match &self.search {
            None => text.to_string(),
            Some(search) => {
                let mut out = String::with_capacity(text.len());
                search.replace_all_with(text, &mut out, |hit, _, out| {
                    out.push(by[hit.pattern().as_usize()]);
                    true
                });
                out
            }
        };
        let mut masked = messages.to_vec();
        for message in &mut masked {
            message.content = replaced(&message.content, stands);
        }
        let rendered = replaced(&render(&masked)?, marks);
        let mut text = String::with_capacity(rendered.len());
        for c in rendered.chars() {
            match is_private(&c)
                .then(|| stands.iter().position(|s| *s == c))
                .flatten()
            {
                Some(index) => text.push_str(&self.tokens[index].1.content),
                None => text.push(c),
            }
        }
        self.blind(tokenizer, &free)?.encode(&text)
    }

    /// Two characters of private use for each special token, a mark and one that stands for it in a message, none of
    /// which is in these texts.
    fn free(&self, texts: &[&str]) -> Result<Vec<char>> {
        let used = texts.iter().flat_map(|text| text.chars());
        let used: std::collections::HashSet<char> = used.filter(is_private).collect();
        let needed = 2 * self.tokens.len();
        let free: Vec<char> = private()
            .filter(|c| !used.contains(c))
            .take(needed)
            .collect();
        match free.len() == needed {
            true => Ok(free),
            false => Err(Error::Tokenizer(format!(
                "{} special tokens are too many to tell them from texts",
                self.tokens.len()
            ))),
        }
    }

    /// The tokenizer that knows the first of these characters as marks.
    fn blind(&self, tokenizer: &tokenizers::Tokenizer, free: &[char]) -> Result<Arc<Blind>> {
        let marks = &free[..self.tokens.len()];
        let usual = private().zip(free).all(|(usual, free)| usual == *free);
        if let Some(blind) = self.blind.get().filter(|_| usual) {
            return Ok(blind.clone());
        }
        let made = guard::caught(|| Blind::new(tokenizer, &self.tokens, marks));
        let made = Arc::new(made.map_err(Error::Tokenizer)??);
        Ok(match usual {
            true => self.blind.get_or_init(|| made).clone(),
            false => made,
        })
    }
}

impl Blind {
    fn new(
        tokenizer: &tokenizers::Tokenizer,
        tokens: &[(u32, AddedToken)],
        marks: &[char],
    ) -> Result<Self> {
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        let added = tokens
            .iter()
            .zip(marks)
            .map(|((_, token), mark)| AddedToken {
                content: mark.to_string(),
                special: false,
                ..token.clone()
            });
        tokenizer.add_tokens(added).map_err(refused)?;
        let ids = tokens.iter().zip(marks).filter_map(|((id, _), mark)| {
            let mark = tokenizer.token_to_id(&mark.to_string())?;
            Some((mark, *id))
        });
        let marks = ids.collect();
        let texts = tokens.iter().map(|(id, t)| (*id, t.content.clone()));
        let texts = texts.collect();
        Ok(Self {
            tokenizer,
            marks,
            texts,
        })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        guard::caught(|| {
            let encoding = self.tokenizer.encode_fast(text, false).map_err(refused)?;
            let mut ids = Vec::with_capacity(encoding.get_ids().len());
            for id in encoding.get_ids() {
                match (self.marks.get(id), self.texts.get(id)) {
                    (Some(special), _) => ids.push(*special),
                    // The model itself put the token together out of its letters, as `</s>` in a vocabulary of
                    // LLaMA: it stays in letters.
                    (None, Some(token)) if text.contains(token) => self.letters(token, &mut ids)?,
                    (None, _) => ids.push(*id),
                }
            }
            Ok(ids)
        })
        .map_err(Error::Tokenizer)?
    }

    fn letters(&self, token: &str, ids: &mut Vec<u32>) -> Result<()> {
        let model = self.tokenizer.get_model();
        for letter in token.chars() {
            let pieces = model.tokenize(&letter.to_string()).map_err(refused)?;
            ids.extend(pieces.iter().map(|piece| piece.id));
        }
        Ok(())
    }
}
