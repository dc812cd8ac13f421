//! What an experiment takes of memory, before anything is loaded: weights, caches, adapters, logits.
//!
//! It is an estimate from shapes: a prompt counts as a token for every [`BYTES`] bytes, and models that a strategy merges
//! whole, PCMs and reward models are left out. What is known is known exactly: weights and caches are what the engines
//! reserve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use experts::Files;
use kernels::memory::available_bytes;
use lm::chat::Prompt;
use lm::load::Checkpoint;
use lm::{Adapter, DecoderConfig, DeviceSpec, Format, footprint};
use mixing::{BASE, Plan};

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::models::{located_files, located_model};
use crate::splits::Splits;

/// Bytes of a text for each of its tokens (ours; English has about 4.5 with vocabularies of 50,000 and more).
pub const BYTES: usize = 4;
/// Tokens that a chat template puts around a prompt (ours).
const AROUND: usize = 32;

/// What something takes of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Parts and their bytes.
    pub parts: Vec<(String, u64)>,
    /// What the device has left; `None` where it does not tell.
    pub available: Option<u64>,
}

impl Memory {
    /// No parts yet, on a device.
    pub fn on(device: &DeviceSpec) -> Self {
        let processor = matches!(
            device,
            DeviceSpec::Cpu | DeviceSpec::BurnFlex | DeviceSpec::Libtorch
        );
        Self {
            parts: Vec::new(),
            available: if processor { available_bytes() } else { None },
        }
    }

    /// Adds a part, unless it is empty.
    pub fn add(&mut self, part: impl Into<String>, bytes: u64) {
        if bytes > 0 {
            self.parts.push((part.into(), bytes));
        }
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// In words: `memory: about 6.1 GB (model 5.5 GB, caches 0.6 GB) of 22.0 GB`.
    pub fn shown(&self) -> String {
        let parts = self.parts.iter();
        let parts: Vec<String> = parts
            .map(|(part, bytes)| format!("{part} {}", gigabytes(*bytes)))
            .collect();
        let of = match self.available {
            Some(available) => format!(" of {}", gigabytes(available)),
            None => String::new(),
        };
        let total = gigabytes(self.total());
        format!("memory: about {total}{of} ({})", parts.join(", "))
    }

    /// It is more than the device tells to have.
    pub fn exceeds(&self) -> bool {
        self.available
            .is_some_and(|available| self.total() > available)
    }

    /// Refuses what does not fit where the device tells its size; `remedy` says what would do.
    ///
    /// # Errors
    /// A mistake of usage with all parts.
    pub fn fits(&self, what: &str, remedy: &str) -> Result<()> {
        match self.exceeds() {
            true => Err(usage(format!(
                "{what} does not fit: {}; {remedy}",
                self.shown()
            ))),
            false => Ok(()),
        }
    }
}

/// Bytes in words.
pub fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Refuses a model whose weights alone do not fit, before they are read.
///
/// # Errors
/// A mistake of usage that names the number formats that would do.
pub fn check_weights(
    name: &Path,
    config: &DecoderConfig,
    device: &DeviceSpec,
    format: Format,
) -> Result<()> {
    let needed = |format| {
        let mut memory = Memory::on(device);
        memory.add("weights", footprint::weights(config, device, format));
        memory.add("loading", footprint::loading(config));
        memory
    };
    let memory = needed(format);
    if !memory.exceeds() {
        return Ok(());
    }
    let offered = Format::ALL
        .into_iter()
        .filter(|f| device.offers(*f).is_ok());
    let smaller = offered.skip_while(|f| *f != format).skip(1);
    let smaller = smaller
        .map(|f| (f, needed(f)))
        .filter(|(_, memory)| !memory.exceeds());
    let smaller = smaller.map(|(f, memory)| format!("{f:?} takes {}", gigabytes(memory.total())));
    let smaller: Vec<String> = smaller.collect();
    let remedy = match smaller.is_empty() {
        true => "take a smaller model, or a machine with more memory".into(),
        false => format!("of the other formats, {}", smaller.join(", ")),
    };
    let what = format!("{} in {format:?} on {device}", name.display());
    memory.fits(&what, &remedy)
}

/// Tokens of a prompt, about.
pub fn about_tokens(prompt: &Prompt) -> usize {
    let bytes = match prompt {
        Prompt::Raw(text) => text.len(),
        Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
    };
    bytes / BYTES + AROUND
}

/// What an experiment takes; `None` where its base model is not there yet.
///
/// # Errors
/// A model or an adapter that is damaged.
pub fn of(experiment: &Experiment, splits: &Splits) -> Result<Option<Memory>> {
    let Some(base) = located_model(&experiment.model)? else {
        return Ok(None);
    };
    let (device, format) = (&experiment.device, experiment.format);
    let mut memory = Memory::on(device);
    let mut models: BTreeMap<PathBuf, DecoderConfig> = BTreeMap::new();
    let mut open = |path: &Path| -> Result<DecoderConfig> {
        if let Some(config) = models.get(path) {
            return Ok(config.clone());
        }
        let config = Checkpoint::open(path)?.config().clone();
        let weights = footprint::weights(&config, device, format);
        let what = if models.is_empty() {
            "base model"
        } else {
            "another model"
        };
        memory.add(what, weights);
        models.insert(path.into(), config.clone());
        Ok(config)
    };
    let config = open(&base)?;
    let mut shapes: BTreeMap<String, DecoderConfig> = BTreeMap::new();
    let mut adapters = 0;
    for (name, expert) in experiment.experts.iter() {
        let read = || -> Result<Option<PathBuf>> { located_files(expert.files().as_ref()) };
        let path = read().with_context(|| format!("expert '{name}'"))?;
        match (expert.files(), path) {
            (Some(Files::Adapter(_)), Some(path)) => {
                adapters +=
                    footprint::adapter(Adapter::describe(&path)?.parameters, device, format);
            }
            (Some(Files::Model(_)), Some(path)) => {
                shapes.insert(name.into(), open(&path)?);
            }
            _ => {}
        }
    }
    memory.add("adapters", adapters);
    let prompts = splits.prompts.iter().chain(&splits.validation);
    let longest = prompts.map(|p| about_tokens(&p.prompt)).max().unwrap_or(0);
    let texts = experiment.preferences.iter();
    let longest = longest + texts.map(|(_, p)| p.text.len() / BYTES).max().unwrap_or(0);
    let capacity = (longest + experiment.generation.max_new_tokens).min(config.context_length);
    let (mut caches, mut logits) = (0, 0);
    let mut count = |plan: &Plan| {
        let reference = experiment.kl && !plan.experts.iter().any(|e| e == BASE);
        let names = plan.experts.iter().map(String::as_str);
        let names = names.chain(reference.then_some(BASE));
        let lanes = experiment.batch_size;
        let (mut cache, mut rows) = (0, 0u64);
        for name in names {
            let shape = shapes.get(name).unwrap_or(&config);
            cache += footprint::cache(shape, device, format, lanes, capacity);
            // Logits and log-probabilities, in 32 bits.
            rows += 8 * (lanes as u64) * shape.vocab_size as u64;
        }
        (caches, logits) = (caches.max(cache), logits.max(rows));
    };
    for resolved in experiment.resolve_all()? {
        count(&resolved.plan);
        resolved.candidate_plans.iter().for_each(&mut count);
    }
    memory.add(format!("caches of {capacity} tokens"), caches);
    memory.add("logits", logits);
    Ok(Some(memory))
}
