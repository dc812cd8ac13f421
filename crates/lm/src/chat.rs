//! Messages to prompt text by the model's own chat template.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::load::Checkpoint;
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

/// A compiled chat template. It runs exactly as the file has it, in the Jinja dialect of
/// transformers (`trim_blocks`, `lstrip_blocks`, Python's string and list methods).
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

/// Writes JSON the way Python's `json.dumps` does: a space after each comma and colon.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

fn to_json(value: Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let invalid =
        |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, format,
            ))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, PythonJson,
        )),
    }
    .map_err(invalid)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

impl ChatTemplate {
    /// The template of a checkpoint; `None` when it has none (a base model without chat tuning).
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] for a template that does not parse.
    pub fn load(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some(source) = &checkpoint.chat_template else {
            return Ok(None);
        };
        let bos = checkpoint.bos_token.clone().unwrap_or_default();
        let eos = checkpoint.eos_token.clone().unwrap_or_default();
        Self::new(source, bos, eos).map(Some)
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse.
    ///
    /// ```
    /// use mope_lm::chat::{ChatTemplate, Message};
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m['content'].strip() }}{% endfor %}";
    /// let template = ChatTemplate::new(source, String::new(), String::new())?;
    /// assert_eq!(template.render(&[Message::user(" hi ")], true)?, "<user>hi");
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::ChatTemplate(format!("{e:#}")))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.to_string())
            .map_err(|e| Error::ChatTemplate(format!("does not parse: {e:#}")))?;
        Ok(Self {
            environment,
            bos_token,
            eos_token,
        })
    }

    /// The prompt text of a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template refuses the messages (wrong order of roles, say).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let refuse = |e: minijinja::Error| Error::ChatTemplate(format!("{e:#}"));
        let template = self.environment.get_template("chat").map_err(refuse)?;
        template
            .render(context! {
                messages => Serde(messages),
                add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
            .map_err(refuse)
    }
}
