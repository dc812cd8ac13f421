//! An experiment from its file to its ranking, without the command line.
//!
//! ```text
//! cargo run --release -p mope --example run_experiment -- [EXPERIMENT.ron [RUN FOLDER]]
//! ```

use std::path::PathBuf;

use mope::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let file = arguments.next();
    let file = file.unwrap_or("experiments/quickstart/quickstart.ron".into());
    let out = arguments.next().unwrap_or("runs/example".into());
    let mut experiment = Experiment::load(&file)?;
    experiment.generation.max_new_tokens = 16;
    let ranking = mope::harness::run::run(&experiment, &file, &out)?;
    println!("{}", mope::eval::table::markdown(&ranking)?);
    Ok(())
}
