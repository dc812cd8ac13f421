//! Responses and pairs to train on, from JSON lines.

use std::path::Path;

use anyhow::Result;
use lm::chat::{ChatTemplate, Message, Prompt};
use lm::load::Checkpoint;
use lm::tuning::{Item, Sequence};
use lm::{DecoderConfig, Tokenizer};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use harness::failure::usage;

/// A line of a file of responses; other fields are allowed and ignored.
#[derive(Deserialize)]
struct Response {
    prompt: String,
    response: String,
}

/// A line of a file of pairs; other fields are allowed and ignored.
#[derive(Deserialize)]
struct Pair {
    prompt: String,
    chosen: String,
    rejected: String,
}

/// What turns text into the tokens that a model reads and answers with.
struct Encoder {
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
    /// Ends a response.
    end: u32,
    config: DecoderConfig,
}

impl Encoder {
    fn open(model: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(model)?;
        let end = checkpoint.end_tokens().first().copied().ok_or_else(|| {
            let message = "the model names no token that ends a response";
            usage(format!("{}: {message}", model.display()))
        })?;
        Ok(Self {
            tokenizer: Tokenizer::load(&checkpoint)?,
            chat: ChatTemplate::load(&checkpoint),
            end,
            config: checkpoint.config().clone(),
        })
    }

    fn sequence(&self, prompt: &str, response: &str) -> Result<Sequence> {
        let prompt = Prompt::Chat(vec![Message::user(prompt)]);
        let prompt = lm::prompt_tokens(&self.tokenizer, self.chat.as_ref(), &prompt)?;
        let mut response = self.tokenizer.encode_text(response)?;
        response.push(self.end);
        let sequence = Sequence::new(&prompt, &response);
        anyhow::ensure!(
            sequence.tokens.len() <= self.config.context_length,
            "{} tokens, the model's context has {}",
            sequence.tokens.len(),
            self.config.context_length
        );
        Ok(sequence)
    }
}

/// Reads single responses: JSON lines with `prompt` and `response`.
///
/// # Errors
/// With file and line.
pub fn responses(data: &Path, model: &Path) -> Result<Vec<Item>> {
    items(data, model, |encoder, line: Response| {
        Ok(vec![encoder.sequence(&line.prompt, &line.response)?])
    })
}

/// Reads pairs: JSON lines with `prompt`, `chosen` and `rejected`, the last two exchanged on `swap`.
///
/// # Errors
/// With file and line.
pub fn pairs(data: &Path, swap: bool, model: &Path) -> Result<Vec<Item>> {
    items(data, model, |encoder, line: Pair| {
        let sequence = |response: &str| encoder.sequence(&line.prompt, response);
        let (chosen, rejected) = (sequence(&line.chosen)?, sequence(&line.rejected)?);
        Ok(match swap {
            true => vec![rejected, chosen],
            false => vec![chosen, rejected],
        })
    })
}

fn items<T: DeserializeOwned>(
    data: &Path,
    model: &Path,
    item: impl Fn(&Encoder, T) -> Result<Item>,
) -> Result<Vec<Item>> {
    let encoder = Encoder::open(model)?;
    numbered(data)?
        .into_iter()
        .map(|(number, line)| item(&encoder, line).map_err(|e| wrong(data, number, &e)))
        .collect()
}

/// Reads JSON lines.
///
/// # Errors
/// With file and line; also for a file without any.
pub fn lines<T: DeserializeOwned>(data: &Path) -> Result<Vec<T>> {
    Ok(numbered(data)?.into_iter().map(|(_, line)| line).collect())
}

fn wrong(data: &Path, number: usize, e: &dyn std::fmt::Display) -> anyhow::Error {
    usage(format!("{}:{number}: {e}", data.display()))
}

fn numbered<T: DeserializeOwned>(data: &Path) -> Result<Vec<(usize, T)>> {
    let text = lm::load::read_text(data).map_err(|e| usage(e.to_string()))?;
    let filled = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let filled = filled.filter(|(_, line)| !line.trim().is_empty());
    let read = filled.map(|(number, line)| {
        let line = serde_json::from_str(line).map_err(|e| wrong(data, number, &e))?;
        Ok((number, line))
    });
    let lines: Vec<(usize, T)> = read.collect::<Result<_>>()?;
    if lines.is_empty() {
        return Err(usage(format!("{}: there is nothing in it", data.display())));
    }
    Ok(lines)
}
