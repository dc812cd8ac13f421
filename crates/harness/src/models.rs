//! Opening models by name or path, with progress while they are fetched.
//!
//! ```
//! use std::sync::Arc;
//!
//! use lm::{DeviceSpec, Format};
//! use mope_harness::models::{Models, hashes};
//!
//! let path = pico::path("llama");
//! let mut models = Models::on(&DeviceSpec::Cpu, Format::F32)?;
//! let model = models.open(&path.to_string_lossy())?;
//! // Asked for again, it is the same one.
//! assert!(Arc::ptr_eq(&model, &models.open(&path.to_string_lossy())?));
//! assert!(hashes(&path)?.contains_key("config.json"));
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use experts::{Expert, ExpertPool, ExpertSpec, Files, PromptCache};
use indicatif::{ProgressBar, ProgressStyle};
use lm::chat::Day;
use lm::load::Checkpoint;
use lm::source::hub::{self, Hub, HubId, Wanted, id_of, located, located_folder};
use lm::source::{Progress, Registry, sha256};
use lm::{Adapter, DecoderConfig, DeviceSpec, Format, LanguageModel, shape};
use mixing::Plan;
use mixing::merging::{Merged, Recipe, Source};

use crate::experiment::Experiment;
use crate::failure::{nearest, usage};
use crate::memory::check_weights;
use crate::terminal::printable;

/// Where a model is to be had.
#[derive(Debug)]
pub enum Found {
    /// Under this path.
    Path(PathBuf),
    /// By its name in the registry.
    Registered(Registry),
    /// On the hub.
    Hub(HubId),
}

/// Says where a model is to be had: the registry, a path, or the hub. Nothing is fetched, and the hub is not asked.
///
/// # Errors
/// An unknown name: a mistake of usage.
pub fn find(name: &str) -> Result<Found> {
    let registry = Registry::load()?;
    if registry.entries().contains_key(name) {
        return Ok(Found::Registered(registry));
    }
    let located = located(Path::new(""), name);
    let id = id_of(Path::new(&located)).map_err(|e| usage(e.to_string()))?;
    if let Some(id) = id {
        return Ok(Found::Hub(id));
    }
    if shape::is_shape(Path::new(name)) || Path::new(name).exists() {
        return Ok(Found::Path(name.into()));
    }
    let names = || registry.entries().keys().map(String::as_str);
    let hint = nearest(name, names());
    let known = names().collect::<Vec<_>>().join(", ");
    let hub = match HubId::parse(name) {
        // A folder beside the file makes it a path.
        Some(id) => format!("; if a repository of the hub is meant, write {id}"),
        None => String::new(),
    };
    Err(usage(format!(
        "model '{name}' is neither a path nor a registered name{hint}; registered: {known}{hub}"
    )))
}

/// Shows how far a fetch is, while it lasts.
fn with_progress<T>(fetch: impl FnOnce(Progress<'_>) -> lm::Result<T>) -> lm::Result<T> {
    let bar = ProgressBar::no_length();
    let style = ProgressStyle::with_template(
        "     fetch {msg} [{bar:32}] {bytes}/{total_bytes} · {bytes_per_sec} · {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("━╸ "));
    }
    let fetched = fetch(&mut |name, done, total| {
        bar.set_message(printable(name).into_owned());
        bar.set_position(done);
        if let Some(total) = total {
            bar.set_length(total);
        }
    });
    bar.finish_and_clear();
    fetched
}

/// The path of a model, fetched if need be.
///
/// # Errors
/// An unknown name (a mistake of usage), or why it could not be fetched.
pub fn resolve(name: &str) -> Result<PathBuf> {
    Ok(match find(name)? {
        Found::Path(path) => path,
        Found::Registered(registry) => with_progress(|p| registry.resolve(name, p))?,
        Found::Hub(id) => {
            let hub = Hub::from_env()?;
            with_progress(|progress| hub.fetch(&id, Wanted::Model, progress))?
        }
    })
}

/// The folder of an adapter, fetched from the hub where it is named by an id.
///
/// # Errors
/// Why it could not be fetched.
pub fn resolve_adapter(folder: &Path) -> Result<PathBuf> {
    let located = located_folder(Path::new(""), folder);
    Ok(with_progress(|progress| {
        hub::folder(&located, Wanted::Adapter, progress)
    })?)
}

/// What a repository of the hub holds, an adapter or a model, as the hub has it by now.
///
/// # Errors
/// Why it could not be fetched.
pub fn update(id: &HubId) -> Result<PathBuf> {
    let hub = Hub::from_env()?;
    Ok(with_progress(|progress| {
        hub.update(id, Wanted::Any, progress)
    })?)
}

/// What would be fetched from the hub for a model or an adapter, and from where; `None` where nothing would.
///
/// # Errors
/// No home folder.
pub fn missing(id: &HubId, wanted: Wanted) -> Result<Option<String>> {
    let hub = Hub::from_env()?;
    let what = match wanted {
        Wanted::Adapter => "adapter",
        Wanted::Model | Wanted::Any => "model",
    };
    Ok(match hub.cached(id, wanted) {
        Some(_) => None,
        None => Some(format!("{what} {id} from {}", hub.endpoint())),
    })
}

/// Where a model lies; `None` where it would have to be fetched.
///
/// # Errors
/// An unknown name: a mistake of usage.
pub fn located_model(name: &str) -> Result<Option<PathBuf>> {
    Ok(match find(name)? {
        Found::Path(path) => Some(path),
        Found::Registered(registry) => registry.there(name)?,
        Found::Hub(id) => Hub::from_env()?.cached(&id, Wanted::Model),
    })
}

/// Where the files of an expert lie; `None` where it has none, or they would have to be fetched.
///
/// # Errors
/// An unknown name: a mistake of usage.
pub fn located_files(files: Option<&Files>) -> Result<Option<PathBuf>> {
    match files {
        None => Ok(None),
        Some(Files::Model(name)) => located_model(name),
        Some(Files::Adapter(folder)) => Ok(match id_of(folder)? {
            None => Some(folder.clone()),
            Some(id) => Hub::from_env()?.cached(&id, Wanted::Adapter),
        }),
    }
}

/// SHA-256 of every file that a model or an adapter consists of, by name.
///
/// # Errors
/// A file that cannot be read.
pub fn hashes(path: &Path) -> Result<BTreeMap<String, String>> {
    if let Some(hash) = shape::hash(path) {
        return Ok([("weights".into(), hash)].into());
    }
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
            let file = entry?.path();
            let kinds = ["gguf", "safetensors", "json", "jinja", "txt"];
            let known = file
                .extension()
                .is_some_and(|e| kinds.iter().any(|k| *k == e));
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            // Other programs put more into the hub's cache.
            let known = known && (hub::commit_of(path).is_none() || hub::is_read(&name));
            if known && file.is_file() {
                files.push(file);
            }
        }
    } else if path.extension().is_some_and(|e| e == "gguf") {
        files = lm::load::gguf_files(path)?;
    } else {
        files.push(path.to_path_buf());
    }
    let named = files.into_iter().map(|file| {
        let name = file.file_name().unwrap_or_default();
        Ok((name.to_string_lossy().into_owned(), sha256(&file)?))
    });
    named.collect()
}

/// The experts of an experiment, opened over its base model, and the pools that they form.
pub struct Pools {
    models: Models,
    base: Arc<LanguageModel>,
    base_path: PathBuf,
    experts: BTreeMap<String, Expert>,
    /// Parameters of the experts that are merged.
    sources: BTreeMap<String, Source>,
    /// What the experts have read.
    prompts: Arc<PromptCache>,
}

impl Pools {
    /// Opens the base model of an experiment.
    ///
    /// # Errors
    /// A device that this build does not have, a model that cannot be opened.
    pub fn open(experiment: &Experiment) -> Result<Self> {
        let models = Models::on(&experiment.device, experiment.format)?;
        let mut models = models.dated(experiment.generation.date);
        let base = models.open(&experiment.model)?;
        let base_path = models.path(&experiment.model)?;
        let mut pools = Self {
            models,
            base,
            base_path,
            experts: BTreeMap::new(),
            sources: BTreeMap::new(),
            prompts: Arc::new(PromptCache::of_this_machine()),
        };
        pools.open_expert(experiment, mixing::BASE)?;
        Ok(pools)
    }

    /// Opens the experts that a plan runs or merges, each once.
    ///
    /// # Errors
    /// An expert that cannot be opened, or that has no parameters to merge.
    pub fn open_experts(&mut self, experiment: &Experiment, plan: &Plan) -> Result<()> {
        for name in &plan.experts {
            let Some(recipe) = plan.merged.get(name) else {
                self.open_expert(experiment, name)?;
                continue;
            };
            for source in &recipe.experts {
                if !self.sources.contains_key(source) {
                    let spec = experiment.expert(source);
                    let opened = self.models.source(source, &spec, self.base.config())?;
                    self.sources.insert(source.clone(), opened);
                }
            }
        }
        Ok(())
    }

    /// Opens one expert, once.
    pub(crate) fn open_expert(&mut self, experiment: &Experiment, name: &str) -> Result<()> {
        if !self.experts.contains_key(name) {
            let expert = self
                .models
                .expert(name, &experiment.expert(name), &self.base)?;
            self.experts.insert(name.into(), expert);
        }
        Ok(())
    }

    /// The prompts that were read by any of the pools.
    pub fn prompts(&self) -> &Arc<PromptCache> {
        &self.prompts
    }

    /// The base model.
    pub fn base(&self) -> &Arc<LanguageModel> {
        &self.base
    }

    /// Where the base model lies.
    pub fn base_path(&self) -> &Path {
        &self.base_path
    }

    /// Where the adapter or the model of an expert lies; `None` where it has none of its own.
    ///
    /// # Errors
    /// A model that cannot be found.
    pub fn files(&mut self, spec: &ExpertSpec) -> Result<Option<PathBuf>> {
        Ok(match spec.files() {
            Some(Files::Adapter(folder)) => Some(resolve_adapter(&folder)?),
            Some(Files::Model(model)) => Some(self.models.path(&model)?),
            None => None,
        })
    }

    /// An expert that was opened.
    ///
    /// # Errors
    /// One that was not.
    pub fn expert(&self, name: &str) -> Result<&Expert> {
        let expert = self.experts.get(name);
        expert.with_context(|| format!("expert '{name}' is not open"))
    }

    /// The pool that a plan runs, in the plan's order. With `reference`, the base runs beside it where the divergence
    /// from it is measured.
    ///
    /// # Errors
    /// An expert that is not open; a recipe that does not fit its experts.
    pub fn pool(&self, plan: &Plan, reference: bool) -> Result<ExpertPool> {
        let mut experts = Vec::with_capacity(plan.experts.len());
        for name in &plan.experts {
            experts.push(match plan.merged.get(name) {
                None => self.expert(name)?.clone(),
                Some(recipe) => {
                    let merged = self.merged(name, recipe);
                    merged.with_context(|| format!("merging '{name}'"))?
                }
            });
        }
        let pool = match reference {
            false => ExpertPool::new(experts)?,
            true => {
                let base = self.expert(mixing::BASE)?.clone();
                ExpertPool::with_reference(experts, base, plan.rephrases())?
            }
        };
        Ok(pool.with_prompts(self.prompts.clone()))
    }

    fn merged(&self, name: &str, recipe: &Recipe) -> Result<Expert> {
        let mut sources = Vec::with_capacity(recipe.experts.len());
        for source in &recipe.experts {
            let opened = self.sources.get(source);
            sources.push(
                opened
                    .with_context(|| format!("expert '{source}' is not open"))?
                    .clone(),
            );
        }
        let (path, base) = (&self.base_path, &self.base);
        self.models.merged(name, recipe, sources, path, base)
    }
}

/// Models of one process, each opened once.
pub struct Models {
    device: DeviceSpec,
    format: Format,
    /// What chat templates see as today.
    day: Day,
    /// Found, fetched and checked, by name or path as given.
    paths: BTreeMap<String, PathBuf>,
    open: BTreeMap<PathBuf, Arc<LanguageModel>>,
}

impl Models {
    /// Models on one device, in one number format.
    ///
    /// # Errors
    /// A device that this build does not have, a format that the device does not have.
    pub fn on(device: &DeviceSpec, format: Format) -> Result<Self> {
        device.offers(format).map_err(|e| usage(e.to_string()))?;
        Ok(Self {
            device: device.clone(),
            format,
            day: Day::default(),
            paths: BTreeMap::new(),
            open: BTreeMap::new(),
        })
    }

    /// The same models, whose chat templates see this day as today.
    #[must_use]
    pub fn dated(self, day: Day) -> Self {
        Self { day, ..self }
    }

    fn load(&self, checkpoint: &Checkpoint) -> Result<Arc<LanguageModel>> {
        check_weights(
            checkpoint.path(),
            checkpoint.config(),
            &self.device,
            self.format,
        )?;
        let mut model = LanguageModel::load(checkpoint, &self.device, self.format)?;
        model.chat = model.chat.map(|chat| chat.dated(self.day));
        Ok(Arc::new(model))
    }

    /// Where a model lies; fetching and checking happen once.
    ///
    /// # Errors
    /// Those of [`resolve`].
    pub fn path(&mut self, name_or_path: &str) -> Result<PathBuf> {
        if let Some(path) = self.paths.get(name_or_path) {
            return Ok(path.clone());
        }
        let path = resolve(name_or_path)?;
        self.paths.insert(name_or_path.into(), path.clone());
        Ok(path)
    }

    /// Opens a model by name or path.
    ///
    /// # Errors
    /// Those of [`resolve`] and [`LanguageModel::open`].
    pub fn open(&mut self, name_or_path: &str) -> Result<Arc<LanguageModel>> {
        let path = self.path(name_or_path)?;
        if let Some(model) = self.open.get(&path) {
            return Ok(model.clone());
        }
        let model = self.load(&Checkpoint::open(&path)?)?;
        self.open.insert(path, model.clone());
        Ok(model)
    }

    /// An expert's parameters, for merging.
    ///
    /// # Errors
    /// An expert that has none of its own, an adapter or model that cannot be opened.
    pub fn source(
        &mut self,
        name: &str,
        spec: &ExpertSpec,
        base: &DecoderConfig,
    ) -> Result<Source> {
        if !spec.capabilities().parameters {
            return Err(usage(format!("expert '{name}' has no parameters to merge")));
        }
        let opened = match spec.files() {
            None => return Ok(Source::Base),
            Some(Files::Adapter(folder)) => {
                let folder =
                    resolve_adapter(&folder).with_context(|| format!("expert '{name}'"))?;
                Adapter::load(&folder, base).map(|adapter| Source::Adapter(Arc::new(adapter)))
            }
            Some(Files::Model(model)) => {
                let path = self
                    .path(&model)
                    .with_context(|| format!("expert '{name}'"))?;
                Checkpoint::open(&path).map(|model| Source::Full(Arc::new(model)))
            }
        };
        opened.with_context(|| format!("expert '{name}'"))
    }

    /// The expert `name` that a recipe makes out of `sources`, over the model at `path`.
    ///
    /// # Errors
    /// Those of [`Recipe::merge`] and [`LanguageModel::load`].
    pub fn merged(
        &self,
        name: &str,
        recipe: &Recipe,
        sources: Vec<Source>,
        path: &Path,
        base: &Arc<LanguageModel>,
    ) -> Result<Expert> {
        let (model, adapter) = match recipe.merge(Checkpoint::open(path)?, sources)? {
            Merged::Adapter(adapter) => (base.clone(), Some(Arc::new(adapter))),
            Merged::Model(merged) => {
                let model = self.load(&merged)?;
                (model, None)
            }
        };
        Ok(Expert {
            name: name.into(),
            model,
            adapter,
            instruction: None,
            top_k: None,
        })
    }

    /// Opens an expert over `base`.
    ///
    /// # Errors
    /// With the expert's name.
    pub fn expert(
        &mut self,
        name: &str,
        spec: &ExpertSpec,
        base: &Arc<LanguageModel>,
    ) -> Result<Expert> {
        let model = match spec.files() {
            Some(Files::Model(model)) => {
                let opened = self.open(&model);
                opened.with_context(|| format!("expert '{name}'"))?
            }
            Some(Files::Adapter(folder)) => {
                // Here, where progress is shown.
                resolve_adapter(&folder).with_context(|| format!("expert '{name}'"))?;
                base.clone()
            }
            None => base.clone(),
        };
        Ok(Expert::open(name, spec, base, |_| Ok(model))?)
    }
}
