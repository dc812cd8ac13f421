//! An expert trained from its file, without the command line: a few steps of the friendly one.
//!
//! ```text
//! cargo run --release -p mope --example train_expert -- [TRAINING.ron [FOLDER]]
//! ```

use std::path::PathBuf;

use mope::training::{TrainOptions, Training, train};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let source = arguments.next();
    let source = source.unwrap_or("experiments/experts/friendly.ron".into());
    let out = arguments.next().unwrap_or("runs/train/example".into());
    let training = Training::load(&source)?;
    // Called again, it resumes and makes the next two.
    let options = TrainOptions {
        source,
        out,
        stop_after: Some(2),
    };
    let outcome = train(&training, &options)?;
    println!("{}: {} steps are made", outcome.training, outcome.done);
    println!("{:#?}", outcome.product);
    Ok(())
}
