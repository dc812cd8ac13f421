//! Reading models: a GGUF file or a Hugging Face folder becomes a [`Checkpoint`], which hands out
//! tensors by their Hugging Face names.
//!
//! ```
//! use mope_lm::load::Checkpoint;
//!
//! let checkpoint = Checkpoint::open("tests/fixtures/pico/llama".as_ref())?;
//! checkpoint.check()?;
//! assert_eq!(checkpoint.config().vocab_size, 96);
//! assert!(Checkpoint::open("tests/fixtures/nothing".as_ref()).is_err());
//! # Ok::<(), mope_lm::Error>(())
//! ```

pub mod dequant;
pub(crate) mod families;
mod fields;
pub mod gguf;
mod gguf_adapter;
mod gguf_config;
mod gguf_model;
pub(crate) mod gguf_tokenizer;
pub mod hf;
pub(crate) mod layout;
pub mod mapped;
pub mod peft;
mod rope_fields;
pub(crate) mod scales;
pub(crate) mod tensors;
mod text;

pub use gguf_model::files as gguf_files;
#[cfg(feature = "http")]
pub(crate) use gguf_model::is_later_part;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use mapped::{Mapped, StoredTensor};
pub use text::{read_bytes, read_text};

use crate::config::DecoderConfig;
use crate::{Error, Result};

/// The source of a template as jinja2 reads it: every line ends in `\n`.
fn template_source(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Changes a tensor as it is read: name, shape, values.
pub type Edit = Box<dyn Fn(&str, &[usize], Vec<f32>) -> Result<Vec<f32>> + Send + Sync>;

/// An opened model whose tensors have not been read yet.
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    /// `model_type` of `config.json`, or GGUF's `general.architecture`.
    pub(crate) family: String,
    pub(crate) config: DecoderConfig,
    pub(crate) chat_template: Option<String>,
    pub(crate) bos_token: Option<String>,
    pub(crate) eos_token: Option<String>,
    /// Tokens that end a response, as far as the files say.
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) files: Vec<Mapped>,
    /// By Hugging Face name: file and place.
    pub(crate) tensors: HashMap<String, (usize, StoredTensor)>,
    /// Of weights in 8-bit floats.
    pub(crate) scales: scales::Scales,
    /// Header of a GGUF file, which also holds the tokenizer.
    pub(crate) gguf: Option<gguf::Header>,
    /// What becomes of each tensor on its way out.
    pub(crate) edit: Option<Edit>,
    /// Outputs of `score.weight`, where that is the head.
    pub(crate) scores: Option<usize>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("config", &self.config)
            .field("edited", &self.edit.is_some())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Tokens that end a response, as far as the files say; the first is the one to train with.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Opens a `.gguf` file (of a model in parts the first), a Hugging Face folder, a folder that holds one
    /// model in `.gguf`, or a [shape](crate::shape) with weights at random. Only headers are read, and a head that may be the embedding again.
    ///
    /// # Errors
    /// Missing, damaged or unsupported files, by name and position.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Self::open_any(path)?;
        // The tensors of a config are listed before they are looked for.
        let (layers, tensors) = (checkpoint.config.layers, checkpoint.tensors.len());
        if layers > tensors {
            let message = format!("the config has {layers} layers, the file {tensors} tensors");
            return Err(Error::format(path, message));
        }
        Ok(checkpoint)
    }

    fn open_any(path: &Path) -> Result<Self> {
        if crate::shape::is_shape(path) {
            return crate::shape::open(path);
        }
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if !metadata.is_dir() {
            return gguf_model::open(path);
        }
        if path.join("config.json").exists() {
            return hf::open(path);
        }
        let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
        let mut files: Vec<_> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
            .filter(|p| !gguf_model::is_later_part(p))
            .collect();
        match (files.pop(), files.is_empty()) {
            (Some(only), true) => gguf_model::open(&only),
            _ => Err(Error::format(
                path,
                "not a model: a folder needs config.json with safetensors, or exactly one .gguf file",
            )),
        }
    }

    /// The same model with every tensor changed as it is read, one at a time, after what changes it already: a merged
    /// model is neither written nor held twice.
    #[must_use]
    pub fn edited(self, edit: Edit) -> Self {
        let edit: Edit = match self.edit {
            None => edit,
            Some(first) => {
                Box::new(move |name, shape, data| edit(name, shape, first(name, shape, data)?))
            }
        };
        Self {
            edit: Some(edit),
            ..self
        }
    }

    /// The same model with `score.weight`, `[outputs, hidden]`, as its head in place of the one over the vocabulary.
    #[must_use]
    pub fn with_scores(mut self, outputs: usize) -> Self {
        let family = &mut self.config.family;
        // These are of logits over the vocabulary.
        (family.logit_divisor, family.logit_cap) = (1.0, None);
        let scores = Some(outputs);
        Self { scores, ..self }
    }

    /// Shape of the model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The model is tuned for conversations.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// Name of the family: `model_type` of `config.json`, or `general.architecture` of a GGUF file.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// Where the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name, shape and format of every stored tensor, sorted by name.
    pub fn tensors(&self) -> Vec<(&str, &StoredTensor)> {
        let mut all: Vec<_> = self
            .tensors
            .iter()
            .map(|(n, (_, t))| (n.as_str(), t))
            .collect();
        all.sort_by_key(|(name, _)| *name);
        all
    }

    /// Looks for every tensor that the config asks for, without reading one.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn check(&self) -> Result<()> {
        let reader = self.reader();
        for (name, shape) in self.config.tensors() {
            reader.find(&name, &shape)?;
        }
        reader.finish()
    }

    /// Starts reading the tensors.
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            checkpoint: self,
            read: RefCell::default(),
        }
    }
}

/// Hands out tensors once each and knows at the end which were not asked for.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    read: RefCell<HashSet<String>>,
}

impl Reader<'_> {
    /// The tensor `name` as f32, checked against `expected`, the shape that the config asks for.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or holds NaN or infinity.
    pub fn get(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let checkpoint = self.checkpoint;
        let (file, tensor) = self.find(name, expected)?;
        let mut data = file.read(name, tensor)?;
        let (scales, files) = (&checkpoint.scales, &checkpoint.files);
        scales.apply(files, name, expected, &mut data)?;
        match checkpoint.gguf {
            Some(_) if checkpoint.rope_interleaved() => {
                checkpoint.config.half_split(name, &mut data, true);
            }
            Some(_) => {}
            None => checkpoint.config.inward(name, &mut data),
        }
        let Some(edit) = &checkpoint.edit else {
            return Ok(data);
        };
        let data = edit(name, expected, data)?;
        mapped::all_finite(&checkpoint.path, name, expected, &data)?;
        Ok(data)
    }

    fn find(&self, name: &str, expected: &[usize]) -> Result<(&Mapped, &StoredTensor)> {
        let checkpoint = self.checkpoint;
        let Some((file, tensor)) = checkpoint.tensors.get(name) else {
            return Err(Error::MissingTensor {
                path: checkpoint.path.clone(),
                tensor: name.into(),
            });
        };
        if tensor.shape != expected {
            return Err(Error::Shape {
                path: checkpoint.path.clone(),
                tensor: name.into(),
                expected: expected.into(),
                got: tensor.shape.clone(),
            });
        }
        self.read.borrow_mut().insert(name.into());
        Ok((&checkpoint.files[*file], tensor))
    }

    /// Refuses a checkpoint that holds tensors that were not read: they would be silently ignored.
    ///
    /// # Errors
    /// Names the first of them.
    pub fn finish(self) -> Result<()> {
        let read = self.read.borrow();
        let harmless = |name: &str| {
            // Constants that old versions of transformers stored; a tied head is the embedding again.
            [
                ".rotary_emb.inv_freq",
                ".rotary_emb.cos_cached",
                ".rotary_emb.sin_cached",
                ".masked_bias",
            ]
            .iter()
            .any(|constant| name.ends_with(constant))
                || (name == "lm_head.weight" && self.checkpoint.config.tied_head)
        };
        let mut left: Vec<_> = self.checkpoint.tensors.keys().collect();
        left.retain(|name| !read.contains(*name) && !harmless(name));
        left.sort();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Error::unsupported(
                &self.checkpoint.path,
                format!("{} unknown tensor(s), the first '{first}',", left.len()),
                "the tensors of its family",
            )),
        }
    }
}
