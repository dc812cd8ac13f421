//! `mope`: compares ways to personalise a language model by mixing preference experts.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod config;
mod experiment;
mod failure;
mod models;
mod progress;
mod prompts;
mod run;
mod train;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let bad_usage = error.downcast_ref::<failure::Usage>().is_some();
            ExitCode::from(if bad_usage { 2 } else { 1 })
        }
    }
}
