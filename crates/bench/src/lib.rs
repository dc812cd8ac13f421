//! The command line of `mope`, and its throughput benchmarks. What it does lies in the libraries: experiments in
//! `harness`, trainings in `training`.

#![forbid(unsafe_code)]

mod cli;
mod commands;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// The program `mope`, with the arguments of this process. Exit codes: 0 done, 1 failed, 2 bad usage or config.
pub fn main() -> ExitCode {
    harness::progress::show();
    let cli = cli::Cli::try_parse().unwrap_or_else(|error| {
        if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
            print_error(&summary(&error.to_string()));
        }
        error.exit()
    });
    let json = cli.json;
    let threads = kernels::Team::asked().map(|_| ());
    let budget = || experts::PromptCache::asked().map(|_| ());
    let settings = threads.and_then(|()| budget());
    let settings = settings.map_err(harness::failure::usage);
    match settings.and_then(|()| commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = harness::failure::message(&error);
            eprintln!("error: {}", harness::terminal::printable(&message));
            if json {
                print_error(&message);
            }
            ExitCode::from(if harness::failure::is_usage(&error) {
                2
            } else {
                1
            })
        }
    }
}

/// The document of a failure. A stdout that nobody reads changes nothing: the message is on stderr, too.
fn print_error(message: &str) {
    let document = serde_json::json!({"error": message});
    let _ = writeln!(std::io::stdout(), "{document:#}");
}

/// The first paragraph of a message about the arguments, on one line: without usage and hints.
fn summary(message: &str) -> String {
    let lines = message.lines().take_while(|line| !line.trim().is_empty());
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let text = words.join(" ");
    text.strip_prefix("error: ")
        .map_or(text.clone(), String::from)
}
