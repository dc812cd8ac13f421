//! Compares ways to personalise a language model by mixing preference experts: experiments and trainings as a library,
//! and the command line over them.
//!
//! - [`experiment::Experiment`] is an experiment file; [`run`] makes a run folder of it.
//! - [`train::Training`] is a training file; [`train::train`] carries it out.
//! - [`main`] is the program `mope`.
//!
//! Nothing here prints but the command line: progress appears after [`progress::show`]. Mistakes in files and arguments
//! are [`failure::Usage`] in the chain of an error.

#![forbid(unsafe_code)]

mod cli;
mod commands;
pub mod config;
pub mod experiment;
pub mod failure;
pub mod models;
pub mod plan;
pub mod progress;
pub mod prompts;
pub mod run;
pub mod splits;
pub mod stages;
pub mod store;
pub mod sweep;
pub mod train;

use std::process::ExitCode;

use clap::Parser;

/// The program `mope`, with the arguments of this process. Exit codes: 0 done, 1 failed, 2 bad usage or config.
pub fn main() -> ExitCode {
    progress::show();
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", failure::message(&error));
            ExitCode::from(if failure::is_usage(&error) { 2 } else { 1 })
        }
    }
}
