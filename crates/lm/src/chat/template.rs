//! A model's chat template: compiled once, rendered within limits.

use std::collections::{BTreeMap, HashSet};
use std::sync::{LazyLock, Mutex, PoisonError};

use chrono::NaiveDate;
use minijinja::machinery::{self, CodeGenerator, Instructions, Token, Vm, WhitespaceConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use regex::Regex;

use super::filters::Kept;
use super::{Day, Message, bounds, filters};
use crate::load::Checkpoint;
use crate::{Error, Result};

/// Longest template in bytes (ours); the longest of published models have about 30,000.
const SOURCE: usize = 1 << 20;
/// Most words within one pair of braces (ours). The compiler takes them one inside of the other.
const TAG: usize = 2000;
/// Most statements of a template (ours), for the same reason.
const STATEMENTS: usize = 5000;
/// Stack of the thread that compiles it, in bytes: several times what these limits need (ours).
const STACK: usize = 128 << 20;

/// A compiled chat template. It runs exactly as the file has it, in the Jinja dialect of transformers (`trim_blocks`,
/// `lstrip_blocks`, Python's string and list methods, `strftime_now`, `{% generation %}`), within limits of
/// instructions, memory and output.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// What was wrong with it, until somebody renders it.
    compiled: std::result::Result<Compiled, String>,
    bos_token: String,
    eos_token: String,
    date: NaiveDate,
}

struct Compiled {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let source = self.compiled.as_ref().map(|c| c.instructions.source());
        f.debug_struct("ChatTemplate")
            .field("source", &source)
            .field("date", &self.date)
            .finish_non_exhaustive()
    }
}

/// The texts of all templates of this program, one of a kind: the compiled template points into its text.
fn kept(source: String) -> &'static str {
    static SOURCES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(source) = sources.get(source.as_str()) {
        return source;
    }
    let source: &'static str = source.leak();
    sources.insert(source);
    source
}

/// An error in one line, with the place in the template and without the template.
fn message(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    match text.char_indices().nth(500) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The template as jinja2 reads it: line ends are `\n`. The tags of transformers that mark what an assistant said
/// change nothing in the text.
fn normalised(source: &str) -> String {
    static GENERATION: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    match &*GENERATION {
        Some(tag) if source.contains("generation") => tag
            .replace_all(&source, |tag: &regex::Captures<'_>| {
                let word = if tag.get(2).is_some() {
                    "endif"
                } else {
                    "if true"
                };
                format!("{{%{} {word} {}%}}", &tag[1], &tag[3])
            })
            .into_owned(),
        _ => source,
    }
}

/// Refuses what is nested so deeply that the compiler, which calls itself for each level, would run out of stack.
fn shallow(source: &'static str, whitespace: WhitespaceConfig) -> Result<(), String> {
    let (mut words, mut statements) = (0, 0);
    for token in machinery::tokenize(source, false, SyntaxConfig, whitespace) {
        let (token, span) = token.map_err(|e| message(&e))?;
        match token {
            Token::BlockStart | Token::VariableStart => (words, statements) = (0, statements + 1),
            _ => words += 1,
        }
        if words > TAG {
            let line = span.start_line;
            return Err(format!("a tag of over {TAG} words in line {line}"));
        }
    }
    match statements > STATEMENTS {
        true => Err(format!("{statements} tags; at most {STATEMENTS} are read")),
        false => Ok(()),
    }
}

fn compile(source: &str) -> Result<Compiled, String> {
    if source.len() > SOURCE {
        let bytes = source.len();
        return Err(format!("it has {bytes} bytes; at most {SOURCE} are read"));
    }
    let source = kept(normalised(source));
    let whitespace = || WhitespaceConfig {
        keep_trailing_newline: false,
        lstrip_blocks: true,
        trim_blocks: true,
    };
    shallow(source, whitespace())?;
    let compile = || {
        let ast = machinery::parse(source, "chat", SyntaxConfig, whitespace())
            .map_err(|e| message(&e))?;
        let mut generator = CodeGenerator::new("chat", source);
        generator.compile_stmt(&ast);
        let (instructions, blocks) = generator.finish();
        let blocks = blocks.iter().map(|(&name, i)| (name, bounds::counted(i)));
        Ok(Compiled {
            instructions: bounds::counted(&instructions),
            blocks: blocks.collect(),
        })
    };
    let builder = std::thread::Builder::new().stack_size(STACK);
    std::thread::scope(|scope| match builder.spawn_scoped(scope, compile) {
        Ok(thread) => thread
            .join()
            .unwrap_or_else(|_| Err("the compiler broke off".into())),
        Err(e) => Err(format!("no thread to compile it: {e}")),
    })
}

/// `strftime_now` of a day: its midnight, as Python's `strftime` writes it.
fn strftime(date: NaiveDate, format: &str) -> Result<String, minijinja::Error> {
    let mut out = Kept::default();
    let midnight = date.and_hms_opt(0, 0, 0).unwrap_or_default();
    std::fmt::write(&mut out, format_args!("{}", midnight.format(format)))
        .map_err(|_| bounds::refused("strftime_now with a format that is unknown or too long"))?;
    Ok(out.text)
}

impl ChatTemplate {
    /// The template of a checkpoint; `None` when it has none (a base model without chat tuning). One that does not
    /// parse is an error where it is rendered, so that the model can still be asked with raw prompts.
    pub fn load(checkpoint: &Checkpoint) -> Option<Self> {
        let source = checkpoint.chat_template.as_ref()?;
        let bos = checkpoint.bos_token.clone().unwrap_or_default();
        let eos = checkpoint.eos_token.clone().unwrap_or_default();
        Some(Self::compiled(source, bos, eos))
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when it does not parse, or is too long or too deeply nested.
    ///
    /// ```
    /// use mope_lm::chat::{ChatTemplate, Message};
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m['content'].strip() }}{% endfor %}";
    /// let template = ChatTemplate::new(source, String::new(), String::new())?;
    /// assert_eq!(template.render(&[Message::user(" hi ")], true)?, "<user>hi");
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self> {
        let template = Self::compiled(source, bos_token, eos_token);
        template.parsed()?;
        Ok(template)
    }

    fn compiled(source: &str, bos_token: String, eos_token: String) -> Self {
        let mut environment = Environment::new();
        filters::install(&mut environment);
        environment.set_fuel(Some(bounds::FUEL));
        environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let template = Self {
            environment,
            compiled: compile(source),
            bos_token,
            eos_token,
            date: Day::default().into(),
        };
        template.dated(Day::default())
    }

    /// The same template with this day as today for `strftime_now`. Default 26 July 2024, which the templates of
    /// LLaMA 3.x fall back to.
    #[must_use]
    pub fn dated(mut self, day: impl Into<NaiveDate>) -> Self {
        let date = day.into();
        self.date = date;
        self.environment
            .add_function("strftime_now", move |format: &str| strftime(date, format));
        self
    }

    fn parsed(&self) -> Result<&Compiled> {
        let wrong = |e: &String| Error::ChatTemplate(format!("does not parse: {e}"));
        self.compiled.as_ref().map_err(wrong)
    }

    /// The prompt text of a conversation; `add_generation_prompt` opens the assistant's turn. `tools` and `documents`
    /// are none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] when the template does not parse, refuses the messages (wrong order of roles, say),
    /// or takes more instructions, memory or output than a chat template may.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let refuse = |e: minijinja::Error| Error::ChatTemplate(message(&e));
        let compiled = self.parsed()?;
        bounds::begin(messages.iter().map(|m| m.content.len()).sum());
        let root = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
            tools => (),
            documents => (),
        };
        let mut kept = String::new();
        let mut out = machinery::make_string_output(&mut kept);
        let (instructions, blocks) = (&compiled.instructions, &compiled.blocks);
        Vm::new(&self.environment)
            .eval(instructions, root, blocks, &mut out, AutoEscape::None)
            .map_err(refuse)?;
        drop(out);
        bounds::fits(kept.len() as u64).map_err(refuse)?;
        Ok(kept)
    }
}
