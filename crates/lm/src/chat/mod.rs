//! Messages to prompt text by the model's own chat template.

mod bounds;
mod day;
mod filters;
mod template;

use serde::{Deserialize, Serialize};

pub use day::Day;
pub use template::ChatTemplate;

use crate::{Error, Result};

/// Who says a message.
#[allow(missing_docs, reason = "the names are the field's")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
        }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: Role::System,
            content: content.into(),
        }
    }
}

/// What a model is asked: a conversation, or a text that goes in as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prompt {
    /// Turns, the last of them the user's; rendered by the model's chat template.
    Chat(Vec<Message>),
    /// A text that skips the chat template.
    Raw(String),
}

impl Prompt {
    /// The same prompt with an instruction for the model: added to the system message, which is
    /// made if there is none.
    ///
    /// # Errors
    /// [`Error::RawPrompt`] for a raw prompt, which has no place for one.
    ///
    /// ```
    /// use mope_lm::chat::{Message, Prompt};
    /// let prompt = Prompt::Chat(vec![Message::user("Why?")]).instructed("Be brief.")?;
    /// assert_eq!(prompt, Prompt::Chat(vec![Message::system("Be brief."), Message::user("Why?")]));
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn instructed(&self, instruction: &str) -> Result<Self> {
        let Self::Chat(messages) = self else {
            let what = "an instruction needs";
            return Err(Error::RawPrompt { what });
        };
        let mut messages = messages.clone();
        match messages.first_mut().filter(|m| m.role == Role::System) {
            Some(system) => system.content = format!("{}\n\n{instruction}", system.content),
            None => messages.insert(0, Message::system(instruction)),
        }
        Ok(Self::Chat(messages))
    }

    /// The same prompt after earlier turns, which stand behind the system message if there is one.
    ///
    /// # Errors
    /// [`Error::RawPrompt`] for a raw prompt, which has no turns.
    pub fn after(&self, turns: &[Message]) -> Result<Self> {
        let Self::Chat(messages) = self else {
            let what = "examples need";
            return Err(Error::RawPrompt { what });
        };
        let system = messages.iter().take_while(|m| m.role == Role::System);
        let (system, rest) = messages.split_at(system.count());
        Ok(Self::Chat([system, turns, rest].concat()))
    }

    /// The conversation as one readable text, for reports: the last user message, or the raw text.
    pub fn question(&self) -> &str {
        match self {
            Self::Raw(text) => text,
            Self::Chat(messages) => messages
                .iter()
                .rfind(|m| m.role == Role::User)
                .map_or("", |m| &m.content),
        }
    }
}
