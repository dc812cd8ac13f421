//! What a training takes of memory, before anything is loaded: an estimate from shapes, as [`harness::memory`] makes one
//! for experiments.

use std::path::Path;

use anyhow::Result;
use harness::memory::{BYTES, Memory, about_tokens};
use harness::models::located_model;
use harness::prompts;
use lm::load::{Checkpoint, read_text};
use lm::{DeviceSpec, footprint};

use super::file::{Recipe, Training};

/// Responses that are sampled together, at most.
const SAMPLED: usize = 32;

/// What a training takes; `None` where its base model is not there yet.
///
/// # Errors
/// A model that is damaged, data that cannot be read.
///
/// ```
/// use mope_training::{Training, memory};
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("big.ron");
/// std::fs::write(folder.path().join("data.jsonl"), r#"{"prompt": "Why?", "response": "So."}"#)?;
/// std::fs::write(&file, r#"(name: "big", model: "shape://llama-3.1-8b", recipe: Sft(data: "data.jsonl"))"#)?;
/// let memory = memory::of(&Training::load(&file)?)?.expect("the model is there");
/// assert!(memory.total() > 32_000_000_000, "{}", memory.shown());
/// # anyhow::Ok(())
/// ```
pub fn of(training: &Training) -> Result<Option<Memory>> {
    let Some(path) = located_model(&training.model)? else {
        return Ok(None);
    };
    let checkpoint = Checkpoint::open(&path)?;
    let (config, device) = (checkpoint.config(), DeviceSpec::Cpu);
    let mut memory = Memory::on(&device);
    let Work {
        sequences,
        longest,
        sampled,
    } = work(&training.recipe)?;
    let longest = longest.min(config.context_length);
    if let Some(sequences) = sequences {
        let batch = (sequences.saturating_mul(longest), longest);
        let taken = footprint::Training::new(config, training.format, &training.lora, batch);
        memory.add(
            format!("model that learns, {:?}", training.format),
            taken.weights,
        );
        memory.add("adapter", taken.adapter);
        memory.add("gradients", taken.gradients);
        memory.add("optimiser", taken.optimiser);
        memory.add(
            format!("activations of {sequences} × {longest} tokens"),
            taken.activations,
        );
    }
    if let Some(lanes) = sampled {
        let format = training.sampling_format;
        let weights = footprint::weights(config, &device, format);
        memory.add(format!("model that samples, {format:?}"), weights);
        let caches = footprint::cache(config, &device, format, lanes, longest);
        memory.add(format!("its caches of {longest} tokens"), caches);
        memory.add("logits", 8 * lanes as u64 * config.vocab_size as u64);
    }
    Ok(Some(memory))
}

/// How much runs at once.
struct Work {
    /// Sequences of a batch; `None` where no adapter learns.
    sequences: Option<usize>,
    /// Tokens of the longest one, about.
    longest: usize,
    /// Lanes that sample; `None` where nothing does.
    sampled: Option<usize>,
}

fn work(recipe: &Recipe) -> Result<Work> {
    let given = |data: &Path, sequences: usize| -> Result<Work> {
        let text = read_text(data)?;
        let lines = text.lines().map(|line| line.len() / BYTES);
        Ok(Work {
            sequences: Some(sequences),
            longest: lines.max().unwrap_or(0),
            sampled: None,
        })
    };
    let made = |file: &Path, new: usize, sequences, lanes: usize| -> Result<Work> {
        let all = prompts::load(file)?;
        let tokens = all.iter().map(|p| about_tokens(&p.prompt));
        Ok(Work {
            sequences,
            longest: tokens.max().unwrap_or(0).saturating_add(new),
            sampled: Some(lanes),
        })
    };
    match recipe {
        Recipe::Sft(t) => given(&t.data, t.settings.minibatch),
        Recipe::Dpo(t) => given(&t.data, 2 * t.settings.minibatch),
        Recipe::Reward(t) => given(&t.data, 2 * t.settings.minibatch),
        Recipe::Rebel(t) => {
            let pairs = Some(2 * t.settings.minibatch);
            made(&t.prompts, t.settings.max_new_tokens, pairs, SAMPLED)
        }
        Recipe::BestWorst(t) => {
            let pairs = Some(2 * t.settings.minibatch);
            made(&t.prompts, t.max_new_tokens, pairs, SAMPLED)
        }
        Recipe::Morl(t) => {
            let pairs = Some(2 * t.settings.minibatch);
            made(&t.prompts, t.max_new_tokens, pairs, SAMPLED)
        }
        Recipe::Classifier(t) => made(&t.prompts, t.max_new_tokens, None, SAMPLED),
        Recipe::Pcm(t) => {
            let lanes = SAMPLED / 2 * t.experts.names().len().max(1);
            made(&t.prompts, t.settings.max_new_tokens, None, lanes)
        }
    }
}
