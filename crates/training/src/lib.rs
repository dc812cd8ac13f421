//! Trainings as a library: a training file becomes an adapter, a reward model, a classifier or a PCM.
//!
//! [`Training::load`] reads the file, [`trainings`] makes several of it, [`train`] carries one out. A training that
//! was interrupted resumes from its folder and gives the same bytes as one that was not.
//!
//! ```
//! use mope_training::{Product, TrainOptions, Training, train};
//!
//! let folder = tempfile::tempdir()?;
//! let source = folder.path().join("terse.ron");
//! let text = format!(
//!     r#"(name: "terse", model: {:?}, recipe: Sft(data: "responses.jsonl", settings: (epochs: 5)))"#,
//!     pico::path("llama")
//! );
//! std::fs::write(&source, text)?;
//! std::fs::write(folder.path().join("responses.jsonl"), r#"{"prompt": "Why?", "response": "So."}"#)?;
//! let training = Training::load(&source)?;
//! let out = folder.path().join("terse");
//! let outcome = train(&training, &TrainOptions { source, out, stop_after: None })?;
//! assert!(outcome.finished && outcome.done == 5);
//! assert!(matches!(outcome.product, Product::Adapter { folder, .. } if folder.join("adapter_config.json").is_file()));
//! # anyhow::Ok(())
//! ```

#![forbid(unsafe_code)]

mod adapter;
mod best_worst;
mod card;
mod classifier;
mod data;
pub mod file;
mod inputs;
pub mod memory;
mod pcm;
mod results;
mod reward;
mod rollouts;
mod session;
mod sweep;

use std::path::{Path, PathBuf};

use anyhow::Result;
use eval::rewards::HeldOut;
use experts::classifier::Told;
use serde_json::{Map, Value};

pub use file::Training;
pub use sweep::trainings;

use file::Recipe;
use harness::models::resolve;
use harness::store::folder::lock;
use harness::trained::TrainedOn;

/// Where a training reads and writes, and how far it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainOptions {
    /// The training file. Its text goes into the manifest, with the commit of the checkout that it lies in.
    pub source: PathBuf,
    /// Folder of the results. What an earlier training left there is resumed.
    pub out: PathBuf,
    /// Stop after this many more iterations or steps (a classifier: experts that answer). `None`: go to the end.
    pub stop_after: Option<usize>,
}

/// What a training came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Name of the training.
    pub training: String,
    /// It came to its end; `false` where it stopped before.
    pub finished: bool,
    /// Iterations or steps that were made, in all sessions together; of a classifier, experts that have answered.
    pub done: u64,
    /// What it made.
    pub product: Product,
}

/// What a training makes.
#[derive(Debug, Clone, PartialEq)]
pub enum Product {
    /// An adapter as PEFT saves it.
    Adapter {
        /// Folder of the adapter.
        folder: PathBuf,
        /// Numbers of the last step or iteration, by name.
        last: Map<String, Value>,
    },
    /// A Preference Control Model.
    Pcm {
        /// Folder of the PCM.
        folder: PathBuf,
        /// Numbers of the last iteration, by name.
        last: Map<String, Value>,
    },
    /// A reward model.
    Reward {
        /// Folder of the reward model.
        folder: PathBuf,
        /// Figures on the pairs that were kept for measuring.
        held_out: HeldOut,
    },
    /// A classifier of responses.
    Classifier {
        /// Folder of the classifier.
        folder: PathBuf,
        /// Its dimensions, with figures on the responses that were kept for measuring.
        dimensions: Vec<Told>,
    },
    /// Responses that a classifier will be fitted to, as far as they are there.
    Responses,
}

impl Product {
    /// Where it lies; `None` of responses.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Adapter { folder, .. }
            | Self::Pcm { folder, .. }
            | Self::Reward { folder, .. }
            | Self::Classifier { folder, .. } => Some(folder),
            Self::Responses => None,
        }
    }
}

/// A training that is carried out.
struct Job<'a> {
    training: &'a Training,
    options: &'a TrainOptions,
    /// SHA-256 of everything that it reads.
    inputs: Value,
    /// Where the base model lies.
    model: PathBuf,
}

impl Job<'_> {
    fn out(&self) -> &Path {
        &self.options.out
    }

    /// The number of rounds after which it stops, `done` of `total` being made.
    fn end(&self, done: u64, total: u64) -> u64 {
        let stop = self.options.stop_after;
        stop.map_or(total, |rounds| total.min(done + rounds as u64))
    }

    fn outcome(&self, finished: bool, done: u64, product: Product) -> Outcome {
        Outcome {
            training: self.training.name.clone(),
            finished,
            done,
            product,
        }
    }
}

/// Carries out a training, or what is left of it.
///
/// # Errors
/// [`harness::failure::Usage`] for a device that is not there or lacks a number format, which is said before anything
/// is read, for inputs that are missing or wrong, and for a folder that holds another training;
/// anything else for failures, among them a folder that another process writes.
pub fn train(training: &Training, options: &TrainOptions) -> Result<Outcome> {
    training.check_device()?;
    let _lock = lock(&options.out)?;
    let model = resolve(&training.model)?;
    let job = Job {
        training,
        options,
        inputs: inputs::inputs(training, &model)?,
        model,
    };
    let outcome = match &training.recipe {
        Recipe::Pcm(recipe) => pcm::train(&job, recipe),
        Recipe::Reward(recipe) => reward::train(&job, recipe),
        Recipe::Classifier(recipe) => classifier::train(&job, recipe),
        _ => adapter::train(&job),
    }?;
    // So that a comparison can tell which prompts it must keep away from.
    if let Some(folder) = outcome.product.folder() {
        let (data, _) = inputs::files(&training.recipe);
        TrainedOn::of(&[data.as_path()])?.write(folder)?;
    }
    Ok(outcome)
}
