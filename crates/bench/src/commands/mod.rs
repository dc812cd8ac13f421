//! The commands, verbs over everything else.

mod bench;
mod compare;
mod exchange;
mod export;
mod generate;
mod inspect;
mod judge;
mod merge;
mod run;
mod selection;
mod study;
mod train;

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::Result;
use clap::CommandFactory;
use lm::load::Checkpoint;
use lm::source::Registry;
use lm::source::hub::{id_of, located};
use lm::{DeviceSpec, Format, Tokenizer};
use serde_json::{Value, json};

use crate::cli::{Cli, Command};
use harness::failure::{nearest, usage};
use harness::models::{resolve, update};
use harness::terminal::printable;

/// Options that every command has.
pub struct Global {
    pub json: bool,
    pub device: Option<DeviceSpec>,
    pub seed: Option<u64>,
    pub format: Option<Format>,
}

impl Global {
    /// Prints the JSON document, or else the text.
    pub fn print(&self, document: Value, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json {
            serde_json::to_string_pretty(&document)?
        } else {
            text()
        };
        say(&shown(&format!("{}\n", text.trim_end())))
    }
}

/// A text as stdout may have it: files and pipes get every character, a terminal none that controls it.
fn shown(text: &str) -> Cow<'_, str> {
    match std::io::stdout().is_terminal() {
        true => printable(text),
        false => Cow::Borrowed(text),
    }
}

/// Writes to stdout; a reader that has gone away (as in `mope … | head`) is no failure.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Does what the command line asks.
///
/// # Errors
/// A [`harness::failure::Usage`] for mistakes in it, anything else for failures.
pub fn run(cli: Cli) -> Result<()> {
    let device = cli.device.as_deref().map(DeviceSpec::parse).transpose();
    let global = Global {
        json: cli.json,
        device: device.map_err(|e| usage(e.to_string()))?,
        seed: cli.seed,
        format: cli.format.first().copied(),
    };
    if cli.format.len() > 1 && !matches!(cli.command, Command::Bench(_)) {
        return Err(usage(
            "--format: one number format; only mope bench takes several",
        ));
    }
    match cli.command {
        Command::Run(args) => run::run(&global, &args),
        Command::Train(args) => train::train(&global, &args),
        Command::Generate(mut args) => {
            args.rename();
            generate::generate(&global, &args)
        }
        Command::Score(args) => generate::score(&global, &args),
        Command::Compare { runs, out } => compare::compare(&global, &runs, out.as_deref()),
        Command::Judge { run, file } => judge::judge(&global, &run, &file),
        Command::Study(command) => study::study(&global, &command),
        Command::Report { dir } => run::report(&global, &dir),
        Command::Fetch { name } => fetch(&global, &name),
        Command::Inspect { path } => inspect::inspect(&global, &path),
        Command::Tokenize { model, text, plain } => tokenize(&global, &model, &text, !plain),
        Command::Check { file, probe } => run::check(&global, &file, probe),
        Command::Export(args) => match (&args.run, args.rows) {
            (Some(run), Some(rows)) => exchange::export(&global, run, rows, &args.out),
            _ => export::export(&global, &args),
        },
        Command::Import { file, out } => exchange::import(&global, &file, &out),
        Command::Merge(args) => merge::merge(&global, &args),
        Command::Bench(args) => {
            let mut formats = cli.format;
            let command = args.command(&mut formats);
            bench::bench(&global, command, &formats)
        }
        Command::Devices => devices(&global),
        Command::Completions { shell } => completions(shell),
    }
}

fn fetch(global: &Global, name: &str) -> Result<()> {
    let located = located(Path::new(""), name);
    if let Some(id) = id_of(Path::new(&located)).map_err(|e| usage(e.to_string()))? {
        let path = update(&id)?.display().to_string();
        return global.print(json!({"name": id.to_string(), "path": path}), || {
            path.clone()
        });
    }
    let registry = Registry::load()?;
    if !registry.entries().contains_key(name) {
        let names = || registry.entries().keys().map(String::as_str);
        let hint = nearest(name, names());
        let known = names().collect::<Vec<_>>().join(", ");
        return Err(usage(format!(
            "no registered model '{name}'{hint}; registered: {known}"
        )));
    }
    let path = resolve(name)?.display().to_string();
    global.print(json!({"name": name, "path": path}), || path.clone())
}

fn tokenize(global: &Global, model: &str, text: &str, add_special: bool) -> Result<()> {
    let path = resolve(model)?;
    let tokenizer = Tokenizer::load(&Checkpoint::open(Path::new(&path))?)?;
    let tokens = tokenizer.encode(text, add_special)?;
    let pieces: Vec<String> = tokens
        .iter()
        .map(|&id| tokenizer.token_text(id).unwrap_or_default())
        .collect();
    global.print(json!({"tokens": tokens, "pieces": pieces}), || {
        let lines = tokens.iter().zip(&pieces);
        lines
            .map(|(id, piece)| format!("{id:>7}  {piece:?}\n"))
            .collect()
    })
}

/// Completions of the whole command line for a shell.
fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mope", &mut script);
    say(&String::from_utf8_lossy(&script))
}

fn devices(global: &Global) -> Result<()> {
    let mut listed = Vec::new();
    for spec in DeviceSpec::built() {
        let error = spec.offers(Format::F32).err().map(|e| e.to_string());
        listed.push((spec.to_string(), error));
    }
    let document: Vec<Value> = listed
        .iter()
        .map(|(name, error)| json!({"device": name, "error": error}))
        .collect();
    global.print(json!({"devices": document}), || {
        let lines = listed.iter().map(|(name, error)| match error {
            None => format!("{name}\n"),
            Some(error) => format!("{name}  (cannot be opened: {error})\n"),
        });
        lines.collect()
    })
}
