//! The command line of `mope`, and its throughput benchmarks. What it does lies in the libraries: experiments in
//! `harness`, trainings in `training`.

#![forbid(unsafe_code)]

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser;

/// The program `mope`, with the arguments of this process. Exit codes: 0 done, 1 failed, 2 bad usage or config.
pub fn main() -> ExitCode {
    harness::progress::show();
    let cli = cli::Cli::parse();
    let threads = kernels::Team::asked().map_err(harness::failure::usage);
    match threads.and_then(|_| commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = harness::failure::message(&error);
            eprintln!("error: {}", harness::terminal::printable(&message));
            ExitCode::from(if harness::failure::is_usage(&error) {
                2
            } else {
                1
            })
        }
    }
}
